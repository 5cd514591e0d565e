/* fused_linear_kl_div   the rows of it: kl_div of a block of logits from probabilities Y, and dX; equations:
 *            csrc/liger_divergence.h. With x the log-probabilities:   dX = (e^x sum Y - Y) / temperature
 * Shapes     X Y dX (n_rows, n_cols), last dim contiguous, dX may be X; loss labels (n_rows)
 * Rounding   fp32 (fp64) to the end; sums of a tile in fp32, of a row in fp64; dX is rounded once
 * Plan       the softmax statistics and sum Y, which need not be 1; then loss and dX in one pass
 * Source     torch.nn.KLDivLoss of log_softmax */
#include "divergence.h"

static real sum_of_row(const void *Y, int64_t at, int64_t n_cols, liger_dtype t) {
  real y[DIVERGENCE_TILE];
  double sum = 0;
  for (int64_t c = 0; c < n_cols; c += DIVERGENCE_TILE) {
    const int64_t n = n_cols - c < DIVERGENCE_TILE ? n_cols - c : DIVERGENCE_TILE;
    load_row(y, Y, at + c, n, t);
    real s = 0;
#pragma omp simd reduction(+ : s)
    for (int64_t i = 0; i < n; i++) s += y[i];
    sum += (double)s;
  }
  return (real)sum;
}

static void kl_row(const liger_divergence_args *a, int64_t row, real of_loss, real of_grad) {
  real x[DIVERGENCE_TILE], y[DIVERGENCE_TILE], d[DIVERGENCE_TILE];
  const real temperature = (real)a->temperature, eps = (real)a->parameter;
  const row_softmax s = softmax_of_row(a->X, row * a->X_row_stride, a->n_cols, a->x_dtype, temperature);
  const real total = a->dX ? sum_of_row(a->Y, row * a->Y_row_stride, a->n_cols, a->y_dtype) : 0;
  double sum = 0;
  for (int64_t c = 0; c < a->n_cols; c += DIVERGENCE_TILE) {
    const int64_t n = a->n_cols - c < DIVERGENCE_TILE ? a->n_cols - c : DIVERGENCE_TILE;
    load_log_softmax(x, a->X, row * a->X_row_stride + c, n, a->x_dtype, temperature, s);
    load_row(y, a->Y, row * a->Y_row_stride + c, n, a->y_dtype);
    real l = 0;
#pragma omp simd reduction(+ : l)
    for (int64_t i = 0; i < n; i++) {
      l += kl_element(x[i], y[i], eps);
      d[i] = of_grad * (exp_nonpos(x[i]) * total - y[i]);
    }
    sum += (double)l;
    if (a->dX) store_row(a->dX, row * a->dX_row_stride + c, d, n, a->x_dtype);
  }
  if (a->loss) ((real *)a->loss)[row] = of_loss == 0 ? 0 : (real)((double)of_loss * sum);
}

liger_status LIGER_KERNEL(fused_linear_kl_div)(const liger_divergence_args *a, int64_t row_begin,
                                               int64_t row_end) {
  const real of_loss = loss_scale(a), of_grad = grad_scale(a) / (real)a->temperature;
  for (int64_t row = row_begin; row < row_end; row++) {
    if (ignored_row(a, row)) clear_row(a, row);
    else kl_row(a, row, of_loss, of_grad);
  }
  return LIGER_OK;
}
LIGER_CPU_ENTRY(fused_linear_kl_div, liger_divergence_args, x_dtype);
