/* rms_norm   Y = X * rstd * (W + offset),   rstd = 1/sqrt(mean(X^2) + eps)          per row
 *            dX = rstd * (m - X * rstd^2 * mean(m * X)),  m = dY * (W + offset);  dW = sum_rows(dY * X * rstd)
 * Shapes     X Y dX dY (n_rows, n_cols), last dim contiguous; W dW (n_cols); rstd (n_rows) real, saved by fwd
 * Casting    llama: round X * rstd to X's dtype, then times W.  gemma, none: no rounding before the store
 * Plan       a row passes through `real` buffers of LIGER_TILE columns; a wider row is read twice
 * Source     arXiv:1910.07467; LlamaRMSNorm and GemmaRMSNorm in transformers                                        */
#include "primitives.h"

/* w[0..n) = W[c..c+n) + offset, or 1 where there is no weight */
static void load_scale(real *restrict w, const void *W, int64_t c, int64_t n, liger_dtype w_dtype, real offset) {
  if (!W) {
    for (int64_t i = 0; i < n; i++)
      w[i] = 1;
    return;
  }
  load_row(w, W, c, n, w_dtype);
  if (offset != 0)
    for (int64_t i = 0; i < n; i++)
      w[i] += offset;
}

liger_status LIGER_KERNEL(rms_norm_fwd)(const liger_rms_norm_fwd_args *a, int64_t row_begin, int64_t row_end) {
  real x[LIGER_TILE], w[LIGER_TILE];
  const int64_t n_cols = a->n_cols;
  const int whole = n_cols <= LIGER_TILE; /* the row and the weight stay in the buffers */
  if (whole)
    load_scale(w, a->W, 0, n_cols, a->w_dtype, (real)a->offset);
  for (int64_t row = row_begin; row < row_end; row++) {
    real sum = 0;
    for (int64_t c = 0; c < n_cols; c += LIGER_TILE) {
      const int64_t n = n_cols - c < LIGER_TILE ? n_cols - c : LIGER_TILE;
      load_row(x, a->X, row * a->X_row_stride + c, n, a->x_dtype);
      sum += dot(x, x, n);
    }
    const real rstd = 1 / (real)sqrt((double)(sum / (real)n_cols + (real)a->eps));
    ((real *)a->rstd)[row] = rstd;
    for (int64_t c = 0; c < n_cols; c += LIGER_TILE) {
      const int64_t n = n_cols - c < LIGER_TILE ? n_cols - c : LIGER_TILE;
      if (!whole) {
        load_row(x, a->X, row * a->X_row_stride + c, n, a->x_dtype);
        load_scale(w, a->W, c, n, a->w_dtype, (real)a->offset);
      }
      for (int64_t i = 0; i < n; i++)
        x[i] *= rstd;
      if (a->casting == LIGER_CAST_LLAMA)
        round_row(x, n, a->x_dtype);
      for (int64_t i = 0; i < n; i++)
        x[i] *= w[i];
      store_row(a->Y, row * a->Y_row_stride + c, x, n, a->x_dtype);
    }
  }
  return LIGER_OK;
}

/* x = X * rstd and m = dY * (W + offset) of one tile; the tile's part of dW is added to dw if there is one */
static void load_tile(const liger_rms_norm_bwd_args *a, int64_t row, int64_t c, int64_t n, real rstd, const real *w,
                      real *restrict x, real *restrict m, real *restrict dw) {
  load_row(x, a->X, row * a->X_row_stride + c, n, a->x_dtype);
  load_row(m, a->dY, row * a->dY_row_stride + c, n, a->x_dtype);
  for (int64_t i = 0; i < n; i++)
    x[i] *= rstd;
  if (dw)
    for (int64_t i = 0; i < n; i++)
      dw[i] += m[i] * x[i];
  for (int64_t i = 0; i < n; i++)
    m[i] *= w[i];
}

liger_status LIGER_KERNEL(rms_norm_bwd)(const liger_rms_norm_bwd_args *a, int64_t block_begin, int64_t block_end) {
  real x[LIGER_TILE], m[LIGER_TILE], w[LIGER_TILE];
  const int64_t n_cols = a->n_cols;
  const int whole = n_cols <= LIGER_TILE;
  if (whole)
    load_scale(w, a->W, 0, n_cols, a->w_dtype, (real)a->offset);
  for (int64_t block = block_begin; block < block_end; block++) {
    real *dw = a->dW ? (real *)a->dW_partial + block * n_cols : NULL;
    if (dw)
      memset(dw, 0, (size_t)n_cols * sizeof(real));
    int64_t row, last;
    for (block_rows(block, a->n_blocks, a->n_rows, &row, &last); row < last; row++) {
      const real rstd = ((const real *)a->rstd)[row];
      real mean = 0;
      for (int64_t c = 0; c < n_cols; c += LIGER_TILE) {
        const int64_t n = n_cols - c < LIGER_TILE ? n_cols - c : LIGER_TILE;
        if (!whole)
          load_scale(w, a->W, c, n, a->w_dtype, (real)a->offset);
        load_tile(a, row, c, n, rstd, w, x, m, dw ? dw + c : NULL);
        mean += dot(m, x, n);
      }
      mean /= (real)n_cols;
      for (int64_t c = 0; c < n_cols; c += LIGER_TILE) {
        const int64_t n = n_cols - c < LIGER_TILE ? n_cols - c : LIGER_TILE;
        if (!whole) {
          load_scale(w, a->W, c, n, a->w_dtype, (real)a->offset);
          load_tile(a, row, c, n, rstd, w, x, m, NULL);
        }
        for (int64_t i = 0; i < n; i++)
          m[i] = rstd * (m[i] - x[i] * mean);
        store_row(a->dX, row * n_cols + c, m, n, a->x_dtype);
      }
    }
  }
  return LIGER_OK;
}

liger_status LIGER_KERNEL(rms_norm_dw)(const liger_rms_norm_bwd_args *a, int64_t col_begin, int64_t col_end) {
  column_sum(a->dW, (const real *)a->dW_partial, a->n_blocks, a->n_cols, col_begin, col_end, a->w_dtype);
  return LIGER_OK;
}

#if LIGER_BASE_UNIT
/* Fixed by the sizes alone, so that dW has the same bits whatever the thread count; a block holds at least 16 rows. */
int64_t liger_rms_norm_bwd_blocks_cpu(int64_t n_rows, int64_t n_cols) {
  (void)n_cols;
  const int64_t n = n_rows / 16;
  return n < 1 ? 1 : n > 64 ? 64 : n;
}
#endif
LIGER_CPU_ENTRY(rms_norm_fwd, liger_rms_norm_fwd_args, x_dtype);
LIGER_CPU_ENTRY(rms_norm_bwd, liger_rms_norm_bwd_args, x_dtype);
LIGER_CPU_ENTRY(rms_norm_dw, liger_rms_norm_bwd_args, x_dtype);
