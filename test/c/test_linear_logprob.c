/* linear_logprob's row kernels through the C API, against loops in double: given logits, all outputs at once. */
#include "harness.h"

enum { IGNORE = -100 };

typedef struct {
  double logit_scale, softcap, temperature;
  int in_place, repeated; /* repeated: extra ids are few values many times over, y among them */
} options;

static void run(int64_t rows, int64_t cols, int64_t pad, int64_t n_extra, liger_dtype t, double scale,
                options o) {
  snprintf(where, sizeof where,
           "linear_logprob %ldx%ld+%ld extra %ld %s scale %g by %g cap %g over %g in_place %d", (long)rows,
           (long)cols, (long)pad, (long)n_extra, dtype_names[t], scale, o.logit_scale, o.softcap,
           o.temperature, o.in_place);
  const liger_dtype real = real_of(t);
  const int64_t stride = cols + pad, n = rows * cols;
  buf x = buf_random(rows * stride, t, scale), dx = buf_new(rows * stride, t);
  buf out[4], g[4];
  double *want[4], *want_extra = calloc((size_t)(rows * n_extra) + 1, 8), *want_dx = calloc((size_t)n + 1, 8);
  for (int i = 0; i < 4; i++) {
    out[i] = buf_new(rows, real), g[i] = buf_random(rows, real, 1);
    want[i] = calloc((size_t)rows + 1, 8);
  }
  buf extra = buf_new(rows * n_extra, real), g_extra = buf_random(rows * n_extra, real, 1),
      stats = buf_new(rows * LIGER_LOGPROB_STATS, real);
  int64_t *y = malloc((size_t)rows * 8 + 8), *argmax = malloc((size_t)rows * 8 + 8),
          *ids = malloc((size_t)(rows * n_extra) * 8 + 8), *want_argmax = calloc((size_t)rows + 1, 8);
  double *z = calloc((size_t)cols, 8), *p = calloc((size_t)cols, 8), *dz = calloc((size_t)cols, 8);
  for (int64_t r = 0; r < rows; r++) {
    y[r] = r % 4 == 3 ? IGNORE : (r * 7919 + 5) % cols;
    for (int64_t k = 0; k < n_extra; k++)
      ids[r * n_extra + k] = k % 5 == 4 ? IGNORE : (o.repeated ? (r * 7919 + 5 + k % 2) : k * 31 + r) % cols;
    if (y[r] == IGNORE) continue;
    double m = -INFINITY, d = 0, entropy = 0, mean = 0;
    for (int64_t c = 0; c < cols; c++) {
      double u = get(x, r * stride + c) * o.logit_scale;
      if (o.softcap != 0) u = o.softcap * tanh(u / o.softcap);
      z[c] = u / o.temperature;
      if (z[c] > m) m = z[c], want_argmax[r] = c;
      mean += z[c] / (double)cols;
    }
    for (int64_t c = 0; c < cols; c++) d += exp(z[c] - m);
    const double lse = m + log(d);
    for (int64_t c = 0; c < cols; c++) p[c] = exp(z[c] - lse), entropy -= p[c] * (z[c] - lse);
    want[0][r] = z[y[r]] - lse, want[1][r] = lse, want[2][r] = entropy, want[3][r] = mean;
    for (int64_t c = 0; c < cols; c++)
      dz[c] = get(g[0], r) * ((c == y[r]) - p[c]) + get(g[1], r) * p[c] -
              get(g[2], r) * p[c] * (z[c] - lse + entropy) + get(g[3], r) / (double)cols;
    for (int64_t k = 0; k < n_extra; k++) {
      const int64_t id = ids[r * n_extra + k];
      if (id == IGNORE) continue;
      want_extra[r * n_extra + k] = z[id] - lse;
      for (int64_t c = 0; c < cols; c++) dz[c] += get(g_extra, r * n_extra + k) * ((c == id) - p[c]);
    }
    for (int64_t c = 0; c < cols; c++) {
      const double capped = o.softcap != 0 ? z[c] * o.temperature / o.softcap : 0;
      want_dx[r * cols + c] = dz[c] * o.logit_scale / o.temperature * (1 - capped * capped);
    }
  }

  const liger_linear_logprob_fwd_args f = {.logprob = out[0].p,
                                           .lse = out[1].p,
                                           .entropy = out[2].p,
                                           .mean_logit = out[3].p,
                                           .argmax = argmax,
                                           .extra = extra.p,
                                           .stats = stats.p,
                                           .X = x.p,
                                           .ids = y,
                                           .extra_ids = n_extra ? ids : NULL,
                                           .n_rows = rows,
                                           .n_cols = cols,
                                           .n_extra = n_extra,
                                           .X_row_stride = stride,
                                           .ids_stride = 1,
                                           .extra_ids_row_stride = n_extra,
                                           .ignore_index = IGNORE,
                                           .logit_scale = o.logit_scale,
                                           .softcap = o.softcap,
                                           .temperature = o.temperature,
                                           .x_dtype = t};
  const int64_t half = rows / 2;
  expect(liger_linear_logprob_fwd_cpu(&f, 0, half) == LIGER_OK &&
             liger_linear_logprob_fwd_cpu(&f, half, rows) == LIGER_OK,
         "forward");
  static const char *const names[] = {"logprob", "lse", "entropy", "mean_logit"};
  const double size = fabs(scale * o.logit_scale / o.temperature);
  for (int i = 0; i < 4; i++) {
    /* entropy and lse are differences of numbers as large as the logits */
    double largest = 1e-30;
    for (int64_t r = 0; r < rows; r++) largest = fmax(largest, fabs(want[i][r]));
    close_to(names[i], out[i], want[i], 32 + 8 * fmax(size, 1) / fmin(largest, 1));
  }
  close_to("extra", extra, want_extra, 64);
  for (int64_t r = 0; r < rows; r++) expect(argmax[r] == (y[r] == IGNORE ? 0 : want_argmax[r]), "argmax");

  const liger_linear_logprob_bwd_args b = {.dX = o.in_place ? x.p : dx.p,
                                           .X = x.p,
                                           .stats = stats.p,
                                           .ids = y,
                                           .extra_ids = n_extra ? ids : NULL,
                                           .dlogprob = g[0].p,
                                           .dlse = g[1].p,
                                           .dentropy = g[2].p,
                                           .dmean_logit = g[3].p,
                                           .dextra = n_extra ? g_extra.p : NULL,
                                           .n_rows = rows,
                                           .n_cols = cols,
                                           .n_extra = n_extra,
                                           .X_row_stride = stride,
                                           .ids_stride = 1,
                                           .extra_ids_row_stride = n_extra,
                                           .ignore_index = IGNORE,
                                           .dlogprob_stride = 1,
                                           .dlse_stride = 1,
                                           .dentropy_stride = 1,
                                           .dmean_logit_stride = 1,
                                           .dextra_row_stride = n_extra,
                                           .logit_scale = o.logit_scale,
                                           .softcap = o.softcap,
                                           .temperature = o.temperature,
                                           .x_dtype = t};
  expect(liger_linear_logprob_bwd_cpu(&b, 0, half) == LIGER_OK &&
             liger_linear_logprob_bwd_cpu(&b, half, rows) == LIGER_OK,
         "backward");
  if (o.in_place) close_rows("dX", x, stride, want_dx, pad ? 1 : rows, cols, 64);
  else close_rows("dX", dx, stride, want_dx, rows, cols, 64);

  for (int i = 0; i < 4; i++) buf_free(out[i]), buf_free(g[i]), free(want[i]);
  buf_free(x), buf_free(dx), buf_free(extra), buf_free(g_extra), buf_free(stats);
  free(y), free(argmax), free(ids), free(want_argmax), free(want_extra), free(want_dx), free(z), free(p),
      free(dz);
}

/* ids out of range, which the glue refuses: no access out of bounds, NaN, and a gradient of zeros */
static void run_out_of_range(void) {
  snprintf(where, sizeof where, "linear_logprob out of range");
  buf x = buf_random(3 * 5, LIGER_F32, 1), logprob = buf_new(3, LIGER_F32), extra = buf_new(6, LIGER_F32),
      stats = buf_new(9, LIGER_F32), one = buf_random(6, LIGER_F32, 1);
  const int64_t y[] = {5, -1, 2}, ids[] = {1, 1, 2, 2, INT64_MAX, 3};
  const liger_linear_logprob_fwd_args f = {.logprob = logprob.p,
                                           .extra = extra.p,
                                           .stats = stats.p,
                                           .X = x.p,
                                           .ids = y,
                                           .extra_ids = ids,
                                           .n_rows = 3,
                                           .n_cols = 5,
                                           .n_extra = 2,
                                           .X_row_stride = 5,
                                           .ids_stride = 1,
                                           .extra_ids_row_stride = 2,
                                           .ignore_index = IGNORE,
                                           .logit_scale = 1,
                                           .temperature = 1};
  expect(liger_linear_logprob_fwd_cpu(&f, 0, 3) == LIGER_OK, "forward");
  expect(isnan(get(logprob, 0)) && isnan(get(logprob, 1)) && isfinite(get(logprob, 2)), "logprob");
  expect(isnan(get(extra, 0)) && isnan(get(extra, 3)) && isnan(get(extra, 4)) && isfinite(get(extra, 5)),
         "extra");
  const liger_linear_logprob_bwd_args b = {.dX = x.p,
                                           .X = x.p,
                                           .stats = stats.p,
                                           .ids = y,
                                           .extra_ids = ids,
                                           .dlogprob = one.p,
                                           .dextra = one.p,
                                           .n_rows = 3,
                                           .n_cols = 5,
                                           .n_extra = 2,
                                           .X_row_stride = 5,
                                           .ids_stride = 1,
                                           .extra_ids_row_stride = 2,
                                           .ignore_index = IGNORE,
                                           .dlogprob_stride = 1,
                                           .dextra_row_stride = 2,
                                           .logit_scale = 1,
                                           .temperature = 1};
  expect(liger_linear_logprob_bwd_cpu(&b, 0, 3) == LIGER_OK, "backward");
  double sum = 0;
  for (int64_t i = 0; i < 10; i++) expect(get(x, i) == 0, "the gradient of a row without a valid id");
  for (int64_t i = 10; i < 15; i++) sum += get(x, i);
  expect(fabs(sum) < 1e-6, "a row's gradient sums to 0: no part of an id out of range is in it");
  buf_free(x), buf_free(logprob), buf_free(extra), buf_free(stats), buf_free(one);
}

int main(void) {
  const options plain = {1, 0, 1, 0, 0}, scaled = {1.5, 0, 0.7, 1, 1}, capped = {-0.5, 3, 2, 0, 1};
  for (int t = LIGER_F32; t <= LIGER_F64; t++) {
    run(7, 33, 0, 3, (liger_dtype)t, 2, plain);
    run(5, 2049, 3, 7, (liger_dtype)t, 4, capped);
    run(4, 4100, 0, 12, (liger_dtype)t, 3, scaled);
    run(3, 1, 0, 2, (liger_dtype)t, 1, plain);
    run(0, 8, 0, 2, (liger_dtype)t, 1, plain);
    run(6, 64, 5, 0, (liger_dtype)t, 8, scaled);
  }
  run(5, 2100, 0, 4, LIGER_F32, 1e4, plain);
  run_out_of_range();
  return finish("linear_logprob");
}
