/* Passes of a block over one row of any alignment: whole 16-byte vectors, several in flight a thread, between the
 * single elements before the first 16-byte boundary and after the last. All threads of the block call; which
 * thread has which elements is fixed by the sizes, the row's alignment and the block. */
#ifndef LIGER_ROW_PASS_CUH
#define LIGER_ROW_PASS_CUH
#include "primitives.cuh"

namespace {
/* A row as `head` single elements up to the first 16-byte boundary, vectors of N, and `tail` single elements. */
struct row_cut {
  int64_t head, n_vecs, tail;
};
template <typename T, int N> __device__ __forceinline__ row_cut cut_row(const T *p, int64_t n_cols) {
  row_cut r = {0, n_cols, 0};
  if (N > 1) {
    r.head = (int64_t)((16 - (uintptr_t)p % 16) % 16 / sizeof(T));
    r.head = r.head < n_cols ? r.head : n_cols;
    r.n_vecs = (n_cols - r.head) / N;
    r.tail = n_cols - r.head - r.n_vecs * N;
  }
  return r;
}

/* f(x, col, step) of every part of the row, each once: x is an array of U vectors, of one vector, or of one vector
 * of one element, and vector u of it begins at column col + u * step */
template <int U, int N, typename T, class F>
__device__ __forceinline__ void row_read(const T *X, const row_cut &r, F f) {
  const int64_t tid = threadIdx.x, step = blockDim.x, tail_col = r.head + r.n_vecs * N;
  const auto one = [&](int64_t col) {
    const vec<T, 1> x[1] = {load_vec<T, 1>(X + col)};
    f(x, col, 0);
  };
  if (tid < r.head) one(tid);
  int64_t i = tid;
  for (; i + (U - 1) * step < r.n_vecs; i += U * step) {
    vec<T, N> x[U];
#pragma unroll
    for (int u = 0; u < U; u++) x[u] = load_vec<T, N>(X + r.head + (i + u * step) * N);
    f(x, r.head + i * N, step * N);
  }
  for (; i < r.n_vecs; i += step) {
    const vec<T, N> x[1] = {load_vec<T, N>(X + r.head + i * N)};
    f(x, r.head + i * N, 0);
  }
  if (tid < r.tail) one(tail_col + tid);
}

/* Y = f(x, col) of every vector, or vector of one element, of the row; Y may be X. Backwards: what a pass before
 * this one read last is the likeliest to be in cache still. */
template <int U, int N, typename T, class F>
__device__ __forceinline__ void row_map(T *Y, const T *X, const row_cut &r, F f) {
  const int64_t tid = threadIdx.x, step = blockDim.x, tail_col = r.head + r.n_vecs * N;
  const int64_t turns = (r.n_vecs + step - 1) / step;
  for (int64_t turn = turns; turn > 0; turn -= U) {
    vec<T, N> x[U];
    const int64_t first = (turn - U) * step + tid; /* vectors below 0 belong to nobody */
#pragma unroll
    for (int u = 0; u < U; u++) {
      const int64_t v = first + u * step;
      if (v >= 0 && v < r.n_vecs) x[u] = load_vec<T, N>(X + r.head + v * N);
    }
#pragma unroll
    for (int u = 0; u < U; u++) {
      const int64_t v = first + u * step, col = r.head + v * N;
      if (v >= 0 && v < r.n_vecs) store_vec<T, N>(Y + col, f(x[u], col));
    }
  }
  if (tid < r.head) Y[tid] = f(load_vec<T, 1>(X + tid), tid).v[0];
  if (tid < r.tail) Y[tail_col + tid] = f(load_vec<T, 1>(X + tail_col + tid), tail_col + tid).v[0];
}

/* every element of the row = value */
template <typename T, int N> __device__ __forceinline__ void row_fill(T *Y, const row_cut &r, float value) {
  const int64_t tid = threadIdx.x, step = blockDim.x;
  vec<T, N> v;
#pragma unroll
  for (int j = 0; j < N; j++) from_f32(v.v[j], value);
  for (int64_t i = tid; i < r.n_vecs; i += step) store_vec<T, N>(Y + r.head + i * N, v);
  if (tid < r.head) Y[tid] = v.v[0];
  if (tid < r.tail) Y[r.head + r.n_vecs * N + tid] = v.v[0];
}
} // namespace

/* Threads of a block: few enough that most have 4 vectors at once, so that narrow rows leave room for other rows on
 * the multiprocessor. Host. */
static inline int row_threads(int64_t n_cols, int elem_size) {
  const int64_t n_vecs = n_cols * elem_size / 16;
  return n_vecs <= 256 ? 64 : n_vecs < 896 ? 128 : n_vecs < 1792 ? 256 : n_vecs <= 4096 ? 512 : 1024;
}
#endif
