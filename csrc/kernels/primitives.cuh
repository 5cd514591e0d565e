/* What every GPU kernel is built from. Each primitive says who takes part and who holds the result (as CUB
 * does). */
#ifndef LIGER_PRIMITIVES_CUH
#define LIGER_PRIMITIVES_CUH
#include "gpu.h"

#include <stdint.h>

/* ---- vectors of one row -------------------------------------------------------------------------------- */
/* N neighbouring elements, moved as one access: N * sizeof(T) is 16 (or N is 1). */
template <typename T, int N> struct alignas(N * sizeof(T)) vec {
  T v[N];
};
template <typename T> struct vec_width {
  static constexpr int value = 16 / (int)sizeof(T);
};

/* The type of one access of BYTES bytes. A vec copied member by member would be moved two bytes at a time. */
template <int BYTES> struct raw_access {
  typedef uint4 type;
};
template <> struct raw_access<8> {
  typedef uint2 type;
};
template <> struct raw_access<4> {
  typedef uint32_t type;
};
template <> struct raw_access<2> {
  typedef uint16_t type;
};

template <typename T, int N> static __device__ __forceinline__ vec<T, N> load_vec(const T *p) {
  typedef typename raw_access<N * sizeof(T)>::type raw_t;
  const raw_t raw = *reinterpret_cast<const raw_t *>(p);
  vec<T, N> v;
  __builtin_memcpy(&v, &raw, sizeof raw);
  return v;
}
template <typename T, int N> static __device__ __forceinline__ void store_vec(T *p, const vec<T, N> &v) {
  typedef typename raw_access<N * sizeof(T)>::type raw_t;
  raw_t raw;
  __builtin_memcpy(&raw, &v, sizeof raw);
  if constexpr (sizeof raw == 16) gpu_store(reinterpret_cast<uint4 *>(p), raw);
  else *reinterpret_cast<raw_t *>(p) = raw;
}
/* Between a vector and fp32 registers, each element rounded once. Kernels that are not bound by memory are
 * bound by the count of instructions, so pairs are converted together. */
template <typename T, int N>
static __device__ __forceinline__ void unpack(float (&out)[N], const vec<T, N> &v) {
  if constexpr (N % 2 == 0) {
#pragma unroll
    for (int j = 0; j < N; j += 2) to_f32_pair(&v.v[j], out[j], out[j + 1]);
  } else {
#pragma unroll
    for (int j = 0; j < N; j++) out[j] = to_f32(v.v[j]);
  }
}
template <typename T, int N> static __device__ __forceinline__ vec<T, N> pack(const float (&in)[N]) {
  vec<T, N> v;
  if constexpr (N % 2 == 0) {
#pragma unroll
    for (int j = 0; j < N; j += 2) from_f32_pair(&v.v[j], in[j], in[j + 1]);
  } else {
#pragma unroll
    for (int j = 0; j < N; j++) from_f32(v.v[j], in[j]);
  }
  return v;
}

/* out[0..N) = N elements of a vector whose dtype is only known at run time (weights: small, from cache).
 * `aligned`: i is a multiple of N and the base of 16 bytes, so the elements come in accesses of up to 16
 * bytes. */
template <typename T, int N>
static __device__ __forceinline__ void load_typed(float (&out)[N], const T *p, bool aligned) {
  constexpr int W = N * (int)sizeof(T) <= 16 ? N : 16 / (int)sizeof(T); /* elements of one access */
  if (aligned) {
#pragma unroll
    for (int j = 0; j < N; j += W) {
      float part[W];
      unpack(part, load_vec<T, W>(p + j));
#pragma unroll
      for (int k = 0; k < W; k++) out[j + k] = part[k];
    }
  } else {
#pragma unroll
    for (int j = 0; j < N; j++) out[j] = to_f32(p[j]);
  }
}
template <int N>
static __device__ __forceinline__ void load_as_f32(float (&out)[N], const void *p, int64_t i, liger_dtype t,
                                                   bool aligned = false) {
  if (t == LIGER_BF16) load_typed<gpu_bf16, N>(out, (const gpu_bf16 *)p + i, aligned);
  else if (t == LIGER_F32) load_typed<float, N>(out, (const float *)p + i, aligned);
  else load_typed<__half, N>(out, (const __half *)p + i, aligned);
}
template <typename T> struct dtype_code;
template <> struct dtype_code<float> {
  static constexpr liger_dtype value = LIGER_F32;
};
template <> struct dtype_code<__half> {
  static constexpr liger_dtype value = LIGER_F16;
};
template <> struct dtype_code<gpu_bf16> {
  static constexpr liger_dtype value = LIGER_BF16;
};

static __device__ __forceinline__ void store_as(void *p, int64_t i, float v, liger_dtype t) {
  if (t == LIGER_BF16) from_f32(((gpu_bf16 *)p)[i], v);
  else if (t == LIGER_F32) ((float *)p)[i] = v;
  else from_f32(((__half *)p)[i], v);
}

/* fp32 sums, N of them from an address of 16 bytes */
template <int N> static __device__ __forceinline__ void store_f32(float *p, const float (&v)[N]) {
  static_assert(N % 4 == 0, "whole vectors of fp32");
#pragma unroll
  for (int j = 0; j < N; j += 4)
    store_vec<float, 4>(p + j, vec<float, 4>{{v[j], v[j + 1], v[j + 2], v[j + 3]}});
}

/* Whole vectors may be used on rows of this base, stride and width. Host. */
static inline bool rows_aligned(const void *base, int64_t row_stride, int64_t n_cols, int elem_size) {
  return (uintptr_t)base % 16 == 0 && row_stride * elem_size % 16 == 0 && n_cols * elem_size % 16 == 0;
}

/* ---- rows of a persistent grid ------------------------------------------------------------------------- */
/* A thread owns NV vectors of a row, CHUNK vectors apart, so that their distance is a constant and CHUNK
 * neighbouring threads make one access: 32 of them for wide rows, 8 or 16 for rows of 8 or 16 threads.
 * threads_per_row is a power of two and a multiple of CHUNK. */
/* `groups` rows side by side in a block; all groups make the same number of turns, since reductions need
 * every thread. */
template <int NV, int CHUNK> struct row_walk {
  static constexpr int NEXT = CHUNK; /* vectors from one of a thread's to its next */
  int groups, group, lane, n_vecs, first_vec;
  int64_t row, step;
  __device__ __forceinline__ row_walk(int threads_per_row, int64_t n_cols, int vec_elems)
      : n_vecs((int)(n_cols / vec_elems)) {
    const int log2_threads = __ffs(threads_per_row) - 1; /* the first load waits for all this: no division */
    groups = (int)blockDim.x >> log2_threads;
    group = (int)threadIdx.x >> log2_threads;
    lane = (int)threadIdx.x & (threads_per_row - 1);
    first_vec = lane / CHUNK * (CHUNK * NV) + lane % CHUNK;
    row = (int64_t)blockIdx.x * groups + group;
    step = (int64_t)gridDim.x * groups;
  }
  __device__ __forceinline__ bool owns(int i) const { return first_vec + i * CHUNK < n_vecs; }
};

/* Each thread copies what it will itself need of the next STAGES - 1 rows into its own slots of shared
 * memory, so no barrier is needed and no register is held while the bytes are on the way. A slot holds NV
 * vectors of 16 bytes of each of INPUTS tensors. */
template <int NV, int CHUNK, int STAGES, int INPUTS> struct row_ring {
  uint4 *first; /* the thread's place in dynamic shared memory, which holds bytes(threads) */
  static constexpr size_t bytes(int threads) { return (size_t)STAGES * INPUTS * NV * 16 * threads; }
  __device__ __forceinline__ explicit row_ring(uint4 *shared)
      : first(shared + threadIdx.x / CHUNK * (STAGES * INPUTS * NV * CHUNK) + threadIdx.x % CHUNK) {}
  __device__ __forceinline__ uint4 *slot(int stage, int input, int i) const {
    return first + ((stage * INPUTS + input) * NV + i) * CHUNK;
  }
  /* starts the copy of the thread's vectors of a row; `from` is at its first vector; zeros where the row
   * has ended or there is none */
  template <typename T>
  __device__ __forceinline__ void fetch(int stage, int input, const T *from, bool live,
                                        const row_walk<NV, CHUNK> &at) const {
#pragma unroll
    for (int i = 0; i < NV; i++)
      gpu_copy_async(slot(stage, input, i), from + i * (CHUNK * vec_width<T>::value), live && at.owns(i));
  }
  template <typename T>
  __device__ __forceinline__ vec<T, vec_width<T>::value> read(int stage, int input, int i) const {
    vec<T, vec_width<T>::value> v;
    __builtin_memcpy(&v, slot(stage, input, i), 16);
    return v;
  }
};

/* ---- reductions ---------------------------------------------------------------------------------------- */
struct op_sum {
  static __device__ __forceinline__ float identity() { return 0.0f; }
  static __device__ __forceinline__ float apply(float a, float b) { return a + b; }
};

/* Over groups of `width` neighbouring lanes (a power of two, at most the warp), all N at once. All lanes call; all
 * lanes hold the results. Unrolled whatever the width: a loop's own instructions would double the time of a step,
 * and every row waits for all of them. */
template <class Op, int N> static __device__ __forceinline__ void warp_reduce_all(float (&v)[N], int width) {
#pragma unroll
  for (int m = GPU_LANES / 2; m > 0; m /= 2)
    if (m < width) {
#pragma unroll
      for (int k = 0; k < N; k++) v[k] = Op::apply(v[k], gpu_shfl_xor(v[k], m));
    }
}
template <class Op> static __device__ __forceinline__ float warp_reduce(float v, int width) {
  float one[1] = {v};
  warp_reduce_all<Op>(one, width);
  return one[0];
}

/* Over groups of `threads` neighbouring threads, a power of two that divides the block, in a fixed order. All
 * threads of the block call, as often as each other; all hold the result of their group. `scratch` is shared
 * memory for BLOCK_SCRATCH floats. Calls that alternate between two scratch arrays need no barrier in between;
 * one that reuses its own array needs one. */
#define BLOCK_SCRATCH (1024 / GPU_MIN_LANES)
/* GROUPS false: a group of more than a warp is the whole block, which then takes no barriers of its own. */
template <class Op, bool GROUPS>
static __device__ __forceinline__ float group_reduce(float v, int threads, float *scratch) {
  if (threads <= GPU_LANES) return warp_reduce<Op>(v, threads);
  v = warp_reduce<Op>(v, GPU_LANES);
  const int n_warps = threads / GPU_LANES, warp = (int)threadIdx.x / GPU_LANES;
  if (threadIdx.x % GPU_LANES == 0) scratch[warp] = v;
  const int first_warp = warp & ~(n_warps - 1);
  if (GROUPS && threads < (int)blockDim.x) gpu_group_sync(first_warp / 2, threads);
  else __syncthreads();
  /* every n_warps lanes add all of the group's */
  return warp_reduce<Op>(scratch[first_warp + (threadIdx.x & (n_warps - 1))], n_warps);
}
/* Over the block, whose number of threads is a power of two, or at most one warp. */
template <class Op> static __device__ __forceinline__ float block_reduce(float v, float *scratch) {
  return group_reduce<Op, false>(v, blockDim.x <= GPU_LANES ? GPU_LANES : (int)blockDim.x, scratch);
}

/* Rows that one launch can hold: the grid's x extent. */
#define GPU_MAX_GRID 0x7fffffffLL

/* ---- column sums --------------------------------------------------------------------------------------- */
/* Sums over the rows of up to 4 matrices of partial sums, dst[k][c] = sum over b of partial[k][b][c], in one
 * launch: the second stage of weight gradients. */
struct column_sums {
  int n = 0;
  void *dst[4];
  const float *partial[4];
  int64_t n_rows[4], n_cols[4];
  liger_dtype dtype[4];
  /* one sum more; none where there is no `to` or no column */
  void add(void *to, const void *from, int64_t rows, int64_t cols, liger_dtype t) {
    if (!to || cols == 0) return;
    dst[n] = to, partial[n] = (const float *)from, n_rows[n] = rows, n_cols[n] = cols, dtype[n] = t;
    n++;
  }
};

/* Each of COLUMN_SUM_SLICES groups of threads adds a fixed slice of the rows in order, then the slices are added
 * as a tree: the same bits every run. Few columns to a block, so that even one narrow row of sums keeps many
 * multiprocessors waiting for memory side by side. */
#define COLUMN_SUM_COLS 16
#define COLUMN_SUM_SLICES 32
/* few rows of many columns: a thread a column */
static __host__ __device__ __forceinline__ bool column_sum_flat(int64_t n_rows, int64_t n_cols) {
  return n_rows <= COLUMN_SUM_SLICES && n_cols >= 32 * COLUMN_SUM_COLS * COLUMN_SUM_SLICES;
}
static __host__ __device__ __forceinline__ int64_t column_sum_blocks(int64_t n_rows, int64_t n_cols) {
  const int cols = column_sum_flat(n_rows, n_cols) ? COLUMN_SUM_COLS * COLUMN_SUM_SLICES : COLUMN_SUM_COLS;
  return (n_cols + cols - 1) / cols;
}
namespace {
__global__ void __launch_bounds__(COLUMN_SUM_COLS *COLUMN_SUM_SLICES) column_sum_kernel(const column_sums a) {
  __shared__ float slice_sum[COLUMN_SUM_SLICES][COLUMN_SUM_COLS + 1];
  int64_t block = blockIdx.x;
  int k = 0;
  for (; k < a.n - 1 && block >= column_sum_blocks(a.n_rows[k], a.n_cols[k]); k++)
    block -= column_sum_blocks(a.n_rows[k], a.n_cols[k]);
  const int64_t n_cols = a.n_cols[k], n_rows = a.n_rows[k];
  const bool flat = column_sum_flat(n_rows, n_cols);
  const int col = flat ? (int)threadIdx.x : (int)threadIdx.x % COLUMN_SUM_COLS,
            slice = (int)threadIdx.x / COLUMN_SUM_COLS;
  const int64_t first = block * (flat ? COLUMN_SUM_COLS * COLUMN_SUM_SLICES : COLUMN_SUM_COLS);
  const int64_t b0 = flat ? 0 : n_rows * slice / COLUMN_SUM_SLICES,
                b1 = flat ? n_rows : n_rows * (slice + 1) / COLUMN_SUM_SLICES;
  const float *const partial = a.partial[k] + first + col;
  float s = 0.0f;
  if (first + col < n_cols)
#pragma unroll 1
    for (int64_t b = b0; b < b1; b += 8) { /* 8 on the way at once, the last turn's too */
      float v[8];
#pragma unroll
      for (int i = 0; i < 8; i++) v[i] = b + i < b1 ? partial[(b + i) * n_cols] : 0.0f;
#pragma unroll
      for (int i = 0; i < 8; i++) s += v[i];
    }
  if (flat) {
    if (first + col < n_cols) store_as(a.dst[k], first + col, s, a.dtype[k]);
    return;
  }
  slice_sum[slice][col] = s;
  __syncthreads();
  /* now a lane a slice, and each 32 lanes a column */
  const int lane = (int)threadIdx.x % COLUMN_SUM_SLICES, mine = (int)threadIdx.x / COLUMN_SUM_SLICES;
  s = warp_reduce<op_sum>(slice_sum[lane][mine], COLUMN_SUM_SLICES);
  if (lane == 0 && first + mine < n_cols) store_as(a.dst[k], first + mine, s, a.dtype[k]);
}
} // namespace
static inline liger_status launch_column_sums(const column_sums &a, gpu_stream stream) {
  int64_t grid = 0;
  for (int k = 0; k < a.n; k++) grid += column_sum_blocks(a.n_rows[k], a.n_cols[k]);
  if (grid > GPU_MAX_GRID) return LIGER_ERR_SIZE;
  if (grid) column_sum_kernel<<<(unsigned)grid, COLUMN_SUM_COLS * COLUMN_SUM_SLICES, 0, stream>>>(a);
  return (liger_status)LIGER_RT(GetLastError)();
}

/* ---- dispatch ------------------------------------------------------------------------------------------ */
/* Runs `...` with T set to the element type of `code`, or returns LIGER_ERR_DTYPE from the launcher. */
#define LIGER_DISPATCH_DTYPE(code, T, ...) \
  switch (code) {                          \
  case LIGER_F32: {                        \
    typedef float T;                       \
    __VA_ARGS__;                           \
    break;                                 \
  }                                        \
  case LIGER_F16: {                        \
    typedef __half T;                      \
    __VA_ARGS__;                           \
    break;                                 \
  }                                        \
  case LIGER_BF16: {                       \
    typedef gpu_bf16 T;                    \
    __VA_ARGS__;                           \
    break;                                 \
  }                                        \
  default: return LIGER_ERR_DTYPE;         \
  }

#endif
