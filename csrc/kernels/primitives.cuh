/* What every GPU kernel is built from. Each primitive says who takes part and who holds the result (as CUB does). */
#ifndef LIGER_PRIMITIVES_CUH
#define LIGER_PRIMITIVES_CUH
#include "gpu.h"

#include <stdint.h>

/* ---- vectors of one row ------------------------------------------------------------------------------------------------ */
/* N neighbouring elements, moved as one access: N * sizeof(T) is 16 (or N is 1). */
template <typename T, int N> struct alignas(N * sizeof(T)) vec {
  T v[N];
};
template <typename T> struct vec_width {
  static constexpr int value = 16 / (int)sizeof(T);
};

template <typename T, int N> static __device__ __forceinline__ vec<T, N> load_vec(const T *p) {
  return *reinterpret_cast<const vec<T, N> *>(p);
}
template <typename T, int N> static __device__ __forceinline__ void store_vec(T *p, const vec<T, N> &v) {
  *reinterpret_cast<vec<T, N> *>(p) = v;
}
/* the same, past the caches: for tensors read or written once */
template <typename T, int N> static __device__ __forceinline__ vec<T, N> load_vec_stream(const T *p) {
  if constexpr (N * sizeof(T) == 16) {
    const uint4 raw = gpu_load_stream(reinterpret_cast<const uint4 *>(p));
    vec<T, N> v;
    __builtin_memcpy(&v, &raw, 16);
    return v;
  } else {
    return load_vec<T, N>(p);
  }
}
template <typename T, int N> static __device__ __forceinline__ void store_vec_stream(T *p, const vec<T, N> &v) {
  if constexpr (N * sizeof(T) == 16) {
    uint4 raw;
    __builtin_memcpy(&raw, &v, 16);
    gpu_store_stream(reinterpret_cast<uint4 *>(p), raw);
  } else {
    store_vec<T, N>(p, v);
  }
}

/* out[0..N) = N elements of a vector whose dtype is only known at run time (weights: small, read from cache). The switch is
 * the same for every thread. `aligned`: the base and N allow whole-vector accesses.                                        */
template <typename T, int N>
static __device__ __forceinline__ void load_as_f32_typed(float (&out)[N], const T *p, bool aligned) {
  constexpr int W = N * (int)sizeof(T) <= 16 ? N : 16 / (int)sizeof(T); /* elements of one access */
  if (aligned) {
#pragma unroll
    for (int i = 0; i < N; i += W) {
      const vec<T, W> x = load_vec<T, W>(p + i);
#pragma unroll
      for (int j = 0; j < W; j++)
        out[i + j] = to_f32(x.v[j]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; i++)
      out[i] = to_f32(p[i]);
  }
}
template <int N>
static __device__ __forceinline__ void load_as_f32(float (&out)[N], const void *p, int64_t i, liger_dtype t, bool aligned) {
  if (t == LIGER_BF16)
    load_as_f32_typed<gpu_bf16, N>(out, (const gpu_bf16 *)p + i, aligned);
  else if (t == LIGER_F32)
    load_as_f32_typed<float, N>(out, (const float *)p + i, aligned);
  else
    load_as_f32_typed<__half, N>(out, (const __half *)p + i, aligned);
}
static __device__ __forceinline__ void store_as(void *p, int64_t i, float v, liger_dtype t) {
  if (t == LIGER_BF16)
    from_f32(((gpu_bf16 *)p)[i], v);
  else if (t == LIGER_F32)
    ((float *)p)[i] = v;
  else
    from_f32(((__half *)p)[i], v);
}

/* v as it comes back from a store in T: where the reference rounds in the middle of a row */
template <typename T> static __device__ __forceinline__ float round_to(float v) {
  T t;
  from_f32(t, v);
  return to_f32(t);
}

/* Whole vectors may be used on rows of this base, stride and width. Host. */
static inline bool rows_aligned(const void *base, int64_t row_stride, int64_t n_cols, int elem_size) {
  return (uintptr_t)base % 16 == 0 && row_stride * elem_size % 16 == 0 && n_cols * elem_size % 16 == 0;
}

/* ---- reductions ---------------------------------------------------------------------------------------------------------- */
struct op_sum {
  static __device__ __forceinline__ float identity() { return 0.0f; }
  static __device__ __forceinline__ float apply(float a, float b) { return a + b; }
};
struct op_max {
  static __device__ __forceinline__ float identity() { return -INFINITY; }
  static __device__ __forceinline__ float apply(float a, float b) { return fmaxf(a, b); }
};

/* Over groups of `width` neighbouring lanes (a power of two, at most the warp). All lanes call; all lanes hold the result. */
template <class Op> static __device__ __forceinline__ float warp_reduce(float v, int width) {
  for (int m = width / 2; m > 0; m /= 2)
    v = Op::apply(v, gpu_shfl_xor(v, m));
  return v;
}

/* Over the block, in warp order (the same bits every run). All threads call; all hold the result. `scratch` is shared memory
 * for BLOCK_SCRATCH floats. Calls that alternate between two scratch arrays need no barrier in between; one that reuses its own
 * array needs one.                                                                                                          */
#define BLOCK_SCRATCH (1024 / GPU_MIN_LANES)
template <class Op> static __device__ __forceinline__ float block_reduce(float v, float *scratch) {
  v = warp_reduce<Op>(v, GPU_LANES);
  const int n_warps = ((int)blockDim.x + GPU_LANES - 1) / GPU_LANES;
  if (n_warps == 1)
    return v;
  if (threadIdx.x % GPU_LANES == 0)
    scratch[threadIdx.x / GPU_LANES] = v;
  __syncthreads();
  v = Op::identity();
  for (int i = 0; i < n_warps; i++)
    v = Op::apply(v, scratch[i]);
  return v;
}

/* ---- column sums --------------------------------------------------------------------------------------------------------- */
/* dst[c] = sum over blocks of partial[b][c], the second stage of a weight gradient. Each of COLUMN_SUM_SLICES groups of threads adds a fixed
 * slice of the blocks in order, then the slices are added in order: the same bits every run.                                  */
#define COLUMN_SUM_COLS 32
#define COLUMN_SUM_SLICES 16
namespace {
__global__ void column_sum_kernel(void *dst, const float *partial, int64_t n_blocks, int64_t n_cols, liger_dtype t) {
  __shared__ float slice_sum[COLUMN_SUM_SLICES][COLUMN_SUM_COLS];
  const int64_t col = (int64_t)blockIdx.x * COLUMN_SUM_COLS + threadIdx.x;
  const int slice = threadIdx.y;
  const int64_t b0 = n_blocks * slice / COLUMN_SUM_SLICES, b1 = n_blocks * (slice + 1) / COLUMN_SUM_SLICES;
  float s = 0.0f;
  if (col < n_cols)
    for (int64_t b = b0; b < b1; b++)
      s += partial[b * n_cols + col];
  slice_sum[slice][threadIdx.x] = s;
  __syncthreads();
  if (slice == 0 && col < n_cols) {
    for (int i = 1; i < COLUMN_SUM_SLICES; i++)
      s += slice_sum[i][threadIdx.x];
    store_as(dst, col, s, t);
  }
}
} // namespace
static inline liger_status launch_column_sum(void *dst, const float *partial, int64_t n_blocks, int64_t n_cols, liger_dtype t,
                                             gpu_stream stream) {
  const dim3 threads(COLUMN_SUM_COLS, COLUMN_SUM_SLICES);
  const int64_t grid = (n_cols + COLUMN_SUM_COLS - 1) / COLUMN_SUM_COLS;
  column_sum_kernel<<<(unsigned)grid, threads, 0, stream>>>(dst, partial, n_blocks, n_cols, t);
  return (liger_status)LIGER_RT(GetLastError)();
}

/* ---- dispatch -------------------------------------------------------------------------------------------------------------- */
/* Runs `...` with T set to the element type of `code`, or returns LIGER_ERR_DTYPE from the launcher. */
#define LIGER_DISPATCH_DTYPE(code, T, ...)                                                                             \
  switch (code) {                                                                                                    \
  case LIGER_F32: {                                                                                                  \
    typedef float T;                                                                                                 \
    __VA_ARGS__;                                                                                                     \
    break;                                                                                                           \
  }                                                                                                                  \
  case LIGER_F16: {                                                                                                  \
    typedef __half T;                                                                                                \
    __VA_ARGS__;                                                                                                     \
    break;                                                                                                           \
  }                                                                                                                  \
  case LIGER_BF16: {                                                                                                 \
    typedef gpu_bf16 T;                                                                                              \
    __VA_ARGS__;                                                                                                     \
    break;                                                                                                           \
  }                                                                                                                  \
  default: return LIGER_ERR_DTYPE;                                                                                   \
  }

/* Rows that one launch can hold: the grid's x extent. */
#define GPU_MAX_GRID 0x7fffffffLL
#endif
