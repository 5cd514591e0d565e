/* modulated_rms_norm through the C API, against loops in double. */
#include "harness.h"

static void run(int64_t mods, int64_t each, int64_t cols, int64_t pad, liger_dtype xt, liger_dtype wt,
                int with_weight, int with_shift) {
  snprintf(where, sizeof where,
           "%ld modulations of %ld rows x %ld+%ld %s, parameters %s, weight %d, shift %d", (long)mods,
           (long)each, (long)cols, (long)pad, dtype_names[xt], dtype_names[wt], with_weight, with_shift);
  const int64_t rows = mods * each, stride = cols + pad, n = rows * cols, n_mod = mods * cols;
  const double eps = 1e-6, offset = 0.5;
  buf x = buf_random(rows * stride, xt, 2), dy = buf_random(rows * stride, xt, 1),
      w = buf_random(cols, wt, 2);
  buf scale = buf_random(mods * stride, wt, 1), shift = buf_random(mods * stride, wt, 1);
  buf y = buf_new(n, xt), rstd = buf_new(rows, real_of(xt)), dx = buf_new(n, xt), dw = buf_new(cols, wt),
      dscale = buf_new(n_mod, wt), dshift = buf_new(n_mod, wt);
  double *want_y = calloc((size_t)n + 1, 8), *want_dx = calloc((size_t)n + 1, 8),
         *want_r = calloc((size_t)rows + 1, 8), *want_dw = calloc((size_t)cols + 1, 8),
         *want_ds = calloc((size_t)n_mod + 1, 8), *want_dh = calloc((size_t)n_mod + 1, 8);
  for (int64_t r = 0; r < rows; r++) {
    const int64_t s = r / each;
    long double sum = 0, mean = 0;
    for (int64_t c = 0; c < cols; c++) sum += get(x, r * stride + c) * get(x, r * stride + c);
    const double inv = want_r[r] = 1 / sqrt((double)sum / (double)cols + eps);
    for (int pass = 0; pass < 2; pass++)
      for (int64_t c = 0; c < cols; c++) {
        const double weight = with_weight ? get(w, c) + offset : 1,
                     one_scale = 1 + get(scale, s * stride + c);
        const double xhat = get(x, r * stride + c) * inv, g = get(dy, r * stride + c), m = weight * one_scale;
        if (pass == 0) {
          want_y[r * cols + c] = xhat * m + (with_shift ? get(shift, s * stride + c) : 0);
          want_ds[s * cols + c] += g * xhat * weight;
          want_dh[s * cols + c] += g;
          want_dw[c] += g * xhat * one_scale;
          mean += g * m * xhat / (double)cols;
        } else {
          want_dx[r * cols + c] = inv * (g * m - xhat * (double)mean);
        }
      }
  }
  const void *const W = with_weight ? w.p : NULL;
  liger_modulated_rms_norm_fwd_args f = {y.p,    rstd.p,  x.p,
                                         W,      scale.p, with_shift ? shift.p : NULL,
                                         rows,   cols,    mods,
                                         stride, stride,  stride,
                                         eps,    offset,  LIGER_CAST_NONE,
                                         xt,     wt,      wt,
                                         wt};
  expect(liger_modulated_rms_norm_fwd_cpu(&f, 0, rows / 2) == LIGER_OK, "fwd, first half");
  expect(liger_modulated_rms_norm_fwd_cpu(&f, rows / 2, rows) == LIGER_OK, "fwd, second half");
  const double walk = xt == LIGER_F32 || xt == LIGER_F64 ? sqrt((double)cols) / 8 : 0;
  close_to("Y", y, want_y, 4 + walk);
  close_to("rstd", rstd, want_r, 8 + sqrt((double)cols) / 4);

  const int64_t blocks = liger_modulated_rms_norm_bwd_blocks_cpu(rows, cols, mods, xt);
  buf workspace = buf_new(3 * blocks * cols, real_of(xt));
  liger_modulated_rms_norm_bwd_args b = {dx.p,        with_weight ? dw.p : NULL,
                                         dscale.p,    with_shift ? dshift.p : NULL,
                                         workspace.p, dy.p,
                                         x.p,         W,
                                         scale.p,     rstd.p,
                                         rows,        cols,
                                         mods,        stride,
                                         stride,      stride,
                                         blocks,      offset,
                                         xt,          wt,
                                         wt,          wt};
  expect(liger_modulated_rms_norm_bwd_cpu(&b, 0, blocks / 2) == LIGER_OK, "bwd, first half");
  expect(liger_modulated_rms_norm_bwd_cpu(&b, blocks / 2, blocks) == LIGER_OK, "bwd, second half");
  expect(liger_modulated_rms_norm_params_cpu(&b, 0, cols / 3) == LIGER_OK, "params, first third");
  expect(liger_modulated_rms_norm_params_cpu(&b, cols / 3, cols) == LIGER_OK, "params, rest");
  /* of one column, only eps is left of dX, and a sum of few terms may cancel */
  close_to("dX", dx, want_dx, cols == 1 ? 1e9 : 8 + walk);
  if (with_weight) close_to("dW", dw, want_dw, cols == 1 ? 256 : 16);
  close_to("dscale", dscale, want_ds, cols == 1 ? 256 : 16);
  if (with_shift) close_to("dshift", dshift, want_dh, cols == 1 ? 256 : 16);

  buf all[] = {x, dy, w, scale, shift, y, rstd, dx, dw, dscale, dshift, workspace};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) buf_free(all[i]);
  free(want_y), free(want_dx), free(want_r), free(want_dw), free(want_ds), free(want_dh);
}

int main(void) {
  const int64_t shapes[][4] = {{1, 0, 8, 0},    {1, 1, 1, 0},   {3, 1, 7, 0},     {2, 5, 33, 3},
                               {2, 100, 17, 1}, {75, 2, 16, 0}, {2, 2, 8192, 16}, {2, 2, 8193, 7}};
  const liger_dtype x[] = {LIGER_F32, LIGER_BF16, LIGER_F16, LIGER_F64},
                    w[] = {LIGER_F32, LIGER_F16, LIGER_BF16, LIGER_F64};
  for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
    for (int t = 0; t < 4; t++) {
      run(shapes[s][0], shapes[s][1], shapes[s][2], shapes[s][3], x[t], w[t], 1, 1);
      run(shapes[s][0], shapes[s][1], shapes[s][2], shapes[s][3], x[t], x[t], 0, 0);
    }
  return finish("modulated_rms_norm");
}
