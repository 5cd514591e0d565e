/* group_norm   see group_norm.c for the equations.
 * Floor   fwd 2*N*s bytes, bwd 3*N*s (N = n_batch*n_channels*n_inner), and a few bytes a group and channel
 * Plan    forward: a group is cut into slices, a block each. A group of one slice is read once, from cache the
 *         second time; of more, a first kernel leaves each slice's statistics, and every block of the second
 *         merges those of its group and scales its slice. Backward: sums of dY xhat and of dY for each channel
 *         (slices of it, if it is long), which the blocks that make dX add up to the group's means, and a
 *         column sum to dW and dbias. A small group is read once, by a block (group_norm_block.cu), and on Hopper
 *         one that fits a cluster of blocks (group_norm_sm90.cu). The number of slices follows from the sizes,
 *         every sum has a fixed order */
#include "group_norm.cuh"

namespace {
constexpr int MAX_THREADS = 512, CHANNEL_THREADS = 256;
/* elements of a slice: enough to pay for its block, few enough to stay in the first-level cache; at most
 * MAX_SLICES, since each block merges all of its group */
constexpr int64_t SLICE = 16384, MAX_SLICES = 1024, SLICE_STEP = 64;
constexpr int STATS = 3; /* of a slice: mean, what is left of it, sum of the squares of the distances */

int64_t slices_of(int64_t n) {
  const int64_t slices = (n + SLICE - 1) / SLICE;
  return slices < 1 ? 1 : slices < MAX_SLICES ? slices : MAX_SLICES;
}

/* elements [first, first + n) of a run of `size`: slice i of n_slices; the last ones may be short or empty */
struct run_slice {
  int64_t first, n;
  __device__ __forceinline__ run_slice(int64_t size, int64_t n_slices, int64_t i) {
    const int64_t each = ((size + n_slices - 1) / n_slices + SLICE_STEP - 1) / SLICE_STEP * SLICE_STEP;
    first = i * each < size ? i * each : size;
    n = size - first < each ? size - first : each;
  }
};

/* the channel, counted from a first one, of the elements of a slice that begins `first` elements after it */
struct channel_walk {
  int64_t channel, rest, n_inner;
  __device__ __forceinline__ channel_walk(int64_t first, int64_t n_inner)
      : channel(n_inner ? first / n_inner : 0), rest(n_inner ? first % n_inner : 0), n_inner(n_inner) {}
  __device__ __forceinline__ int64_t at(int64_t i) const {
    const int64_t from_channel = rest + i;
    if (from_channel < n_inner) return channel;
    if (from_channel >> 31) return channel + from_channel / n_inner;
    return channel + (uint32_t)from_channel / (uint32_t)n_inner;
  }
};

/* ---- forward ------------------------------------------------------------------------------------------- */
/* mean, rest and, in m2, the sum of squared distances of n elements; the second pass reads from cache */
template <typename T, int VEC>
__device__ __forceinline__ norm_stats slice_stats(const T *X, int64_t n, float *m2) {
  constexpr int SUMS = norm_distances<T>::value;
  __shared__ float sum_scratch[1][BLOCK_SCRATCH], distance_scratch[SUMS][BLOCK_SCRATCH];
  const int64_t step = (int64_t)blockDim.x * VEC, first = (int64_t)threadIdx.x * VEC;
  float sum[1] = {0.0f}, d[SUMS] = {};
#pragma unroll 4
  for (int64_t i = first; i < n; i += step)
    sum[0] = norm_push<T, VEC, false>(sum[0], load_vec<T, VEC>(X + i));
  norm_row_sums(sum, (int)blockDim.x, sum_scratch);
  const float inv_n = n > 0 ? 1.0f / (float)n : 0.0f, mean = sum[0] * inv_n;
#pragma unroll 4
  for (int64_t i = first; i < n; i += step) norm_push_distances<T, VEC>(d, load_vec<T, VEC>(X + i), mean);
  norm_row_sums(d, (int)blockDim.x, distance_scratch);
  const float rest = SUMS > 1 ? d[SUMS - 1] * inv_n : 0.0f;
  *m2 = d[0] - (float)n * rest * rest;
  return {mean, rest, 0.0f};
}

/* The statistics of a group from those of its slices, relative to the first slice's mean, so that a large mean
 * costs no digits. Every thread of the block calls and has the result. */
__device__ __forceinline__ norm_stats merge_slices(const float *slices, int64_t n_slices, int64_t size,
                                                   float *m2) {
  __shared__ float shift_scratch[1][BLOCK_SCRATCH], m2_scratch[1][BLOCK_SCRATCH];
  const float mean = slices[0], rest = slices[1], inv_size = 1.0f / (float)size;
  float shift[1] = {0.0f}, squares[1] = {0.0f};
  for (int64_t i = threadIdx.x; i < n_slices; i += blockDim.x) {
    const float *s = slices + i * STATS;
    shift[0] += (float)run_slice(size, n_slices, i).n * inv_size * ((s[0] - mean) + (s[1] - rest));
  }
  norm_row_sums(shift, (int)blockDim.x, shift_scratch);
  for (int64_t i = threadIdx.x; i < n_slices; i += blockDim.x) {
    const float *s = slices + i * STATS, d = ((s[0] - mean) + (s[1] - rest)) - shift[0];
    squares[0] += fmaf((float)run_slice(size, n_slices, i).n * d, d, s[2]);
  }
  norm_row_sums(squares, (int)blockDim.x, m2_scratch);
  *m2 = squares[0];
  return {mean, rest + shift[0], 0.0f};
}

enum { SLICE_STATS, SCALE_SLICE, WHOLE_GROUP }; /* what a block does: statistics, scaling, both */

template <typename T, int VEC, int PHASE>
__global__ void group_norm_fwd_kernel(const liger_group_norm_fwd_args a) {
  const int64_t group = blockIdx.x / a.n_slices, slice = blockIdx.x % a.n_slices;
  const int64_t channels = a.n_channels / a.n_groups, size = channels * a.n_inner;
  const run_slice of(size, a.n_slices, slice);
  const T *const X = (const T *)a.X + group * size + of.first;
  float m2;
  norm_stats s;
  if constexpr (PHASE == SCALE_SLICE)
    s = merge_slices((const float *)a.slice_stats + group * a.n_slices * STATS, a.n_slices, size, &m2);
  else s = slice_stats<T, VEC>(X, of.n, &m2);
  if constexpr (PHASE == SLICE_STATS) {
    float *const to = (float *)a.slice_stats + (int64_t)blockIdx.x * STATS;
    if (threadIdx.x == 0) to[0] = s.mean, to[1] = s.rest, to[2] = m2;
  } else {
    s.rstd = rsqrtf(m2 / (float)(size ? size : 1) + (float)a.eps);
    if (threadIdx.x == 0 && slice == 0) {
      ((float *)a.mean)[group] = s.mean + s.rest;
      ((float *)a.rstd)[group] = s.rstd;
    }
    const channel_walk channel(of.first, a.n_inner);
    const int64_t first_channel = group % a.n_groups * channels;
    T *const Y = (T *)a.Y + group * size + of.first;
#pragma unroll 4
    for (int64_t i = (int64_t)threadIdx.x * VEC; i < of.n; i += (int64_t)blockDim.x * VEC) {
      const int64_t c = first_channel + channel.at(i);
      const float scale = load_scalar(a.W, c, a.w_dtype, 1.0f),
                  shift = load_scalar(a.bias, c, a.bias_dtype, 0.0f);
      float w[VEC], b[VEC];
#pragma unroll
      for (int j = 0; j < VEC; j++) w[j] = scale, b[j] = shift;
      store_vec<T, VEC>(Y + i, norm_scale<T, VEC, true>(load_vec<T, VEC>(X + i), s, w, b, false));
    }
  }
}

/* ---- backward ------------------------------------------------------------------------------------------ */
/* sums of each channel of each batch entry, threads_per_row threads a slice of one */
template <typename T, int VEC>
__global__ void group_norm_sums_kernel(const liger_group_norm_bwd_args a, int threads_per_row) {
  __shared__ float scratch[2][BLOCK_SCRATCH];
  const int64_t rows = a.n_batch * a.n_channels, per_block = blockDim.x / threads_per_row;
  const int64_t slice = blockIdx.x % a.n_slices,
                row = blockIdx.x / a.n_slices * per_block + threadIdx.x / threads_per_row;
  const int lane = (int)threadIdx.x % threads_per_row;
  float sum[2] = {0.0f, 0.0f}; /* of dY xhat, of dY */
  if (row < rows) {
    const int64_t group = row / (a.n_channels / a.n_groups);
    const float mean = ((const float *)a.mean)[group], rstd = ((const float *)a.rstd)[group];
    const run_slice of(a.n_inner, a.n_slices, slice);
    const T *const X = (const T *)a.X + row * a.n_inner + of.first, *const dY = (const T *)a.dY +
                                                                                row * a.n_inner + of.first;
#pragma unroll 4
    for (int64_t i = (int64_t)lane * VEC; i < of.n; i += (int64_t)threads_per_row * VEC) {
      float v[VEC], g[VEC];
      unpack(v, load_vec<T, VEC>(X + i));
      unpack(g, load_vec<T, VEC>(dY + i));
#pragma unroll
      for (int j = 0; j < VEC; j++) {
        sum[0] = fmaf(g[j], (v[j] - mean) * rstd, sum[0]);
        sum[1] += g[j];
      }
    }
  }
  norm_row_sums(sum, threads_per_row, scratch);
  if (row < rows && lane == 0) {
    ((float *)a.dW_partial)[slice * rows + row] = sum[0];
    ((float *)a.dbias_partial)[slice * rows + row] = sum[1];
  }
}

/* dX of a slice of a group */
template <typename T, int VEC>
__global__ void group_norm_dx_kernel(const liger_group_norm_bwd_args a, int64_t n_group_slices) {
  __shared__ float scratch[2][BLOCK_SCRATCH];
  const int64_t group = blockIdx.x / n_group_slices, slice = blockIdx.x % n_group_slices;
  const int64_t rows = a.n_batch * a.n_channels, channels = a.n_channels / a.n_groups,
                size = channels * a.n_inner, first_channel = group % a.n_groups * channels;
  float sum[2] = {0.0f, 0.0f};
  for (int64_t i = threadIdx.x; i < channels * a.n_slices; i += blockDim.x) {
    const int64_t c = i % channels, at = i / channels * rows + group * channels + c;
    const float w = load_scalar(a.W, first_channel + c, a.w_dtype, 1.0f);
    sum[0] = fmaf(w, ((const float *)a.dW_partial)[at], sum[0]);
    sum[1] = fmaf(w, ((const float *)a.dbias_partial)[at], sum[1]);
  }
  norm_row_sums(sum, (int)blockDim.x, scratch);
  const float rstd = ((const float *)a.rstd)[group];
  sum[1] *= rstd;
  const norm_slope k = norm_finish_bwd(sum, 1.0f / (float)size, ((const float *)a.mean)[group], rstd);
  const run_slice of(size, n_group_slices, slice);
  const channel_walk channel(of.first, a.n_inner);
  const int64_t start = group * size + of.first;
#pragma unroll 4
  for (int64_t i = (int64_t)threadIdx.x * VEC; i < of.n; i += (int64_t)blockDim.x * VEC) {
    const float scale = load_scalar(a.W, first_channel + channel.at(i), a.w_dtype, 1.0f);
    float m[VEC];
    unpack(m, load_vec<T, VEC>((const T *)a.dY + start + i));
#pragma unroll
    for (int j = 0; j < VEC; j++) m[j] *= rstd * scale;
    store_vec<T, VEC>((T *)a.dX + start + i,
                      norm_dx<T, VEC, true>(load_vec<T, VEC>((const T *)a.X + start + i), m, k, nullptr));
  }
}

/* ---- launch plan --------------------------------------------------------------------------------------- */
/* a power of two of threads with two or more vectors each, where there are as many */
int threads_for(int64_t n, int64_t n_slices, int vec) {
  const int64_t vecs = (n + n_slices - 1) / n_slices / vec;
  int threads = 32;
  while (threads < MAX_THREADS && 2 * (int64_t)threads < vecs) threads *= 2;
  return threads;
}
int threads_of_channel(int64_t n_inner, int vec) {
  const int64_t vecs = n_inner / vec;
  return vecs <= 16 ? 8 : vecs <= 128 ? 32 : CHANNEL_THREADS;
}

template <typename T, int VEC>
liger_status launch_fwd(const liger_group_norm_fwd_args *a, gpu_stream stream) {
  const int64_t size = a->n_channels / a->n_groups * a->n_inner,
                grid = a->n_batch * a->n_groups * a->n_slices;
  if (grid > GPU_MAX_GRID) return LIGER_ERR_SIZE;
  const int threads = threads_for(size, a->n_slices, VEC);
  const unsigned blocks = (unsigned)grid;
  if (a->n_slices == 1) {
    group_norm_fwd_kernel<T, VEC, WHOLE_GROUP><<<blocks, threads, 0, stream>>>(*a);
  } else {
    group_norm_fwd_kernel<T, VEC, SLICE_STATS><<<blocks, threads, 0, stream>>>(*a);
    group_norm_fwd_kernel<T, VEC, SCALE_SLICE><<<blocks, threads, 0, stream>>>(*a);
  }
  return (liger_status)LIGER_RT(GetLastError)();
}

template <typename T, int VEC>
liger_status launch_bwd(const liger_group_norm_bwd_args *a, gpu_stream stream) {
  const int64_t rows = a->n_batch * a->n_channels, size = a->n_channels / a->n_groups * a->n_inner;
  const int threads_per_row = threads_of_channel(a->n_inner, VEC);
  const int64_t per_block = CHANNEL_THREADS / threads_per_row,
                grid = (rows + per_block - 1) / per_block * a->n_slices;
  const int64_t n_group_slices = slices_of(size), dx_grid = a->n_batch * a->n_groups * n_group_slices;
  if (grid > GPU_MAX_GRID || dx_grid > GPU_MAX_GRID) return LIGER_ERR_SIZE;
  group_norm_sums_kernel<T, VEC><<<(unsigned)grid, CHANNEL_THREADS, 0, stream>>>(*a, threads_per_row);
  if (size > 0)
    group_norm_dx_kernel<T, VEC>
        <<<(unsigned)dx_grid, threads_for(size, n_group_slices, VEC), 0, stream>>>(*a, n_group_slices);
  return (liger_status)LIGER_RT(GetLastError)();
}
} // namespace

extern "C" int64_t liger_group_norm_fwd_slices_cuda(int64_t group_size) { return slices_of(group_size); }
extern "C" int64_t liger_group_norm_bwd_slices_cuda(int64_t n_inner) { return slices_of(n_inner); }

extern "C" liger_status liger_group_norm_fwd_cuda(const liger_group_norm_fwd_args *a, void *stream) {
  if (a->n_batch == 0 || a->n_channels == 0) return LIGER_OK;
  liger_status status;
  if (liger_internal_group_norm_fwd_block(a, (gpu_stream)stream, &status) ||
      liger_internal_group_norm_fwd_cluster(a, (gpu_stream)stream, &status))
    return status;
  LIGER_DISPATCH_DTYPE(a->x_dtype, T, {
    if (whole_vectors(a->X, a->n_inner, sizeof(T)) && whole_vectors(a->Y, a->n_inner, sizeof(T)))
      return launch_fwd<T, vec_width<T>::value>(a, (gpu_stream)stream);
    return launch_fwd<T, 1>(a, (gpu_stream)stream);
  });
  return LIGER_OK;
}

extern "C" liger_status liger_group_norm_bwd_cuda(const liger_group_norm_bwd_args *a, void *stream_) {
  const gpu_stream stream = (gpu_stream)stream_;
  if (a->n_channels == 0) return LIGER_OK;
  liger_status status = LIGER_OK;
  int64_t partial_rows = a->n_slices * a->n_batch;
  if (liger_internal_group_norm_bwd_block(a, stream, &status) ||
      liger_internal_group_norm_bwd_cluster(a, stream, &status)) {
    partial_rows = a->n_batch;
  } else if (a->n_batch > 0) {
    LIGER_DISPATCH_DTYPE(a->x_dtype, T, {
      const bool whole = whole_vectors(a->X, a->n_inner, sizeof(T)) &&
                         whole_vectors(a->dY, a->n_inner, sizeof(T)) &&
                         whole_vectors(a->dX, a->n_inner, sizeof(T));
      status = whole ? launch_bwd<T, vec_width<T>::value>(a, stream) : launch_bwd<T, 1>(a, stream);
    });
  }
  column_sums sums;
  sums.add(a->dW, a->dW_partial, partial_rows, a->n_channels, a->w_dtype);
  sums.add(a->dbias, a->dbias_partial, partial_rows, a->n_channels, a->bias_dtype);
  return status == LIGER_OK ? launch_column_sums(sums, stream) : status;
}
