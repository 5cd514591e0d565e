/* poly_norm through the C API, against loops in double. */
#include "harness.h"

static void run(int64_t rows, int64_t cols, int64_t pad, liger_dtype xt, liger_dtype wt) {
  snprintf(where, sizeof where, "%ldx%ld+%ld %s, parameters %s", (long)rows, (long)cols, (long)pad,
           dtype_names[xt], dtype_names[wt]);
  const int64_t stride = cols + pad, n = rows * cols;
  const double eps = 1e-6;
  buf x = buf_random(rows * stride, xt, 2), dy = buf_random(rows * stride, xt, 1);
  buf w = buf_random(3, wt, 1), b = buf_random(1, wt, 1);
  buf y = buf_new(n, xt), dx = buf_new(n, xt), rstd = buf_new(3 * rows, real_of(xt)), dw = buf_new(3, wt),
      db = buf_new(1, wt);
  double *want_y = calloc((size_t)n + 1, 8), *want_dx = calloc((size_t)n + 1, 8),
         *want_r = calloc((size_t)(3 * rows) + 1, 8);
  double want_dw[3] = {0, 0, 0}, want_db = 0, terms = 0, dw_terms = 0;
  for (int64_t r = 0; r < rows; r++) {
    long double squares[3] = {0, 0, 0}, products[3] = {0, 0, 0};
    for (int64_t c = 0; c < cols; c++) {
      const double v = get(x, r * stride + c), g = get(dy, r * stride + c);
      for (int k = 0; k < 3; k++) { /* the third power first */
        squares[k] += powl(v, 2 * (3 - k));
        products[k] += g * powl(v, 3 - k);
      }
      want_db += g;
      terms += fabs(g);
    }
    for (int k = 0; k < 3; k++) {
      const double s = 1 / sqrt((double)squares[k] / (double)cols + eps);
      want_r[3 * r + k] = s;
      want_dw[k] += s * (double)products[k];
      dw_terms += s * fabs((double)products[k]);
      for (int64_t c = 0; c < cols; c++) {
        const double v = get(x, r * stride + c), g = get(dy, r * stride + c), u = pow(v, 3 - k);
        want_y[r * cols + c] += get(w, k) * u * s + (k == 0 ? get(b, 0) : 0);
        want_dx[r * cols + c] += (3 - k) * pow(v, 2 - k) * s * get(w, k) *
                                 (g - u * s * s * (double)products[k] / (double)cols);
      }
    }
  }
  liger_poly_norm_fwd_args f = {y.p, rstd.p, x.p, w.p, b.p, rows, cols, stride, eps, xt, wt, wt};
  expect(liger_poly_norm_fwd_cpu(&f, 0, rows / 2) == LIGER_OK, "fwd, first half");
  expect(liger_poly_norm_fwd_cpu(&f, rows / 2, rows) == LIGER_OK, "fwd, second half");
  const double walk = xt == LIGER_F32 || xt == LIGER_F64 ? sqrt((double)cols) / 8 : 0;
  close_to("Y", y, want_y, 6 + walk);
  close_to("rstd", rstd, want_r, 8 + sqrt((double)cols) / 4);

  const int64_t blocks = liger_poly_norm_bwd_blocks_cpu(rows, cols);
  buf workspace = buf_new(4 * blocks, real_of(xt));
  liger_poly_norm_bwd_args a = {dx.p, dw.p, db.p,   workspace.p, dy.p,   x.p, w.p, rstd.p,
                                rows, cols, stride, stride,      blocks, xt,  wt,  wt};
  expect(liger_poly_norm_bwd_cpu(&a, 0, blocks / 2) == LIGER_OK, "bwd, first half");
  expect(liger_poly_norm_bwd_cpu(&a, blocks / 2, blocks) == LIGER_OK, "bwd, second half");
  expect(liger_poly_norm_params_cpu(&a, 0, 1) == LIGER_OK, "params");
  /* of one column, only eps is left of dX: written and finite */
  close_to("dX", dx, want_dx, cols == 1 ? 1e9 : 12 + walk);
  const double loose = 8 * eps_of(real_of(xt)); /* the terms of the sums have either sign */
  for (int k = 0; k < 3; k++)
    expect(fabs(get(dw, k) - want_dw[k]) <= eps_of(wt) * fabs(want_dw[k]) + loose * (dw_terms + terms), "dW");
  expect(fabs(get(db, 0) - want_db) <= eps_of(wt) * fabs(want_db) + loose * terms, "db");

  buf all[] = {x, dy, w, b, y, dx, rstd, dw, db, workspace};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) buf_free(all[i]);
  free(want_y), free(want_dx), free(want_r);
}

int main(void) {
  const int64_t shapes[][3] = {{0, 8, 0},    {1, 1, 0},    {3, 1, 2},     {2, 7, 0},    {5, 33, 3},
                               {35, 128, 0}, {100, 17, 1}, {3, 8192, 16}, {2, 8193, 0}, {2, 16389, 7}};
  const liger_dtype x[] = {LIGER_F32, LIGER_BF16, LIGER_F16, LIGER_F64},
                    w[] = {LIGER_F32, LIGER_F16, LIGER_BF16, LIGER_F64};
  for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
    for (int t = 0; t < 4; t++) run(shapes[s][0], shapes[s][1], shapes[s][2], x[t], w[t]);
  return finish("poly_norm");
}
