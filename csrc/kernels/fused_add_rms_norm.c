/* fused_add_rms_norm   S = X + R, rounded to their dtype,   Y = S * rstd * (W + offset),
 *                      rstd = 1/sqrt(mean(S^2) + eps)                                                per row
 *                      dX = dR = rstd * (m - S * rstd^2 * mean(m * S)) + dS,   m = dY * (W + offset)
 *                      dW = sum_rows(dY * S * rstd)
 * Shapes    X R S Y dX dY dS (n_rows, n_cols), last dim contiguous; W dW (n_cols); rstd (n_rows) real
 * Casting   llama: round S * rstd to X's dtype, then times W.  gemma, none: no rounding before the store
 * Plan      norm.h, with the sum stored before it is normalised: one read of X and R, one write of S and Y
 * Source    arXiv:1910.07467; the residual adds of LlamaDecoderLayer in transformers */
#include "norm.h"

liger_status LIGER_KERNEL(fused_add_rms_norm_fwd)(const liger_norm_fwd_args *a, int64_t row_begin,
                                                  int64_t row_end) {
  return norm_fwd(a, row_begin, row_end, 0, 1);
}
liger_status LIGER_KERNEL(fused_add_rms_norm_bwd)(const liger_norm_bwd_args *a, int64_t block_begin,
                                                  int64_t block_end) {
  return norm_bwd(a, block_begin, block_end, 0, 1);
}
liger_status LIGER_KERNEL(fused_add_rms_norm_params)(const liger_norm_bwd_args *a, int64_t col_begin,
                                                     int64_t col_end) {
  return norm_params(a, col_begin, col_end);
}

#if LIGER_BASE_UNIT
int64_t liger_fused_add_rms_norm_bwd_blocks_cpu(int64_t n_rows, int64_t n_cols) {
  (void)n_cols;
  return norm_blocks(n_rows);
}
#endif
LIGER_CPU_ENTRY(fused_add_rms_norm_fwd, liger_norm_fwd_args, x_dtype);
LIGER_CPU_ENTRY(fused_add_rms_norm_bwd, liger_norm_bwd_args, x_dtype);
LIGER_CPU_ENTRY(fused_add_rms_norm_params, liger_norm_bwd_args, x_dtype);
