/* fused_ce_tvd's forward on Hopper: wide rows are read once.
 * Plan       a cluster of 2 to 8 blocks a row, each with a slice of both logits in shared memory, up to 8 vectors of
 *            each a thread. A thread copies its own vectors and reads no others, so the first pass begins with the
 *            first to arrive; statistics and sums meet in distributed shared memory, as a tree. Slices of 64 KB (32 of
 *            each row) leave room for three blocks on a multiprocessor, one of which loads while others compute; up to
 *            128 KB for the widest rows: 262144 columns of 16 bits
 * Applies    on compute capability 9.0, to rows of aligned 16-byte vectors of more than 32 KB; else fused_ce_tvd.cu */
#include "cluster_sm90.cuh"
#include "fused_ce_tvd.cuh"

#if LIGER_HIP
bool liger_internal_fused_ce_tvd_cluster(const ce_tvd_params &, liger_dtype, gpu_stream, liger_status *) {
  return false;
}
#else

namespace {
constexpr int CE_TVD_NV = 8,
              CE_TVD_THREADS = 512; /* vectors of each row a thread holds; 256 threads where they do */

struct ce_tvd_stats {
  row_softmax x, y;
};

template <typename T>
__global__ void __launch_bounds__(CE_TVD_THREADS, 1)
    fused_ce_tvd_fwd_cluster_kernel(const ce_tvd_params p, int slice_vecs) {
#if CLUSTER_CODE
  constexpr int N = vec_width<T>::value;
  extern __shared__ uint4 dynamic_shared[]; /* of X and of Y, CE_TVD_NV vectors a thread */
  __shared__ row_softmax merge_scratch[2][BLOCK_SCRATCH];
  __shared__ float sum_scratch[2][BLOCK_SCRATCH];
  __shared__ ce_tvd_stats stats_of_block;
  __shared__ ce_tvd_sums sums_of_block;
  cg::cluster_group cluster = cg::this_cluster();
  const int n_blocks = (int)cluster.num_blocks(), rank = (int)cluster.block_rank(), tid = (int)threadIdx.x,
            step = (int)blockDim.x;
  const int64_t row = blockIdx.x / n_blocks, target = p.target[row * p.target_stride];
  if (ce_tvd_without_loss(p, row, target, rank == 0)) return; /* the whole cluster */
  const int64_t first = (int64_t)rank * slice_vecs, left = p.n_cols / N - first;
  const int n_vecs = (int)(left < slice_vecs ? left : slice_vecs); /* 0 or less: none is left */
  const T *const X = (const T *)p.X + row * p.X_row_stride, *const Y = (const T *)p.Y + row * p.Y_row_stride;
  uint4 *const x_slots = dynamic_shared + tid, *const y_slots = x_slots + CE_TVD_NV * step;
#pragma unroll
  for (int i = 0; i < CE_TVD_NV; i++) {
    const int v = i * step + tid;
    if (v < n_vecs) {
      gpu_copy_async(x_slots + i * step, X + (first + v) * N, true);
      gpu_copy_async(y_slots + i * step, Y + (first + v) * N, true);
    }
    gpu_copy_commit();
  }
  const auto read = [&](int i, float (&x)[N], float (&y)[N]) {
    vec<T, N> xv, yv;
    __builtin_memcpy(&xv, x_slots + i * step, 16);
    __builtin_memcpy(&yv, y_slots + i * step, 16);
    unpack(x, xv);
    unpack(y, yv);
  };
  ce_tvd_stats s = {softmax_nothing(), softmax_nothing()};
  const auto push = [&](int i) {
    if (i * step + tid >= n_vecs) return;
    float x[N], y[N];
    read(i, x, y);
    softmax_push(s.x, x);
    softmax_push(s.y, y);
  };
  static_assert(CE_TVD_NV == 8, "one wait for every vector of a thread");
  gpu_copy_wait<7>(), push(0);
  gpu_copy_wait<6>(), push(1);
  gpu_copy_wait<5>(), push(2);
  gpu_copy_wait<4>(), push(3);
  gpu_copy_wait<3>(), push(4);
  gpu_copy_wait<2>(), push(5);
  gpu_copy_wait<1>(), push(6);
  gpu_copy_wait<0>(), push(7);
  s = {softmax_block_merge(s.x, merge_scratch[0]), softmax_block_merge(s.y, merge_scratch[1])};
  s = cluster_exchange(cluster, s, &stats_of_block, n_blocks);
  s = {softmax_warp_merge(s.x, n_blocks), softmax_warp_merge(s.y, n_blocks)};
  const float x_log_d = softmax_log_d(s.x), y_log_d = softmax_log_d(s.y);
  const ce_tvd_probabilities probabilities(s.x.m, x_log_d, s.y.m, y_log_d);
  ce_tvd_sums sums = {0.0f, 0.0f};
#pragma unroll 2
  for (int i = 0; i < CE_TVD_NV; i++) {
    if (i * step + tid >= n_vecs) break;
    float x[N], y[N];
    read(i, x, y);
    probabilities(x, y);
    sums.add(x, y);
  }
  sums = {block_reduce<op_sum>(sums.tvd, sum_scratch[0]), block_reduce<op_sum>(sums.sigma, sum_scratch[1])};
  cluster.barrier_wait(); /* of the exchange before */
  sums = cluster_exchange(cluster, sums, &sums_of_block, n_blocks);
  sums = {warp_reduce<op_sum>(sums.tvd, n_blocks), warp_reduce<op_sum>(sums.sigma, n_blocks)};
  if (rank == 0 && tid == 0) ce_tvd_write(p, row, to_f32(X[target]), s.x, s.y, x_log_d, y_log_d, sums);
  cluster.barrier_wait(); /* shared memory lives until everybody has read it */
#endif
}
} // namespace

bool liger_internal_fused_ce_tvd_cluster(const ce_tvd_params &p, liger_dtype t, gpu_stream stream,
                                         liger_status *status) {
  constexpr int NARROW = CE_TVD_NV * CE_TVD_THREADS / 2; /* vectors of a row that 256 threads hold */
  const int elem_size = t == LIGER_F32 ? 4 : 2;
  const int64_t n_vecs = p.n_cols * elem_size / 16;
  if (t == LIGER_F64 || n_vecs <= NARROW || n_vecs > 2 * NARROW * MAX_CLUSTER ||
      !rows_aligned(p.X, p.X_row_stride, p.n_cols, elem_size) ||
      !rows_aligned(p.Y, p.Y_row_stride, p.n_cols, elem_size) || !cluster_device())
    return false;
  int n_blocks = 2;
  while (n_blocks < MAX_CLUSTER && n_blocks * NARROW < n_vecs) n_blocks *= 2;
  const int slice_vecs = (int)((n_vecs + n_blocks - 1) / n_blocks);
  const int threads = slice_vecs <= NARROW ? CE_TVD_THREADS / 2 : CE_TVD_THREADS;
  const auto run = [&]() -> liger_status {
    LIGER_DISPATCH_DTYPE(t, T, {
      return cluster_launch(fused_ce_tvd_fwd_cluster_kernel<T>, p.n_rows, n_blocks, threads,
                            (size_t)threads * CE_TVD_NV * 2 * 16, stream, CLUSTERS_ALL, p, slice_vecs);
    });
    return LIGER_OK;
  };
  *status = run();
  return true;
}
#endif
