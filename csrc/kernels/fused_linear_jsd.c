/* fused_linear_jsd   the rows of it: jsd of two blocks of logits, and dX; equations: csrc/liger_divergence.h.
 *            With x, y the log-probabilities, g = dl/dx, Q = e^x:   dX = (g - Q sum g) / temperature
 *            Beside it, if asked for, the labels' cross entropy: distill_hard.h
 * Shapes     X Y dX (n_rows, n_cols), last dim contiguous, dX may be X; losses labels (n_rows)
 * Rounding   fp32 (fp64) to the end; sums of a tile in fp32, of a row in fp64; dX is rounded once
 * Plan       the two rows' softmax statistics; the loss and sum g; dX. For beta = 0 sum g is known to be -1 and the
 *            last two are one pass
 * Source     arXiv:2306.13649 (GKD) */
#include "distill_hard.h"

enum { OF_P, OF_Q, MID }; /* beta 0, 1, between */

typedef struct {
  double loss, grad;
} jsd_sums;

/* one pass over the row: its sums, and d = dX of a tile where `write` says so. hard: NULL, no cross entropy */
LIGER_INLINE jsd_sums jsd_pass(const liger_divergence_args *a, int64_t row, row_softmax sx, row_softmax sy,
                               const hard_row *hard, int kind, int write, real total, real of_grad) {
  real x[DIVERGENCE_TILE], y[DIVERGENCE_TILE], d[DIVERGENCE_TILE];
  const real beta = (real)a->parameter, rest = (real)(1 - a->parameter), temperature = (real)a->temperature;
  jsd_sums sums = {0, 0};
  for (int64_t c = 0; c < a->n_cols; c += DIVERGENCE_TILE) {
    const int64_t n = a->n_cols - c < DIVERGENCE_TILE ? a->n_cols - c : DIVERGENCE_TILE;
    load_log_softmax(x, a->X, row * a->X_row_stride + c, n, a->x_dtype, temperature, sx);
    load_log_softmax(y, a->Y, row * a->Y_row_stride + c, n, a->y_dtype, temperature, sy);
    real loss = 0, grad = 0;
#pragma omp simd reduction(+ : loss, grad)
    for (int64_t i = 0; i < n; i++) {
      const jsd_element e = kind == OF_P   ? jsd_of_p(x[i], y[i])
                            : kind == OF_Q ? jsd_of_q(x[i], y[i])
                                           : jsd_mid(x[i], y[i], beta, rest);
      loss += e.loss;
      grad += e.grad;
      d[i] = of_grad * (e.grad - e.q * total);
    }
    sums.loss += (double)loss;
    sums.grad += (double)grad;
    if (write && hard) hard_add(a, row, hard, of_grad, d, c, n);
    if (write) store_row(a->dX, row * a->dX_row_stride + c, d, n, a->x_dtype);
  }
  return sums;
}

LIGER_INLINE void jsd_row(const liger_divergence_args *a, int64_t row, int kind, real of_loss, real of_grad) {
  const real temperature = (real)a->temperature;
  const softmax_state of_x = state_of_row(a->X, row * a->X_row_stride, a->n_cols, a->x_dtype, temperature);
  const row_softmax sx = softmax_of_state(of_x);
  const row_softmax sy = softmax_of_row(a->Y, row * a->Y_row_stride, a->n_cols, a->y_dtype, temperature);
  hard_row h;
  const hard_row *const hard = a->hard.loss ? &h : NULL;
  if (hard) h = hard_begin(a, row, &of_x);
  const int one_pass = kind == OF_P && a->dX;
  const jsd_sums sums = jsd_pass(a, row, sx, sy, hard, kind, one_pass, -1, of_grad);
  if (a->loss) ((real *)a->loss)[row] = of_loss == 0 ? 0 : (real)((double)of_loss * sums.loss);
  if (a->dX && !one_pass) jsd_pass(a, row, sx, sy, hard, kind, 1, (real)sums.grad, of_grad);
}

liger_status LIGER_KERNEL(fused_linear_jsd)(const liger_divergence_args *a, int64_t row_begin,
                                            int64_t row_end) {
  const real of_loss = loss_scale(a), of_grad = soft_scale(a) / (real)a->temperature;
  for (int64_t row = row_begin; row < row_end; row++) {
    if (ignored_row(a, row)) fill_row(a, row, 0);
    else if (hard_label_is_no_class(a, row)) fill_row(a, row, NAN);
    else if (a->parameter == 0) jsd_row(a, row, OF_P, of_loss, of_grad);
    else if (a->parameter == 1) jsd_row(a, row, OF_Q, of_loss, of_grad);
    else jsd_row(a, row, MID, of_loss, of_grad);
  }
  return LIGER_OK;
}
LIGER_CPU_ENTRY(fused_linear_jsd, liger_divergence_args, x_dtype);
