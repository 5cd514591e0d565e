/* swiglu and geglu through the C API, against loops in double. */
#include "harness.h"

static double act(int geglu, long double x, double *slope) {
  if (!geglu) {
    const long double s = 1 / (1 + expl(-x)), rest = 1 / (1 + expl(x));
    *slope = (double)(s * (1 + x * rest));
    return (double)(x * s);
  }
  const long double k = sqrtl(2 / acosl(-1.0L)), u = k * (x + 0.044715L * x * x * x);
  const long double upper = 1 / (1 + expl(-2 * u)),
                    slope_of_tanh = 1 / (coshl(u) * coshl(u)); /* upper = (1 + tanh u) / 2 */
  *slope = (double)(upper + 0.5L * x * slope_of_tanh * k * (1 + 3 * 0.044715L * x * x));
  return (double)(x * upper);
}

static void run(int geglu, int64_t rows, int64_t cols, int64_t pad, liger_dtype t, double scale, double g,
                double d) {
  snprintf(where, sizeof where, "%s %ldx%ld+%ld %s scale %g multipliers %g %g", geglu ? "geglu" : "swiglu",
           (long)rows, (long)cols, (long)pad, dtype_names[t], scale, g, d);
  const int64_t stride = cols + pad, n = rows * cols;
  buf a = buf_random(rows * stride, t, scale), b = buf_random(rows * stride, t, 2),
      dc = buf_random(rows * stride, t, 1);
  buf c = buf_new(n, t), da = buf_new(n, t), db = buf_new(n, t), only = buf_new(n, t);
  double *want_c = calloc((size_t)n + 1, 8), *want_da = calloc((size_t)n + 1, 8),
         *want_db = calloc((size_t)n + 1, 8);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t i = 0; i < cols; i++) {
      const int64_t s = r * stride + i, o = r * cols + i;
      double slope;
      const double y = act(geglu, g * get(a, s), &slope);
      want_c[o] = y * get(b, s) * d;
      want_da[o] = get(dc, s) * get(b, s) * slope * g * d;
      want_db[o] = get(dc, s) * y * d;
    }
  liger_status (*fwd)(const liger_glu_fwd_args *, int64_t, int64_t) = geglu ? liger_geglu_fwd_cpu
                                                                            : liger_swiglu_fwd_cpu;
  liger_status (*bwd)(const liger_glu_bwd_args *, int64_t, int64_t) = geglu ? liger_geglu_bwd_cpu
                                                                            : liger_swiglu_bwd_cpu;
  const int64_t tiles = rows * ((cols + LIGER_GLU_TILE - 1) / LIGER_GLU_TILE);
  liger_glu_fwd_args f = {c.p, a.p, b.p, rows, cols, stride, stride, g, d, t, t, t};
  expect(fwd(&f, 0, tiles / 2) == LIGER_OK && fwd(&f, tiles / 2, tiles) == LIGER_OK, "fwd");
  liger_glu_bwd_args w = {da.p, db.p, dc.p, a.p, b.p, rows, cols, stride, stride, stride, g, d, t, t, t};
  expect(bwd(&w, 0, tiles / 2) == LIGER_OK && bwd(&w, tiles / 2, tiles) == LIGER_OK, "bwd");
  w.dA = NULL;
  w.dB = only.p;
  expect(bwd(&w, 0, tiles) == LIGER_OK, "bwd without dA");
  close_to("C", c, want_c, 4);
  close_to("dA", da, want_da, t == LIGER_F32 || t == LIGER_F64 ? 8 : 4);
  close_to("dB", db, want_db, 4);
  expect(n == 0 || memcmp(db.p, only.p, (size_t)n * size_of(t)) == 0, "dB alone is not dB");
  buf all[] = {a, b, dc, c, da, db, only};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) buf_free(all[i]);
  free(want_c), free(want_da), free(want_db);
}

int main(void) {
  const int64_t shapes[][3] = {{0, 8, 0},    {1, 1, 0},    {3, 7, 2},   {2, 33, 0},
                               {1, 1024, 0}, {3, 1025, 5}, {1, 5000, 0}};
  const liger_dtype types[] = {LIGER_F32, LIGER_BF16, LIGER_F16, LIGER_F64};
  for (int geglu = 0; geglu < 2; geglu++)
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
      for (int t = 0; t < 4; t++) {
        run(geglu, shapes[s][0], shapes[s][1], shapes[s][2], types[t], 3, 1, 1);
        run(geglu, shapes[s][0], shapes[s][1], shapes[s][2], types[t], 30, 0.5, 1.25);
      }
  return finish("glu");
}
