/* group_norm on Hopper: a group of 16-bit elements that one block cannot hold is held by a cluster, so X, and in the
 *         backward dY, are read once; see group_norm.c for the equations
 * Plan    2 to 8 blocks of 512 threads a group, each with some whole channels of it, held in shared memory; backward X
 *         in registers and dY there, so that two blocks share a multiprocessor and one loads while the other stores.
 *         What the blocks know of their channels meets in distributed shared memory. A channel has 1 to 8 turns of
 *         the block, a block at most 8 in all. Applies on compute capability 9.0, to aligned 16-byte vectors; else
 *         group_norm.cu */
#include "cluster_sm90.cuh"
#include "group_norm.cuh"

#if LIGER_HIP
bool liger_internal_group_norm_fwd_cluster(const liger_group_norm_fwd_args *, gpu_stream, liger_status *) {
  return false;
}
bool liger_internal_group_norm_bwd_cluster(const liger_group_norm_bwd_args *, gpu_stream, liger_status *) {
  return false;
}
#else

namespace {
constexpr int NV = 8, THREADS = 512;             /* vectors of a thread */
constexpr int FWD_BLOCKS = CLUSTER_CODE ? 3 : 1; /* that share a multiprocessor */
constexpr size_t SLOT_BYTES = (size_t)NV * THREADS * 16;

struct cluster_plan {
  int n_blocks; /* of a group; 0: no cluster holds it */
  int log_turns;
};

#if CLUSTER_CODE
/* Where a block of a cluster stands, and the vectors of its threads: vector i is one of turn i % turns of the block's
 * channel i / turns. */
struct group_part {
  int64_t group, first_channel, n_inner, start; /* start: of the thread's first vector */
  int channels, log_turns, n_vecs;
  template <class Args>
  __device__ __forceinline__ group_part(const Args &a, int n_blocks, int rank, int log_turns, int vec)
      : group(blockIdx.x / n_blocks), n_inner(a.n_inner),
        channels((int)(a.n_channels / a.n_groups) / n_blocks), log_turns(log_turns),
        n_vecs((int)(a.n_inner / vec)) {
    const int64_t first = group * n_blocks * channels + (int64_t)rank * channels; /* of all batch entries */
    first_channel = first % a.n_channels;
    start = first * n_inner + (int64_t)threadIdx.x * vec;
  }
  __device__ __forceinline__ int channel(int i) const { return i >> log_turns; }
  __device__ __forceinline__ int turn(int i) const { return i & ((1 << log_turns) - 1); }
  __device__ __forceinline__ bool owns(int i) const {
    return channel(i) < channels && turn(i) * THREADS + (int)threadIdx.x < n_vecs;
  }
  template <int VEC> __device__ __forceinline__ int64_t at(int i) const {
    return start + channel(i) * n_inner + turn(i) * (THREADS * VEC);
  }
};

/* NV vectors of a tensor in shared memory, which only the thread that fetched them reads: no barrier, no registers */
template <typename T> struct thread_slots {
  static constexpr int VEC = vec_width<T>::value;
  uint4 *first;
  __device__ __forceinline__ explicit thread_slots(uint4 *shared) : first(shared + threadIdx.x) {}
  /* zeros beyond a channel; gpu_copy_wait<0>() before read */
  __device__ __forceinline__ void fetch(const T *from, const group_part &part) const {
#pragma unroll
    for (int i = 0; i < NV; i++) {
      const bool owned = part.owns(i);
      gpu_copy_async(first + i * THREADS, from + (owned ? part.template at<VEC>(i) : 0), owned);
    }
    gpu_copy_commit();
  }
  __device__ __forceinline__ vec<T, VEC> read(int i) const {
    vec<T, VEC> v;
    __builtin_memcpy(&v, first + i * THREADS, 16);
    return v;
  }
};

struct block_stats {
  float mean, rest, m2;
};
/* The group's statistics from those of its blocks, of n elements each and in neighbouring lanes; m2 becomes the
 * group's. All means are near any of them, so the distances lose no digits. */
__device__ __forceinline__ block_stats merge_blocks(const block_stats &s, int n_blocks, float n) {
  const float share = 1.0f / (float)n_blocks, mean = warp_reduce<op_sum>(s.mean, n_blocks) * share;
  const float d = (s.mean - mean) + s.rest, rest = warp_reduce<op_sum>(d, n_blocks) * share;
  return {mean, rest, warp_reduce<op_sum>(fmaf(n * (d - rest), d - rest, s.m2), n_blocks)};
}
#endif

template <typename T>
__global__ void __launch_bounds__(THREADS, FWD_BLOCKS)
    group_norm_fwd_cluster_kernel(const liger_group_norm_fwd_args a, int log_turns) {
#if CLUSTER_CODE
  constexpr int VEC = vec_width<T>::value, SUMS = norm_distances<T>::value;
  __shared__ float sum_scratch[1][BLOCK_SCRATCH], distance_scratch[SUMS][BLOCK_SCRATCH];
  __shared__ block_stats of_block;
  extern __shared__ uint4 dynamic_shared[];
  cg::cluster_group cluster = cg::this_cluster();
  const int n_blocks = (int)cluster.num_blocks();
  const group_part part(a, n_blocks, (int)cluster.block_rank(), log_turns, VEC);
  const thread_slots<T> x(dynamic_shared);
  x.fetch((const T *)a.X, part);
  gpu_copy_wait<0>();
  float sum[1] = {0.0f}, d[SUMS] = {};
#pragma unroll
  for (int i = 0; i < NV; i++) sum[0] = norm_push<T, VEC, false>(sum[0], x.read(i));
  norm_row_sums(sum, THREADS, sum_scratch);
  const float n = (float)part.channels * (float)part.n_inner, mean = sum[0] / n;
#pragma unroll
  for (int i = 0; i < NV; i++)
    if (part.owns(i)) norm_push_distances<T, VEC>(d, x.read(i), mean);
  norm_row_sums(d, THREADS, distance_scratch);
  const float rest = SUMS > 1 ? d[SUMS - 1] / n : 0.0f;
  const block_stats mine = {mean, rest, d[0] - n * rest * rest};
  const block_stats all = merge_blocks(cluster_exchange(cluster, mine, &of_block, n_blocks), n_blocks, n);
  const norm_stats s = {all.mean, all.rest, rsqrtf(all.m2 / (n * (float)n_blocks) + (float)a.eps)};
  if (threadIdx.x == 0 && cluster.block_rank() == 0) {
    ((float *)a.mean)[part.group] = s.mean + s.rest;
    ((float *)a.rstd)[part.group] = s.rstd;
  }
#pragma unroll
  for (int i = 0; i < NV; i++)
    if (part.owns(i)) {
      const int64_t c = part.first_channel + part.channel(i);
      const float scale = load_scalar(a.W, c, a.w_dtype, 1.0f),
                  shift = load_scalar(a.bias, c, a.bias_dtype, 0.0f);
      float w[VEC], b[VEC];
#pragma unroll
      for (int j = 0; j < VEC; j++) w[j] = scale, b[j] = shift;
      store_vec<T, VEC>((T *)a.Y + part.template at<VEC>(i),
                        norm_scale<T, VEC, true>(x.read(i), s, w, b, false));
    }
  cluster.barrier_wait(); /* shared memory lives until everybody has read it */
#endif
}

template <typename T>
__global__ void __launch_bounds__(THREADS, 2)
    group_norm_bwd_cluster_kernel(const liger_group_norm_bwd_args a, int log_turns) {
#if CLUSTER_CODE
  constexpr int VEC = vec_width<T>::value, WARPS = THREADS / GPU_LANES;
  extern __shared__ uint4 dynamic_shared[];
  __shared__ float of_warp[NV][2][WARPS], of_channel[NV][2];
  __shared__ float2 of_block;
  cg::cluster_group cluster = cg::this_cluster();
  const int n_blocks = (int)cluster.num_blocks();
  const group_part part(a, n_blocks, (int)cluster.block_rank(), log_turns, VEC);
  const int warp = (int)threadIdx.x / GPU_LANES, lane = (int)threadIdx.x % GPU_LANES;
  const thread_slots<T> dY(dynamic_shared);
  dY.fetch((const T *)a.dY, part);
  vec<T, VEC> x[NV] = {};
#pragma unroll
  for (int i = 0; i < NV; i++)
    if (part.owns(i)) x[i] = load_vec<T, VEC>((const T *)a.X + part.template at<VEC>(i));
  const float mean = ((const float *)a.mean)[part.group], rstd = ((const float *)a.rstd)[part.group];
  gpu_copy_wait<0>();

  /* sums of a channel: of dY xhat, of dY */
  float s0 = 0.0f, s1 = 0.0f;
#pragma unroll
  for (int i = 0; i < NV; i++) {
    float v[VEC], g[VEC];
    unpack(v, x[i]);
    unpack(g, dY.read(i)); /* zeros beyond the channel */
#pragma unroll
    for (int j = 0; j < VEC; j++) {
      s0 = fmaf(g[j], v[j] - mean, s0);
      s1 += g[j];
    }
    if (part.turn(i + 1) == 0) { /* the channel's last; the same for the whole block */
      s0 = warp_reduce<op_sum>(s0, GPU_LANES) * rstd;
      s1 = warp_reduce<op_sum>(s1, GPU_LANES);
      if (lane == 0) of_warp[part.channel(i)][0][warp] = s0, of_warp[part.channel(i)][1][warp] = s1;
      s0 = s1 = 0.0f;
    }
  }
  __syncthreads();
  if (warp < part.channels) { /* a warp a channel: half of it adds the one sum, half the other */
    const int which = lane / WARPS;
    const float s = warp_reduce<op_sum>(of_warp[warp][which][lane % WARPS], WARPS);
    if (lane % WARPS == 0) {
      of_channel[warp][which] = s;
      const int64_t to = part.group / a.n_groups * a.n_channels + part.first_channel + warp;
      ((float *)(which ? a.dbias_partial : a.dW_partial))[to] = s;
    }
  }
  __syncthreads();
  float2 mine = {0.0f, 0.0f};
  for (int c = 0; c < part.channels; c++) {
    const float w = load_scalar(a.W, part.first_channel + c, a.w_dtype, 1.0f);
    mine.x = fmaf(w, of_channel[c][0], mine.x);
    mine.y = fmaf(w, of_channel[c][1], mine.y);
  }
  const float2 theirs = cluster_exchange(cluster, mine, &of_block, n_blocks);
  const float sum[2] = {warp_reduce<op_sum>(theirs.x, n_blocks),
                        warp_reduce<op_sum>(theirs.y, n_blocks) * rstd};
  const float size = (float)n_blocks * (float)part.channels * (float)part.n_inner;
  const norm_slope k = norm_finish_bwd(sum, 1.0f / size, mean, rstd);
#pragma unroll
  for (int i = 0; i < NV; i++)
    if (part.owns(i)) {
      const float w = rstd * load_scalar(a.W, part.first_channel + part.channel(i), a.w_dtype, 1.0f);
      float m[VEC];
      unpack(m, dY.read(i));
#pragma unroll
      for (int j = 0; j < VEC; j++) m[j] *= w;
      store_vec<T, VEC>((T *)a.dX + part.template at<VEC>(i), norm_dx<T, VEC, true>(x[i], m, k, nullptr));
    }
  cluster.barrier_wait();
#endif
}

/* the smallest cluster that holds a group with most of its threads busy */
template <class Args> cluster_plan plan_cluster(const Args *a) {
  if (a->n_batch == 0 || a->n_inner == 0 || a->n_groups == 0 || a->x_dtype == LIGER_F64 ||
      a->x_dtype == LIGER_F32 || !cluster_device())
    return {0, 0};
  const int64_t n_vecs = a->n_inner * 2 / 16, channels = a->n_channels / a->n_groups;
  int log_turns = 0;
  while (log_turns < 3 && ((int64_t)THREADS << log_turns) < n_vecs) log_turns++;
  if (((int64_t)THREADS << log_turns) < n_vecs || 4 * n_vecs < 3 * ((int64_t)THREADS << log_turns))
    return {0, 0};
  for (int n = 2; n <= MAX_CLUSTER; n *= 2)
    if (channels % n == 0 && (channels / n) << log_turns <= NV)
      /* few channels are left to the plan whose blocks hold whole groups */
      return {(channels / n) << log_turns < NV / 2 ? 0 : n, log_turns};
  return {0, 0};
}
} // namespace

bool liger_internal_group_norm_fwd_cluster(const liger_group_norm_fwd_args *a, gpu_stream stream,
                                           liger_status *status) {
  const cluster_plan p = plan_cluster(a);
  if (p.n_blocks == 0 || !whole_vectors(a->X, a->n_inner, 2) || !whole_vectors(a->Y, a->n_inner, 2))
    return false;
  const auto kernel = a->x_dtype == LIGER_BF16 ? group_norm_fwd_cluster_kernel<gpu_bf16>
                                               : group_norm_fwd_cluster_kernel<__half>;
  *status = cluster_launch(kernel, a->n_batch * a->n_groups, p.n_blocks, THREADS, SLOT_BYTES, stream, *a,
                           p.log_turns);
  return true;
}

bool liger_internal_group_norm_bwd_cluster(const liger_group_norm_bwd_args *a, gpu_stream stream,
                                           liger_status *status) {
  const cluster_plan p = plan_cluster(a);
  if (p.n_blocks == 0 || !whole_vectors(a->X, a->n_inner, 2) || !whole_vectors(a->dY, a->n_inner, 2) ||
      !whole_vectors(a->dX, a->n_inner, 2))
    return false;
  const auto kernel = a->x_dtype == LIGER_BF16 ? group_norm_bwd_cluster_kernel<gpu_bf16>
                                               : group_norm_bwd_cluster_kernel<__half>;
  *status = cluster_launch(kernel, a->n_batch * a->n_groups, p.n_blocks, THREADS, SLOT_BYTES, stream, *a,
                           p.log_turns);
  return true;
}
#endif
