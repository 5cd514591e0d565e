/* jsd        see jsd.c; loop, plan and floor in divergence.cuh
 * Rounding   fp32 to the end, dX rounded once; exponentials within 2 ulp; logarithms by the special-function
 *            unit, or by a series where that would lose digits */
#include "divergence.cuh"

extern "C" liger_status liger_jsd_cuda(const liger_divergence_args *a, void *stream) {
  if (a->parameter == 0) return launch_divergence<jsd_of_p>(a, stream);
  if (a->parameter == 1) return launch_divergence<jsd_of_q>(a, stream);
  if (a->parameter == 0.5) return launch_divergence<jsd_half>(a, stream);
  return launch_divergence<jsd_mid>(a, stream);
}
