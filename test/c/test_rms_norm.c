/* rms_norm through the C API, against a loop in double. */
#include "harness.h"

static void run(int64_t rows, int64_t cols, int64_t pad, liger_dtype xt, liger_dtype wt, int casting,
                double offset) {
  snprintf(where, sizeof where, "rms_norm %ldx%ld+%ld %s %s casting %d offset %g", (long)rows, (long)cols,
           (long)pad, dtype_names[xt], dtype_names[wt], casting, offset);
  const int64_t stride = cols + pad;
  buf x = buf_random(rows * stride, xt, 2), w = buf_random(cols, wt, 2),
      dy = buf_random(rows * stride, xt, 1);
  buf y = buf_new(rows * stride, xt), rstd = buf_new(rows, real_of(xt)), dx = buf_new(rows * cols, xt),
      dw = buf_new(cols, wt);
  double *want_y = calloc((size_t)(rows * cols + 1), 8), *want_dx = calloc((size_t)(rows * cols + 1), 8);
  double *want_r = calloc((size_t)rows + 1, 8), *want_dw = calloc((size_t)cols + 1, 8);
  for (int64_t r = 0; r < rows; r++) {
    long double sum = 0, mean = 0;
    for (int64_t c = 0; c < cols; c++) sum += get(x, r * stride + c) * get(x, r * stride + c);
    const double s = 1 / sqrt((double)sum / (double)cols + 1e-6);
    want_r[r] = s;
    for (int64_t c = 0; c < cols; c++) {
      const double xv = get(x, r * stride + c), g = get(dy, r * stride + c), m = g * (get(w, c) + offset);
      want_y[r * cols + c] = xv * s * (get(w, c) + offset);
      want_dw[c] += g * xv * s;
      mean += m * xv / (double)cols;
    }
    for (int64_t c = 0; c < cols; c++)
      want_dx[r * cols + c] = s * (get(dy, r * stride + c) * (get(w, c) + offset) -
                                   get(x, r * stride + c) * s * s * (double)mean);
  }

  /* the roundings of a sum of n terms in the result's own dtype walk as sqrt(n) */
  const double walk = xt == LIGER_F32 || xt == LIGER_F64 ? sqrt((double)cols) / 8 : 0;
  liger_norm_fwd_args f = {0};
  f.Y = y.p, f.rstd = rstd.p, f.X = x.p, f.W = w.p, f.n_rows = rows, f.n_cols = cols;
  f.X_row_stride = f.Y_row_stride = stride, f.eps = 1e-6, f.offset = offset, f.casting = casting;
  f.x_dtype = xt, f.w_dtype = wt;
  expect(liger_rms_norm_fwd_cpu(&f, 0, rows / 2) == LIGER_OK, "fwd, first half");
  expect(liger_rms_norm_fwd_cpu(&f, rows / 2, rows) == LIGER_OK, "fwd, second half");
  close_rows("Y", y, stride, want_y, rows, cols, 4 + walk);
  close_to("rstd", rstd, want_r, 8 + sqrt((double)cols) / 4);

  const int64_t blocks = liger_rms_norm_bwd_blocks_cpu(rows, cols);
  buf partial = buf_new(blocks * cols, real_of(xt));
  liger_norm_bwd_args b = {0};
  b.dX = dx.p, b.dW = dw.p, b.dW_partial = partial.p, b.dY = dy.p, b.X = x.p, b.W = w.p, b.rstd = rstd.p;
  b.n_rows = rows, b.n_cols = cols, b.dY_row_stride = b.X_row_stride = stride, b.n_blocks = blocks;
  b.offset = offset, b.x_dtype = xt, b.w_dtype = wt;
  expect(liger_rms_norm_bwd_cpu(&b, 0, blocks / 2) == LIGER_OK, "bwd, first half");
  expect(liger_rms_norm_bwd_cpu(&b, blocks / 2, blocks) == LIGER_OK, "bwd, second half");
  expect(liger_rms_norm_params_cpu(&b, 0, cols / 3) == LIGER_OK, "params, first third");
  expect(liger_rms_norm_params_cpu(&b, cols / 3, cols) == LIGER_OK, "params, rest");
  close_rows("dX", dx, cols, want_dx, rows, cols,
             cols == 1 ? 1e9 : 8 + walk); /* of one column, only eps is left of dX: written and finite */
  close_to("dW", dw, want_dw, cols == 1 ? 64 : 16);

  buf all[] = {x, w, dy, y, rstd, dx, dw, partial};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) buf_free(all[i]);
  free(want_y), free(want_dx), free(want_r), free(want_dw);
}

int main(void) {
  const int64_t shapes[][3] = {{0, 8, 0},    {1, 1, 0},    {3, 1, 2},     {2, 7, 0},    {5, 33, 3},
                               {35, 128, 0}, {100, 17, 1}, {3, 8192, 16}, {2, 8193, 0}, {2, 16389, 7}};
  const liger_dtype x[] = {LIGER_F32, LIGER_BF16, LIGER_F16, LIGER_F64},
                    w[] = {LIGER_F32, LIGER_F16, LIGER_BF16, LIGER_F64};
  for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
    for (int t = 0; t < 4; t++) {
      run(shapes[s][0], shapes[s][1], shapes[s][2], x[t], w[t], LIGER_CAST_NONE, 0);
      run(shapes[s][0], shapes[s][1], shapes[s][2], x[t], x[t], LIGER_CAST_LLAMA, 0);
      run(shapes[s][0], shapes[s][1], shapes[s][2], x[t], w[t], LIGER_CAST_GEMMA, 1);
    }
  return finish("rms_norm");
}
