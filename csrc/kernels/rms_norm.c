/* rms_norm   Y = X * rstd * (W + offset),   rstd = 1/sqrt(mean(X^2) + eps)          per row
 *            dX = rstd * (m - X * rstd^2 * mean(m * X)),  m = dY * (W + offset)
 *            dW = sum_rows(dY * X * rstd)
 * Shapes     X Y dX dY (n_rows, n_cols), last dim contiguous; W dW (n_cols); rstd (n_rows) real, saved by fwd
 * Casting    llama: round X * rstd to X's dtype, then times W.  gemma, none: no rounding before the store
 * Plan       norm.h, with nothing subtracted and nothing added
 * Source     arXiv:1910.07467; LlamaRMSNorm and GemmaRMSNorm in transformers */
#include "norm.h"

liger_status LIGER_KERNEL(rms_norm_fwd)(const liger_norm_fwd_args *a, int64_t row_begin, int64_t row_end) {
  return norm_fwd(a, row_begin, row_end, 0, 0);
}
liger_status LIGER_KERNEL(rms_norm_bwd)(const liger_norm_bwd_args *a, int64_t block_begin,
                                        int64_t block_end) {
  return norm_bwd(a, block_begin, block_end, 0, 0);
}
liger_status LIGER_KERNEL(rms_norm_params)(const liger_norm_bwd_args *a, int64_t col_begin, int64_t col_end) {
  return norm_params(a, col_begin, col_end);
}

#if LIGER_BASE_UNIT
int64_t liger_rms_norm_bwd_blocks_cpu(int64_t n_rows, int64_t n_cols) {
  (void)n_cols;
  return norm_blocks(n_rows);
}
#endif
LIGER_CPU_ENTRY(rms_norm_fwd, liger_norm_fwd_args, x_dtype);
LIGER_CPU_ENTRY(rms_norm_bwd, liger_norm_bwd_args, x_dtype);
LIGER_CPU_ENTRY(rms_norm_params, liger_norm_bwd_args, x_dtype);
