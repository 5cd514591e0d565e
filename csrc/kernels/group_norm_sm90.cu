/* group_norm on Hopper: a group of 16-bit elements is held by a block or a cluster of them, so X, and in the
 *         backward dY, are read once; see group_norm.c for the equations
 * Plan    1 to 8 blocks of 512 threads a group, or one of 128, each with some whole channels of it. Persistent
 *         clusters: a block has the group at hand in registers, and the next one is on its way to shared memory all
 *         the while: a thread asks for a vector of it when it has taken the present one from its place. So memory is
 *         never idle while a group is reduced, as it would be if all clusters loaded, reduced and stored in step.
 *         What the blocks know of their channels meets in distributed shared memory. A channel has 1 to 8 turns of
 *         the block, a block at most 8 in all. Applies on compute capability 9.0, to aligned 16-byte vectors; else
 *         group_norm.cu */
#include "cluster_sm90.cuh"
#include "group_norm.cuh"

#include <type_traits>

#if LIGER_HIP
bool liger_internal_group_norm_fwd_cluster(const liger_group_norm_fwd_args *, gpu_stream, liger_status *) {
  return false;
}
bool liger_internal_group_norm_bwd_cluster(const liger_group_norm_bwd_args *, gpu_stream, liger_status *) {
  return false;
}
#else

namespace {
constexpr int NV = 8;                                /* vectors of a thread */
constexpr int FWD_THREADS = 1024, BWD_THREADS = 512; /* that share a multiprocessor */
constexpr int64_t slot_bytes(int threads) { return (int64_t)NV * threads * 16; }

struct cluster_plan {
  int n_blocks; /* of a group; 0: no cluster holds it */
  int threads, log_turns;
};

#if CLUSTER_CODE
/* Where a block of a cluster stands, and the vectors of its threads: vector i is one of turn i % turns of the block's
 * channel i / turns. */
template <int THREADS, int LOG_TURNS> struct group_part {
  static constexpr int TURNS = 1 << LOG_TURNS;
  /* start: of the thread's first vector; next: to that of the group a step on */
  int64_t n_inner, start, next;
  uint32_t group, end, step, n_groups; /* n_groups: of a batch entry */
  int n_blocks, rank, channels, n_vecs;
  template <class Args>
  __device__ __forceinline__ group_part(const Args &a, const cg::cluster_group &cluster, int vec)
      : end((uint32_t)(a.n_batch * a.n_groups)), n_inner(a.n_inner), n_groups((uint32_t)a.n_groups),
        n_blocks((int)cluster.num_blocks()), rank((int)cluster.block_rank()),
        channels((int)(a.n_channels / a.n_groups) / n_blocks), n_vecs((int)(a.n_inner / vec)) {
    group = blockIdx.x / n_blocks;
    step = gridDim.x / n_blocks;
    start = ((int64_t)group * n_blocks + rank) * channels * n_inner + (int64_t)threadIdx.x * vec;
    next = (int64_t)step * n_blocks * channels * n_inner;
  }
  __device__ __forceinline__ bool live() const { return group < end; }
  __device__ __forceinline__ bool has_next() const { return group + step < end; }
  __device__ __forceinline__ void advance() {
    group += step;
    start += next;
  }
  /* of the block's first, among the channels of its batch entry */
  __device__ __forceinline__ int64_t first_channel() const {
    return ((int64_t)(group % n_groups) * n_blocks + rank) * channels;
  }
  static __device__ __forceinline__ int channel(int i) { return i >> LOG_TURNS; }
  static __device__ __forceinline__ int turn(int i) { return i & (TURNS - 1); }
  /* more than half of the turns are needed, so the first ones are whole */
  __device__ __forceinline__ bool owns(int i) const {
    return channel(i) < channels &&
           (2 * turn(i) + 2 <= TURNS || turn(i) * THREADS + (int)threadIdx.x < n_vecs);
  }
  template <int VEC> __device__ __forceinline__ int64_t at(int i) const {
    return start + channel(i) * n_inner + turn(i) * (THREADS * VEC);
  }
};

/* NV vectors of a tensor in shared memory, which only the thread that fetched them reads: no barrier, no registers */
template <typename T, int THREADS> struct thread_slots {
  static constexpr int VEC = vec_width<T>::value;
  uint4 *first;
  __device__ __forceinline__ explicit thread_slots(uint4 *shared) : first(shared + threadIdx.x) {}
  __device__ __forceinline__ void fetch(int i, const T *from) const {
    gpu_copy_async(first + i * THREADS, from, true);
  }
  __device__ __forceinline__ vec<T, VEC> read(int i) const {
    vec<T, VEC> v;
    __builtin_memcpy(&v, first + i * THREADS, 16);
    return v;
  }
};

struct block_stats {
  float mean, m2;
};
/* The group's statistics from those of its blocks, of n elements each and in neighbouring lanes; m2 becomes the
 * group's. All means are near any of them, so the distances lose no digits. */
__device__ __forceinline__ norm_stats merge_blocks(const block_stats &s, int n_blocks, float n, float eps) {
  const float share = 1.0f / (float)n_blocks, mean = warp_reduce<op_sum>(s.mean, n_blocks) * share;
  const float d = s.mean - mean, rest = warp_reduce<op_sum>(d, n_blocks) * share;
  const float m2 = warp_reduce<op_sum>(fmaf(n * (d - rest), d - rest, s.m2), n_blocks);
  return {mean, rest, rsqrtf(m2 * share / n + eps)};
}
#endif

template <typename T, int THREADS, int LOG_TURNS>
__global__ void __launch_bounds__(THREADS, FWD_THREADS / THREADS)
    group_norm_fwd_cluster_kernel(const liger_group_norm_fwd_args a) {
#if CLUSTER_CODE
  constexpr int VEC = vec_width<T>::value;
  __shared__ float sum_scratch[1][BLOCK_SCRATCH], distance_scratch[1][BLOCK_SCRATCH];
  __shared__ float scale[2][NV],
      shift[2][NV]; /* of the block's channels; a set a turn, as one may be still in use */
  __shared__ cluster_mail mail;
  extern __shared__ uint4 dynamic_shared[];
  cg::cluster_group cluster = cg::this_cluster();
  group_part<THREADS, LOG_TURNS> part(a, cluster, VEC);
  const thread_slots<T, THREADS> slots(dynamic_shared);
  const float n = (float)part.channels * (float)part.n_inner;
#pragma unroll
  for (int i = 0; i < NV; i++) {
    if (part.owns(i)) slots.fetch(i, (const T *)a.X + part.template at<VEC>(i));
    gpu_copy_commit();
  }
  mail.open(cluster);
  for (int turn = 0; part.live(); turn++, part.advance()) {
    const int set = turn & 1;
    if ((int)threadIdx.x < part.channels) {
      const int64_t c = part.first_channel() + threadIdx.x;
      scale[set][threadIdx.x] = load_scalar(a.W, c, a.w_dtype, 1.0f);
      shift[set][threadIdx.x] = load_scalar(a.bias, c, a.bias_dtype, 0.0f);
    }
    /* Distances are first those from the mean of the thread's first vector: sums of squares about it are at most 1 + NV
     * times those about the mean of the thread's elements, which costs 3 bits. */
    vec<T, VEC> x[NV] = {};
    float pivot = 0.0f, d = 0.0f, d2 = 0.0f, count = 0.0f;
#pragma unroll
    for (int i = 0; i < NV; i++) {
      gpu_copy_wait<NV - 1>();
      if (part.owns(i)) {
        float v[VEC];
        x[i] = slots.read(i);
        unpack(v, x[i]);
        if (i == 0) pivot = norm_push<T, VEC, false>(0.0f, x[0]) / (float)VEC;
#pragma unroll
        for (int j = 0; j < VEC; j++) {
          v[j] -= pivot;
          d += v[j];
          d2 = fmaf(v[j], v[j], d2);
        }
        count += (float)VEC;
        if (part.has_next()) slots.fetch(i, (const T *)a.X + part.next + part.template at<VEC>(i));
      }
      gpu_copy_commit();
    }
    norm_stay_packed(x);
    float sum[1] = {fmaf(count, pivot, d)};
    norm_row_sums(sum, THREADS, sum_scratch);
    const float mean = sum[0] / n, off = pivot - mean;
    float m2[1] = {fmaf(off, fmaf(count, off, 2.0f * d), d2)};
    norm_row_sums(m2, THREADS, distance_scratch);
    const float2 theirs = mail.exchange({mean, m2[0]}, turn, part.rank, part.n_blocks);
    const norm_stats s = merge_blocks({theirs.x, theirs.y}, part.n_blocks, n, (float)a.eps);
    if (threadIdx.x == 0 && part.rank == 0) {
      ((float *)a.mean)[part.group] = s.mean + s.rest;
      ((float *)a.rstd)[part.group] = s.rstd;
    }
#pragma unroll
    for (int i = 0; i < NV; i++)
      if (part.owns(i)) {
        const float w = s.rstd * scale[set][part.channel(i)],
                    b = fmaf(-s.rest, w, shift[set][part.channel(i)]);
        float v[VEC];
        unpack(v, x[i]);
#pragma unroll
        for (int j = 0; j < VEC; j++) v[j] = fmaf(v[j] - s.mean, w, b);
        store_vec<T, VEC>((T *)a.Y + part.template at<VEC>(i), pack<T, VEC>(v));
      }
  }
#endif
}

template <typename T, int THREADS, int LOG_TURNS>
__global__ void __launch_bounds__(THREADS, BWD_THREADS / THREADS)
    group_norm_bwd_cluster_kernel(const liger_group_norm_bwd_args a) {
#if CLUSTER_CODE
  constexpr int VEC = vec_width<T>::value, WARPS = THREADS / GPU_LANES;
  extern __shared__ uint4 dynamic_shared[];
  __shared__ float of_warp[NV][2][WARPS], of_channel[NV][2];
  __shared__ float weight[2][NV]; /* a set a turn */
  __shared__ cluster_mail mail;
  cg::cluster_group cluster = cg::this_cluster();
  group_part<THREADS, LOG_TURNS> part(a, cluster, VEC);
  const int warp = (int)threadIdx.x / GPU_LANES, lane = (int)threadIdx.x % GPU_LANES;
  const thread_slots<T, THREADS> X(dynamic_shared), dY(dynamic_shared + NV * THREADS);
  const float inv_size = 1.0f / ((float)part.n_blocks * (float)part.channels * (float)part.n_inner);
  const auto fetch = [&](int i, int64_t at) {
    X.fetch(i, (const T *)a.X + at);
    dY.fetch(i, (const T *)a.dY + at);
  };
#pragma unroll
  for (int i = 0; i < NV; i++) {
    if (part.owns(i)) fetch(i, part.template at<VEC>(i));
    gpu_copy_commit();
  }
  mail.open(cluster);
  float next_mean = ((const float *)a.mean)[part.group], next_rstd = ((const float *)a.rstd)[part.group];
  for (int turn = 0; part.live(); turn++, part.advance()) {
    const int set = turn & 1;
    const float mean = next_mean, rstd = next_rstd;
    if (part.has_next()) { /* a turn ahead, like the elements */
      next_mean = ((const float *)a.mean)[part.group + part.step];
      next_rstd = ((const float *)a.rstd)[part.group + part.step];
    }
    if ((int)threadIdx.x < part.channels)
      weight[set][threadIdx.x] = load_scalar(a.W, part.first_channel() + threadIdx.x, a.w_dtype, 1.0f);
    /* sums of a channel: of dY xhat, of dY */
    vec<T, VEC> x[NV] = {}, dy[NV] = {};
    float s0 = 0.0f, s1 = 0.0f;
#pragma unroll
    for (int i = 0; i < NV; i++) {
      gpu_copy_wait<NV - 1>();
      if (part.owns(i)) {
        float v[VEC], g[VEC];
        x[i] = X.read(i);
        dy[i] = dY.read(i);
        unpack(v, x[i]);
        unpack(g, dy[i]);
#pragma unroll
        for (int j = 0; j < VEC; j++) {
          s0 = fmaf(g[j], v[j] - mean, s0);
          s1 += g[j];
        }
        if (part.has_next()) fetch(i, part.next + part.template at<VEC>(i));
      }
      gpu_copy_commit();
      if (part.turn(i + 1) == 0) { /* the channel's last; the same for the whole block */
        s0 = warp_reduce<op_sum>(s0, GPU_LANES) * rstd;
        s1 = warp_reduce<op_sum>(s1, GPU_LANES);
        if (lane == 0) of_warp[part.channel(i)][0][warp] = s0, of_warp[part.channel(i)][1][warp] = s1;
        s0 = s1 = 0.0f;
      }
    }
    norm_stay_packed(x);
    norm_stay_packed(dy);
    __syncthreads();
    for (int c = warp; c < part.channels;
         c += WARPS) { /* a warp a channel: lanes of the one sum, then of the other */
      const int which = lane / WARPS & 1;
      const float s = warp_reduce<op_sum>(of_warp[c][which][lane % WARPS], WARPS);
      if (lane == 0 || lane == WARPS) {
        of_channel[c][which] = s;
        const int64_t to = part.group / part.n_groups * a.n_channels + part.first_channel() + c;
        ((float *)(which ? a.dbias_partial : a.dW_partial))[to] = s;
      }
    }
    __syncthreads();
    float2 mine = {0.0f, 0.0f};
    for (int c = 0; c < part.channels; c++) {
      mine.x = fmaf(weight[set][c], of_channel[c][0], mine.x);
      mine.y = fmaf(weight[set][c], of_channel[c][1], mine.y);
    }
    const float2 theirs = mail.exchange(mine, turn, part.rank, part.n_blocks);
    const float sum[2] = {warp_reduce<op_sum>(theirs.x, part.n_blocks),
                          warp_reduce<op_sum>(theirs.y, part.n_blocks) * rstd};
    const norm_slope k = norm_finish_bwd(sum, inv_size, mean, rstd);
#pragma unroll
    for (int i = 0; i < NV; i++)
      if (part.owns(i)) {
        const float w = rstd * weight[set][part.channel(i)];
        float m[VEC];
        unpack(m, dy[i]);
#pragma unroll
        for (int j = 0; j < VEC; j++) m[j] *= w;
        store_vec<T, VEC>((T *)a.dX + part.template at<VEC>(i), norm_dx<T, VEC, true>(x[i], m, k, nullptr));
      }
  }
#endif
}

/* the smallest block or cluster that holds a group with most of its threads busy */
template <class Args> cluster_plan plan_cluster(const Args *a) {
  if (a->n_batch == 0 || a->n_inner == 0 || a->n_groups == 0 || a->x_dtype == LIGER_F64 ||
      a->x_dtype == LIGER_F32 || !cluster_device())
    return {0, 0, 0};
  const int64_t n_vecs = a->n_inner * 2 / 16, channels = a->n_channels / a->n_groups;
  for (int64_t threads = 128; threads <= 512; threads *= 4) {
    int log_turns = 0;
    while (log_turns < 3 && threads << log_turns < n_vecs) log_turns++;
    if (threads << log_turns < n_vecs || 4 * n_vecs < 3 * (threads << log_turns)) continue;
    for (int n = 1; n <= (threads == 128 ? 1 : MAX_CLUSTER); n *= 2)
      if (channels % n == 0 && (channels / n) << log_turns <= NV && (channels / n) << log_turns >= NV / 2)
        return {n, (int)threads, log_turns};
  }
  return {0, 0, 0};
}

/* f of the threads and the logarithm of the turns, as constants */
template <int THREADS, class F> auto with_turns(int log_turns, F f) {
  constexpr std::integral_constant<int, THREADS> threads{};
  switch (log_turns) {
  case 0: return f(threads, std::integral_constant<int, 0>());
  case 1: return f(threads, std::integral_constant<int, 1>());
  case 2: return f(threads, std::integral_constant<int, 2>());
  default: return f(threads, std::integral_constant<int, 3>());
  }
}
template <class F> auto with_plan(const cluster_plan &p, F f) {
  return p.threads == 128 ? with_turns<128>(p.log_turns, f) : with_turns<512>(p.log_turns, f);
}
} // namespace

bool liger_internal_group_norm_fwd_cluster(const liger_group_norm_fwd_args *a, gpu_stream stream,
                                           liger_status *status) {
  const cluster_plan p = plan_cluster(a);
  if (p.n_blocks == 0 || !whole_vectors(a->X, a->n_inner, 2) || !whole_vectors(a->Y, a->n_inner, 2))
    return false;
  const auto kernel = with_plan(p, [&](auto threads, auto turns) {
    constexpr int THREADS = decltype(threads)::value, LOG_TURNS = decltype(turns)::value;
    return a->x_dtype == LIGER_BF16 ? group_norm_fwd_cluster_kernel<gpu_bf16, THREADS, LOG_TURNS>
                                    : group_norm_fwd_cluster_kernel<__half, THREADS, LOG_TURNS>;
  });
  *status = cluster_launch(kernel, a->n_batch * a->n_groups, p.n_blocks, p.threads, slot_bytes(p.threads),
                           stream, CLUSTERS_RESIDENT, *a);
  return true;
}

bool liger_internal_group_norm_bwd_cluster(const liger_group_norm_bwd_args *a, gpu_stream stream,
                                           liger_status *status) {
  const cluster_plan p = plan_cluster(a);
  if (p.n_blocks == 0 || !whole_vectors(a->X, a->n_inner, 2) || !whole_vectors(a->dY, a->n_inner, 2) ||
      !whole_vectors(a->dX, a->n_inner, 2))
    return false;
  const auto kernel = with_plan(p, [&](auto threads, auto turns) {
    constexpr int THREADS = decltype(threads)::value, LOG_TURNS = decltype(turns)::value;
    return a->x_dtype == LIGER_BF16 ? group_norm_bwd_cluster_kernel<gpu_bf16, THREADS, LOG_TURNS>
                                    : group_norm_bwd_cluster_kernel<__half, THREADS, LOG_TURNS>;
  });
  *status = cluster_launch(kernel, a->n_batch * a->n_groups, p.n_blocks, p.threads, 2 * slot_bytes(p.threads),
                           stream, CLUSTERS_RESIDENT, *a);
  return true;
}
#endif
