/* Barriers in shared memory that count arrivals and bytes: what Hopper's copies and clusters announce themselves on.
 * Addresses of shared memory are 32 bits wide and made once: a conversion takes as long as a load. */
#ifndef LIGER_BARRIER_SM90_CUH
#define LIGER_BARRIER_SM90_CUH
#include "gpu.h"

#if !LIGER_HIP && (!defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900)
namespace {
__device__ __forceinline__ uint32_t shared_address(const void *p) {
  return (uint32_t)__cvta_generic_to_shared(p);
}
/* the same place in block `rank` of the cluster */
__device__ __forceinline__ uint32_t shared_address_in(uint32_t address, int rank) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}
__device__ __forceinline__ void barrier_init(uint32_t bar, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(arrivals) : "memory");
}
/* after the inits: visible to the cluster and to the copy engine */
__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void barrier_arrive(uint32_t bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
/* at the barrier of block `rank` */
__device__ __forceinline__ void barrier_arrive_in(uint32_t bar, int rank) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(shared_address_in(bar, rank)) : "memory");
}
/* arrives, and so many bytes are to come before the phase is over */
__device__ __forceinline__ void barrier_expect(uint32_t bar, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
/* until the barrier's phase of this parity is over */
__device__ __forceinline__ void barrier_wait(uint32_t bar, uint32_t parity) {
  uint32_t done = 0;
  while (!done)
    asm volatile("{\n\t.reg .pred p;\n\t"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
                 "selp.u32 %0, 1, 0, p;\n\t}"
                 : "=r"(done)
                 : "r"(bar), "r"(parity)
                 : "memory");
}
} // namespace
#endif
#endif
