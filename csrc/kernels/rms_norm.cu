/* rms_norm   see rms_norm.c for the equations, norm.cuh for the plan.
 * Floor      fwd 2*N*s + n_cols*s + 4*n_rows bytes;  bwd 3*N*s + 2*n_cols*s + 4*n_rows    (N = n_rows*n_cols) */
#include "norm.cuh"

extern "C" liger_status liger_rms_norm_fwd_cuda(const liger_norm_fwd_args *a, void *stream) {
  return norm_fwd<false, false>(a, (gpu_stream)stream);
}
extern "C" int64_t liger_rms_norm_bwd_blocks_cuda(int64_t n_rows, int64_t n_cols, liger_dtype x_dtype) {
  return norm_bwd_blocks(n_rows, n_cols, x_dtype);
}
extern "C" liger_status liger_rms_norm_bwd_cuda(const liger_norm_bwd_args *a, void *stream) {
  return norm_bwd<false, false>(a, (gpu_stream)stream);
}
