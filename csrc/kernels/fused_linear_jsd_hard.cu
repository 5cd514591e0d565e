/* fused_linear_jsd   the rows that have a cross entropy of their labels too; kernels in fused_linear_jsd.cuh */
#include "fused_linear_jsd.cuh"

liger_status fused_linear_jsd_hard(const liger_divergence_args *a, gpu_stream stream) {
  return launch_rows<hard_loss>(a, hard_loss_params_of(a), stream);
}
