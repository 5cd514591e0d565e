/* The gated linear units on a GPU: one loop for C = act(g A) * B * d and its gradients (csrc/liger.h). An op
 * file brings
 *   struct act { static float value(float x); static float slope(float x, float *value); }, each templated
 *   on EXACT: whether the result is stored as fp32, or rounded to 16 bits, where the fast exponential and
 *   division do.
 * Floor      fwd 3*N*s bytes;  bwd 5*N*s    (N = n_rows*n_cols)
 * Plan       NV vectors of 16 bytes of each input per thread, all loads before the first use; contiguous
 *            tensors are one row. What is not made of aligned vectors goes element by element, and so do
 *            tensors of two dtypes */
#ifndef LIGER_GLU_CUH
#define LIGER_GLU_CUH
#include "primitives.cuh"

namespace {

constexpr int GLU_THREADS = 256;
/* 2 or 3 loads of 16 bytes in flight a thread, 2048 threads a multiprocessor: 1.5 % faster than 2 (H200) */
constexpr int GLU_NV = 1;

/* s = 1 / (1 + e^-x), and 1 - s without cancellation. e^-x is held inside the normal numbers; a NaN stays
 * one. */
template <bool EXACT> __device__ __forceinline__ float logistic(float x, float *complement) {
  const float c = x < -87.0f ? -87.0f : x > 87.0f ? 87.0f : x;
  const float e = EXACT ? expf(-c) : __expf(-c);
  const float s = EXACT ? 1.0f / (1.0f + e) : __fdividef(1.0f, 1.0f + e);
  *complement = e * s;
  return s;
}

/* Element number v * VEC of a tensor of rows. Rows of one vector count; 32-bit division where the numbers
 * fit. */
struct glu_place {
  int64_t row, col;
  __device__ __forceinline__ glu_place(int64_t v, int64_t n_rows, int64_t vecs_per_row, int vec) {
    if (n_rows == 1) row = 0;
    else if (((v | vecs_per_row) >> 32) == 0) row = (int64_t)((uint32_t)v / (uint32_t)vecs_per_row);
    else row = v / vecs_per_row;
    col = (v - row * vecs_per_row) * vec;
  }
  __device__ __forceinline__ int64_t at(int64_t row_stride) const { return row * row_stride + col; }
};

/* ---- one dtype: VEC elements at a time ----------------------------------------------------------------- */
template <class Act, typename T, int VEC>
__global__ void __launch_bounds__(GLU_THREADS) glu_fwd_kernel(const liger_glu_fwd_args args) {
  constexpr bool EXACT = sizeof(T) == 4;
  const T *A = (const T *)args.A, *B = (const T *)args.B;
  const float gate = (float)args.gate_multiplier, down = (float)args.down_multiplier;
  const int64_t vecs_per_row = args.n_cols / VEC, n_vecs = args.n_rows * vecs_per_row;
  const int64_t first = (int64_t)blockIdx.x * (GLU_THREADS * GLU_NV) + threadIdx.x;
  vec<T, VEC> a[GLU_NV], b[GLU_NV];
  const auto load = [&](int i, int64_t A_at, int64_t B_at) {
    a[i] = load_vec<T, VEC>(A + A_at);
    b[i] = load_vec<T, VEC>(B + B_at);
  };
  if (args.n_rows == 1 &&
      first - threadIdx.x + GLU_THREADS * GLU_NV <= n_vecs) { /* no branch between the loads */
#pragma unroll
    for (int i = 0; i < GLU_NV; i++)
      load(i, (first + i * GLU_THREADS) * VEC, (first + i * GLU_THREADS) * VEC);
  } else {
#pragma unroll
    for (int i = 0; i < GLU_NV; i++)
      if (first + i * GLU_THREADS < n_vecs) {
        const glu_place p(first + i * GLU_THREADS, args.n_rows, vecs_per_row, VEC);
        load(i, p.at(args.A_row_stride), p.at(args.B_row_stride));
      }
  }
#pragma unroll
  for (int i = 0; i < GLU_NV; i++) {
    const int64_t v = first + i * GLU_THREADS;
    if (v < n_vecs) {
      float x[VEC], y[VEC];
      unpack(x, a[i]);
      unpack(y, b[i]);
#pragma unroll
      for (int j = 0; j < VEC; j++) y[j] *= Act::template value<EXACT>(gate * x[j]) * down;
      store_vec<T, VEC>((T *)args.C + v * VEC, pack<T, VEC>(y));
    }
  }
}

template <class Act, typename T, int VEC>
__global__ void __launch_bounds__(GLU_THREADS) glu_bwd_kernel(const liger_glu_bwd_args args) {
  constexpr bool EXACT = sizeof(T) == 4;
  const T *A = (const T *)args.A, *B = (const T *)args.B, *dC = (const T *)args.dC;
  const float gate = (float)args.gate_multiplier, down = (float)args.down_multiplier;
  const int64_t vecs_per_row = args.n_cols / VEC, n_vecs = args.n_rows * vecs_per_row;
  const int64_t first = (int64_t)blockIdx.x * (GLU_THREADS * GLU_NV) + threadIdx.x;
  vec<T, VEC> a[GLU_NV], b[GLU_NV], dc[GLU_NV];
  const auto load = [&](int i, int64_t A_at, int64_t B_at, int64_t dC_at) {
    a[i] = load_vec<T, VEC>(A + A_at);
    b[i] = load_vec<T, VEC>(B + B_at);
    dc[i] = load_vec<T, VEC>(dC + dC_at);
  };
  if (args.n_rows == 1 &&
      first - threadIdx.x + GLU_THREADS * GLU_NV <= n_vecs) { /* no branch between the loads */
#pragma unroll
    for (int i = 0; i < GLU_NV; i++) {
      const int64_t at = (first + i * GLU_THREADS) * VEC;
      load(i, at, at, at);
    }
  } else {
#pragma unroll
    for (int i = 0; i < GLU_NV; i++)
      if (first + i * GLU_THREADS < n_vecs) {
        const glu_place p(first + i * GLU_THREADS, args.n_rows, vecs_per_row, VEC);
        load(i, p.at(args.A_row_stride), p.at(args.B_row_stride), p.at(args.dC_row_stride));
      }
  }
#pragma unroll
  for (int i = 0; i < GLU_NV; i++) {
    const int64_t v = first + i * GLU_THREADS;
    if (v < n_vecs) {
      float x[VEC], y[VEC], g[VEC];
      unpack(x, a[i]);
      unpack(y, b[i]);
      unpack(g, dc[i]);
#pragma unroll
      for (int j = 0; j < VEC; j++) {
        float value;
        const float slope = Act::template slope<EXACT>(gate * x[j], &value);
        g[j] *= down;
        x[j] = g[j] * y[j] * slope * gate;
        y[j] = g[j] * value;
      }
      if (args.dA) store_vec<T, VEC>((T *)args.dA + v * VEC, pack<T, VEC>(x));
      if (args.dB) store_vec<T, VEC>((T *)args.dB + v * VEC, pack<T, VEC>(y));
    }
  }
}

/* ---- two dtypes: known at run time, one element per thread --------------------------------------------- */
template <class Act>
__global__ void __launch_bounds__(GLU_THREADS) glu_fwd_mixed_kernel(const liger_glu_fwd_args args) {
  const int64_t v = (int64_t)blockIdx.x * GLU_THREADS + threadIdx.x;
  if (v >= args.n_rows * args.n_cols) return;
  const glu_place p(v, args.n_rows, args.n_cols, 1);
  float x[1], y[1];
  load_as_f32<1>(x, args.A, p.at(args.A_row_stride), args.a_dtype);
  load_as_f32<1>(y, args.B, p.at(args.B_row_stride), args.b_dtype);
  const float value = Act::template value<true>((float)args.gate_multiplier * x[0]);
  store_as(args.C, v, value * y[0] * (float)args.down_multiplier, args.c_dtype);
}

template <class Act>
__global__ void __launch_bounds__(GLU_THREADS) glu_bwd_mixed_kernel(const liger_glu_bwd_args args) {
  const int64_t v = (int64_t)blockIdx.x * GLU_THREADS + threadIdx.x;
  if (v >= args.n_rows * args.n_cols) return;
  const glu_place p(v, args.n_rows, args.n_cols, 1);
  float x[1], y[1], g[1], value;
  load_as_f32<1>(x, args.A, p.at(args.A_row_stride), args.a_dtype);
  load_as_f32<1>(y, args.B, p.at(args.B_row_stride), args.b_dtype);
  load_as_f32<1>(g, args.dC, p.at(args.dC_row_stride), args.c_dtype);
  const float gate = (float)args.gate_multiplier, dvalue = g[0] * (float)args.down_multiplier;
  const float slope = Act::template slope<true>(gate * x[0], &value);
  if (args.dA) store_as(args.dA, v, dvalue * y[0] * slope * gate, args.a_dtype);
  if (args.dB) store_as(args.dB, v, dvalue * value, args.b_dtype);
}

/* ---- launching ----------------------------------------------------------------------------------------- */
inline int64_t glu_grid(int64_t n_items, int items_per_thread) {
  const int64_t per_block = (int64_t)GLU_THREADS * items_per_thread;
  return (n_items + per_block - 1) / per_block;
}
inline bool glu_aligned(const void *p, int64_t row_stride, int64_t n_rows, int elem_size) {
  return (uintptr_t)p % 16 == 0 && (n_rows == 1 || row_stride * elem_size % 16 == 0);
}
inline const void *glu_skip(const void *p, int64_t elements, int elem_size) {
  return (const char *)p + elements * elem_size;
}
inline void *glu_skip(void *p, int64_t elements, int elem_size) {
  return p ? (char *)p + elements * elem_size : nullptr;
}

inline bool vectors_of(const liger_glu_fwd_args &a, int size) {
  return glu_aligned(a.A, a.A_row_stride, a.n_rows, size) &&
         glu_aligned(a.B, a.B_row_stride, a.n_rows, size) && glu_aligned(a.C, a.n_cols, a.n_rows, size);
}
inline bool vectors_of(const liger_glu_bwd_args &a, int size) {
  return glu_aligned(a.A, a.A_row_stride, a.n_rows, size) &&
         glu_aligned(a.B, a.B_row_stride, a.n_rows, size) &&
         glu_aligned(a.dC, a.dC_row_stride, a.n_rows, size) && glu_aligned(a.dA, a.n_cols, a.n_rows, size) &&
         glu_aligned(a.dB, a.n_cols, a.n_rows, size);
}
/* moves every pointer `elements` on */
inline void skip(liger_glu_fwd_args &a, int64_t elements, int size) {
  a.A = glu_skip(a.A, elements, size);
  a.B = glu_skip(a.B, elements, size);
  a.C = glu_skip(a.C, elements, size);
}
inline void skip(liger_glu_bwd_args &a, int64_t elements, int size) {
  a.A = glu_skip(a.A, elements, size);
  a.B = glu_skip(a.B, elements, size);
  a.dC = glu_skip(a.dC, elements, size);
  a.dA = glu_skip(a.dA, elements, size);
  a.dB = glu_skip(a.dB, elements, size);
}

template <class Act, typename T, int VEC>
void glu_start(const liger_glu_fwd_args &a, unsigned grid, gpu_stream stream) {
  glu_fwd_kernel<Act, T, VEC><<<grid, GLU_THREADS, 0, stream>>>(a);
}
template <class Act, typename T, int VEC>
void glu_start(const liger_glu_bwd_args &a, unsigned grid, gpu_stream stream) {
  glu_bwd_kernel<Act, T, VEC><<<grid, GLU_THREADS, 0, stream>>>(a);
}
template <class Act> void glu_start_mixed(const liger_glu_fwd_args &a, unsigned grid, gpu_stream stream) {
  glu_fwd_mixed_kernel<Act><<<grid, GLU_THREADS, 0, stream>>>(a);
}
template <class Act> void glu_start_mixed(const liger_glu_bwd_args &a, unsigned grid, gpu_stream stream) {
  glu_bwd_mixed_kernel<Act><<<grid, GLU_THREADS, 0, stream>>>(a);
}

template <class Act, class Args> liger_status launch_glu(const Args *given, void *stream_) {
  const gpu_stream stream = (gpu_stream)stream_;
  Args a = *given;
  const int64_t n = a.n_rows * a.n_cols;
  if (n == 0) return LIGER_OK;
  if (n < 0 || glu_grid(n, 1) > GPU_MAX_GRID) return LIGER_ERR_SIZE;
  if (a.a_dtype != a.b_dtype) {
    if (a.a_dtype == LIGER_F64 || a.b_dtype == LIGER_F64) return LIGER_ERR_DTYPE;
    glu_start_mixed<Act>(a, (unsigned)glu_grid(n, 1), stream);
    return (liger_status)LIGER_RT(GetLastError)();
  }
  LIGER_DISPATCH_DTYPE(a.a_dtype, T, {
    constexpr int VEC = vec_width<T>::value;
    const bool vectors = vectors_of(a, sizeof(T)) && (a.n_rows == 1 || a.n_cols % VEC == 0);
    const int64_t tail = vectors ? a.n_cols % VEC : n; /* of the one row of contiguous tensors */
    if (n > tail || (vectors && tail == 0)) {
      Args whole = a;
      whole.n_cols -= tail;
      glu_start<Act, T, VEC>(whole, (unsigned)glu_grid(n / VEC, GLU_NV), stream);
    }
    if (tail) {
      if (vectors) {
        skip(a, a.n_cols - tail, sizeof(T));
        a.n_cols = tail;
      }
      glu_start<Act, T, 1>(a, (unsigned)glu_grid(tail, GLU_NV), stream);
    }
  });
  return (liger_status)LIGER_RT(GetLastError)();
}
} // namespace
#endif
