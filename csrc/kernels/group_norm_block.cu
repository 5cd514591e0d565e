/* group_norm of small groups: a block has one in its registers; see group_norm.c for the equations
 * Plan    32 lanes a channel, of 1 to 8 vectors each, and 1 to 16 channels: X, and in the backward dY, are read once.
 *         A channel's sums take shuffles alone and its weight is one number; the channels meet at one barrier a
 *         sum. Small blocks without turns, of which others load while one reduces or stores: on an H200 64x256x32x32
 *         takes 50 us forward and backward, where persistent blocks that reduced channel after channel took 63 and a
 *         copy of the same bytes takes 44. Larger groups: group_norm_sm90.cu, or group_norm.cu */
#include "group_norm.cuh"

namespace {
constexpr int LANES = GPU_MIN_LANES, MAX_VECTORS = 8, MAX_CHANNELS = 16, MAX_THREADS = LANES * MAX_CHANNELS;

/* Where a thread stands: vector i of its lane is i * LANES after the first, which is its own one of the channel. */
template <typename T> struct channel_part {
  static constexpr int VEC = vec_width<T>::value;
  int channels, own, lane, n_vecs;
  uint32_t group;
  int64_t start; /* of the thread's first vector */
  template <class Args>
  __device__ __forceinline__ explicit channel_part(const Args &a)
      : channels((int)blockDim.x / LANES), own((int)threadIdx.x / LANES), lane((int)threadIdx.x % LANES),
        n_vecs((int)a.n_inner / VEC), group(blockIdx.x),
        start(((int64_t)blockIdx.x * channels + own) * a.n_inner + lane * VEC) {}
  __device__ __forceinline__ bool owns(int i) const { return i * LANES + lane < n_vecs; }
  static __device__ __forceinline__ int offset(int i) { return i * (LANES * VEC); }
};

template <typename T, int NV>
__global__ void __launch_bounds__(MAX_THREADS, 2)
    group_norm_fwd_block_kernel(const liger_group_norm_fwd_args a) {
  constexpr int VEC = vec_width<T>::value, SUMS = norm_distances<T>::value;
  __shared__ float sum_scratch[1][BLOCK_SCRATCH], distance_scratch[SUMS][BLOCK_SCRATCH];
  const channel_part<T> part(a);
  const T *const X = (const T *)a.X + part.start;
  vec<T, VEC> x[NV] = {};
#pragma unroll
  for (int i = 0; i < NV; i++)
    if (part.owns(i)) x[i] = load_vec<T, VEC>(X + part.offset(i));
  const int64_t c = (int64_t)(part.group % (uint32_t)a.n_groups) * part.channels + part.own;
  const float scale = load_scalar(a.W, c, a.w_dtype, 1.0f),
              shift = load_scalar(a.bias, c, a.bias_dtype, 0.0f);
  const float inv_n = 1.0f / ((float)part.channels * (float)a.n_inner);
  float sum[1] = {0.0f}, d[SUMS] = {};
#pragma unroll
  for (int i = 0; i < NV; i++) sum[0] = norm_push<T, VEC, false>(sum[0], x[i]); /* zeros beyond the channel */
  norm_row_sums(sum, (int)blockDim.x, sum_scratch);
  norm_stay_packed(x);
  const float mean = sum[0] * inv_n;
#pragma unroll
  for (int i = 0; i < NV; i++)
    if (part.owns(i)) norm_push_distances<T, VEC>(d, x[i], mean);
  norm_row_sums(d, (int)blockDim.x, distance_scratch);
  norm_stay_packed(x);
  const norm_stats s = norm_finish(mean, d, inv_n, (float)a.eps);
  if (threadIdx.x == 0) {
    ((float *)a.mean)[part.group] = s.mean + s.rest;
    ((float *)a.rstd)[part.group] = s.rstd;
  }
  const float w = s.rstd * scale, b = fmaf(-s.rest, w, shift);
  T *const Y = (T *)a.Y + part.start;
#pragma unroll
  for (int i = 0; i < NV; i++)
    if (part.owns(i)) {
      float v[VEC];
      unpack(v, x[i]);
#pragma unroll
      for (int j = 0; j < VEC; j++) v[j] = fmaf(v[j] - s.mean, w, b);
      store_vec<T, VEC>(Y + part.offset(i), pack<T, VEC>(v));
    }
}

template <typename T, int NV>
__global__ void __launch_bounds__(MAX_THREADS, NV <= 4 ? 2 : 1)
    group_norm_bwd_block_kernel(const liger_group_norm_bwd_args a) {
  constexpr int VEC = vec_width<T>::value;
  __shared__ float of_channel[2][MAX_CHANNELS];
  const channel_part<T> part(a);
  vec<T, VEC> x[NV] = {}, dy[NV] = {};
#pragma unroll
  for (int i = 0; i < NV; i++)
    if (part.owns(i)) {
      x[i] = load_vec<T, VEC>((const T *)a.X + part.start + part.offset(i));
      dy[i] = load_vec<T, VEC>((const T *)a.dY + part.start + part.offset(i));
    }
  const float mean = ((const float *)a.mean)[part.group], rstd = ((const float *)a.rstd)[part.group];
  const uint32_t batch = part.group / (uint32_t)a.n_groups, of_batch = part.group % (uint32_t)a.n_groups;
  const int64_t c = (int64_t)of_batch * part.channels + part.own;
  const float weight = load_scalar(a.W, c, a.w_dtype, 1.0f);
  float s[2] = {0.0f, 0.0f}; /* of dY xhat, of dY */
#pragma unroll
  for (int i = 0; i < NV; i++) {
    float v[VEC], g[VEC];
    unpack(v, x[i]);
    unpack(g, dy[i]); /* zeros beyond the channel */
#pragma unroll
    for (int j = 0; j < VEC; j++) {
      s[0] = fmaf(g[j], v[j] - mean, s[0]);
      s[1] += g[j];
    }
  }
  warp_reduce_all<op_sum>(s, LANES);
  norm_stay_packed(x);
  norm_stay_packed(dy);
  s[0] *= rstd;
  if (part.lane == 0) {
    of_channel[0][part.own] = weight * s[0];
    of_channel[1][part.own] = weight * s[1];
    ((float *)a.dW_partial)[batch * a.n_channels + c] = s[0];
    ((float *)a.dbias_partial)[batch * a.n_channels + c] = s[1];
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < 2; k++) s[k] = of_channel[k][threadIdx.x & (part.channels - 1)];
  warp_reduce_all<op_sum>(s, part.channels);
  s[1] *= rstd;
  const float inv_size = 1.0f / ((float)part.channels * (float)a.n_inner);
  const norm_slope k = norm_finish_bwd(s, inv_size, mean, rstd);
  const float w = rstd * weight;
  T *const dX = (T *)a.dX + part.start;
#pragma unroll
  for (int i = 0; i < NV; i++)
    if (part.owns(i)) {
      float m[VEC];
      unpack(m, dy[i]);
#pragma unroll
      for (int j = 0; j < VEC; j++) m[j] *= w;
      store_vec<T, VEC>(dX + part.offset(i), norm_dx<T, VEC, true>(x[i], m, k, nullptr));
    }
}

/* vectors of a lane, a power of two; 0: not such a group. More than half of the lanes are busy. */
template <typename T, class Args> int plan_vectors(const Args *a) {
  if (a->n_batch == 0 || a->n_groups == 0) return 0;
  const int64_t n_vecs = a->n_inner / vec_width<T>::value, channels = a->n_channels / a->n_groups;
  if (2 * n_vecs <= LANES || n_vecs > MAX_VECTORS * LANES || channels == 0 || channels > MAX_CHANNELS ||
      (channels & (channels - 1)) != 0 || a->n_batch * a->n_groups > GPU_MAX_GRID)
    return 0;
  int vectors = 1;
  while (vectors * LANES < n_vecs) vectors *= 2;
  return vectors;
}

template <class Args> liger_status launch(void (*kernel)(Args), const Args *a, gpu_stream stream) {
  const unsigned grid = (unsigned)(a->n_batch * a->n_groups),
                 threads = (unsigned)(a->n_channels / a->n_groups * LANES);
  kernel<<<grid, threads, 0, stream>>>(*a);
  return (liger_status)LIGER_RT(GetLastError)();
}

template <typename T>
bool launch_fwd(const liger_group_norm_fwd_args *a, gpu_stream stream, liger_status *status) {
  const int vectors = plan_vectors<T>(a);
  if (vectors == 0 || !whole_vectors(a->X, a->n_inner, sizeof(T)) ||
      !whole_vectors(a->Y, a->n_inner, sizeof(T)))
    return false;
  *status = launch(vectors == 1   ? group_norm_fwd_block_kernel<T, 1>
                   : vectors == 2 ? group_norm_fwd_block_kernel<T, 2>
                   : vectors == 4 ? group_norm_fwd_block_kernel<T, 4>
                                  : group_norm_fwd_block_kernel<T, 8>,
                   a, stream);
  return true;
}
template <typename T>
bool launch_bwd(const liger_group_norm_bwd_args *a, gpu_stream stream, liger_status *status) {
  const int vectors = plan_vectors<T>(a);
  if (vectors == 0 || !whole_vectors(a->X, a->n_inner, sizeof(T)) ||
      !whole_vectors(a->dY, a->n_inner, sizeof(T)) || !whole_vectors(a->dX, a->n_inner, sizeof(T)))
    return false;
  *status = launch(vectors == 1   ? group_norm_bwd_block_kernel<T, 1>
                   : vectors == 2 ? group_norm_bwd_block_kernel<T, 2>
                   : vectors == 4 ? group_norm_bwd_block_kernel<T, 4>
                                  : group_norm_bwd_block_kernel<T, 8>,
                   a, stream);
  return true;
}
} // namespace

bool liger_internal_group_norm_fwd_block(const liger_group_norm_fwd_args *a, gpu_stream stream,
                                         liger_status *status) {
  switch (a->x_dtype) {
  case LIGER_F32: return launch_fwd<float>(a, stream, status);
  case LIGER_F16: return launch_fwd<__half>(a, stream, status);
  case LIGER_BF16: return launch_fwd<gpu_bf16>(a, stream, status);
  default: return false;
  }
}
bool liger_internal_group_norm_bwd_block(const liger_group_norm_bwd_args *a, gpu_stream stream,
                                         liger_status *status) {
  switch (a->x_dtype) {
  case LIGER_F32: return launch_bwd<float>(a, stream, status);
  case LIGER_F16: return launch_bwd<__half>(a, stream, status);
  case LIGER_BF16: return launch_bwd<gpu_bf16>(a, stream, status);
  default: return false;
  }
}
