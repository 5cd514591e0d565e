/* cross_entropy and the helpers of losses through the C API, against loops in double. */
#include "harness.h"

typedef struct {
  int weighted, reduction, token_scaling, scaled; /* scaled: a gradient per row */
  double smoothing, z, softcap;
} options;

static void run(int64_t rows, int64_t cols, int64_t pad, liger_dtype t, double scale, options o) {
  snprintf(where, sizeof where,
           "cross_entropy %ldx%ld+%ld %s scale %g weighted %d reduction %d token_scaling %d a %g z %g cap %g",
           (long)rows, (long)cols, (long)pad, dtype_names[t], scale, o.weighted, o.reduction, o.token_scaling,
           o.smoothing, o.z, o.softcap);
  const liger_dtype real = real_of(t);
  const int64_t stride = cols + pad, ignore = -100;
  buf x = buf_random(rows * stride, t, scale), w = buf_random(cols, real, 1), g = buf_random(rows, real, 2);
  buf stats = buf_new(LIGER_CE_STATS, real), loss = buf_new(rows, real), z = buf_new(rows, real),
      acc = buf_new(rows, real);
  buf dx = buf_new(rows * stride, t), only = buf_new(rows, real);
  int64_t *y = malloc((size_t)rows * 8 + 8), *predicted = malloc((size_t)rows * 8 + 8),
          *want_pred = malloc((size_t)rows * 8 + 8);
  double *want = calloc((size_t)rows + 1, 8), *want_z = calloc((size_t)rows + 1, 8),
         *want_acc = calloc((size_t)rows + 1, 8);
  double *want_dx = calloc((size_t)(rows * cols) + 1, 8), *p = calloc((size_t)cols, 8),
         *v = calloc((size_t)cols, 8);
  double w_sum = 0, target_sum = 0, n_valid = 0;
  for (int64_t c = 0; c < cols; c++) {
    put(w, c, fabs(get(w, c)) + 0.1);
    w_sum += o.weighted ? get(w, c) : 1;
  }
  for (int64_t r = 0; r < rows; r++) {
    y[r] = r % 4 == 3 ? ignore : (r * 7919 + 5) % cols;
    if (y[r] != ignore) {
      n_valid++;
      target_sum += o.weighted ? get(w, y[r]) : 1;
    }
  }
  const double ce_scale = o.reduction != LIGER_REDUCE_MEAN ? 1 : target_sum ? 1 / target_sum : 0;
  const double z_scale = o.reduction != LIGER_REDUCE_MEAN ? 1 : n_valid ? 1 / n_valid : 0;
  for (int64_t r = 0; r < rows; r++) {
    want_pred[r] = -1;
    if (y[r] == ignore) continue;
    double m = -INFINITY, d = 0;
    int64_t best = 0;
    for (int64_t c = 0; c < cols; c++) {
      const double l = get(x, r * stride + c);
      v[c] = o.softcap != 0 ? o.softcap * tanh(l / o.softcap) : l;
      if (l > get(x, r * stride + best)) best = c;
      m = fmax(m, v[c]);
    }
    for (int64_t c = 0; c < cols; c++) d += exp(v[c] - m);
    const double lse = m + log(d), wy = o.weighted ? get(w, y[r]) : 1,
                 t_row = o.token_scaling ? exp(v[y[r]] - lse) : 1;
    double smooth = 0;
    for (int64_t c = 0; c < cols; c++) {
      p[c] = exp(v[c] - lse);
      smooth += (o.weighted ? get(w, c) : 1) * (lse - v[c]);
    }
    const double ce = (1 - o.smoothing) * wy * (lse - v[y[r]]) + o.smoothing / (double)cols * smooth;
    want_z[r] = t_row * z_scale * o.z * lse * lse;
    want[r] = t_row * ce_scale * ce + want_z[r];
    want_pred[r] = best;
    want_acc[r] = best == y[r];
    for (int64_t c = 0; c < cols; c++) {
      const double wc = o.weighted ? get(w, c) : 1,
                   cap = o.softcap != 0 ? 1 - v[c] * v[c] / (o.softcap * o.softcap) : 1;
      const double hot = (1 - o.smoothing) * wy * (p[c] - (c == y[r]));
      want_dx[r * cols + c] = (o.scaled ? get(g, r) : 1) * t_row * cap *
                              (ce_scale * (hot + o.smoothing / (double)cols * (w_sum * p[c] - wc)) +
                               z_scale * 2 * o.z * lse * p[c]);
    }
  }

  liger_cross_entropy_count_args n = {stats.p, NULL,        y, o.weighted ? w.p : NULL, rows, cols, 1,
                                      ignore,  o.reduction, t};
  expect(liger_cross_entropy_count_cpu(&n, 0, rows) == LIGER_OK, "count");
  const double want_stats[] = {ce_scale, z_scale, w_sum, n_valid};
  close_to("stats", stats, want_stats, 16);
  liger_cross_entropy_args a = {.loss = loss.p,
                                .z_loss = z.p,
                                .accuracy = acc.p,
                                .predicted = predicted,
                                .dX = dx.p,
                                .X = x.p,
                                .target = y,
                                .weight = o.weighted ? w.p : NULL,
                                .stats = stats.p,
                                .row_grad = o.scaled ? g.p : NULL,
                                .n_rows = rows,
                                .n_cols = cols,
                                .X_row_stride = stride,
                                .dX_row_stride = stride,
                                .target_stride = 1,
                                .row_grad_stride = 1,
                                .ignore_index = ignore,
                                .label_smoothing = o.smoothing,
                                .lse_square_scale = o.z,
                                .softcap = o.softcap,
                                .token_scaling = o.token_scaling,
                                .x_dtype = t};
  expect(liger_cross_entropy_cpu(&a, 0, rows / 3) == LIGER_OK &&
             liger_cross_entropy_cpu(&a, rows / 3, rows) == LIGER_OK,
         "status");
  const double wide = 16 + (real == t ? sqrt((double)cols) / 4 : 0), narrow = real == t ? wide : 2;
  close_to("loss", loss, want, 16 + sqrt((double)cols) / 4);
  close_to("z_loss", z, want_z, 32);
  close_to("accuracy", acc, want_acc, 0);
  close_rows("dX", dx, stride, want_dx, rows, cols, narrow);
  expect(memcmp(predicted, want_pred, (size_t)rows * 8) == 0, "predicted is not the argmax");
  a.dX = a.z_loss = a.accuracy = NULL; /* forward only, then into the logits themselves */
  a.predicted = NULL;
  a.loss = only.p;
  expect(liger_cross_entropy_cpu(&a, 0, rows) == LIGER_OK, "forward only");
  close_to("loss, forward only", only, want, 16 + sqrt((double)cols) / 4);
  a.dX = x.p;
  expect(liger_cross_entropy_cpu(&a, 0, rows) == LIGER_OK, "in place");
  for (int64_t r = 0; r < rows; r++)
    if (memcmp((char *)x.p + (size_t)(r * stride) * size_of(t),
               (char *)dx.p + (size_t)(r * stride) * size_of(t), (size_t)cols * size_of(t))) {
      fail("in place gives other bits");
      break;
    }
  buf all[] = {x, w, g, stats, loss, z, acc, dx, only};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) buf_free(all[i]);
  free(y), free(predicted), free(want_pred), free(want), free(want_z), free(want_acc), free(want_dx), free(p),
      free(v);
}

/* a target outside the vocabulary: found by the check, NaN from the kernel, nothing read or written elsewhere */
static void bad_label(void) {
  snprintf(where, sizeof where, "cross_entropy, label out of range");
  enum { ROWS = 3, COLS = 5 };
  int64_t y[ROWS] = {1, COLS, -1};
  buf x = buf_random(ROWS * COLS, LIGER_F32, 1), stats = buf_new(LIGER_CE_STATS, LIGER_F32),
      loss = buf_new(ROWS, LIGER_F32);
  buf dx = buf_new(ROWS * COLS, LIGER_F32);
  expect(liger_cross_entropy_bad_label_cpu(y, 1, ROWS, COLS, -100) == 1, "the first bad row is 1");
  expect(liger_cross_entropy_bad_label_cpu(y, 1, 1, COLS, -100) == -1, "one good row");
  const double ones[] = {1, 1, COLS, ROWS};
  for (int i = 0; i < 4; i++) put(stats, i, ones[i]);
  liger_cross_entropy_args a = {.loss = loss.p,
                                .dX = dx.p,
                                .X = x.p,
                                .target = y,
                                .stats = stats.p,
                                .n_rows = ROWS,
                                .n_cols = COLS,
                                .X_row_stride = COLS,
                                .dX_row_stride = COLS,
                                .target_stride = 1,
                                .ignore_index = -100,
                                .x_dtype = LIGER_F32};
  liger_cross_entropy_cpu(&a, 0, ROWS);
  expect(isfinite(get(loss, 0)) && isnan(get(loss, 1)) && isnan(get(loss, 2)), "NaN for the bad rows alone");
  expect(isfinite(get(dx, 0)) && isnan(get(dx, COLS)), "dX as the loss");
  buf all[] = {x, stats, loss, dx};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) buf_free(all[i]);
}

static void helpers(liger_dtype t, int64_t rows, int64_t cols) {
  snprintf(where, sizeof where, "row_sum, scale_grad %ldx%ld %s", (long)rows, (long)cols, dtype_names[t]);
  const liger_dtype real = real_of(t);
  buf x = buf_random(rows, real, 1), divisor = buf_new(1, real), out = buf_new(1, real);
  double sum = 0;
  for (int64_t i = 0; i < rows; i++) {
    put(x, i, fabs(get(x, i)));
    sum += get(x, i);
  }
  put(divisor, 0, 3);
  liger_row_sum_args s = {out.p, x.p, divisor.p, NULL, rows, real};
  expect(liger_row_sum_cpu(&s, 0, rows) == LIGER_OK, "row_sum");
  sum /= 3;
  close_to("sum", out, &sum, 8 + sqrt((double)rows));
  put(divisor, 0, 0);
  liger_row_sum_cpu(&s, 0, rows);
  expect(get(out, 0) == 0, "nothing to average is 0");

  buf src = buf_random(rows * cols, t, 1), dst = buf_new(rows * cols, t);
  double *want = calloc((size_t)(rows * cols) + 1, 8);
  for (int64_t i = 0; i < rows * cols; i++) want[i] = get(src, i) * get(x, i / cols);
  liger_scale_grad_args a = {dst.p, src.p, x.p, rows, cols, cols, cols, 1, t, real};
  expect(liger_scale_grad_cpu(&a, 0, rows / 2) == LIGER_OK &&
             liger_scale_grad_cpu(&a, rows / 2, rows) == LIGER_OK,
         "scale_grad");
  close_to("scaled", dst, want, 2);
  buf all[] = {x, divisor, out, src, dst};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) buf_free(all[i]);
  free(want);
}

int main(void) {
  const int64_t shapes[][3] = {{0, 8, 0},   {1, 1, 0},    {3, 2, 1},    {5, 33, 0},
                               {9, 127, 3}, {4, 8192, 0}, {6, 8195, 5}, {2, 20000, 0}};
  const liger_dtype types[] = {LIGER_F32, LIGER_BF16, LIGER_F16, LIGER_F64};
  const options all[] = {
      {.reduction = LIGER_REDUCE_MEAN},
      {.reduction = LIGER_REDUCE_SUM, .weighted = 1, .smoothing = 0.1},
      {.reduction = LIGER_REDUCE_NONE, .scaled = 1, .z = 1e-2},
      {.reduction = LIGER_REDUCE_MEAN, .softcap = 5, .weighted = 1},
      {.reduction = LIGER_REDUCE_MEAN,
       .token_scaling = 1,
       .z = 1e-3,
       .smoothing = 0.2,
       .softcap = 3,
       .weighted = 1,
       .scaled = 1},
  };
  for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
    for (int t = 0; t < 4; t++)
      for (size_t o = 0; o < sizeof all / sizeof *all; o++)
        run(shapes[s][0], shapes[s][1], shapes[s][2], types[t], 4, all[o]);
  run(4, 33, 0, LIGER_F32, 200, all[0]); /* a softmax that is 0 or 1 */
  bad_label();
  for (int t = 0; t < 4; t++) {
    helpers(types[t], 1, 1);
    helpers(types[t], 37, 65);
  }
  return finish("cross_entropy");
}
