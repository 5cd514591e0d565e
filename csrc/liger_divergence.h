/* The part of liger.h about losses between a student and a teacher; included there, and not by itself. */
#ifndef LIGER_DIVERGENCE_API_H
#define LIGER_DIVERGENCE_API_H

/* ---- divergences: jsd, kl_div, tvd, and the rows of fused_linear_jsd and fused_linear_kl_div ---------------
 * Of a student's X and a teacher's Y, per element, with P = e^Y, Q = e^X; 0 times an infinity is 0:
 *   jsd       ln M = ln(beta P + (1 - beta) Q),   l = beta P (Y - ln M) + (1 - beta) Q (X - ln M)
 *             dl/dX = (1 - beta) Q (X - ln M)
 *             beta 0: l = P (Y - X), dl/dX = -P;   beta 1: l = Q (X - Y), dl/dX = Q (X - Y + 1)
 *   kl_div    l = Y (ln max(Y, eps) - X), dl/dX = -Y;   log_target: l = P (Y - X), dl/dX = -P
 *   tvd       l = |X - Y| / 2,   dl/dX = sign(X - Y) / 2, 0 at a tie
 *   fused_linear_jsd      jsd of log_softmax(X / temperature), log_softmax(Y / temperature); dX through both
 *   fused_linear_kl_div   kl_div of log_softmax(X / temperature) and the probabilities Y; dX through it
 * A row whose label is ignore_index has loss and dX 0. */
/* a liger_reduction of the divergences alone: over rows, where their mean is over elements */
enum { LIGER_REDUCE_BATCHMEAN = 3 };

typedef struct {
  void *loss; /* (n_rows) real: sums of l times the scale; elementwise: (n_rows, n_cols); NULL: dX alone */
  void *dX;   /* (n_rows, n_cols) x_dtype, may be X itself; NULL: forward only */
  const void *X, *Y;     /* (n_rows, n_cols) */
  const int64_t *labels; /* (n_rows), stride label_stride; NULL: every row counts */
  const void *scale; /* real[1] on the same device, times `factor`: what every l is multiplied by; NULL: 1 */
  const void
      *grad; /* real, the incoming gradient, scales dX alone: one value, elementwise (n_rows, n_cols) */
  int64_t n_rows, n_cols, X_row_stride, Y_row_stride, dX_row_stride, label_stride, grad_row_stride,
      ignore_index;
  double factor, parameter, temperature; /* parameter: beta or eps */
  int elementwise, log_target;
  liger_dtype x_dtype,
      y_dtype; /* alike on a GPU, but for fused_linear_kl_div; "real" is fp64 where x_dtype is */
} liger_divergence_args;

LIGER_API liger_status liger_jsd_cpu(const liger_divergence_args *a, int64_t row_begin, int64_t row_end);
LIGER_API liger_status liger_jsd_cuda(const liger_divergence_args *a, void *stream);
LIGER_API liger_status liger_kl_div_cpu(const liger_divergence_args *a, int64_t row_begin, int64_t row_end);
LIGER_API liger_status liger_kl_div_cuda(const liger_divergence_args *a, void *stream);
LIGER_API liger_status liger_tvd_cpu(const liger_divergence_args *a, int64_t row_begin, int64_t row_end);
LIGER_API liger_status liger_tvd_cuda(const liger_divergence_args *a, void *stream);
LIGER_API liger_status liger_fused_linear_jsd_cpu(const liger_divergence_args *a, int64_t row_begin,
                                                  int64_t row_end);
LIGER_API liger_status liger_fused_linear_jsd_cuda(const liger_divergence_args *a, void *stream);
LIGER_API liger_status liger_fused_linear_kl_div_cpu(const liger_divergence_args *a, int64_t row_begin,
                                                     int64_t row_end);
LIGER_API liger_status liger_fused_linear_kl_div_cuda(const liger_divergence_args *a, void *stream);
#endif
