/* softmax through the C API, against a loop in double. */
#include "harness.h"

static void run(int64_t rows, int64_t cols, int64_t inner, int64_t pad, liger_dtype t, double scale) {
  snprintf(where, sizeof where, "softmax %ldx%ldx%ld+%ld %s scale %g", (long)rows, (long)cols, (long)inner,
           (long)pad, dtype_names[t], scale);
  const int64_t span = cols * inner, stride = span + pad;
  buf x = buf_random(rows * stride, t, scale), dy = buf_random(rows * stride, t, 1);
  buf y = buf_new(rows * span, t), dx = buf_new(rows * span, t);
  double *want_y = calloc((size_t)(rows * span + 1), 8), *want_dx = calloc((size_t)(rows * span + 1), 8);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t i = 0; i < inner; i++) {
      double m = -INFINITY;
      long double d = 0;
      for (int64_t c = 0; c < cols; c++) m = fmax(m, get(x, r * stride + c * inner + i));
      for (int64_t c = 0; c < cols; c++) d += exp(get(x, r * stride + c * inner + i) - m);
      for (int64_t c = 0; c < cols; c++)
        want_y[r * span + c * inner + i] = exp(get(x, r * stride + c * inner + i) - m) / (double)d;
    }
  const int64_t tiles = rows * ((inner + LIGER_SOFTMAX_TILE - 1) / LIGER_SOFTMAX_TILE);
  liger_softmax_fwd_args f = {y.p, x.p, rows, cols, inner, stride, t};
  expect(liger_softmax_fwd_cpu(&f, 0, tiles / 2) == LIGER_OK, "fwd, first half");
  expect(liger_softmax_fwd_cpu(&f, tiles / 2, tiles) == LIGER_OK, "fwd, second half");
  close_rows("Y", y, span, want_y, rows, span, 4);

  for (int64_t r = 0; r < rows; r++) /* from the Y that was stored */
    for (int64_t i = 0; i < inner; i++) {
      long double s = 0;
      for (int64_t c = 0; c < cols; c++)
        s += get(dy, r * stride + c * inner + i) * get(y, r * span + c * inner + i);
      for (int64_t c = 0; c < cols; c++)
        want_dx[r * span + c * inner + i] = get(y, r * span + c * inner + i) *
                                            (get(dy, r * stride + c * inner + i) - (double)s);
    }
  liger_softmax_bwd_args b = {dx.p, dy.p, y.p, rows, cols, inner, stride, span, t};
  expect(liger_softmax_bwd_cpu(&b, 0, tiles / 2) == LIGER_OK, "bwd, first half");
  expect(liger_softmax_bwd_cpu(&b, tiles / 2, tiles) == LIGER_OK, "bwd, second half");
  close_rows("dX", dx, span, want_dx, rows, span, 8);
  buf_free(x), buf_free(dy), buf_free(y), buf_free(dx);
  free(want_y), free(want_dx);
}

/* what torch gives: NaN for a row of -inf, and for one with a NaN or +inf; 0 for -inf among numbers */
static void run_special(int64_t cols, int64_t inner, liger_dtype t) {
  snprintf(where, sizeof where, "softmax of special rows, %ldx%ld %s", (long)cols, (long)inner,
           dtype_names[t]);
  const double fill[] = {-INFINITY, NAN, INFINITY};
  for (int k = 0; k < 4; k++) {
    buf x = buf_random(cols * inner, t, 1), y = buf_new(cols * inner, t);
    for (int64_t c = 0; c < cols; c++)
      for (int64_t i = 0; i < inner; i++)
        if (k == 0 || (k == 3 && c != cols / 2) || c == cols - 1) put(x, c * inner + i, fill[k % 3]);
    liger_softmax_fwd_args f = {y.p, x.p, 1, cols, inner, cols * inner, t};
    expect(liger_softmax_fwd_cpu(&f, 0, (inner + LIGER_SOFTMAX_TILE - 1) / LIGER_SOFTMAX_TILE) == LIGER_OK,
           "fwd");
    int ok = 1;
    for (int64_t c = 0; c < cols; c++)
      for (int64_t i = 0; i < inner; i++) {
        const double v = get(y, c * inner + i);
        ok = ok && (k == 3 ? v == (c == cols / 2) : isnan(v));
      }
    expect(ok, k == 3 ? "one finite element is not 1" : "a row that has no softmax is not NaN");
    buf_free(x), buf_free(y);
  }
}

int main(void) {
  const int64_t shapes[][4] = {{0, 8, 1, 0}, {1, 1, 1, 0},    {3, 1, 1, 2},    {5, 33, 1, 3},
                               {4, 0, 1, 0}, {3, 8192, 1, 5}, {2, 8193, 1, 0}, {2, 20001, 1, 7},
                               {3, 7, 2, 1}, {2, 5, 64, 0},   {2, 9, 65, 4},   {1, 300, 130, 0},
                               {2, 1, 3, 0}};
  for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
    for (int t = 0; t < 4; t++)
      for (int scale = 1; scale <= 41; scale += 40)
        run(shapes[s][0], shapes[s][1], shapes[s][2], shapes[s][3], (liger_dtype)t, scale);
  for (int t = 0; t < 4; t++) {
    run_special(5, 1, (liger_dtype)t);
    run_special(9000, 1, (liger_dtype)t);
    run_special(6, 70, (liger_dtype)t);
  }
  return finish("softmax");
}
