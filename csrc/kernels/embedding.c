/* embedding   Y_t = W_{ids_t}; dW_v = sum of dY_t over the t with ids_t = v
 * Shapes      W dW (n_embeddings, n_cols), Y dY (n_rows, n_cols), last dim contiguous; ids (n_rows)
 * Rounding    forward copies; dW is added up in `real`, in the order of t, and rounded once
 * Plan        backward over the sorted ids, in slices that are fixed by their number (csrc/liger_rows.h):
 *             each row of dW is written once, as a run's sum or as zeros
 * Source      torch.nn.functional.embedding */
#include "primitives.h"

enum { COLS = 1024 };

static int in_range(int64_t id, int64_t n_embeddings) { return id >= 0 && id < n_embeddings; }

liger_status LIGER_KERNEL(embedding_fwd)(const liger_embedding_fwd_args *a, int64_t row_begin,
                                         int64_t row_end) {
  const int64_t size = (int64_t)dtype_size(a->x_dtype);
  for (int64_t row = row_begin; row < row_end; row++) {
    const int64_t id = a->ids[row];
    if (in_range(id, a->n_embeddings)) {
      memcpy((char *)a->Y + row * a->n_cols * size, (const char *)a->W + id * a->W_row_stride * size,
             (size_t)(a->n_cols * size));
      continue;
    }
    real nan[COLS];
    for (int64_t i = 0; i < COLS; i++) nan[i] = NAN;
    for (int64_t c = 0; c < a->n_cols; c += COLS)
      store_row(a->Y, row * a->n_cols + c, nan, a->n_cols - c < COLS ? a->n_cols - c : COLS, a->x_dtype);
  }
  return LIGER_OK;
}

/* acc[0..n) += columns [c, c + n) of the dY that the sorted places [first, last) have */
static void add_run(real *restrict acc, const liger_embedding_bwd_args *a, int64_t first, int64_t last,
                    int64_t c, int64_t n) {
  real dy[COLS];
  for (int64_t p = first; p < last; p++) {
    load_row(dy, a->dY, a->order[p] * a->dY_row_stride + c, n, a->x_dtype);
    for (int64_t i = 0; i < n; i++) acc[i] += dy[i];
  }
}

liger_status LIGER_KERNEL(embedding_bwd)(const liger_embedding_bwd_args *a, int64_t slice_begin,
                                         int64_t slice_end) {
  real *const before = (real *)a->partial, *const after = before + a->n_slices * a->n_cols;
  for (int64_t slice = slice_begin; slice < slice_end; slice++) {
    int64_t begin, end, next;
    block_rows(slice, a->n_slices, a->n_rows, &begin, &end);
    for (int64_t p = begin; p < end; p = next) {
      const int64_t id = a->sorted_ids[p];
      for (next = p + 1; next < end && a->sorted_ids[next] == id;) next++;
      if (!in_range(id, a->n_embeddings) || id == a->padding_idx) continue;
      const int began_before = p == begin && begin > 0 && a->sorted_ids[begin - 1] == id;
      const int goes_on = next == end && end < a->n_rows && a->sorted_ids[end] == id;
      for (int64_t c = 0; c < a->n_cols; c += COLS) {
        const int64_t n = a->n_cols - c < COLS ? a->n_cols - c : COLS;
        real acc[COLS] = {0};
        add_run(acc, a, p, next, c, n);
        if (began_before) memcpy(before + slice * a->n_cols + c, acc, (size_t)n * sizeof(real));
        else if (goes_on) memcpy(after + slice * a->n_cols + c, acc, (size_t)n * sizeof(real));
        else store_row(a->dW, id * a->n_cols + c, acc, n, a->x_dtype);
      }
    }
  }
  return LIGER_OK;
}

liger_status LIGER_KERNEL(embedding_join)(const liger_embedding_bwd_args *a, int64_t slice_begin,
                                          int64_t slice_end) {
  const real *const before = (const real *)a->partial, *const after = before + a->n_slices * a->n_cols;
  for (int64_t slice = slice_begin; slice < slice_end; slice++) {
    int64_t begin, end;
    block_rows(slice, a->n_slices, a->n_rows, &begin, &end);
    if (end == begin || end == a->n_rows) continue;
    const int64_t id = a->sorted_ids[end - 1];
    const int goes_on = a->sorted_ids[end] == id;
    const int began_before = begin > 0 && a->sorted_ids[begin - 1] == id;
    if (!goes_on || began_before || !in_range(id, a->n_embeddings) || id == a->padding_idx) continue;
    int64_t last = slice + 1; /* one past the last slice that the run reaches */
    for (; last < a->n_slices && a->sorted_ids[end] == id; last++) {
      int64_t unused;
      block_rows(last, a->n_slices, a->n_rows, &unused, &end);
      if (end == a->n_rows) {
        last++;
        break;
      }
    }
    for (int64_t c = 0; c < a->n_cols; c += COLS) {
      const int64_t n = a->n_cols - c < COLS ? a->n_cols - c : COLS;
      real acc[COLS];
      memcpy(acc, after + slice * a->n_cols + c, (size_t)n * sizeof(real));
      for (int64_t k = slice + 1; k < last; k++)
        for (int64_t i = 0; i < n; i++) acc[i] += before[k * a->n_cols + c + i];
      store_row(a->dW, id * a->n_cols + c, acc, n, a->x_dtype);
    }
  }
  return LIGER_OK;
}

liger_status LIGER_KERNEL(embedding_zero)(const liger_embedding_bwd_args *a, int64_t row_begin,
                                          int64_t row_end) {
  const size_t bytes = (size_t)a->n_cols * dtype_size(a->x_dtype);
  int64_t p = 0, last = a->n_rows; /* the first place whose id is row_begin or more */
  while (p < last) {
    const int64_t middle = p + (last - p) / 2;
    if (a->sorted_ids[middle] < row_begin) p = middle + 1;
    else last = middle;
  }
  for (int64_t row = row_begin; row < row_end; row++) {
    const int named = p < a->n_rows && a->sorted_ids[p] == row;
    while (p < a->n_rows && a->sorted_ids[p] == row) p++;
    if (!named || row == a->padding_idx) memset((char *)a->dW + (size_t)row * bytes, 0, bytes);
  }
  return LIGER_OK;
}

#if LIGER_BASE_UNIT
int64_t liger_embedding_bad_id_cpu(const int64_t *ids, int64_t n, int64_t n_embeddings) {
  for (int64_t i = 0; i < n; i++)
    if (!in_range(ids[i], n_embeddings)) return i;
  return -1;
}
#endif
LIGER_CPU_ENTRY(embedding_fwd, liger_embedding_fwd_args, x_dtype);
LIGER_CPU_ENTRY(embedding_bwd, liger_embedding_bwd_args, x_dtype);
LIGER_CPU_ENTRY(embedding_join, liger_embedding_bwd_args, x_dtype);
LIGER_CPU_ENTRY(embedding_zero, liger_embedding_bwd_args, x_dtype);
