/* embedding through the C API, against a loop in double. */
#include "harness.h"

static int by_id(const void *a, const void *b) { /* stable: the places decide at a tie */
  const int64_t *x = a, *y = b;
  return x[0] != y[0] ? (x[0] < y[0] ? -1 : 1) : x[1] < y[1] ? -1 : x[1] > y[1];
}

static void run(int64_t rows, int64_t cols, int64_t vocab, int64_t n_ids, int64_t padding, liger_dtype t) {
  snprintf(where, sizeof where, "embedding %ld of %ldx%ld, %ld ids, padding %ld, %s", (long)rows, (long)vocab,
           (long)cols, (long)n_ids, (long)padding, dtype_names[t]);
  const int64_t stride = cols + 3;
  buf w = buf_random(vocab * stride, t, 1), dy = buf_random(rows * stride, t, 1);
  buf y = buf_new(rows * cols, t), dw = buf_new(vocab * cols, t);
  int64_t *ids = malloc((size_t)(rows + 1) * 8), *pairs = malloc((size_t)(2 * rows + 1) * 8);
  int64_t *sorted = malloc((size_t)(rows + 1) * 8), *order = malloc((size_t)(rows + 1) * 8);
  double *want = calloc((size_t)(rows * cols + 1), 8), *want_dw = calloc((size_t)(vocab * cols + 1), 8);
  long double *sum = calloc((size_t)(vocab * cols + 1), sizeof *sum);
  for (int64_t r = 0; r < rows; r++) {
    ids[r] = (int64_t)((uniform() + 1) / 2 * (double)n_ids);
    pairs[2 * r] = ids[r], pairs[2 * r + 1] = r;
    for (int64_t c = 0; c < cols; c++) {
      want[r * cols + c] = get(w, ids[r] * stride + c);
      if (ids[r] != padding) sum[ids[r] * cols + c] += get(dy, r * stride + c);
    }
  }
  for (int64_t i = 0; i < vocab * cols; i++) want_dw[i] = (double)sum[i];
  qsort(pairs, (size_t)rows, 16, by_id);
  for (int64_t r = 0; r < rows; r++) sorted[r] = pairs[2 * r], order[r] = pairs[2 * r + 1];
  expect(liger_embedding_bad_id_cpu(ids, rows, vocab) == -1, "a good id is called bad");
  liger_embedding_fwd_args f = {y.p, w.p, ids, rows, cols, vocab, stride, t};
  expect(liger_embedding_fwd_cpu(&f, 0, rows / 2) == LIGER_OK, "fwd, first half");
  expect(liger_embedding_fwd_cpu(&f, rows / 2, rows) == LIGER_OK, "fwd, second half");
  close_rows("Y", y, cols, want, rows, cols, 0);

  const int64_t n = liger_embedding_slices(rows);
  buf partial = buf_new(2 * n * cols, real_of(t));
  liger_embedding_bwd_args b = {dw.p, partial.p, dy.p,   sorted, order,   rows,
                                cols, vocab,     stride, n,      padding, t};
  expect(liger_embedding_bwd_cpu(&b, n / 2, n) == LIGER_OK, "bwd, second half");
  expect(liger_embedding_bwd_cpu(&b, 0, n / 2) == LIGER_OK, "bwd, first half");
  expect(liger_embedding_join_cpu(&b, n / 3, n) == LIGER_OK, "join, rest");
  expect(liger_embedding_join_cpu(&b, 0, n / 3) == LIGER_OK, "join, first third");
  expect(liger_embedding_zero_cpu(&b, 0, vocab / 2) == LIGER_OK, "zero, first half");
  expect(liger_embedding_zero_cpu(&b, vocab / 2, vocab) == LIGER_OK, "zero, second half");
  close_rows("dW", dw, cols, want_dw, vocab, cols, 2 + sqrt((double)rows) / 8);
  buf_free(w), buf_free(dy), buf_free(y), buf_free(dw), buf_free(partial);
  free(ids), free(pairs), free(sorted), free(order), free(want), free(want_dw), free(sum);
}

static void run_out_of_range(void) {
  snprintf(where, sizeof where, "embedding, ids out of range");
  const int64_t ids[] = {1, -1, 4, INT64_MIN, 0}, sorted[] = {INT64_MIN, -1, 0, 1, 4},
                order[] = {3, 1, 4, 0, 2};
  buf w = buf_random(4 * 5, LIGER_F32, 1), y = buf_new(5 * 5, LIGER_F32), dw = buf_new(4 * 5, LIGER_F32);
  buf dy = buf_random(5 * 5, LIGER_F32, 1), partial = buf_new(2 * 5, LIGER_F32);
  liger_embedding_fwd_args f = {y.p, w.p, ids, 5, 5, 4, 5, LIGER_F32};
  expect(liger_embedding_bad_id_cpu(ids, 5, 4) == 1, "the first bad id is not found");
  expect(liger_embedding_fwd_cpu(&f, 0, 5) == LIGER_OK, "fwd");
  for (int r = 0; r < 5; r++)
    expect(isnan(get(y, r * 5)) == (r >= 1 && r <= 3), "a token out of range is not NaN, or another is");
  liger_embedding_bwd_args b = {dw.p, partial.p, dy.p, sorted, order, 5, 5, 4, 5, 1, -1, LIGER_F32};
  expect(liger_embedding_bwd_cpu(&b, 0, 1) == LIGER_OK && liger_embedding_join_cpu(&b, 0, 1) == LIGER_OK &&
             liger_embedding_zero_cpu(&b, 0, 4) == LIGER_OK,
         "bwd");
  expect(get(dw, 0) == get(dy, 4 * 5) && get(dw, 5) == get(dy, 0) && get(dw, 10) == 0 && get(dw, 15) == 0,
         "dW");
  buf_free(w), buf_free(y), buf_free(dw), buf_free(dy), buf_free(partial);
}

int main(void) {
  const int64_t shapes[][5] = {{0, 4, 3, 3, -1},        {1, 1, 1, 1, -1},      {40, 33, 7, 7, 2},
                               {700, 5, 3, 3, -1},      {700, 5, 3, 1, -1},    {5000, 3, 9, 2, 0},
                               {200, 2050, 50, 50, 49}, {129, 4, 400, 400, 7}, {3000, 1, 40, 25, 3}};
  for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
    for (int t = 0; t < 4; t++)
      run(shapes[s][0], shapes[s][1], shapes[s][2], shapes[s][3], shapes[s][4], (liger_dtype)t);
  run_out_of_range();
  return finish("embedding");
}
