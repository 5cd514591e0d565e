/* Launching thread-block clusters, which Hopper alone has here: what a *_sm90.cu needs beside its kernels. */
#ifndef LIGER_CLUSTER_SM90_CUH
#define LIGER_CLUSTER_SM90_CUH
#include "primitives.cuh"

#if !LIGER_HIP
#include <cooperative_groups.h>

/* 1 where kernels of clusters have a body: on the host, and in code for sm_90 on */
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define CLUSTER_CODE 1
#else
#define CLUSTER_CODE 0
#endif

namespace {
constexpr int MAX_CLUSTER = 8; /* the largest that every Hopper part schedules */

#if CLUSTER_CODE
namespace cg = cooperative_groups;
/* every block's value, one of them in each group of n_blocks lanes; cluster.barrier_wait() before the
 * kernel ends */
template <class V>
__device__ __forceinline__ V cluster_exchange(cg::cluster_group &cluster, V v, V *of_block, int n_blocks) {
  if (threadIdx.x == 0) *of_block = v;
  cluster.sync();
  const V theirs = *cluster.map_shared_rank(of_block, threadIdx.x & (n_blocks - 1));
  cluster.barrier_arrive(); /* this block has read the others' */
  return theirs;
}
#endif

/* Whether this build has sm_90 code and the current device is a Hopper. Host. */
inline bool cluster_device() {
  bool built = false;
#ifdef __CUDA_ARCH_LIST__
  constexpr int archs[] = {__CUDA_ARCH_LIST__};
  for (int arch : archs) built = built || arch == 900;
#endif
  int device = 0, major = 0;
  return built && cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         major == 9;
}

/* kernel<<<n_clusters * n_blocks, threads, shared>>> in clusters of n_blocks, a power of two */
template <class... Params, class... Args>
liger_status cluster_launch(void (*kernel)(Params...), int64_t n_clusters, int n_blocks, int threads,
                            size_t shared, gpu_stream stream, Args... args) {
  if (n_clusters > GPU_MAX_GRID / n_blocks) return LIGER_ERR_SIZE;
  if (shared > 0) {
    const cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                               (int)shared);
    if (e != cudaSuccess) return (liger_status)e;
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = (unsigned)n_blocks;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3((unsigned)(n_clusters * n_blocks));
  config.blockDim = dim3((unsigned)threads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  const cudaError_t e = cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
  return (liger_status)(e != cudaSuccess ? e : cudaGetLastError());
}
} // namespace
#endif
#endif
