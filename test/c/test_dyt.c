/* dyt through the C API, against loops in double. */
#include "harness.h"

static void run(int64_t rows, int64_t cols, int64_t pad, liger_dtype xt, liger_dtype wt, int with_beta,
                double scale) {
  snprintf(where, sizeof where, "%ldx%ld+%ld %s, parameters %s, beta %d, scale %g", (long)rows, (long)cols,
           (long)pad, dtype_names[xt], dtype_names[wt], with_beta, scale);
  const int64_t stride = cols + pad, n = rows * cols;
  buf x = buf_random(rows * stride, xt, scale), dy = buf_random(rows * stride, xt, 1);
  buf alpha = buf_random(1, wt, 1), gamma = buf_random(cols, wt, 2), beta = buf_random(cols, wt, 1);
  buf y = buf_new(n, xt), dx = buf_new(n, xt), dalpha = buf_new(1, wt), dgamma = buf_new(cols, wt),
      dbeta = buf_new(cols, wt), only = buf_new(cols, wt);
  double *want_y = calloc((size_t)n + 1, 8), *want_dx = calloc((size_t)n + 1, 8);
  double *want_dg = calloc((size_t)cols + 1, 8), *want_db = calloc((size_t)cols + 1, 8), want_da = 0,
         terms = 0;
  const double al = get(alpha, 0);
  for (int64_t i = 0; i < n; i++) {
    const int64_t c = i % cols, at = i / cols * stride + c;
    const double v = get(x, at), g = get(dy, at), t = tanh(al * v), s = 1 / (cosh(al * v) * cosh(al * v));
    want_y[i] = get(gamma, c) * t + (with_beta ? get(beta, c) : 0);
    want_dx[i] = g * get(gamma, c) * s * al;
    want_dg[c] += g * t;
    want_db[c] += g;
    want_da += g * get(gamma, c) * s * v;
    terms += fabs(g * get(gamma, c) * s * v);
  }
  liger_dyt_fwd_args f = {y.p, x.p, alpha.p, gamma.p, with_beta ? beta.p : NULL, rows, cols, stride,
                          xt,  wt,  wt,      wt};
  expect(liger_dyt_fwd_cpu(&f, 0, rows / 2) == LIGER_OK, "fwd, first half");
  expect(liger_dyt_fwd_cpu(&f, rows / 2, rows) == LIGER_OK, "fwd, second half");
  close_to("Y", y, want_y, 4);

  const int64_t blocks = liger_dyt_bwd_blocks_cpu(rows);
  buf workspace = buf_new(liger_dyt_bwd_workspace_cpu(rows, cols, xt), real_of(xt));
  liger_dyt_bwd_args b = {dx.p,        dalpha.p, dgamma.p, with_beta ? dbeta.p : NULL,
                          workspace.p, dy.p,     x.p,      alpha.p,
                          gamma.p,     rows,     cols,     stride,
                          stride,      xt,       wt,       wt,
                          wt};
  expect(liger_dyt_bwd_cpu(&b, 0, blocks / 2) == LIGER_OK, "bwd, first half");
  expect(liger_dyt_bwd_cpu(&b, blocks / 2, blocks) == LIGER_OK, "bwd, second half");
  expect(liger_dyt_params_cpu(&b, 0, cols / 3) == LIGER_OK, "params, first third");
  expect(liger_dyt_params_cpu(&b, cols / 3, cols) == LIGER_OK, "params, rest");
  if (cols < 3) expect(liger_dyt_params_cpu(&b, 0, 1) == LIGER_OK, "params, one column");
  close_to("dX", dx, want_dx, 8);
  /* a single column may cancel */
  close_to("dgamma", dgamma, want_dg, cols == 1 ? 64 : 8);
  if (with_beta) close_to("dbeta", dbeta, want_db, cols == 1 ? 64 : 8);
  char text[128]; /* of terms of either sign little is left: the error is held against their sizes */
  const double error = fabs(get(dalpha, 0) - want_da),
               bar = eps_of(wt) * fabs(want_da) + 8 * eps_of(real_of(xt)) * terms;
  snprintf(text, sizeof text, "dalpha is off by %.3g, at most %.3g", error, bar);
  expect(error <= bar, text);
  b.dalpha = b.dbeta = NULL;
  b.dgamma = only.p;
  expect(liger_dyt_bwd_cpu(&b, 0, blocks) == LIGER_OK && liger_dyt_params_cpu(&b, 0, cols) == LIGER_OK,
         "dgamma alone");
  expect(memcmp(dgamma.p, only.p, (size_t)cols * size_of(wt)) == 0, "dgamma alone is not dgamma");

  buf all[] = {x, dy, alpha, gamma, beta, y, dx, dalpha, dgamma, dbeta, only, workspace};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) buf_free(all[i]);
  free(want_y), free(want_dx), free(want_dg), free(want_db);
}

int main(void) {
  const int64_t shapes[][3] = {{0, 8, 0},    {1, 1, 0},    {3, 1, 2},    {2, 7, 0},    {5, 33, 3},
                               {35, 128, 0}, {100, 17, 1}, {3, 1024, 8}, {2, 1025, 0}, {40, 2051, 7}};
  const liger_dtype x[] = {LIGER_F32, LIGER_BF16, LIGER_F16, LIGER_F64},
                    w[] = {LIGER_F32, LIGER_F16, LIGER_BF16, LIGER_F64};
  for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
    for (int t = 0; t < 4; t++) {
      run(shapes[s][0], shapes[s][1], shapes[s][2], x[t], w[t], 1, 2);
      run(shapes[s][0], shapes[s][1], shapes[s][2], x[t], x[t], 0, 20);
    }
  return finish("dyt");
}
