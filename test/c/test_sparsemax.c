/* sparsemax through the C API, against tau from a sorted row in long double. */
#include "harness.h"

static int descending(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return x < y ? 1 : x > y ? -1 : 0;
}

static long double tau_of(const double *x, int64_t n) {
  double *sorted = malloc((size_t)n * 8);
  long double tau = 0;
  memcpy(sorted, x, (size_t)n * 8);
  qsort(sorted, (size_t)n, 8, descending);
  long double sum = 0;
  for (int64_t k = 1; k <= n; k++) {
    sum += sorted[k - 1];
    if (1 + (long double)k * sorted[k - 1] > sum) tau = (sum - 1) / k;
  }
  free(sorted);
  return tau;
}

static void run(int64_t rows, int64_t cols, int64_t pad, liger_dtype t, double scale) {
  snprintf(where, sizeof where, "sparsemax %ldx%ld+%ld %s scale %g", (long)rows, (long)cols, (long)pad,
           dtype_names[t], scale);
  const int64_t stride = cols + pad;
  buf x = buf_random(rows * stride, t, scale), dy = buf_random(rows * stride, t, 1);
  buf y = buf_new(rows * cols, t), dx = buf_new(rows * cols, t);
  double *want_y = calloc((size_t)(rows * cols + 1), 8), *want_dx = calloc((size_t)(rows * cols + 1), 8);
  double *row = malloc((size_t)(cols + 1) * 8);
  for (int64_t r = 0; r < rows; r++) {
    for (int64_t c = 0; c < cols; c++) row[c] = get(x, r * stride + c);
    const long double tau = tau_of(row, cols);
    for (int64_t c = 0; c < cols; c++) want_y[r * cols + c] = fmax((double)(row[c] - tau), 0);
  }
  liger_softmax_fwd_args f = {y.p, x.p, rows, cols, 1, stride, t};
  expect(liger_sparsemax_fwd_cpu(&f, 0, rows / 2) == LIGER_OK, "fwd, first half");
  expect(liger_sparsemax_fwd_cpu(&f, rows / 2, rows) == LIGER_OK, "fwd, second half");
  close_rows("Y", y, cols, want_y, rows, cols, 8);
  for (int64_t r = 0; r < rows; r++) { /* from the Y that was stored */
    long double sum = 0;
    int64_t n = 0;
    for (int64_t c = 0; c < cols; c++)
      if (get(y, r * cols + c) > 0) sum += get(dy, r * stride + c), n++;
    for (int64_t c = 0; c < cols; c++)
      want_dx[r * cols + c] = get(y, r * cols + c) > 0 ? get(dy, r * stride + c) - (double)(sum / n) : 0;
  }
  liger_softmax_bwd_args b = {dx.p, dy.p, y.p, rows, cols, 1, stride, cols, t};
  expect(liger_sparsemax_bwd_cpu(&b, 0, rows / 2) == LIGER_OK, "bwd, first half");
  expect(liger_sparsemax_bwd_cpu(&b, rows / 2, rows) == LIGER_OK, "bwd, second half");
  close_rows("dX", dx, cols, want_dx, rows, cols, 8);
  buf_free(x), buf_free(dy), buf_free(y), buf_free(dx);
  free(want_y), free(want_dx), free(row);
}

/* Small integers and halves are exact in every dtype, so equality is asked for. */
static void run_ties(liger_dtype t) {
  const double x[][6] = {
      {1, 1, 0, -3, -3, 0}, {2, 2, 2, 2, 2, 2}, {0, -1, -1, -5, -9, -2}, {.5, .5, 0, 0, 0, -1}};
  const double want[][6] = {{.5, .5, 0, 0, 0, 0},
                            {1. / 6, 1. / 6, 1. / 6, 1. / 6, 1. / 6, 1. / 6},
                            {1, 0, 0, 0, 0, 0},
                            {.5, .5, 0, 0, 0, 0}};
  snprintf(where, sizeof where, "sparsemax at ties, %s", dtype_names[t]);
  for (int k = 0; k < 4; k++) {
    buf in = buf_new(6, t), y = buf_new(6, t);
    for (int c = 0; c < 6; c++) put(in, c, x[k][c]);
    liger_softmax_fwd_args f = {y.p, in.p, 1, 6, 1, 6, t};
    expect(liger_sparsemax_fwd_cpu(&f, 0, 1) == LIGER_OK, "fwd");
    int ok = 1;
    for (int c = 0; c < 6; c++)
      ok = ok && (k == 1 ? fabs(get(y, c) - want[k][c]) <= eps_of(t) / 8 : get(y, c) == want[k][c]);
    expect(ok, "a tie is not exact");
    buf_free(in), buf_free(y);
  }
  const double bad[] = {-INFINITY, NAN, INFINITY};
  for (int k = 0; k < 3; k++) {
    buf in = buf_new(9000, t), y = buf_new(9000, t);
    for (int c = 0; c < 9000; c++) put(in, c, k == 0 || c == 8999 ? bad[k] : 1);
    liger_softmax_fwd_args f = {y.p, in.p, 1, 9000, 1, 9000, t};
    expect(liger_sparsemax_fwd_cpu(&f, 0, 1) == LIGER_OK && isnan(get(y, 0)) && isnan(get(y, 8999)),
           "a row without a tau is not NaN");
    buf_free(in), buf_free(y);
  }
}

int main(void) {
  const int64_t shapes[][3] = {{0, 8, 0}, {1, 1, 0},    {3, 1, 2},    {5, 33, 3},
                               {4, 0, 0}, {3, 8192, 5}, {2, 8193, 0}, {2, 20001, 7}};
  const double scales[] = {0.01, 1, 30};
  for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
    for (int t = 0; t < 4; t++)
      for (int k = 0; k < 3; k++) run(shapes[s][0], shapes[s][1], shapes[s][2], (liger_dtype)t, scales[k]);
  for (int t = 0; t < 4; t++) run_ties((liger_dtype)t);
  return finish("sparsemax");
}
