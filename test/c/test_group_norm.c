/* group_norm through the C API, against a loop in double. */
#include "harness.h"

static void run(const int64_t *n, liger_dtype xt, liger_dtype wt, int with_params) {
  const int64_t batch = n[0], n_channels = n[1], inner = n[2], n_groups = n[3],
                channels = n_channels / n_groups;
  snprintf(where, sizeof where, "group_norm %ldx%ldx%ld %ld groups %s %s params %d", (long)batch,
           (long)n_channels, (long)inner, (long)n_groups, dtype_names[xt], dtype_names[wt], with_params);
  const liger_dtype real = real_of(xt);
  const int64_t groups = batch * n_groups, size = channels * inner, total = groups * size;
  buf x = buf_random(total, xt, 2), dy = buf_random(total, xt, 1), w = buf_random(n_channels, wt, 2),
      bias = buf_random(n_channels, wt, 2), y = buf_new(total, xt), dx = buf_new(total, xt),
      mean = buf_new(groups, real), rstd = buf_new(groups, real), dw = buf_new(n_channels, wt),
      db = buf_new(n_channels, wt), dw_partial = buf_new(batch * n_channels, real),
      db_partial = buf_new(batch * n_channels, real);
  double *want_y = calloc((size_t)total + 1, 8), *want_dx = calloc((size_t)total + 1, 8),
         *want_dw = calloc((size_t)n_channels + 1, 8), *want_db = calloc((size_t)n_channels + 1, 8);
  for (int64_t g = 0; g < groups; g++) {
    long double sum = 0, squares = 0, c0 = 0, c1 = 0;
    for (int64_t i = 0; i < size; i++) sum += get(x, g * size + i);
    const double mu = (double)(sum / size);
    for (int64_t i = 0; i < size; i++) squares += (get(x, g * size + i) - mu) * (get(x, g * size + i) - mu);
    const double inv = 1 / sqrt((double)squares / (double)size + 1e-6);
    for (int64_t i = 0; i < size; i++) {
      const int64_t c = g % n_groups * channels + i / inner;
      const double scale = with_params ? get(w, c) : 1, xhat = (get(x, g * size + i) - mu) * inv;
      const double grad = get(dy, g * size + i);
      want_y[g * size + i] = xhat * scale + (with_params ? get(bias, c) : 0);
      want_dw[c] += grad * xhat, want_db[c] += grad;
      c0 += grad * scale / (double)size, c1 += grad * scale * xhat / (double)size;
    }
    for (int64_t i = 0; i < size; i++) {
      const double scale = with_params ? get(w, g % n_groups * channels + i / inner) : 1;
      const double xhat = (get(x, g * size + i) - mu) * inv;
      want_dx[g * size + i] = inv * (get(dy, g * size + i) * scale - (double)c0 - xhat * (double)c1);
    }
  }

  liger_group_norm_fwd_args f = {0};
  f.Y = y.p, f.mean = mean.p, f.rstd = rstd.p, f.X = x.p, f.n_batch = batch, f.n_channels = n_channels;
  f.W = with_params ? w.p : NULL, f.bias = with_params ? bias.p : NULL;
  f.n_inner = inner, f.n_groups = n_groups, f.n_slices = 1, f.eps = 1e-6;
  f.x_dtype = xt, f.w_dtype = f.bias_dtype = wt;
  expect(liger_group_norm_fwd_cpu(&f, 0, groups / 2) == LIGER_OK, "fwd, first half");
  expect(liger_group_norm_fwd_cpu(&f, groups / 2, groups) == LIGER_OK, "fwd, second half");
  const double walk = xt == LIGER_F32 || xt == LIGER_F64 ? sqrt((double)size) / 8 : 0;
  close_to("Y", y, want_y, 4 + walk);

  liger_group_norm_bwd_args b = {0};
  b.dX = dx.p, b.dW = with_params ? dw.p : NULL, b.dbias = with_params ? db.p : NULL;
  b.dW_partial = dw_partial.p, b.dbias_partial = db_partial.p, b.dY = dy.p, b.X = x.p, b.W = f.W;
  b.mean = mean.p, b.rstd = rstd.p, b.n_batch = batch, b.n_channels = n_channels, b.n_inner = inner;
  b.n_groups = n_groups, b.n_slices = 1, b.x_dtype = xt, b.w_dtype = b.bias_dtype = wt;
  expect(liger_group_norm_bwd_cpu(&b, 0, groups / 2) == LIGER_OK, "bwd, first half");
  expect(liger_group_norm_bwd_cpu(&b, groups / 2, groups) == LIGER_OK, "bwd, second half");
  expect(liger_group_norm_params_cpu(&b, 0, n_channels / 3) == LIGER_OK, "params, first third");
  expect(liger_group_norm_params_cpu(&b, n_channels / 3, n_channels) == LIGER_OK, "params, rest");
  if (size == 1) { /* a group of one element: the terms of dX, of rstd = 1000 times dY W, cancel entirely */
    for (int64_t i = 0; i < total; i++) expect(fabs(get(dx, i)) <= 4e3 * eps_of(real), "dX of one element");
  } else {
    close_to("dX", dx, want_dx, 8 + walk);
    if (with_params) close_to("dW", dw, want_dw, 16 + walk);
  }
  if (with_params) close_to("dbias", db, want_db, 16 + walk);

  buf all[] = {x, dy, w, bias, y, dx, mean, rstd, dw, db, dw_partial, db_partial};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) buf_free(all[i]);
  free(want_y), free(want_dx), free(want_dw), free(want_db);
}

int main(void) {
  /* batch, channels, inner, groups */
  const int64_t shapes[][4] = {{0, 4, 3, 2},  {2, 4, 1, 4},  {3, 6, 5, 3},    {2, 7, 9, 1},
                               {1, 8, 64, 8}, {2, 4, 33, 2}, {1, 2, 8193, 2}, {1, 3, 16400, 1}};
  const liger_dtype x[] = {LIGER_F32, LIGER_BF16, LIGER_F16, LIGER_F64},
                    w[] = {LIGER_F32, LIGER_F16, LIGER_BF16, LIGER_F64};
  for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
    for (int t = 0; t < 4; t++) {
      run(shapes[s], x[t], x[t], 0);
      run(shapes[s], x[t], x[t], 1);
      run(shapes[s], x[t], w[t], 1);
    }
  return finish("group_norm");
}
