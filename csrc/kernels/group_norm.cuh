/* What group_norm's kernels share, and the plans besides group_norm.cu's own. */
#ifndef LIGER_GROUP_NORM_CUH
#define LIGER_GROUP_NORM_CUH
#include "norm.cuh"

/* group_norm_block.cu, small groups, and group_norm_sm90.cu; false: not this group, or not this device, and nothing
 * was launched. The backward's leave a row of partial sums for each batch entry. */
bool liger_internal_group_norm_fwd_block(const liger_group_norm_fwd_args *a, gpu_stream stream,
                                         liger_status *status);
bool liger_internal_group_norm_bwd_block(const liger_group_norm_bwd_args *a, gpu_stream stream,
                                         liger_status *status);
bool liger_internal_group_norm_fwd_cluster(const liger_group_norm_fwd_args *a, gpu_stream stream,
                                           liger_status *status);
bool liger_internal_group_norm_bwd_cluster(const liger_group_norm_bwd_args *a, gpu_stream stream,
                                           liger_status *status);

namespace {
__device__ __forceinline__ float load_scalar(const void *P, int64_t i, liger_dtype t, float otherwise) {
  float p[1];
  norm_load_param<1>(p, P, i, t, 0.0f, otherwise);
  return p[0];
}

/* a vector lies in one channel */
inline bool whole_vectors(const void *p, int64_t n_inner, int elem_size) {
  return rows_aligned(p, n_inner, n_inner, elem_size);
}
} // namespace
#endif
