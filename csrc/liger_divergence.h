/* The part of liger.h about losses between a student and a teacher; included there, and not by itself. */
#ifndef LIGER_DIVERGENCE_API_H
#define LIGER_DIVERGENCE_API_H

/* ---- divergences: jsd, kl_div, tvd, and the rows of fused_linear_jsd, _kl_div and _cosine ------------------
 * Of a student's X and a teacher's Y, per element, with P = e^Y, Q = e^X; 0 times an infinity is 0:
 *   jsd       ln M = ln(beta P + (1 - beta) Q),   l = beta P (Y - ln M) + (1 - beta) Q (X - ln M)
 *             dl/dX = (1 - beta) Q (X - ln M)
 *             beta 0: l = P (Y - X), dl/dX = -P;   beta 1: l = Q (X - Y), dl/dX = Q (X - Y + 1)
 *   kl_div    l = Y (ln max(Y, eps) - X), dl/dX = -Y;   log_target: l = P (Y - X), dl/dX = -P
 *   tvd       l = |X - Y| / 2,   dl/dX = sign(X - Y) / 2, 0 at a tie
 *   fused_linear_jsd      jsd of log_softmax(X / temperature), log_softmax(Y / temperature); dX through both
 *   fused_linear_kl_div   kl_div of log_softmax(X / temperature) and the probabilities Y; dX through it
 *   fused_linear_cosine   of a whole row, with A = max(|X|, eps), B = max(|Y|, eps), eps = 1e-8 temperature:
 *             l = parameter (1 - c),  c = X.Y / (A B),   dX = parameter (c X / |X| - Y / B) / A, c / |X| 0 where X is 0
 * A row whose label is ignore_index has loss and dX 0.
 * Beside the divergence, where `hard` says so: the labels' cross entropy of the logits before the temperature,
 *   hard = lse(X) - X_label over X's first hard.n_cols columns,   p its softmax, 0 in the others
 *   dX = soft_weight grad dsoft/dX + weight hard.grad (p - [i = label]),   all times the scale
 * A factor of 0 wins over a NaN of what it stands before. A label that is no class makes its row NaN, and nothing is
 * read out of bounds (the CPU glue refuses it before any work). A row of -inf alone has the loss inf, dX 0. */
/* a liger_reduction of the divergences alone: over rows, where their mean is over elements */
enum { LIGER_REDUCE_BATCHMEAN = 3 };

typedef struct {
  void *
      loss; /* (n_rows) real, times the scale as the divergence is; NULL: no cross entropy, nothing else read */
  const void *grad;           /* real, the incoming gradient; NULL: 1 */
  int64_t n_cols;             /* the classes, at most the row's columns */
  double weight, soft_weight; /* of the two gradients in dX */
} liger_hard_loss;

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
  liger_hard_loss hard; /* fused_linear_jsd, fused_linear_cosine */
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
LIGER_API liger_status liger_fused_linear_cosine_cpu(const liger_divergence_args *a, int64_t row_begin,
                                                     int64_t row_end);
LIGER_API liger_status liger_fused_linear_cosine_cuda(const liger_divergence_args *a, void *stream);
LIGER_API liger_status liger_fused_linear_kl_div_cpu(const liger_divergence_args *a, int64_t row_begin,
                                                     int64_t row_end);
LIGER_API liger_status liger_fused_linear_kl_div_cuda(const liger_divergence_args *a, void *stream);

/* ---- fused_ce_tvd -----------------------------------------------------------------------------------------
 * Per row, of a student's logits X and a teacher's Y, p = softmax(X), q = softmax(Y), y = target:
 *   ce = lse(X) - X_y,   tvd = sum |p - q| / 2,   sigma = sum p s,  s = sign(p - q), 0 at a tie
 *   dX_i = grad_ce (p_i - [i = y]) + grad_tvd p_i (s_i - sigma) / 2
 * A row whose target is ignore_index has ce, tvd and dX 0; one whose target is out of range NaN, and nothing is read
 * out of bounds (the CPU glue refuses it before any work). */
enum { LIGER_CE_TVD_STATS = 5 }; /* per row: of X, its largest element m and lse - m; of Y, the same; sigma */

typedef struct {
  void *ce, *tvd;                 /* (n_rows) real; NULL: the stats are given, dX is wanted */
  void *stats;                    /* (LIGER_CE_TVD_STATS, n_rows) real; written forward, read backward */
  void *dX;                       /* (n_rows, n_cols) x_dtype; NULL forward */
  const void *X, *Y;              /* (n_rows, n_cols) x_dtype */
  const int64_t *target;          /* (n_rows), stride target_stride */
  const void *grad_ce, *grad_tvd; /* (n_rows) real, strides of their own; NULL forward */
  int64_t n_rows, n_cols, X_row_stride, Y_row_stride, dX_row_stride, target_stride, grad_ce_stride,
      grad_tvd_stride;
  int64_t ignore_index;
  liger_dtype x_dtype;
} liger_fused_ce_tvd_args;
LIGER_API liger_status liger_fused_ce_tvd_cpu(const liger_fused_ce_tvd_args *a, int64_t row_begin,
                                              int64_t row_end);
LIGER_API liger_status liger_fused_ce_tvd_cuda(const liger_fused_ce_tvd_args *a, void *stream);
#endif
