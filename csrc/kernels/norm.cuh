/* The kernels of every norm over whole rows, forward and backward (csrc/liger.h has the equations).
 *
 * Flags of an op:  CENTRED  the mean is subtracted and there may be a bias (layer norm), else neither (RMS norm)
 *                  ADD      forward: S = X + R is stored and normalised; backward: dS is added to dX
 * Forward   a row is loaded once, into the registers of 4 to 512 threads with 4 or 8 vectors of 16 bytes each:
 *           small blocks without turns, of which others load while one reduces or stores. Statistics are of two
 *           passes over the registers
 * Backward  a persistent grid; a row belongs to 8 to 512 threads with 2 or 4 vectors each, and is read once, through
 *           a ring in shared memory in which the next rows are on their way. dW and dbias: fp32 registers, a
 *           partial row per block, then a column sum in fixed order
 * Both      rows that are too wide or not made of aligned vectors are looped over by a block */
#ifndef LIGER_NORM_CUH
#define LIGER_NORM_CUH
#include "primitives.cuh"

namespace {
constexpr int NORM_MAX_THREADS = 512;

/* v[k] = its sum over the threads of one row, all N at once. All threads of the block call, as often as each
 * other; `scratch` is N arrays of shared memory. Calls that alternate between two sets need no barrier.
 * GROUPS: the threads of a row wait for each other alone, not for the other rows of the block. CHUNK: a known
 * divisor of threads_per_row. */
template <bool GROUPS = false, int CHUNK = 1, int N>
__device__ __forceinline__ void norm_row_sums(float (&v)[N], int threads_per_row,
                                              float (&scratch)[N][BLOCK_SCRATCH]) {
  const int lanes = CHUNK >= GPU_LANES || threads_per_row >= GPU_LANES ? GPU_LANES : threads_per_row;
  warp_reduce_all<op_sum>(v, lanes);
  if (threads_per_row <= GPU_LANES) return;
  const int n_warps = threads_per_row / GPU_LANES, warp = (int)threadIdx.x / GPU_LANES;
  if (threadIdx.x % GPU_LANES == 0) {
#pragma unroll
    for (int k = 0; k < N; k++) scratch[k][warp] = v[k];
  }
  const int first_warp = warp & ~(n_warps - 1);
  if (GROUPS && threads_per_row < (int)blockDim.x) gpu_group_sync(first_warp / 2, threads_per_row);
  else __syncthreads();
  const int from = first_warp + ((int)threadIdx.x & (n_warps - 1));
#pragma unroll
  for (int k = 0; k < N; k++) v[k] = scratch[k][from];
  warp_reduce_all<op_sum>(v, n_warps);
}

/* p[j] = P[col + j] + plus, or `otherwise` without a P; col is a multiple of N */
template <int N>
__device__ __forceinline__ void norm_load_param(float (&p)[N], const void *P, int64_t col, liger_dtype t,
                                                float plus, float otherwise) {
  if (P) load_as_f32<N>(p, P, col, t, N > 1 && (uintptr_t)P % 16 == 0);
#pragma unroll
  for (int j = 0; j < N; j++) p[j] = P ? p[j] + plus : otherwise;
}

/* NV of a thread's vectors of a parameter, or of `otherwise` without one. PACKED, of X's dtype: all on their way
 * at once after fetch, in half the registers that fp32 takes. Else loaded where they are used, from a cache by then. */
template <typename T, int NV, bool PACKED> struct norm_param {
  static constexpr int VEC = vec_width<T>::value;
  vec<T, VEC> packed[PACKED ? NV : 1];
  const void *p;
  liger_dtype t;
  float otherwise;
  __device__ __forceinline__ norm_param(const void *p, liger_dtype t, float otherwise)
      : p(p), t(t), otherwise(otherwise) {}
  /* the thread's vectors from its `from`th on */
  template <class Walk> __device__ __forceinline__ void fetch(const Walk &at, int from) {
    if constexpr (PACKED) {
      if (p) {
        const T *const first = (const T *)p + (int64_t)at.first_vec * VEC;
#pragma unroll
        for (int i = 0; i < NV; i++)
          if (at.owns(from + i)) packed[i] = load_vec<T, VEC>(first + (from + i) * (Walk::NEXT * VEC));
      } else {
        float none[VEC];
#pragma unroll
        for (int j = 0; j < VEC; j++) none[j] = otherwise;
#pragma unroll
        for (int i = 0; i < NV; i++) packed[i] = pack<T, VEC>(none);
      }
    }
  }
  /* vector i, from column col */
  __device__ __forceinline__ void get(float (&out)[VEC], int i, int64_t col) const {
    if constexpr (PACKED) unpack(out, packed[i % NV]);
    else norm_load_param<VEC>(out, p, col, t, 0.0f, otherwise);
  }
};

/* the mean is mean + rest: that of large numbers does not fit one float. 16-bit elements have no rest: their
 * sums are near exact, and x - mean is not */
struct norm_stats {
  float mean, rest, rstd;
};

template <typename T, int N, bool CENTRED>
__device__ __forceinline__ vec<T, N> norm_scale(const vec<T, N> &x, const norm_stats &s, const float (&w)[N],
                                                const float (&b)[N], bool llama) {
  float v[N];
  unpack(v, x);
  if constexpr (CENTRED) {
#pragma unroll
    for (int j = 0; j < N; j++) v[j] = fmaf(((v[j] - s.mean) - s.rest) * s.rstd, w[j], b[j]);
  } else {
#pragma unroll
    for (int j = 0; j < N; j++) v[j] *= s.rstd;
    if (llama) {
      const vec<T, N> rounded = pack<T, N>(v);
      unpack(v, rounded);
    }
#pragma unroll
    for (int j = 0; j < N; j++) v[j] *= w[j];
  }
  return pack<T, N>(v);
}
/* x + r, rounded to T */
template <typename T, int N>
__device__ __forceinline__ vec<T, N> norm_add(const vec<T, N> &x, const vec<T, N> &r) {
  float v[N], u[N];
  unpack(v, x);
  unpack(u, r);
#pragma unroll
  for (int j = 0; j < N; j++) v[j] += u[j];
  return pack<T, N>(v);
}
/* between two passes over vectors that stay packed */
template <typename T, int N, int NV> __device__ __forceinline__ void norm_stay_packed(vec<T, N> (&x)[NV]) {
  static_assert(sizeof x[0] == 16, "whole vectors");
#pragma unroll
  for (int i = 0; i < NV; i++) {
    uint4 raw;
    __builtin_memcpy(&raw, &x[i], 16);
    gpu_forget(raw);
    __builtin_memcpy(&x[i], &raw, 16);
  }
}
/* sum of the elements, or of their squares */
template <typename T, int N, bool SQUARES>
__device__ __forceinline__ float norm_push(float sum, const vec<T, N> &x) {
  float v[N];
  unpack(v, x);
#pragma unroll
  for (int j = 0; j < N; j++) sum = SQUARES ? fmaf(v[j], v[j], sum) : sum + v[j];
  return sum;
}
/* d[0]: sum of the squares of the distances from the mean; d[1], of fp32 elements: of the distances, which
 * correct it */
template <typename T> struct norm_distances {
  static constexpr int value = sizeof(T) == 4 ? 2 : 1;
};
template <typename T, int N, int SUMS>
__device__ __forceinline__ void norm_push_distances(float (&d)[SUMS], const vec<T, N> &x, float mean) {
  float v[N];
  unpack(v, x);
#pragma unroll
  for (int j = 0; j < N; j++) {
    v[j] -= mean;
    d[0] = fmaf(v[j], v[j], d[0]);
    if constexpr (SUMS > 1) d[1] += v[j];
  }
}
template <int SUMS>
__device__ __forceinline__ norm_stats norm_finish(float mean, const float (&d)[SUMS], float inv_n,
                                                  float eps) {
  const float rest = SUMS > 1 ? d[SUMS - 1] * inv_n : 0.0f;
  return {mean, rest, rsqrtf(fmaf(d[0], inv_n, eps) - rest * rest)};
}

/* ---- forward ------------------------------------------------------------------------------------------- */
template <typename T, int NV, int CHUNK, bool CENTRED, bool ADD, bool PACKED>
__global__ void __launch_bounds__(NORM_MAX_THREADS, NV <= 4 ? 2 : 1)
    norm_fwd_kernel(const liger_norm_fwd_args a, int threads_per_row) {
  constexpr int VEC = vec_width<T>::value, SUMS = norm_distances<T>::value,
                NEXT = CHUNK * VEC, /* columns from a thread's vector to its next */
      BATCH = NV < 4 ? NV : 4;      /* vectors of a parameter in registers */
  __shared__ float sum_scratch[1][BLOCK_SCRATCH], distance_scratch[SUMS][BLOCK_SCRATCH];
  const row_walk<NV, CHUNK> at(threads_per_row, a.n_cols, VEC);
  const int64_t first_col = (int64_t)at.first_vec * VEC;
  const float inv_n = 1.0f / (float)a.n_cols, eps = (float)a.eps;
  const bool live = at.row < a.n_rows, llama = a.casting == LIGER_CAST_LLAMA;

  vec<T, VEC> x[NV] = {};
  const T *const X = (const T *)a.X + at.row * a.X_row_stride + first_col;
#pragma unroll
  for (int i = 0; i < NV; i++)
    if (live && at.owns(i)) x[i] = load_vec<T, VEC>(X + i * NEXT);
  if constexpr (ADD) {
    const T *const R = (const T *)a.R + at.row * a.R_row_stride + first_col;
    T *const S = (T *)a.S + at.row * a.n_cols + first_col;
    vec<T, VEC> r[NV] = {};
#pragma unroll
    for (int i = 0; i < NV; i++)
      if (live && at.owns(i)) r[i] = load_vec<T, VEC>(R + i * NEXT);
#pragma unroll
    for (int i = 0; i < NV; i++) {
      x[i] = norm_add<T, VEC>(x[i], r[i]);
      if (live && at.owns(i)) store_vec<T, VEC>(S + i * NEXT, x[i]);
    }
  }
  const float offset = a.W ? (float)a.offset : 0.0f;
  /* on their way while the last sums are made */
  norm_param<T, BATCH, PACKED> weight(a.W, a.w_dtype, 1.0f);
  norm_param<T, BATCH, CENTRED && PACKED> bias(CENTRED ? a.bias : nullptr, a.bias_dtype, 0.0f);
  const auto fetch_params = [&](int from) {
    weight.fetch(at, from);
    if constexpr (CENTRED) bias.fetch(at, from);
  };

  float sum[1] = {0.0f};
#pragma unroll
  for (int i = 0; i < NV; i++) sum[0] = norm_push<T, VEC, !CENTRED>(sum[0], x[i]); /* zeros beyond the row */
  if constexpr (!CENTRED) fetch_params(0);
  norm_row_sums<false, CHUNK>(sum, threads_per_row, sum_scratch);
  if constexpr (!CENTRED || NV > 4) norm_stay_packed(x); /* else fp32 is left of it for the next pass */
  norm_stats s;
  if constexpr (CENTRED) {
    float d[SUMS] = {};
    const float mean = sum[0] * inv_n;
#pragma unroll
    for (int i = 0; i < NV; i++)
      if (at.owns(i)) norm_push_distances<T, VEC>(d, x[i], mean);
    fetch_params(0);
    norm_row_sums<false, CHUNK>(d, threads_per_row, distance_scratch);
    norm_stay_packed(x);
    s = norm_finish(mean, d, inv_n, eps);
    if (live && at.lane == 0) ((float *)a.mean)[at.row] = s.mean + s.rest;
  } else {
    s = {0.0f, 0.0f, rsqrtf(fmaf(sum[0], inv_n, eps))};
  }
  if (live && at.lane == 0) ((float *)a.rstd)[at.row] = s.rstd;

  T *const Y = (T *)a.Y + at.row * a.Y_row_stride + first_col;
#pragma unroll
  for (int i = 0; i < NV; i++) {
    if (i > 0 && i % BATCH == 0) fetch_params(i);
    if (live && at.owns(i)) {
      float w[VEC], b[VEC] = {};
      weight.get(w, i, first_col + i * NEXT);
      if constexpr (CENTRED) bias.get(b, i, first_col + i * NEXT);
      if constexpr (!CENTRED) {
#pragma unroll
        for (int j = 0; j < VEC; j++) w[j] += offset;
      }
      store_vec<T, VEC>(Y + i * NEXT, norm_scale<T, VEC, CENTRED>(x[i], s, w, b, llama));
    }
  }
}

/* any width and alignment: a block per row, VEC elements at a time */
template <typename T, int VEC, bool CENTRED, bool ADD>
__global__ void norm_fwd_loop_kernel(const liger_norm_fwd_args a) {
  constexpr int SUMS = norm_distances<T>::value;
  __shared__ float sum_scratch[1][BLOCK_SCRATCH], distance_scratch[SUMS][BLOCK_SCRATCH];
  const int64_t row = blockIdx.x, step = (int64_t)blockDim.x * VEC, first_col = (int64_t)threadIdx.x * VEC;
  const float inv_n = 1.0f / (float)a.n_cols;
  const T *X = (const T *)a.X + row * a.X_row_stride;
  float sum[1] = {0.0f};
  for (int64_t col = first_col; col < a.n_cols; col += step) {
    vec<T, VEC> x = load_vec<T, VEC>(X + col);
    if constexpr (ADD) {
      x = norm_add<T, VEC>(x, load_vec<T, VEC>((const T *)a.R + row * a.R_row_stride + col));
      store_vec<T, VEC>((T *)a.S + row * a.n_cols + col, x); /* this thread reads it again below */
    }
    sum[0] = norm_push<T, VEC, !CENTRED>(sum[0], x);
  }
  if (ADD) X = (const T *)a.S + row * a.n_cols;
  norm_row_sums(sum, (int)blockDim.x, sum_scratch);
  norm_stats s = {0.0f, 0.0f, rsqrtf(fmaf(sum[0], inv_n, (float)a.eps))};
  if constexpr (CENTRED) {
    float d[SUMS] = {};
    const float mean = sum[0] * inv_n;
    for (int64_t col = first_col; col < a.n_cols; col += step)
      norm_push_distances<T, VEC>(d, load_vec<T, VEC>(X + col), mean);
    norm_row_sums(d, (int)blockDim.x, distance_scratch);
    s = norm_finish(mean, d, inv_n, (float)a.eps);
    if (threadIdx.x == 0) ((float *)a.mean)[row] = s.mean + s.rest;
  }
  if (threadIdx.x == 0) ((float *)a.rstd)[row] = s.rstd;
  for (int64_t col = first_col; col < a.n_cols; col += step) {
    float w[VEC], b[VEC] = {};
    norm_load_param<VEC>(w, a.W, col, a.w_dtype, (float)a.offset, 1.0f);
    if (CENTRED) norm_load_param<VEC>(b, a.bias, col, a.bias_dtype, 0.0f, 0.0f);
    store_vec<T, VEC>(
        (T *)a.Y + row * a.Y_row_stride + col,
        norm_scale<T, VEC, CENTRED>(load_vec<T, VEC>(X + col), s, w, b, a.casting == LIGER_CAST_LLAMA));
  }
}
} // namespace

#include "norm_bwd.cuh"

/* ---- launch plan: a pure function of the row's size ---------------------------------------------------- */
namespace {
struct norm_plan {
  int threads_per_row, threads, vectors; /* vectors 0: loop over the row */
};
inline int64_t norm_vectors(int64_t n_cols, int elem_size) { return (n_cols * elem_size + 15) / 16; }

/* Forward: small blocks, so that a multiprocessor holds many at different stages of their rows; narrow rows share a
 * block. 4 vectors of a row to a thread are on the way at once; 8 where a row would need too many threads, which
 * wait for each other. */
inline norm_plan norm_plan_fwd(int64_t n_cols, int elem_size) {
  const int64_t n_vecs = norm_vectors(n_cols, elem_size);
  if (n_vecs > 8 * NORM_MAX_THREADS) return {NORM_MAX_THREADS, NORM_MAX_THREADS, 0};
  const int vectors = n_vecs <= 512 ? 4 : 8;
  int threads_per_row = 4;
  while ((int64_t)threads_per_row * vectors < n_vecs) threads_per_row *= 2;
  const int least = threads_per_row <= 16 ? 128 : 64;
  return {threads_per_row, threads_per_row < least ? least : threads_per_row, vectors};
}

/* Backward: one block of all the threads that the registers let reside, since each block costs rows of partial
 * sums, written and read; smaller ones where there would not be one for each multiprocessor. */
inline norm_plan norm_plan_bwd(int64_t n_rows, int64_t n_cols, int elem_size) {
  const int64_t n_vecs = norm_vectors(n_cols, elem_size), blocks = gpu_multiprocessors();
  if (n_vecs > 4 * NORM_MAX_THREADS) return {NORM_MAX_THREADS, NORM_MAX_THREADS, 0};
  norm_plan p = {8, 0, n_vecs <= 2 * NORM_MAX_THREADS ? 2 : 4};
  while ((int64_t)p.threads_per_row * p.vectors < n_vecs) p.threads_per_row *= 2;
  p.threads = p.threads_per_row <= 32 ? 128 : p.threads_per_row;
  while (p.threads < NORM_MAX_THREADS && n_rows >= 2 * blocks * (p.threads / p.threads_per_row))
    p.threads *= 2;
  return p;
}
/* what resides at once, never more blocks than there are turns */
inline int64_t norm_bwd_blocks(int64_t n_rows, int64_t n_cols, liger_dtype x_dtype) {
  const norm_plan p = norm_plan_bwd(n_rows, n_cols, x_dtype == LIGER_F32 ? 4 : 2);
  const int64_t rows = p.threads / p.threads_per_row, turns = (n_rows + rows - 1) / rows,
                resident = gpu_multiprocessors() * (NORM_MAX_THREADS / p.threads);
  return turns < 1 ? 1 : turns < resident ? turns : resident;
}

template <typename T, int NV, int CHUNK, bool CENTRED, bool ADD>
void norm_launch_fwd(const liger_norm_fwd_args *a, const norm_plan &p, gpu_stream stream) {
  const int rows = p.threads / p.threads_per_row;
  const unsigned grid = (unsigned)((a->n_rows + rows - 1) / rows);
  const auto packed = [](const void *p, liger_dtype t) {
    return !p || (t == dtype_code<T>::value && (uintptr_t)p % 16 == 0);
  };
  const bool all_packed = packed(a->W, a->w_dtype) && (!CENTRED || packed(a->bias, a->bias_dtype));
  const auto kernel = all_packed ? norm_fwd_kernel<T, NV, CHUNK, CENTRED, ADD, true>
                                 : norm_fwd_kernel<T, NV, CHUNK, CENTRED, ADD, false>;
  kernel<<<grid, p.threads, 0, stream>>>(*a, p.threads_per_row);
}
template <typename T, int NV, int CHUNK, bool CENTRED, bool ADD>
bool norm_launch_bwd(const liger_norm_bwd_args *a, const norm_plan &p, gpu_stream stream) {
  const auto kernel = norm_bwd_kernel<T, NV, CHUNK, CENTRED, ADD>;
  const size_t shared = norm_bwd_ring<NV, CHUNK, ADD>::bytes(p.threads);
  if (!gpu_allow_shared(kernel, shared)) return false;
  kernel<<<(unsigned)a->n_blocks, p.threads, shared, stream>>>(*a, p.threads_per_row);
  return true;
}

template <bool CENTRED, bool ADD> liger_status norm_fwd(const liger_norm_fwd_args *a, gpu_stream stream) {
  if (a->n_rows == 0 || a->n_cols == 0) return LIGER_OK;
  if (a->n_rows > GPU_MAX_GRID) return LIGER_ERR_SIZE;
  LIGER_DISPATCH_DTYPE(a->x_dtype, T, {
    constexpr int VEC = vec_width<T>::value;
    const bool aligned = rows_aligned(a->X, a->X_row_stride, a->n_cols, sizeof(T)) &&
                         rows_aligned(a->Y, a->Y_row_stride, a->n_cols, sizeof(T)) &&
                         (!ADD || (rows_aligned(a->R, a->R_row_stride, a->n_cols, sizeof(T)) &&
                                   rows_aligned(a->S, a->n_cols, a->n_cols, sizeof(T))));
    const norm_plan p = norm_plan_fwd(a->n_cols, sizeof(T));
    const unsigned rows = (unsigned)a->n_rows;
    if (!aligned) norm_fwd_loop_kernel<T, 1, CENTRED, ADD><<<rows, NORM_MAX_THREADS, 0, stream>>>(*a);
    else if (p.vectors == 0)
      norm_fwd_loop_kernel<T, VEC, CENTRED, ADD><<<rows, NORM_MAX_THREADS, 0, stream>>>(*a);
    else if (p.vectors == 8) norm_launch_fwd<T, 8, 32, CENTRED, ADD>(a, p, stream);
    else if (p.threads_per_row == 4) norm_launch_fwd<T, 4, 4, CENTRED, ADD>(a, p, stream);
    else if (p.threads_per_row == 8) norm_launch_fwd<T, 4, 8, CENTRED, ADD>(a, p, stream);
    else if (p.threads_per_row == 16) norm_launch_fwd<T, 4, 16, CENTRED, ADD>(a, p, stream);
    else norm_launch_fwd<T, 4, 32, CENTRED, ADD>(a, p, stream);
  });
  return (liger_status)LIGER_RT(GetLastError)();
}

template <bool CENTRED, bool ADD> liger_status norm_bwd(const liger_norm_bwd_args *a, gpu_stream stream) {
  if (a->n_cols == 0) return LIGER_OK;
  LIGER_DISPATCH_DTYPE(a->x_dtype, T, {
    constexpr int VEC = vec_width<T>::value;
    const bool aligned = rows_aligned(a->X, a->X_row_stride, a->n_cols, sizeof(T)) &&
                         rows_aligned(a->dY, a->dY_row_stride, a->n_cols, sizeof(T)) &&
                         rows_aligned(a->dX, a->n_cols, a->n_cols, sizeof(T)) &&
                         (!a->dS || rows_aligned(a->dS, a->dS_row_stride, a->n_cols, sizeof(T))) &&
                         (uintptr_t)a->dW_partial % 16 == 0 && (uintptr_t)a->dbias_partial % 16 == 0;
    const norm_plan p = norm_plan_bwd(a->n_rows, a->n_cols, sizeof(T));
    const unsigned blocks = (unsigned)a->n_blocks;
    if (!aligned) norm_bwd_loop_kernel<T, 1, CENTRED, ADD><<<blocks, NORM_MAX_THREADS, 0, stream>>>(*a);
    else if (!(p.vectors == 4            ? norm_launch_bwd<T, 4, 32, CENTRED, ADD>(a, p, stream)
               : p.vectors == 0          ? false
               : p.threads_per_row == 8  ? norm_launch_bwd<T, 2, 8, CENTRED, ADD>(a, p, stream)
               : p.threads_per_row == 16 ? norm_launch_bwd<T, 2, 16, CENTRED, ADD>(a, p, stream)
                                         : norm_launch_bwd<T, 2, 32, CENTRED, ADD>(a, p, stream)))
      norm_bwd_loop_kernel<T, VEC, CENTRED, ADD><<<blocks, NORM_MAX_THREADS, 0, stream>>>(*a);
  });
  const liger_status status = (liger_status)LIGER_RT(GetLastError)();
  column_sums sums;
  sums.add(a->dW, a->dW_partial, a->n_blocks, a->n_cols, a->w_dtype);
  sums.add(a->dbias, a->dbias_partial, a->n_blocks, a->n_cols, a->bias_dtype);
  return status == LIGER_OK ? launch_column_sums(sums, stream) : status;
}
} // namespace
#endif
