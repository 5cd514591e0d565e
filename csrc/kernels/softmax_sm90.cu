/* softmax on Hopper: a row that one block cannot hold is held by a cluster, so it is read once. Plan 2 to
 * 8 blocks per row, each with a slice of it as in softmax.cu; their statistics meet in distributed shared
 * memory, as a tree. Slices of 64 KB leave room for two blocks on a multiprocessor; up to 128 KB for the
 * widest rows, so a row may have 1 MB: 262144 columns of fp32 Applies on compute capability 9.0, to rows
 * of aligned 16-byte vectors of more than 64 KB; else softmax.cu */
#include "cluster_sm90.cuh"
#include "softmax.cuh"

#if LIGER_HIP
bool liger_internal_softmax_fwd_cluster(const liger_softmax_fwd_args *, gpu_stream, liger_status *) {
  return false;
}
bool liger_internal_softmax_bwd_cluster(const liger_softmax_bwd_args *, gpu_stream, liger_status *) {
  return false;
}
#else

namespace {
constexpr int NV = SOFTMAX_NV;
constexpr int64_t SLICE_BYTES = 64 * 1024; /* 512 threads */

/* Block r of a cluster has the row's vectors [first, first + n). */
struct slice {
  int64_t row, first;
  int n_vecs, n_blocks, rank;
};
#if CLUSTER_CODE
__device__
__forceinline__ slice slice_of(const cg::cluster_group &cluster, int64_t n_vecs, int64_t slice_vecs) {
  const int n_blocks = (int)cluster.num_blocks(), rank = (int)cluster.block_rank();
  const int64_t first = rank * slice_vecs, left = n_vecs - first;
  return {blockIdx.x / n_blocks, first,
          (int)(left < 0            ? 0
                : left < slice_vecs ? left
                                    : slice_vecs),
          n_blocks, rank};
}
#endif

template <typename T>
__global__ void __launch_bounds__(SOFTMAX_MAX_THREADS, 1)
    softmax_fwd_cluster_kernel(T *Y, const T *X, int64_t n_cols, int64_t X_row_stride, int64_t slice_vecs) {
#if CLUSTER_CODE
  constexpr int N = vec_width<T>::value;
  __shared__ softmax_state scratch[BLOCK_SCRATCH], of_block;
  cg::cluster_group cluster = cg::this_cluster();
  const slice at = slice_of(cluster, n_cols / N, slice_vecs);
  softmax_fwd_part<T, N, NV>(Y + at.row * n_cols + at.first * N, X + at.row * X_row_stride + at.first * N,
                             (int)threadIdx.x, at.n_vecs, [&](softmax_state s) {
                               s = ce_block_merge(s, scratch);
                               return ce_warp_merge(cluster_exchange(cluster, s, &of_block, at.n_blocks),
                                                    at.n_blocks);
                             });
  cluster.barrier_wait(); /* shared memory lives until everybody has read it */
#endif
}

template <typename T>
__global__ void __launch_bounds__(SOFTMAX_MAX_THREADS, 1)
    softmax_bwd_cluster_kernel(T *dX, const T *dY, const T *Y, int64_t n_cols, int64_t dY_row_stride,
                               int64_t Y_row_stride, int64_t slice_vecs) {
#if CLUSTER_CODE
  constexpr int N = vec_width<T>::value;
  extern __shared__ uint4 dynamic_shared[]; /* NV vectors a thread */
  __shared__ float scratch[BLOCK_SCRATCH], of_block;
  cg::cluster_group cluster = cg::this_cluster();
  const slice at = slice_of(cluster, n_cols / N, slice_vecs);
  softmax_bwd_part<T, N, NV>(dX + at.row * n_cols + at.first * N, dY + at.row * dY_row_stride + at.first * N,
                             Y + at.row * Y_row_stride + at.first * N, (int)threadIdx.x, at.n_vecs,
                             dynamic_shared + softmax_first<NV>((int)threadIdx.x), [&](float v) {
                               v = block_reduce<op_sum>(v, scratch);
                               return warp_reduce<op_sum>(
                                   cluster_exchange(cluster, v, &of_block, at.n_blocks), at.n_blocks);
                             });
  cluster.barrier_wait();
#endif
}

/* blocks per row: 0 where one block holds it, or where not even the largest cluster does */
int plan_cluster(int64_t row_bytes) {
  if (row_bytes <= SLICE_BYTES || row_bytes > MAX_CLUSTER * 2 * SLICE_BYTES) return 0;
  int n = 2;
  while (n < MAX_CLUSTER && n * SLICE_BYTES < row_bytes) n *= 2;
  return n;
}
} // namespace

bool liger_internal_softmax_fwd_cluster(const liger_softmax_fwd_args *a, gpu_stream stream,
                                        liger_status *status) {
  if (a->x_dtype == LIGER_F64) return false;
  const int elem_size = a->x_dtype == LIGER_F32 ? 4 : 2;
  const int64_t row_bytes = a->n_cols * elem_size;
  const int n_blocks = plan_cluster(row_bytes);
  if (n_blocks == 0 || !rows_aligned(a->X, a->X_row_stride, a->n_cols, elem_size) ||
      !rows_aligned(a->Y, a->n_cols, a->n_cols, elem_size) || !cluster_device())
    return false;
  const int64_t slice_vecs = (row_bytes / 16 + n_blocks - 1) / n_blocks;
  const int threads = softmax_threads(slice_vecs, NV, 64);
  const auto run = [&]() -> liger_status {
    LIGER_DISPATCH_DTYPE(a->x_dtype, T, {
      return cluster_launch(softmax_fwd_cluster_kernel<T>, a->n_rows, n_blocks, threads, 0, stream,
                            CLUSTERS_ALL, (T *)a->Y, (const T *)a->X, a->n_cols, a->X_row_stride, slice_vecs);
    });
    return LIGER_OK;
  };
  *status = run();
  return true;
}

bool liger_internal_softmax_bwd_cluster(const liger_softmax_bwd_args *a, gpu_stream stream,
                                        liger_status *status) {
  if (a->x_dtype == LIGER_F64) return false;
  const int elem_size = a->x_dtype == LIGER_F32 ? 4 : 2;
  const int64_t row_bytes = a->n_cols * elem_size;
  const int n_blocks = plan_cluster(row_bytes);
  if (n_blocks == 0 || !rows_aligned(a->Y, a->Y_row_stride, a->n_cols, elem_size) ||
      !rows_aligned(a->dY, a->dY_row_stride, a->n_cols, elem_size) ||
      !rows_aligned(a->dX, a->n_cols, a->n_cols, elem_size) || !cluster_device())
    return false;
  const int64_t slice_vecs = (row_bytes / 16 + n_blocks - 1) / n_blocks;
  const int threads = softmax_threads(slice_vecs, NV, 64);
  const auto run = [&]() -> liger_status {
    LIGER_DISPATCH_DTYPE(a->x_dtype, T, {
      return cluster_launch(softmax_bwd_cluster_kernel<T>, a->n_rows, n_blocks, threads,
                            (size_t)threads * NV * 16, stream, CLUSTERS_ALL, (T *)a->dX, (const T *)a->dY,
                            (const T *)a->Y, a->n_cols, a->dY_row_stride, a->Y_row_stride, slice_vecs);
    });
    return LIGER_OK;
  };
  *status = run();
  return true;
}
#endif
