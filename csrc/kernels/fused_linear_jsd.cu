/* fused_linear_jsd   the launcher; kernels in fused_linear_jsd.cuh */
#include "fused_linear_jsd.cuh"

extern "C" liger_status liger_fused_linear_jsd_cuda(const liger_divergence_args *a, void *stream_) {
  const gpu_stream stream = (gpu_stream)stream_;
  if (a->n_rows == 0) return LIGER_OK;
  if (a->n_rows > GPU_MAX_GRID) return LIGER_ERR_SIZE;
  if (a->x_dtype != a->y_dtype) return LIGER_ERR_DTYPE;
  return a->hard.loss ? fused_linear_jsd_hard(a, stream) : launch_rows<no_hard_loss>(a, {}, stream);
}
