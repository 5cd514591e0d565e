/* cross_entropy on Hopper: a row stays on the chip between its two uses, so it is read from memory once
 * and written once.
 *
 * Plan     a cluster of 1 to 8 blocks per row. Each block copies its slice of the row into shared memory
 *          with the bulk copy engine, 16 KB to an mbarrier, and pushes each piece into the statistics as
 *          it lands; the blocks merge their statistics through distributed shared memory, as a tree; each
 *          computes its slice of dX from shared memory. Slices are small enough for 3 blocks to share a
 *          multiprocessor: one loads while another computes or writes.
 * Applies  on compute capability 9.0, to rows of aligned 16-byte vectors that are wider than a few KB;
 *          else cross_entropy.cu */
#include "cross_entropy.cuh"

#if LIGER_HIP
bool liger_internal_cross_entropy_cluster(const ce_params &, liger_dtype, gpu_stream, liger_status *) {
  return false;
}
#else
#include <cooperative_groups.h>

namespace {
constexpr int THREADS = 256;
constexpr int PIECE_VECS = THREADS * 4; /* of 16 bytes: 16 KB */
constexpr int MAX_PIECES = 14; /* of a slice; 14 * 16 KB is all the shared memory that a block may have */
constexpr int MAX_CLUSTER = 8; /* the largest that every Hopper part schedules */
constexpr int64_t SLICE_BYTES = 76 * 1024 -
                                512; /* 3 blocks to a multiprocessor of 228 KB, 1 KB each reserved */
constexpr int64_t MAX_SLICE_BYTES = MAX_PIECES * (int64_t)PIECE_VECS * 16 - 2048;
constexpr int64_t MIN_ROW_BYTES = 8 * 1024; /* below, a block of the portable path has the row in L1 */

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define CE_CLUSTER_CODE 1
#else
#define CE_CLUSTER_CODE 0
#endif

#if CE_CLUSTER_CODE
__device__ __forceinline__ uint32_t shared_address(const void *p) {
  return (uint32_t)__cvta_generic_to_shared(p);
}
__device__ __forceinline__ void barrier_init(uint64_t *bar) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(bar)) : "memory");
}
/* after the inits: visible to the copy engine */
__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
/* dst (shared) = bytes of src (global), announced on bar; one thread, all multiples of 16 */
__device__ __forceinline__ void bulk_load(void *dst, const void *src, uint32_t bytes, uint64_t *bar) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)), "r"(bytes)
               : "memory");
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          shared_address(dst)),
      "l"(__cvta_generic_to_global(src)), "r"(bytes), "r"(shared_address(bar))
      : "memory");
}
/* until the barrier's first phase is over */
__device__ __forceinline__ void barrier_wait(uint64_t *bar) {
  uint32_t done = 0;
  while (!done)
    asm volatile("{\n\t.reg .pred p;\n\t"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], 0;\n\t"
                 "selp.u32 %0, 1, 0, p;\n\t}"
                 : "=r"(done)
                 : "r"(shared_address(bar))
                 : "memory");
}
#endif

/* Block r of the cluster holds columns [r * slice_cols, ...) of the row; slice_cols is a multiple of the
 * vector width, and the last slices may be short or empty. */
template <typename T, bool FULL>
__global__ void __launch_bounds__(THREADS, 3)
    cross_entropy_cluster_kernel(const ce_params p, int64_t slice_cols) {
#if CE_CLUSTER_CODE
  namespace cg = cooperative_groups;
  typedef typename ce_state_of<FULL>::type state;
  constexpr int N = vec_width<T>::value;
  extern __shared__ __align__(128) unsigned char slice_raw[];
  __shared__ __align__(8) uint64_t landed[MAX_PIECES];
  __shared__ state scratch[BLOCK_SCRATCH];
  __shared__ state of_block;
  const cg::cluster_group cluster = cg::this_cluster();
  const int n_blocks = (int)cluster.num_blocks(), rank = (int)cluster.block_rank(), tid = (int)threadIdx.x;
  const int64_t row = blockIdx.x / n_blocks, first_col = rank * slice_cols;
  const int64_t left = p.n_cols - first_col, n = left < 0 ? 0 : left < slice_cols ? left : slice_cols;
  const int n_vecs = (int)(n / N), n_pieces = (n_vecs + PIECE_VECS - 1) / PIECE_VECS;
  const T *const X = (const T *)p.X + row * p.X_row_stride + first_col;
  T *const dX = p.dX ? (T *)p.dX + row * p.dX_row_stride + first_col : nullptr;
  vec<T, N> *const slice = reinterpret_cast<vec<T, N> *>(slice_raw);

  const ce_target t = ce_load_target<FULL, T>(p, row);
  if (t.skip) { /* the whole cluster leaves here */
    if (rank == 0 && tid == 0) ce_fill_outputs(p, row, t.fill);
    vec<T, N> v;
#pragma unroll
    for (int j = 0; j < N; j++) from_f32(v.v[j], t.fill);
    if (dX)
      for (int i = tid; i < n_vecs; i += THREADS) store_vec_stream<T, N>(dX + (int64_t)i * N, v);
    return;
  }

  if (tid == 0) {
    for (int i = 0; i < n_pieces; i++) barrier_init(&landed[i]);
    barrier_init_fence();
    for (int i = 0; i < n_pieces; i++) {
      const int begin = i * PIECE_VECS, count = n_vecs - begin < PIECE_VECS ? n_vecs - begin : PIECE_VECS;
      bulk_load(slice + begin, X + (int64_t)begin * N, (uint32_t)count * 16, &landed[i]);
    }
  }
  __syncthreads();

  state s;
  ce_reset(s);
  constexpr int HELD = FULL ? 1 : 2; /* vectors pushed at once: as many as registers hold without spilling */
  for (int i = 0, v = tid; i < n_pieces; i++) {
    barrier_wait(&landed[i]);
    const int end = n_vecs < (i + 1) * PIECE_VECS ? n_vecs : (i + 1) * PIECE_VECS;
#pragma unroll 2
    for (; v + (HELD - 1) * THREADS < end; v += HELD * THREADS) {
      float z[HELD][N];
#pragma unroll
      for (int u = 0; u < HELD; u++) ce_logits<FULL>(z[u], load_vec<T, N>(slice[v + u * THREADS].v), p);
      ce_push(s, p, z, first_col + (int64_t)v * N, (int64_t)THREADS * N);
    }
    for (; v < end; v += THREADS) {
      float z[1][N];
      ce_logits<FULL>(z[0], load_vec<T, N>(slice[v].v), p);
      ce_push(s, p, z, first_col + (int64_t)v * N, 0);
    }
  }
  s = ce_block_merge(s, scratch);
  if (n_blocks > 1) {
    if (tid == 0) of_block = s;
    cluster.sync();
    /* each warp reads all states at once, a lane a block: one after the other they would cost a
     * microsecond a row */
    s = ce_warp_merge(*cluster.map_shared_rank(&of_block, tid & (n_blocks - 1)), n_blocks);
    cluster.barrier_arrive(); /* this block has read the others' */
  }
  const ce_gradient g = ce_finish(p, row, s, t, rank == 0 && tid == 0);
  if (dX) {
#pragma unroll 2
    for (int i = tid; i < n_vecs; i += THREADS)
      store_vec_stream<T, N>(dX + (int64_t)i * N,
                             ce_dx<FULL>(p, g, t, load_vec<T, N>(slice[i].v), first_col + (int64_t)i * N));
  }
  if (n_blocks > 1) cluster.barrier_wait(); /* shared memory lives until everybody has read it */
#endif
}

/* sm_90 code is in this build: without it, the kernels above are empty */
constexpr bool built_for_hopper() {
#ifdef __CUDA_ARCH_LIST__
  constexpr int archs[] = {__CUDA_ARCH_LIST__};
  for (int arch : archs)
    if (arch == 900) return true;
#endif
  return false;
}

/* The fewest blocks whose slices leave room for 3 on a multiprocessor; 8, with room for fewer, for the
 * widest rows. 0: too wide. */
int plan_cluster(int64_t row_bytes) {
  for (int n = 1; n <= MAX_CLUSTER; n *= 2)
    if ((row_bytes + n - 1) / n <= SLICE_BYTES) return n;
  return (row_bytes + MAX_CLUSTER - 1) / MAX_CLUSTER <= MAX_SLICE_BYTES ? MAX_CLUSTER : 0;
}

template <typename T, bool FULL> liger_status launch(const ce_params &p, int n_blocks, gpu_stream stream) {
  constexpr int N = vec_width<T>::value;
  const int64_t vecs = p.n_cols / N, slice_vecs = (vecs + n_blocks - 1) / n_blocks;
  const int bytes = (int)(slice_vecs * 16);
  const auto kernel = cross_entropy_cluster_kernel<T, FULL>;
  cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (e == cudaSuccess)
    e = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                             cudaSharedmemCarveoutMaxShared);
  if (e != cudaSuccess) return (liger_status)e;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = (unsigned)n_blocks;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3((unsigned)(p.n_rows * n_blocks));
  config.blockDim = dim3(THREADS);
  config.dynamicSmemBytes = (size_t)bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  e = cudaLaunchKernelEx(&config, kernel, p, slice_vecs * N);
  return (liger_status)(e != cudaSuccess ? e : cudaGetLastError());
}
} // namespace

bool liger_internal_cross_entropy_cluster(const ce_params &p, liger_dtype x_dtype, gpu_stream stream,
                                          liger_status *status) {
  const int elem_size = x_dtype == LIGER_F32 ? 4 : 2;
  const int64_t row_bytes = p.n_cols * elem_size;
  if (!built_for_hopper() || x_dtype == LIGER_F64 || row_bytes < MIN_ROW_BYTES) return false;
  if (!rows_aligned(p.X, p.X_row_stride, p.n_cols, elem_size) ||
      (p.dX && !rows_aligned(p.dX, p.dX_row_stride, p.n_cols, elem_size)))
    return false;
  const int n_blocks = plan_cluster(row_bytes);
  if (n_blocks == 0 || p.n_rows > GPU_MAX_GRID / n_blocks) return false;
  int device = 0, major = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess || major != 9)
    return false;
  const bool full = p.smoothing != 0.0f || p.softcap != 0.0f || p.accuracy || p.predicted;
  const auto run = [&]() -> liger_status {
    LIGER_DISPATCH_DTYPE(x_dtype, T, {
      return full ? launch<T, true>(p, n_blocks, stream) : launch<T, false>(p, n_blocks, stream);
    });
    return LIGER_OK;
  };
  *status = run();
  return true;
}
#endif
