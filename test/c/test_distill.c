/* The rows of fused_linear_jsd and fused_linear_cosine through the C API, with the labels' cross entropy and without,
 * against loops in long double. */
#include "harness.h"

/* p = softmax of n scaled logits from x on; returns their log-sum-exp */
static long double softmax(long double *p, const long double *x, int64_t n, long double temperature) {
  long double m = -INFINITY, d = 0;
  for (int64_t i = 0; i < n; i++) m = fmaxl(m, x[i] / temperature);
  for (int64_t i = 0; i < n; i++) d += p[i] = expl(x[i] / temperature - m);
  for (int64_t i = 0; i < n; i++) p[i] /= d;
  return m + logl(d);
}
/* loss of a row, and d = its gradient */
static long double jsd(long double *d, const long double *x, const long double *y, int64_t n, double beta,
                       double temperature) {
  long double *q = malloc((size_t)n * 32 + 32), *p = q + n + 1, sum = 0, loss = 0;
  softmax(q, x, n, temperature), softmax(p, y, n, temperature);
  for (int64_t i = 0; i < n; i++) {
    const long double m = beta * p[i] + (1 - beta) * q[i];
    const long double of_q = beta == 1 ? q[i] * logl(q[i] / p[i]) : (1 - beta) * q[i] * logl(q[i] / m);
    loss += of_q + (beta == 0   ? p[i] * logl(p[i] / q[i]) - q[i] * logl(q[i] / m)
                    : beta == 1 ? 0
                                : beta * p[i] * logl(p[i] / m));
    sum += d[i] = beta == 0 ? -p[i] : of_q;
  }
  for (int64_t i = 0; i < n; i++) d[i] = (d[i] - q[i] * sum) / temperature;
  free(q);
  return loss;
}
static long double cosine(long double *d, const long double *x, const long double *y, int64_t n,
                          double beta) {
  long double xx = 0, yy = 0, xy = 0;
  for (int64_t i = 0; i < n; i++) xx += x[i] * x[i], yy += y[i] * y[i], xy += x[i] * y[i];
  const long double A = sqrtl(xx), B = sqrtl(yy), c = xy / (A * B);
  for (int64_t i = 0; i < n; i++) d[i] = beta * (c * x[i] / A - y[i] / B) / A;
  return beta * (1 - c);
}

static void run(int is_jsd, int64_t rows, int64_t cols, int64_t pad, liger_dtype t, double beta,
                double temperature, int64_t classes) {
  snprintf(where, sizeof where, "%s %ldx%ld+%ld %s beta %g temperature %g classes %ld",
           is_jsd ? "jsd" : "cosine", (long)rows, (long)cols, (long)pad, dtype_names[t], beta, temperature,
           (long)classes);
  const int64_t stride = cols + pad, ignore = -100;
  const liger_dtype real = real_of(t);
  const double factor = is_jsd ? 0.5 : 64; /* a long row's gradient would be below fp16's normal numbers */
  buf x = buf_random(rows * stride, t, 4), y = buf_random(rows * stride, t, 4), g = buf_random(2, real, 2);
  buf loss = buf_new(rows, real), hard = buf_new(classes ? rows : 0, real), dx = buf_new(rows * stride, t);
  int64_t *labels = malloc((size_t)rows * 8 + 8);
  double *want = calloc((size_t)rows + 1, 8), *want_hard = calloc((size_t)rows + 1, 8),
         *want_dx = calloc((size_t)(rows * cols) + 1, 8);
  long double *X = malloc((size_t)(4 * cols + 4) * 16), *Y = X + cols, *d = Y + cols, *p = d + cols;
  for (int64_t r = 0; r < rows; r++) {
    labels[r] = r % 3 == 1 ? ignore : (classes ? classes - 1 - r % classes : 0);
    if (labels[r] == ignore) continue;
    for (int64_t c = 0; c < cols; c++) X[c] = get(x, r * stride + c), Y[c] = get(y, r * stride + c);
    want[r] = factor * (double)(is_jsd ? jsd(d, X, Y, cols, beta, temperature) : cosine(d, X, Y, cols, beta));
    for (int64_t c = 0; c < cols; c++)
      want_dx[r * cols + c] = factor * (classes ? 3 : 1) * get(g, 0) * (double)d[c];
    if (!classes) continue;
    want_hard[r] = factor * (double)(softmax(p, X, classes, 1) - X[labels[r]]);
    for (int64_t c = 0; c < classes; c++)
      want_dx[r * cols + c] += factor * 0.25 * get(g, 1) * (double)(p[c] - (c == labels[r]));
  }
  liger_divergence_args a = {0};
  a.loss = loss.p;
  a.dX = dx.p;
  a.X = x.p;
  a.Y = y.p;
  a.labels = labels;
  a.grad = g.p;
  a.n_rows = rows;
  a.n_cols = cols;
  a.X_row_stride = a.Y_row_stride = a.dX_row_stride = stride;
  a.label_stride = 1;
  a.ignore_index = ignore;
  a.factor = factor;
  a.parameter = beta;
  a.temperature = temperature;
  a.x_dtype = a.y_dtype = t;
  if (classes) {
    const void *second = (char *)g.p + size_of(real);
    a.hard = (liger_hard_loss){hard.p, second, classes, 0.25, 3};
  }
  liger_status (*fn)(const liger_divergence_args *, int64_t,
                     int64_t) = is_jsd ? liger_fused_linear_jsd_cpu : liger_fused_linear_cosine_cpu;
  expect(fn(&a, 0, rows / 2) == LIGER_OK && fn(&a, rows / 2, rows) == LIGER_OK, "status");
  close_to("loss", loss, want, 16 + sqrt((double)cols));
  if (classes) close_to("hard", hard, want_hard, 16 + sqrt((double)cols));
  close_rows("dX", dx, stride, want_dx, rows, cols, 16);
  if (classes && rows) { /* a label that is no class */
    labels[0] = classes;
    expect(fn(&a, 0, 1) == LIGER_OK && isnan(get(loss, 0)) && isnan(get(hard, 0)) && isnan(get(dx, 0)),
           "no class");
  }
  buf all[] = {x, y, g, loss, hard, dx};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) buf_free(all[i]);
  free(labels), free(want), free(want_hard), free(want_dx), free(X);
}

int main(void) {
  const int64_t shapes[][3] = {{0, 8, 0}, {5, 7, 2}, {4, 1023, 1}, {3, 1025, 0}, {2, 3001, 5}};
  const liger_dtype types[] = {LIGER_F32, LIGER_BF16, LIGER_F16, LIGER_F64};
  const double betas[] = {0, 0.1, 0.5, 1};
  for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
    for (int t = 0; t < 4; t++)
      for (int warm = 0; warm < 2; warm++)
        for (int with = 0; with < 3; with++) {
          const int64_t *z = shapes[s], classes = with == 0 ? 0 : with == 1 ? z[1] : z[1] - 2;
          for (int b = 0; b < 4; b++) run(1, z[0], z[1], z[2], types[t], betas[b], warm ? 2 : 1, classes);
          run(0, z[0], z[1], z[2], types[t], 0.7, warm ? 2 : 1, classes);
        }
  return finish("distill");
}
