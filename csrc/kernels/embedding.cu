/* embedding   Y_t = W_{ids_t}; dW_v = sum of dY_t over the t with ids_t = v
 * Shapes      W dW (n_embeddings, n_cols), Y dY (n_rows, n_cols), last dim contiguous; ids (n_rows)
 * Rounding    forward copies; dW is added up in fp32, in the order of t, and rounded once
 * Floor       fwd 2*n_rows*n_cols*s bytes; bwd (n_rows + n_embeddings)*n_cols*s
 * Plan        forward: 1 to 256 threads per row, up to 4 vectors of 16 bytes each in flight. Backward over
 *             the sorted ids, in slices that are fixed by their number (csrc/liger_rows.h): a thread owns a
 *             vector of columns and walks its slice, 4 rows in flight; no atomics. dW is cleared first, past
 *             the multiprocessors
 * Source      torch.nn.functional.embedding */
#include "primitives.cuh"

namespace {
constexpr int THREADS = 256;
constexpr int U = 4; /* vectors in flight per thread */

__device__ __forceinline__ bool in_range(int64_t id, int64_t n_embeddings) {
  return (uint64_t)id < (uint64_t)n_embeddings;
}

template <typename T, int N>
__global__ void __launch_bounds__(THREADS)
    embedding_fwd_kernel(T *Y, const T *W, const int64_t *ids, int64_t n_rows, int64_t n_cols,
                         int64_t n_embeddings, int64_t W_row_stride, int threads_per_row) {
  const int64_t row = (int64_t)blockIdx.x * (THREADS / threads_per_row) + threadIdx.x / threads_per_row;
  if (row >= n_rows) return;
  const int64_t id = ids[row], step = (int64_t)threads_per_row * N;
  const bool inside = in_range(id, n_embeddings);
  Y += row * n_cols;
  W += inside ? id * W_row_stride : 0;
  for (int64_t col = threadIdx.x % threads_per_row * N; col < n_cols; col += U * step) {
    vec<T, N> x[U];
#pragma unroll
    for (int u = 0; u < U; u++) {
      if (inside) {
        if (col + u * step < n_cols) x[u] = load_vec<T, N>(W + col + u * step);
      } else {
#pragma unroll
        for (int j = 0; j < N; j++) from_f32(x[u].v[j], NAN);
      }
    }
#pragma unroll
    for (int u = 0; u < U; u++)
      if (col + u * step < n_cols) store_vec<T, N>(Y + col + u * step, x[u]);
  }
}

/* What both stages of backward know: the slice, and the thread's columns. */
struct bwd_place {
  int64_t slice, col;
  __device__ __forceinline__ bwd_place(int64_t n_cols, int vec) {
    const int64_t tile_cols = (int64_t)blockDim.x * vec, tiles = (n_cols + tile_cols - 1) / tile_cols;
    slice = blockIdx.x / tiles;
    col = (blockIdx.x - slice * tiles) * tile_cols + threadIdx.x * vec;
  }
};
/* the first sorted place of a slice */
__device__ __forceinline__ int64_t slice_begin(const liger_embedding_bwd_args &a, int64_t slice) {
  return a.n_rows * slice / a.n_slices;
}
__device__ __forceinline__ bool wanted(const liger_embedding_bwd_args &a, int64_t id) {
  return in_range(id, a.n_embeddings) && id != a.padding_idx;
}
template <int N> __device__ __forceinline__ void put(float *to, const float (&v)[N]) {
  if constexpr (N % 4 == 0) {
#pragma unroll
    for (int j = 0; j < N; j += 4)
      store_vec<float, 4>(to + j, vec<float, 4>{{v[j], v[j + 1], v[j + 2], v[j + 3]}});
  } else {
#pragma unroll
    for (int j = 0; j < N; j++) to[j] = v[j];
  }
}

template <typename T, int N>
__global__ void __launch_bounds__(THREADS) embedding_bwd_kernel(const liger_embedding_bwd_args a) {
  const bwd_place at(a.n_cols, N);
  if (at.col >= a.n_cols) return;
  const int64_t begin = slice_begin(a, at.slice), end = slice_begin(a, at.slice + 1);
  const T *const dY = (const T *)a.dY + at.col;
  float *const before = (float *)a.partial + at.slice * a.n_cols + at.col;
  float acc[N] = {};
  int64_t id = a.sorted_ids[begin];
  bool began_before = begin > 0 && a.sorted_ids[begin - 1] == id;
  const auto finish_run = [&](bool goes_on) {
    if (!wanted(a, id)) return;
    if (began_before) put(before, acc);
    else if (goes_on) put(before + a.n_slices * a.n_cols, acc);
    else store_vec<T, N>((T *)a.dW + id * a.n_cols + at.col, pack<T, N>(acc));
  };
  for (int64_t p = begin; p < end; p += U) {
    vec<T, N> dy[U];
    int64_t ids[U];
#pragma unroll
    for (int u = 0; u < U; u++)
      if (p + u < end) {
        ids[u] = a.sorted_ids[p + u];
        dy[u] = load_vec<T, N>(dY + a.order[p + u] * a.dY_row_stride);
      }
#pragma unroll
    for (int u = 0; u < U; u++) {
      if (p + u >= end) break;
      if (ids[u] != id) {
        finish_run(false);
        began_before = false;
        id = ids[u];
#pragma unroll
        for (int j = 0; j < N; j++) acc[j] = 0.0f;
      }
      float g[N];
      unpack(g, dy[u]);
#pragma unroll
      for (int j = 0; j < N; j++) acc[j] += g[j];
    }
  }
  finish_run(end < a.n_rows && a.sorted_ids[end] == id);
}

/* the runs that begin in a slice and go on after it */
template <typename T, int N>
__global__ void __launch_bounds__(THREADS) embedding_join_kernel(const liger_embedding_bwd_args a) {
  const bwd_place at(a.n_cols, N);
  const int64_t begin = slice_begin(a, at.slice), end = slice_begin(a, at.slice + 1);
  if (at.col >= a.n_cols || end == a.n_rows) return;
  const int64_t id = a.sorted_ids[end - 1];
  if (a.sorted_ids[end] != id || (begin > 0 && a.sorted_ids[begin - 1] == id) || !wanted(a, id)) return;
  int64_t last = at.slice + 1, beyond = a.n_slices; /* the last slice that begins with the id */
  while (beyond - last > 1) {
    const int64_t middle = last + (beyond - last) / 2;
    if (a.sorted_ids[slice_begin(a, middle)] == id) last = middle;
    else beyond = middle;
  }
  const float *part = (const float *)a.partial + at.col;
  float acc[N];
  load_typed<float, N>(acc, part + (a.n_slices + at.slice) * a.n_cols, N % 4 == 0);
#pragma unroll 4
  for (int64_t k = at.slice + 1; k <= last; k++) {
    float v[N];
    load_typed<float, N>(v, part + k * a.n_cols, N % 4 == 0);
#pragma unroll
    for (int j = 0; j < N; j++) acc[j] += v[j];
  }
  store_vec<T, N>((T *)a.dW + id * a.n_cols + at.col, pack<T, N>(acc));
}

/* threads that a row of n_vecs vectors keeps busy: a power of two, `least` to THREADS */
int plan_threads(int64_t n_vecs, int least) {
  int threads = least;
  while (threads < THREADS && threads < n_vecs) threads *= 2;
  return threads;
}
} // namespace

extern "C" liger_status liger_embedding_fwd_cuda(const liger_embedding_fwd_args *a, void *stream_) {
  const gpu_stream stream = (gpu_stream)stream_;
  if (a->n_rows == 0 || a->n_cols == 0) return LIGER_OK;
  LIGER_DISPATCH_DTYPE(a->x_dtype, T, {
    constexpr int VEC = vec_width<T>::value;
    const bool aligned = rows_aligned(a->W, a->W_row_stride, a->n_cols, sizeof(T)) &&
                         rows_aligned(a->Y, a->n_cols, a->n_cols, sizeof(T));
    /* U vectors a thread: with one each, rows of 2048 16-bit numbers wait on ids and rows in turn, 2.7 TB/s */
    const int64_t n_vecs = a->n_cols / (aligned ? VEC : 1);
    const int threads_per_row = plan_threads((n_vecs + U - 1) / U, 1);
    const int64_t per_block = THREADS / threads_per_row, grid = (a->n_rows + per_block - 1) / per_block;
    if (grid > GPU_MAX_GRID) return LIGER_ERR_SIZE;
#define FWD(N)                                                                                              \
  embedding_fwd_kernel<T, N><<<(unsigned)grid, THREADS, 0, stream>>>((T *)a->Y, (const T *)a->W, a->ids,    \
                                                                     a->n_rows, a->n_cols, a->n_embeddings, \
                                                                     a->W_row_stride, threads_per_row)
    if (aligned) FWD(VEC);
    else FWD(1);
  });
  return (liger_status)LIGER_RT(GetLastError)();
}

extern "C" liger_status liger_embedding_bwd_cuda(const liger_embedding_bwd_args *a, void *stream_) {
  const gpu_stream stream = (gpu_stream)stream_;
  if (a->n_embeddings == 0 || a->n_cols == 0) return LIGER_OK;
  LIGER_DISPATCH_DTYPE(a->x_dtype, T, {
    const size_t bytes = (size_t)a->n_embeddings * (size_t)a->n_cols * sizeof(T);
    const int cleared = (int)LIGER_RT(MemsetAsync)(a->dW, 0, bytes, stream);
    if (cleared != 0 || a->n_rows == 0) return (liger_status)cleared;
    constexpr int VEC = vec_width<T>::value;
    const bool aligned = rows_aligned(a->dY, a->dY_row_stride, a->n_cols, sizeof(T)) &&
                         rows_aligned(a->dW, a->n_cols, a->n_cols, sizeof(T));
    const int vec = aligned ? VEC : 1, threads = plan_threads(a->n_cols / vec, GPU_MIN_LANES);
    const int64_t tile_cols = (int64_t)threads * vec, tiles = (a->n_cols + tile_cols - 1) / tile_cols;
    const int64_t grid = a->n_slices * tiles;
    if (grid > GPU_MAX_GRID) return LIGER_ERR_SIZE;
    for (int join = 0; join <= (a->n_slices > 1); join++) {
      if (aligned && !join) embedding_bwd_kernel<T, VEC><<<(unsigned)grid, threads, 0, stream>>>(*a);
      else if (aligned) embedding_join_kernel<T, VEC><<<(unsigned)grid, threads, 0, stream>>>(*a);
      else if (!join) embedding_bwd_kernel<T, 1><<<(unsigned)grid, threads, 0, stream>>>(*a);
      else embedding_join_kernel<T, 1><<<(unsigned)grid, threads, 0, stream>>>(*a);
    }
  });
  return (liger_status)LIGER_RT(GetLastError)();
}
