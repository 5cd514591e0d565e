/* jsd, kl_div and tvd through the C API, against loops in double. */
#include "harness.h"

enum { JSD, KL, TVD };

static long double times(long double p, long double v) { return p == 0 ? 0 : p * v; }

/* the loss of one element, and dl/dx */
static double element(int op, double parameter, int log_target, long double x, long double y, double *slope) {
  const long double p = expl(y), q = expl(x), b = parameter;
  if (op == TVD) {
    *slope = x > y ? 0.5 : x < y ? -0.5 : 0;
    return (double)fabsl(x - y) / 2;
  }
  if (op == KL) {
    *slope = (double)(log_target ? -p : -y);
    return (double)(log_target ? times(p, y - x) : times(y, logl(fmaxl(y, b)) - x));
  }
  if (b == 0 || b == 1) {
    *slope = (double)(b == 0 ? -p : q + times(q, x - y));
    return (double)(b == 0 ? times(p, y - x) : times(q, x - y));
  }
  const long double high = fmaxl(x, y), m = high + logl(b * expl(y - high) + (1 - b) * expl(x - high));
  *slope = (double)((1 - b) * times(q, x - m));
  return (double)(b * times(p, y - m) + (1 - b) * times(q, x - m));
}

static void run(int op, int64_t rows, int64_t cols, int64_t pad, liger_dtype t, double parameter,
                int log_target, int elementwise, int scaled) {
  snprintf(where, sizeof where, "%s %ldx%ld+%ld %s parameter %g log_target %d elementwise %d scaled %d",
           op == JSD  ? "jsd"
           : op == KL ? "kl_div"
                      : "tvd",
           (long)rows, (long)cols, (long)pad, dtype_names[t], parameter, log_target, elementwise, scaled);
  const int64_t stride = cols + pad, ignore = -100, n = rows * cols;
  const liger_dtype real = real_of(t);
  buf x = buf_random(rows * stride, t, 4), y = buf_random(rows * stride, t, 4);
  buf scale = buf_random(1, real, 1), g = buf_random(elementwise ? n : 1, real, 2);
  buf loss = buf_new(elementwise ? n : rows, real), dx = buf_new(rows * stride, t),
      only = buf_new(rows * stride, t);
  int64_t *labels = malloc((size_t)rows * 16 + 8);
  double *want = calloc((size_t)(elementwise ? n : rows) + 1, 8), *want_dx = calloc((size_t)n + 1, 8);
  for (int64_t i = 0; i < rows * stride; i++) {
    const int probability = op == TVD || (op == KL && !log_target);
    put(y, i, probability ? fabs(get(y, i)) / 8 : get(y, i) - 4);
    put(x, i, op == TVD ? fabs(get(x, i)) / 8 : get(x, i) - 4);
  }
  /* one element near agreement would be nothing but the difference of two roundings */
  if (op == JSD && n == 1) put(y, 0, get(x, 0) - 5);
  for (int64_t r = 0; r < rows; r++) {
    labels[2 * r] = r % 3 == 1 ? ignore : r;
    for (int64_t c = 0; c < cols && labels[2 * r] != ignore; c++) {
      double slope;
      const double s = 0.5 * (scaled ? get(scale, 0) : 1),
                   up = scaled ? get(g, elementwise ? r * cols + c : 0) : 1;
      const double l = element(op, parameter, log_target, get(x, r * stride + c), get(y, r * stride + c),
                               &slope);
      if (elementwise) want[r * cols + c] = s * l;
      else want[r] += s * l;
      want_dx[r * cols + c] = s * slope * up;
    }
  }
  liger_divergence_args a = {0};
  a.loss = loss.p;
  a.dX = dx.p;
  a.X = x.p;
  a.Y = y.p;
  a.labels = labels;
  a.scale = scaled ? scale.p : NULL;
  a.grad = scaled ? g.p : NULL;
  a.n_rows = rows;
  a.n_cols = a.grad_row_stride = cols;
  a.X_row_stride = a.Y_row_stride = a.dX_row_stride = stride;
  a.label_stride = 2;
  a.ignore_index = ignore;
  a.factor = 0.5;
  a.parameter = parameter;
  a.temperature = 1;
  a.elementwise = elementwise;
  a.log_target = log_target;
  a.x_dtype = a.y_dtype = t;
  liger_status (*fn)(const liger_divergence_args *, int64_t, int64_t) = op == JSD  ? liger_jsd_cpu
                                                                        : op == KL ? liger_kl_div_cpu
                                                                                   : liger_tvd_cpu;
  expect(fn(&a, 0, rows / 2) == LIGER_OK && fn(&a, rows / 2, rows) == LIGER_OK, "both");
  close_to("loss", loss, want, 8 + sqrt((double)cols));
  close_rows("dX", dx, stride, want_dx, rows, cols, 8);
  a.loss = NULL;
  a.dX = only.p;
  expect(fn(&a, 0, rows) == LIGER_OK, "dX alone");
  expect(memcmp(dx.p, only.p, (size_t)(rows * stride) * size_of(t)) == 0, "dX alone is not dX");
  buf all[] = {x, y, scale, g, loss, dx, only};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) buf_free(all[i]);
  free(labels), free(want), free(want_dx);
}

int main(void) {
  const int64_t shapes[][3] = {{0, 8, 0},    {1, 1, 0},    {5, 7, 2},   {2, 0, 3},
                               {4, 1023, 1}, {3, 1025, 0}, {2, 3001, 5}};
  const liger_dtype types[] = {LIGER_F32, LIGER_BF16, LIGER_F16, LIGER_F64};
  const double betas[] = {0, 0.1, 0.5, 0.9, 1};
  for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
    for (int t = 0; t < 4; t++)
      for (int elementwise = 0; elementwise < 2; elementwise++)
        for (int scaled = 0; scaled < 2; scaled++) {
          const int64_t *z = shapes[s];
          for (int b = 0; b < 5; b++) run(JSD, z[0], z[1], z[2], types[t], betas[b], 0, elementwise, scaled);
          run(KL, z[0], z[1], z[2], types[t], 1e-10, 0, elementwise, scaled);
          run(KL, z[0], z[1], z[2], types[t], 1e-10, 1, elementwise, scaled);
          run(TVD, z[0], z[1], z[2], types[t], 0, 0, elementwise, scaled);
        }
  return finish("divergences");
}
