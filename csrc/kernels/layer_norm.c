/* layer_norm   Y = xhat * W + bias,   xhat = (X - mean) * rstd,   rstd = 1/sqrt(var(X) + eps)          per row
 *              dX = rstd * (m - mean(m) - xhat * mean(m * xhat)),   m = dY * W
 *              dW = sum_rows(dY * xhat),   dbias = sum_rows(dY)
 * Shapes       X Y dX dY (n_rows, n_cols), last dim contiguous; W bias (n_cols); mean rstd (n_rows) real,
 *              saved by fwd
 * Statistics   two passes over a row in cache: the mean, corrected by the mean of what it leaves, then the
 *              squares of the distances from it. var is the biased one
 * Plan         norm.h, with the mean subtracted
 * Source       arXiv:1607.06450; torch.nn.LayerNorm */
#include "norm.h"

liger_status LIGER_KERNEL(layer_norm_fwd)(const liger_norm_fwd_args *a, int64_t row_begin, int64_t row_end) {
  return norm_fwd(a, row_begin, row_end, 1, 0);
}
liger_status LIGER_KERNEL(layer_norm_bwd)(const liger_norm_bwd_args *a, int64_t block_begin,
                                          int64_t block_end) {
  return norm_bwd(a, block_begin, block_end, 1, 0);
}
liger_status LIGER_KERNEL(layer_norm_params)(const liger_norm_bwd_args *a, int64_t col_begin,
                                             int64_t col_end) {
  return norm_params(a, col_begin, col_end);
}

#if LIGER_BASE_UNIT
int64_t liger_layer_norm_bwd_blocks_cpu(int64_t n_rows, int64_t n_cols) {
  (void)n_cols;
  return norm_blocks(n_rows);
}
#endif
LIGER_CPU_ENTRY(layer_norm_fwd, liger_norm_fwd_args, x_dtype);
LIGER_CPU_ENTRY(layer_norm_bwd, liger_norm_bwd_args, x_dtype);
LIGER_CPU_ENTRY(layer_norm_params, liger_norm_bwd_args, x_dtype);
