/* Every elementwise operator on a GPU: one kernel from IN tensors to OUT tensors of one shape.
 *
 * An op brings a struct F, passed to the kernel by value (its members are the op's options), with
 *   static constexpr int IN, OUT;
 *   template <bool EXACT> __device__ void apply(const float (&x)[IN], float (&y)[OUT]) const;
 * EXACT: some result is stored as fp32; otherwise all are rounded to 16 bits and the fast exponential and
 * division do.
 * Plan       one vector of 16 bytes of each input a thread: 2048 threads of a multiprocessor keep the memory busy,
 *            and two vectors are 1.5 % slower (H200, swiglu); contiguous tensors are one row. What is not made of
 *            aligned vectors goes element by element, and so do tensors of different dtypes. Bits don't depend on
 *            which way an element goes */
#ifndef LIGER_ELEMENTWISE_CUH
#define LIGER_ELEMENTWISE_CUH
#include "primitives.cuh"

namespace {

constexpr int ELEMENTWISE_THREADS = 256;

/* Rows of n_cols columns. A row stride has no meaning where there is one row. */
template <int IN, int OUT> struct elementwise_args {
  const void *in[IN];
  void *out[OUT]; /* nullptr: not wanted */
  int64_t in_stride[IN], out_stride[OUT];
  liger_dtype in_dtype[IN], out_dtype[OUT];
  int64_t n_rows, n_cols;
};

/* Where element v * vec is in a tensor of rows. 32-bit division where the numbers fit. */
static __device__ __forceinline__ void element_place(int64_t v, int64_t n_rows, int64_t vecs_per_row, int vec,
                                                     int64_t *row, int64_t *col) {
  if (n_rows == 1) *row = 0;
  else if (((v | vecs_per_row) >> 32) == 0) *row = (int64_t)((uint32_t)v / (uint32_t)vecs_per_row);
  else *row = v / vecs_per_row;
  *col = (v - *row * vecs_per_row) * vec;
}

/* ---- one dtype: VEC elements at a time ----------------------------------------------------------------- */
template <class F, typename T>
__global__ void __launch_bounds__(ELEMENTWISE_THREADS)
    elementwise_kernel(const elementwise_args<F::IN, F::OUT> args, const F f) {
  constexpr int VEC = vec_width<T>::value;
  const int64_t vecs_per_row = args.n_cols / VEC, n_vecs = args.n_rows * vecs_per_row;
  const int64_t v = (int64_t)blockIdx.x * ELEMENTWISE_THREADS + threadIdx.x;
  if (v >= n_vecs) return;
  int64_t row, col;
  element_place(v, args.n_rows, vecs_per_row, VEC, &row, &col);
  vec<T, VEC> x[F::IN];
#pragma unroll
  for (int k = 0; k < F::IN; k++)
    x[k] = load_vec<T, VEC>((const T *)args.in[k] + (row * args.in_stride[k] + col));
  float in[F::IN][VEC], out[F::OUT][VEC];
#pragma unroll
  for (int k = 0; k < F::IN; k++) unpack(in[k], x[k]);
#pragma unroll
  for (int j = 0; j < VEC; j++) {
    float a[F::IN], y[F::OUT];
#pragma unroll
    for (int k = 0; k < F::IN; k++) a[k] = in[k][j];
    f.template apply<sizeof(T) == 4>(a, y);
#pragma unroll
    for (int k = 0; k < F::OUT; k++) out[k][j] = y[k];
  }
#pragma unroll
  for (int k = 0; k < F::OUT; k++)
    if (args.out[k])
      store_vec<T, VEC>((T *)args.out[k] + (row * args.out_stride[k] + col), pack<T, VEC>(out[k]));
}

/* ---- any dtypes, known at run time: one element a thread ----------------------------------------------- */
template <class F>
__global__ void __launch_bounds__(ELEMENTWISE_THREADS)
    elementwise_single_kernel(const elementwise_args<F::IN, F::OUT> args, const F f, bool exact) {
  const int64_t v = (int64_t)blockIdx.x * ELEMENTWISE_THREADS + threadIdx.x;
  if (v >= args.n_rows * args.n_cols) return;
  int64_t row, col;
  element_place(v, args.n_rows, args.n_cols, 1, &row, &col);
  float x[F::IN], y[F::OUT];
#pragma unroll
  for (int k = 0; k < F::IN; k++) {
    float one[1];
    load_as_f32<1>(one, args.in[k], row * args.in_stride[k] + col, args.in_dtype[k]);
    x[k] = one[0];
  }
  if (exact) f.template apply<true>(x, y);
  else f.template apply<false>(x, y);
#pragma unroll
  for (int k = 0; k < F::OUT; k++)
    if (args.out[k]) store_as(args.out[k], row * args.out_stride[k] + col, y[k], args.out_dtype[k]);
}

/* ---- launching ----------------------------------------------------------------------------------------- */
inline int64_t elementwise_grid(int64_t n_items) { /* one a thread */
  return (n_items + ELEMENTWISE_THREADS - 1) / ELEMENTWISE_THREADS;
}
inline bool elements_aligned(const void *p, int64_t row_stride, int64_t n_rows, int elem_size) {
  return (uintptr_t)p % 16 == 0 && (n_rows == 1 || row_stride * elem_size % 16 == 0);
}
inline int elem_size(liger_dtype t) { return t == LIGER_F32 ? 4 : 2; }

template <class F>
liger_status launch_elementwise(elementwise_args<F::IN, F::OUT> a, const F &f, void *stream_) {
  const gpu_stream stream = (gpu_stream)stream_;
  const int64_t n = a.n_rows * a.n_cols;
  if (n == 0) return LIGER_OK;
  if (n < 0 || elementwise_grid(n) > GPU_MAX_GRID) return LIGER_ERR_SIZE;
  const liger_dtype t = a.in_dtype[0];
  const int size = elem_size(t), per_vec = 16 / size;
  bool vectors = a.n_rows == 1 || a.n_cols % per_vec == 0, same = true;
  for (int k = 0; k < F::IN; k++) {
    if (a.in_dtype[k] == LIGER_F64) return LIGER_ERR_DTYPE;
    same = same && a.in_dtype[k] == t;
    vectors = vectors && elements_aligned(a.in[k], a.in_stride[k], a.n_rows, size);
  }
  for (int k = 0; k < F::OUT; k++) {
    if (a.out_dtype[k] == LIGER_F64) return LIGER_ERR_DTYPE;
    same = same && a.out_dtype[k] == t;
    vectors = vectors && elements_aligned(a.out[k], a.out_stride[k], a.n_rows, size);
  }
  vectors = vectors && same;
  const int64_t tail = vectors ? a.n_cols % per_vec : a.n_cols; /* of vectors: of the one row */
  if (a.n_cols > tail) {
    elementwise_args<F::IN, F::OUT> whole = a;
    whole.n_cols -= tail;
    const int64_t grid = elementwise_grid(whole.n_rows * whole.n_cols / per_vec);
    LIGER_DISPATCH_DTYPE(
        t, T, { elementwise_kernel<F, T><<<(unsigned)grid, ELEMENTWISE_THREADS, 0, stream>>>(whole, f); });
    for (int k = 0; k < F::IN; k++) a.in[k] = (const char *)a.in[k] + whole.n_cols * size;
    for (int k = 0; k < F::OUT; k++)
      if (a.out[k]) a.out[k] = (char *)a.out[k] + whole.n_cols * size;
    a.n_cols = tail;
  }
  if (tail) {
    const int64_t grid = elementwise_grid(a.n_rows * tail);
    elementwise_single_kernel<F>
        <<<(unsigned)grid, ELEMENTWISE_THREADS, 0, stream>>>(a, f, !same || t == LIGER_F32);
  }
  return (liger_status)LIGER_RT(GetLastError)();
}
} // namespace
#endif
