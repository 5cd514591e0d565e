/* Launching thread-block clusters, which Hopper alone has here: what a *_sm90.cu needs beside its kernels. */
#ifndef LIGER_CLUSTER_SM90_CUH
#define LIGER_CLUSTER_SM90_CUH
#include "barrier_sm90.cuh"
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

/* Two floats of every block of a cluster for every other, once, in shared memory. A value brings the count of its bytes
 * to the receiver's mbarrier, so nobody waits for memory accesses that are none of it, as the barrier of a cluster
 * does: that one tells only that all mbarriers are there, and arriving at it releases nothing else. All threads of the
 * block call. */
struct cluster_mail {
  float2 from[MAX_CLUSTER];
  uint64_t arrived;

  __device__ __forceinline__ void open() {
    if (threadIdx.x == 0) {
      barrier_init(shared_address(&arrived), 1);
      barrier_init_fence();
    }
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
  }
  /* waits until all blocks have opened; after open and before exchange */
  __device__ __forceinline__ void meet() {
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
  }
  /* the value of every block, one of them in each group of n_blocks lanes */
  __device__ __forceinline__ float2 exchange(float2 v, int rank, int n_blocks) {
    if (n_blocks == 1) return v;
    const uint32_t bar = shared_address(&arrived);
    if (threadIdx.x == 0) barrier_expect(bar, n_blocks * (int)sizeof v);
    if ((int)threadIdx.x < n_blocks) {
      const uint32_t to = shared_address_in(shared_address(&from[rank]), (int)threadIdx.x);
      asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];" ::"r"(to),
                   "l"((uint64_t)__float_as_uint(v.y) << 32 | __float_as_uint(v.x)),
                   "r"(shared_address_in(bar, (int)threadIdx.x))
                   : "memory");
    }
    barrier_wait(bar, 0);
    return from[threadIdx.x & (n_blocks - 1)];
  }
};
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

/* a launch of n_clusters * n_blocks blocks in clusters of n_blocks, a power of two */
struct cluster_config {
  cudaLaunchAttribute attribute{};
  cudaLaunchConfig_t config{};
  cluster_config(int64_t n_clusters, int n_blocks, int threads, size_t shared, gpu_stream stream) {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = (unsigned)n_blocks;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    config.gridDim = dim3((unsigned)(n_clusters * n_blocks));
    config.blockDim = dim3((unsigned)threads);
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = 1;
  }
  cluster_config(const cluster_config &) = delete;
};

/* kernel<<<n_clusters * n_blocks, threads, shared>>>; no more clusters than run at once, if so wanted */
enum cluster_grid { CLUSTERS_ALL, CLUSTERS_RESIDENT };
template <class... Params, class... Args>
liger_status cluster_launch(void (*kernel)(Params...), int64_t n_clusters, int n_blocks, int threads,
                            size_t shared, gpu_stream stream, cluster_grid grid, Args... args) {
  if (n_clusters > GPU_MAX_GRID / n_blocks) return LIGER_ERR_SIZE;
  if (shared > 0) {
    const cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                               (int)shared);
    if (e != cudaSuccess) return (liger_status)e;
  }
  cluster_config launch(n_clusters, n_blocks, threads, shared, stream);
  if (grid == CLUSTERS_RESIDENT) {
    /* the last answer, as a layer asks the same again: microseconds. Of a kernel, its threads and shared memory follow */
    static thread_local struct {
      void (*kernel)(Params...);
      int device, n_blocks, resident;
    } last;
    int device = 0;
    cudaError_t e = cudaGetDevice(&device);
    if (e == cudaSuccess && (last.kernel != kernel || last.device != device || last.n_blocks != n_blocks)) {
      e = cudaOccupancyMaxActiveClusters(&last.resident, kernel, &launch.config);
      last.kernel = e == cudaSuccess ? kernel : nullptr;
      last.device = device;
      last.n_blocks = n_blocks;
    }
    if (e != cudaSuccess) return (liger_status)e;
    if (0 < last.resident && last.resident < n_clusters)
      launch.config.gridDim.x = (unsigned)(last.resident * n_blocks);
  }
  const cudaError_t e = cudaLaunchKernelEx(&launch.config, kernel, static_cast<Params>(args)...);
  return (liger_status)(e != cudaSuccess ? e : cudaGetLastError());
}
} // namespace
#endif
#endif
