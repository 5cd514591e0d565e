/* group_norm on Hopper: a group of 16-bit elements is held by a block or a cluster of them, so X, and in the
 *         backward dY, are read once; see group_norm.c for the equations
 * Plan    1 to 8 blocks of 512 threads a group, or one of 128, each with some whole channels of it. A channel has 1 to
 *         8 turns of the block, a block at most 8 in all. What the blocks know of their channels meets in distributed
 *         shared memory.
 *         X lies in shared memory, in the backward dY there and X in registers, so that three blocks of the forward
 *         and two of the backward share a multiprocessor: some load while one reduces or stores. Blocks without a
 *         vector to spare have kernels without predicates.
 * Timings (H200, 16x512x128x128, bf16, forward and backward) 346 us; copies of the same bytes in the same tiles take
 *         321. What was here before took 393: persistent blocks, one a multiprocessor in the backward, with the next
 *         group on its way through a ring: a turn was a chain of barriers that nobody else filled. Measured and left:
 *         persistent blocks without a ring 356, everything in registers 360, a group read twice 405 to 475, stores
 *         past the caches no difference. Two blocks of the forward: 349, with predicates 360.
 *         Applies on compute capability 9.0, to aligned 16-byte vectors; else group_norm.cu */
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
constexpr int NV = 8; /* vectors of a thread */
/* that share a multiprocessor; others than Hopper's may hold no more than 1024, and their kernels are empty */
constexpr int FWD_THREADS = CLUSTER_CODE ? 1536 : 1024, BWD_THREADS = 1024;

struct cluster_plan {
  int threads, log_turns;
  int log_blocks, channels; /* of a group; of a block, 0: no cluster holds the group */
  bool whole;               /* every thread has NV vectors */
  int64_t shared_bytes() const { return ((int64_t)channels << log_turns) * threads * 16; } /* of one tensor */
};

#if CLUSTER_CODE
/* Where a block stands, and the vectors of its threads: vector i is one of turn i % turns of the block's channel
 * i / turns. */
template <typename T, int THREADS, int LOG_TURNS, bool WHOLE> struct block_part {
  static constexpr int VEC = vec_width<T>::value, TURNS = 1 << LOG_TURNS;
  int n_blocks, rank, channels, n_vecs;
  uint32_t group, of_batch; /* of_batch: blocks before this one in its batch entry */
  int64_t first, start;     /* the block's first channel, of all batch entries; the thread's first element */
  template <class Args>
  __device__ __forceinline__ block_part(const Args &a, const cluster_plan &p)
      : n_blocks(1 << p.log_blocks), rank((int)blockIdx.x & (n_blocks - 1)),
        channels(WHOLE ? NV >> LOG_TURNS : p.channels),
        n_vecs(WHOLE ? THREADS * TURNS : (int)a.n_inner / VEC), group(blockIdx.x >> p.log_blocks),
        of_batch(blockIdx.x % ((uint32_t)a.n_groups << p.log_blocks)), first((int64_t)blockIdx.x * channels),
        start(first * (n_vecs * VEC) + (int)threadIdx.x * VEC) {}
  static __device__ __forceinline__ int channel(int i) { return i >> LOG_TURNS; }
  static __device__ __forceinline__ int turn(int i) { return i & (TURNS - 1); }
  /* more than half of the turns are needed, so the first ones are whole */
  __device__ __forceinline__ bool owns(int i) const {
    return WHOLE || (channel(i) < channels &&
                     (2 * turn(i) + 2 <= TURNS || turn(i) * THREADS + (int)threadIdx.x < n_vecs));
  }
  __device__ __forceinline__ int offset(int i) const {
    return channel(i) * (n_vecs * VEC) + turn(i) * (THREADS * VEC);
  }
  /* a parameter of the block's channel c */
  __device__ __forceinline__ float param(const void *P, int c, liger_dtype t, float otherwise) const {
    return load_scalar(P, (int64_t)of_batch * channels + c, t, otherwise);
  }
};

/* A thread's vectors of a tensor in shared memory, which it alone reads: no barrier. As many requests are open as
 * the thread has vectors; it waits for one after the other. */
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

template <typename T, int THREADS, int LOG_TURNS, bool WHOLE>
__global__ void __launch_bounds__(THREADS, FWD_THREADS / THREADS)
    group_norm_fwd_cluster_kernel(const liger_group_norm_fwd_args a, const cluster_plan plan) {
#if CLUSTER_CODE
  constexpr int VEC = vec_width<T>::value;
  __shared__ float sum_scratch[1][BLOCK_SCRATCH], distance_scratch[1][BLOCK_SCRATCH];
  __shared__ float scale[NV], shift[NV]; /* of the block's channels */
  __shared__ cluster_mail mail;
  extern __shared__ uint4 dynamic_shared[];
  const block_part<T, THREADS, LOG_TURNS, WHOLE> part(a, plan);
  const thread_slots<T, THREADS> x(dynamic_shared);
  const T *const X = (const T *)a.X + part.start;
#pragma unroll
  for (int i = 0; i < NV; i++) {
    if (part.owns(i)) x.fetch(i, X + part.offset(i));
    gpu_copy_commit();
  }
  mail.open();
  if ((int)threadIdx.x < part.channels) {
    scale[threadIdx.x] = part.param(a.W, threadIdx.x, a.w_dtype, 1.0f);
    shift[threadIdx.x] = part.param(a.bias, threadIdx.x, a.bias_dtype, 0.0f);
  }
  /* Distances are first those from the mean of the thread's first vector: sums of squares about it are at most 1 + NV
   * times those about the mean of the thread's elements, which costs 3 bits. */
  float pivot = 0.0f, d = 0.0f, d2 = 0.0f, count = 0.0f;
#pragma unroll
  for (int i = 0; i < NV; i++) {
    gpu_copy_wait<NV - 1>();
    if (part.owns(i)) {
      float v[VEC];
      const vec<T, VEC> now = x.read(i);
      unpack(v, now);
      if (i == 0) pivot = norm_push<T, VEC, false>(0.0f, now) / (float)VEC;
#pragma unroll
      for (int j = 0; j < VEC; j++) {
        v[j] -= pivot;
        d += v[j];
        d2 = fmaf(v[j], v[j], d2);
      }
      count += (float)VEC;
    }
    gpu_copy_commit(); /* an empty one: the next wait is for the next vector */
  }
  mail.meet();
  const float n = (float)part.channels * (float)(part.n_vecs * VEC);
  float sum[1] = {fmaf(count, pivot, d)};
  norm_row_sums(sum, THREADS, sum_scratch);
  const float mean = sum[0] / n, off = pivot - mean;
  float m2[1] = {fmaf(off, fmaf(count, off, 2.0f * d), d2)};
  norm_row_sums(m2, THREADS, distance_scratch);
  const float2 theirs = mail.exchange({mean, m2[0]}, part.rank, part.n_blocks);
  const norm_stats s = merge_blocks({theirs.x, theirs.y}, part.n_blocks, n, (float)a.eps);
  if (threadIdx.x == 0 && part.rank == 0) {
    ((float *)a.mean)[part.group] = s.mean + s.rest;
    ((float *)a.rstd)[part.group] = s.rstd;
  }
  T *const Y = (T *)a.Y + part.start;
#pragma unroll
  for (int i = 0; i < NV; i++)
    if (part.owns(i)) {
      const float w = s.rstd * scale[part.channel(i)], b = fmaf(-s.rest, w, shift[part.channel(i)]);
      float v[VEC];
      unpack(v, x.read(i));
#pragma unroll
      for (int j = 0; j < VEC; j++) v[j] = fmaf(v[j] - s.mean, w, b);
      store_vec<T, VEC>(Y + part.offset(i), pack<T, VEC>(v));
    }
#endif
}

template <typename T, int THREADS, int LOG_TURNS, bool WHOLE>
__global__ void __launch_bounds__(THREADS, BWD_THREADS / THREADS)
    group_norm_bwd_cluster_kernel(const liger_group_norm_bwd_args a, const cluster_plan plan) {
#if CLUSTER_CODE
  constexpr int VEC = vec_width<T>::value, WARPS = THREADS / GPU_LANES;
  extern __shared__ uint4 dynamic_shared[];
  __shared__ float of_warp[NV][2][WARPS], of_channel[NV][2], weight[NV];
  __shared__ cluster_mail mail;
  const block_part<T, THREADS, LOG_TURNS, WHOLE> part(a, plan);
  const int warp = (int)threadIdx.x / GPU_LANES, lane = (int)threadIdx.x % GPU_LANES;
  const T *const X = (const T *)a.X + part.start, *const dY = (const T *)a.dY + part.start;
  vec<T, VEC> x[NV] = {};
  const thread_slots<T, THREADS> dy(dynamic_shared);
#pragma unroll
  for (int i = 0; i < NV; i++) {
    if (part.owns(i)) {
      x[i] = load_vec<T, VEC>(X + part.offset(i));
      dy.fetch(i, dY + part.offset(i));
    }
    gpu_copy_commit();
  }
  const float mean = ((const float *)a.mean)[part.group], rstd = ((const float *)a.rstd)[part.group];
  mail.open();
  if ((int)threadIdx.x < part.channels) weight[threadIdx.x] = part.param(a.W, threadIdx.x, a.w_dtype, 1.0f);
  /* sums of a channel: of dY xhat, of dY */
  float s0 = 0.0f, s1 = 0.0f;
#pragma unroll
  for (int i = 0; i < NV; i++) {
    gpu_copy_wait<NV - 1>();
    if (part.owns(i)) {
      float v[VEC], g[VEC];
      unpack(v, x[i]);
      unpack(g, dy.read(i));
#pragma unroll
      for (int j = 0; j < VEC; j++) {
        s0 = fmaf(g[j], v[j] - mean, s0);
        s1 += g[j];
      }
    }
    gpu_copy_commit();           /* an empty one: the next wait is for the next vector */
    if (part.turn(i + 1) == 0) { /* the channel's last; the same for the whole block */
      s0 = warp_reduce<op_sum>(s0, GPU_LANES) * rstd;
      s1 = warp_reduce<op_sum>(s1, GPU_LANES);
      if (lane == 0) of_warp[part.channel(i)][0][warp] = s0, of_warp[part.channel(i)][1][warp] = s1;
      s0 = s1 = 0.0f;
    }
  }
  norm_stay_packed(x);
  mail.meet();
  __syncthreads();
#pragma unroll 1
  for (int c = warp; c < part.channels;
       c += WARPS) { /* a warp a channel: lanes of the one sum, then of the other */
    const int which = lane / WARPS & 1;
    const float s = warp_reduce<op_sum>(of_warp[c][which][lane % WARPS], WARPS);
    if (lane == 0 || lane == WARPS) {
      of_channel[c][which] = s;
      ((float *)(which ? a.dbias_partial : a.dW_partial))[part.first + c] = s;
    }
  }
  __syncthreads();
  float2 mine = {0.0f, 0.0f};
  for (int c = 0; c < part.channels; c++) {
    mine.x = fmaf(weight[c], of_channel[c][0], mine.x);
    mine.y = fmaf(weight[c], of_channel[c][1], mine.y);
  }
  const float2 theirs = mail.exchange(mine, part.rank, part.n_blocks);
  const float sum[2] = {warp_reduce<op_sum>(theirs.x, part.n_blocks),
                        warp_reduce<op_sum>(theirs.y, part.n_blocks) * rstd};
  const float inv_size = 1.0f / ((float)part.n_blocks * (float)part.channels * (float)(part.n_vecs * VEC));
  const norm_slope k = norm_finish_bwd(sum, inv_size, mean, rstd);
  T *const dX = (T *)a.dX + part.start;
#pragma unroll
  for (int i = 0; i < NV; i++)
    if (part.owns(i)) {
      const float w = rstd * weight[part.channel(i)];
      float m[VEC];
      unpack(m, dy.read(i));
#pragma unroll
      for (int j = 0; j < VEC; j++) m[j] *= w;
      store_vec<T, VEC>(dX + part.offset(i), norm_dx<T, VEC, true>(x[i], m, k, nullptr));
    }
#endif
}

/* the smallest block or cluster that holds a group with most of its threads busy */
template <class Args> cluster_plan plan_cluster(const Args *a) {
  if (a->n_batch == 0 || a->n_inner == 0 || a->n_groups == 0 || a->x_dtype == LIGER_F64 ||
      a->x_dtype == LIGER_F32 || !cluster_device())
    return {};
  const int64_t n_vecs = a->n_inner * 2 / 16, channels = a->n_channels / a->n_groups;
  for (int64_t threads = 128; threads <= 512; threads *= 4) {
    int log_turns = 0;
    while (log_turns < 3 && threads << log_turns < n_vecs) log_turns++;
    if (threads << log_turns < n_vecs || 4 * n_vecs < 3 * (threads << log_turns)) continue;
    for (int log_blocks = 0; 1 << log_blocks <= (threads == 128 ? 1 : MAX_CLUSTER); log_blocks++) {
      const int64_t of_block = channels >> log_blocks, vectors = of_block << log_turns;
      if (of_block << log_blocks == channels && vectors <= NV && vectors >= NV / 2)
        return {(int)threads, log_turns, log_blocks, (int)of_block,
                vectors == NV && threads << log_turns == n_vecs};
    }
  }
  return {};
}

template <typename T, int THREADS, int LOG_TURNS, bool WHOLE>
auto kernel_of(const liger_group_norm_fwd_args *) {
  return group_norm_fwd_cluster_kernel<T, THREADS, LOG_TURNS, WHOLE>;
}
template <typename T, int THREADS, int LOG_TURNS, bool WHOLE>
auto kernel_of(const liger_group_norm_bwd_args *) {
  return group_norm_bwd_cluster_kernel<T, THREADS, LOG_TURNS, WHOLE>;
}
template <typename T, int THREADS, bool WHOLE, class Args>
auto kernel_of_turns(int log_turns, const Args *a) {
  switch (log_turns) {
  case 0: return kernel_of<T, THREADS, 0, WHOLE>(a);
  case 1: return kernel_of<T, THREADS, 1, WHOLE>(a);
  case 2: return kernel_of<T, THREADS, 2, WHOLE>(a);
  default: return kernel_of<T, THREADS, 3, WHOLE>(a);
  }
}
/* a small block has no kernels of its own for whole vectors */
template <typename T, class Args> auto kernel_for(const cluster_plan &p, const Args *a) {
  return p.threads == 128 ? kernel_of_turns<T, 128, false>(p.log_turns, a)
         : p.whole        ? kernel_of_turns<T, 512, true>(p.log_turns, a)
                          : kernel_of_turns<T, 512, false>(p.log_turns, a);
}
template <class Args> liger_status launch(const cluster_plan &p, const Args *a, gpu_stream stream) {
  const auto kernel = a->x_dtype == LIGER_BF16 ? kernel_for<gpu_bf16>(p, a) : kernel_for<__half>(p, a);
  return cluster_launch(kernel, a->n_batch * a->n_groups, 1 << p.log_blocks, p.threads, p.shared_bytes(),
                        stream, CLUSTERS_ALL, *a, p);
}
} // namespace

bool liger_internal_group_norm_fwd_cluster(const liger_group_norm_fwd_args *a, gpu_stream stream,
                                           liger_status *status) {
  const cluster_plan p = plan_cluster(a);
  if (p.channels == 0 || !whole_vectors(a->X, a->n_inner, 2) || !whole_vectors(a->Y, a->n_inner, 2))
    return false;
  *status = launch(p, a, stream);
  return true;
}

bool liger_internal_group_norm_bwd_cluster(const liger_group_norm_bwd_args *a, gpu_stream stream,
                                           liger_status *status) {
  const cluster_plan p = plan_cluster(a);
  if (p.channels == 0 || !whole_vectors(a->X, a->n_inner, 2) || !whole_vectors(a->dY, a->n_inner, 2) ||
      !whole_vectors(a->dX, a->n_inner, 2))
    return false;
  *status = launch(p, a, stream);
  return true;
}
#endif
