/* swiglu and geglu through the C API, against loops in double. */
#include "harness.h"

enum { SWIGLU, TANH, EXACT, QUICK, N_KINDS };
static const char *const kinds[] = {"swiglu", "geglu tanh", "geglu exact", "geglu quick"};

static double act(int kind, long double x, double *slope) {
  if (kind == SWIGLU || kind == QUICK) { /* x / (1 + e^-kx) */
    const long double k = kind == QUICK ? 1.702L : 1, s = 1 / (1 + expl(-k * x)),
                      rest = 1 / (1 + expl(k * x));
    *slope = (double)(s * (1 + k * x * rest));
    return (double)(x * s);
  }
  if (kind == EXACT) {
    const long double p = erfcl(-x / sqrtl(2)) / 2;
    *slope = (double)(p + x * expl(-x * x / 2) / sqrtl(2 * acosl(-1.0L)));
    return (double)(x * p);
  }
  const long double k = sqrtl(2 / acosl(-1.0L)), u = k * (x + 0.044715L * x * x * x);
  const long double upper = 1 / (1 + expl(-2 * u)),
                    slope_of_tanh = 1 / (coshl(u) * coshl(u)); /* upper = (1 + tanh u) / 2 */
  *slope = (double)(upper + 0.5L * x * slope_of_tanh * k * (1 + 3 * 0.044715L * x * x));
  return (double)(x * upper);
}

static void run(int kind, int64_t rows, int64_t cols, int64_t pad, liger_dtype t, double scale, double g,
                double d) {
  snprintf(where, sizeof where, "%s %ldx%ld+%ld %s scale %g multipliers %g %g", kinds[kind], (long)rows,
           (long)cols, (long)pad, dtype_names[t], scale, g, d);
  const int64_t stride = cols + pad, n = rows * cols;
  buf a = buf_random(rows * stride, t, scale), b = buf_random(rows * stride, t, 2),
      dc = buf_random(rows * stride, t, 1);
  buf c = buf_new(n, t), both = buf_new(2 * n, t), db = buf_new(n, t), only = buf_new(n, t);
  buf da = buf_new(n, t);
  double *want_c = calloc((size_t)n + 1, 8), *want_da = calloc((size_t)n + 1, 8),
         *want_db = calloc((size_t)n + 1, 8);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t i = 0; i < cols; i++) {
      const int64_t s = r * stride + i, o = r * cols + i;
      double slope;
      const double y = act(kind, g * get(a, s), &slope);
      want_c[o] = y * get(b, s) * d;
      want_da[o] = get(dc, s) * get(b, s) * slope * g * d;
      want_db[o] = get(dc, s) * y * d;
    }
  liger_status (*fwd)(const liger_glu_fwd_args *, int64_t, int64_t) = kind ? liger_geglu_fwd_cpu
                                                                           : liger_swiglu_fwd_cpu;
  liger_status (*bwd)(const liger_glu_bwd_args *, int64_t, int64_t) = kind ? liger_geglu_bwd_cpu
                                                                           : liger_swiglu_bwd_cpu;
  const int64_t tiles = rows * ((cols + LIGER_ELEMENT_TILE - 1) / LIGER_ELEMENT_TILE);
  liger_glu_fwd_args f = {c.p, a.p, b.p, rows, cols, stride, stride, g, d, t, t, t, kind - 1};
  expect(fwd(&f, 0, tiles / 2) == LIGER_OK && fwd(&f, tiles / 2, tiles) == LIGER_OK, "fwd");
  liger_glu_bwd_args w = {da.p,   db.p,   dc.p,   a.p, b.p, rows, cols, cols, cols,
                          stride, stride, stride, g,   d,   t,    t,    t,    kind - 1};
  expect(bwd(&w, 0, tiles / 2) == LIGER_OK && bwd(&w, tiles / 2, tiles) == LIGER_OK, "bwd");
  /* side by side in the rows of one tensor */
  liger_glu_bwd_args side = w;
  side.dA = both.p;
  side.dB = (char *)both.p + (size_t)cols * size_of(t);
  side.dA_row_stride = side.dB_row_stride = 2 * cols;
  expect(bwd(&side, 0, tiles) == LIGER_OK, "bwd into one tensor");
  int same = 1;
  for (int64_t i = 0; i < n; i++) {
    const int64_t at = i / cols * 2 * cols + i % cols;
    same = same && get(both, at) == get(da, i) && get(both, at + cols) == get(db, i);
  }
  expect(same, "dA | dB in one tensor are not dA and dB");
  w.dA = NULL;
  w.dB = only.p;
  expect(bwd(&w, 0, tiles) == LIGER_OK, "bwd without dA");
  /* an element alone sets its own scale: in the left tail e^x has x times the rounding of its argument */
  const double alone = n == 1 && (t == LIGER_F32 || t == LIGER_F64) ? fabs(g * get(a, 0)) : 0;
  close_to("C", c, want_c, 4 + alone);
  close_to("dA", da, want_da, (t == LIGER_F32 || t == LIGER_F64 ? 8 : 4) + alone);
  close_to("dB", db, want_db, 4 + alone);
  expect(n == 0 || memcmp(db.p, only.p, (size_t)n * size_of(t)) == 0, "dB alone is not dB");
  /* the gradients over A and B: the same bits */
  w.dA = a.p;
  w.dB = b.p;
  w.dA_row_stride = w.dB_row_stride = stride;
  expect(bwd(&w, 0, tiles / 2) == LIGER_OK && bwd(&w, tiles / 2, tiles) == LIGER_OK, "bwd over A and B");
  same = 1;
  for (int64_t i = 0; i < n; i++) {
    const int64_t at = i / cols * stride + i % cols;
    same = same && get(a, at) == get(da, i) && get(b, at) == get(db, i);
  }
  expect(same, "dA and dB over A and B are not dA and dB");
  buf all[] = {a, b, dc, c, da, db, only, both};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) buf_free(all[i]);
  free(want_c), free(want_da), free(want_db);
}

int main(void) {
  const int64_t shapes[][3] = {{0, 8, 0},    {1, 1, 0},    {3, 7, 2},   {2, 33, 0},
                               {1, 1024, 0}, {3, 1025, 5}, {1, 5000, 0}};
  const liger_dtype types[] = {LIGER_F32, LIGER_BF16, LIGER_F16, LIGER_F64};
  for (int kind = 0; kind < N_KINDS; kind++)
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
      for (int t = 0; t < 4; t++) {
        run(kind, shapes[s][0], shapes[s][1], shapes[s][2], types[t], 3, 1, 1);
        run(kind, shapes[s][0], shapes[s][1], shapes[s][2], types[t], 30, 0.5, 1.25);
      }
  return finish("glu");
}
