/* softmax    Y = e^(X - m) / d, m = max X, d = sum(e^(X - m)); dX = Y (dY - sum(dY Y)) per row
 * Shapes     X Y dX dY (n_rows, n_cols, n_inner); the sums run over n_cols. Rows of n_inner 1 are contiguous
 * Rounding   fp32 to the end, one rounding at the store
 * Floor      fwd 2*N*s bytes; bwd 3*N*s (N = n_rows*n_cols*n_inner)
 * Plan       8 to 1024 threads per row with 2 or 8 vectors each, narrow rows side by side in a block: a row
 *            is read once, and several blocks share a multiprocessor, so that one loads while another
 *            computes or writes. Wider rows stay in the registers of a cluster on Hopper (softmax_sm90.cu),
 *            else they are looped over. n_inner > 1: neighbouring rows on neighbouring threads, and slices of
 *            the columns
 * Source     online maximum and sum: arXiv:1805.02867; the function: torch.softmax */
#include "softmax.cuh"

namespace {
/* ---- rows held on the chip ----------------------------------------------------------------------------- */
/* N 1: rows that are not made of aligned vectors. Registers for two blocks of 512 threads on a
 * multiprocessor. */
template <typename T, int N, int NV>
__global__ void __launch_bounds__(SOFTMAX_MAX_THREADS, 1)
    softmax_fwd_kernel(T *Y, const T *X, int64_t n_rows, int64_t n_cols, int64_t X_row_stride,
                       int threads_per_row) {
  __shared__ softmax_state scratch[BLOCK_SCRATCH];
  const int group = (int)threadIdx.x / threads_per_row, lane = (int)threadIdx.x % threads_per_row;
  const int64_t row = (int64_t)blockIdx.x * (blockDim.x / threads_per_row) + group;
  const bool live = row < n_rows;
  softmax_fwd_part<T, N, NV>(Y + row * n_cols, X + row * X_row_stride, lane, live ? (int)(n_cols / N) : 0,
                             [&](const softmax_state &s) {
                               return threads_per_row <= GPU_LANES ? ce_warp_merge(s, threads_per_row)
                                                                   : ce_block_merge(s, scratch);
                             });
}

template <typename T, int N, int NV>
__global__ void __launch_bounds__(SOFTMAX_MAX_THREADS, 1)
    softmax_bwd_kernel(T *dX, const T *dY, const T *Y, int64_t n_rows, int64_t n_cols, int64_t dY_row_stride,
                       int64_t Y_row_stride, int threads_per_row) {
  extern __shared__ uint4 dynamic_shared[]; /* NV vectors a thread, for N > 1 */
  __shared__ float scratch[BLOCK_SCRATCH];
  const int group = (int)threadIdx.x / threads_per_row, lane = (int)threadIdx.x % threads_per_row;
  const int64_t row = (int64_t)blockIdx.x * (blockDim.x / threads_per_row) + group;
  const bool live = row < n_rows;
  softmax_bwd_part<T, N, NV>(dX + row * n_cols, dY + row * dY_row_stride, Y + row * Y_row_stride, lane,
                             live ? (int)(n_cols / N) : 0,
                             dynamic_shared + softmax_first<NV>((int)threadIdx.x), [&](float v) {
                               return threads_per_row <= GPU_LANES ? warp_reduce<op_sum>(v, threads_per_row)
                                                                   : block_reduce<op_sum>(v, scratch);
                             });
}

/* ---- wider rows: a block loops over one, the second time from cache where it fits ---------------------- */
constexpr int LOOP_THREADS = 1024;

/* This thread's vectors of the row, U of them in flight: load(u, column, inside) fetches one, then
 * use(column, step) takes the U that begin `step` columns apart. */
template <int N, int U, class Load, class Use>
__device__ __forceinline__ void loop_row(int64_t n_cols, Load load, Use use) {
  const int64_t step = (int64_t)blockDim.x * N;
  for (int64_t col = (int64_t)threadIdx.x * N; col < n_cols; col += U * step) {
#pragma unroll
    for (int u = 0; u < U; u++) load(u, col + u * step, col + u * step < n_cols);
    use(col, step);
  }
}

template <typename T, int N>
__global__ void __launch_bounds__(LOOP_THREADS)
    softmax_fwd_loop_kernel(T *Y, const T *X, int64_t n_cols, int64_t X_row_stride) {
  constexpr int U = N > 4 ? 2 : 4;
  __shared__ softmax_state scratch[BLOCK_SCRATCH];
  X += (int64_t)blockIdx.x * X_row_stride;
  Y += (int64_t)blockIdx.x * n_cols;
  softmax_state s = softmax_nothing();
  vec<T, N> x[U];
  const auto load = [&](int u, int64_t col, bool inside) {
    if (inside) x[u] = load_vec<T, N>(X + col);
    else
#pragma unroll
      for (int j = 0; j < N; j++) from_f32(x[u].v[j], -INFINITY);
  };
  loop_row<N, U>(n_cols, load, [&](int64_t, int64_t) {
    float z[U][N];
#pragma unroll
    for (int u = 0; u < U; u++) unpack(z[u], x[u]);
    softmax_push(s, z);
  });
  s = ce_block_merge(s, scratch);
  const float scale = 1.0f / s.d;
  loop_row<N, U>(n_cols, load, [&](int64_t col, int64_t step) {
#pragma unroll
    for (int u = 0; u < U; u++)
      if (col + u * step < n_cols) store_vec<T, N>(Y + col + u * step, softmax_of(x[u], s.m, scale));
  });
}

template <typename T, int N>
__global__ void __launch_bounds__(LOOP_THREADS)
    softmax_bwd_loop_kernel(T *dX, const T *dY, const T *Y, int64_t n_cols, int64_t dY_row_stride,
                            int64_t Y_row_stride) {
  constexpr int U = 2;
  __shared__ float scratch[BLOCK_SCRATCH];
  Y += (int64_t)blockIdx.x * Y_row_stride;
  dY += (int64_t)blockIdx.x * dY_row_stride;
  dX += (int64_t)blockIdx.x * n_cols;
  vec<T, N> y[U], dy[U];
  const auto load = [&](int u, int64_t col, bool inside) {
    if (!inside) return;
    y[u] = load_vec<T, N>(Y + col);
    dy[u] = load_vec<T, N>(dY + col);
  };
  float sum = 0.0f;
  loop_row<N, U>(n_cols, load, [&](int64_t col, int64_t step) {
#pragma unroll
    for (int u = 0; u < U; u++)
      if (col + u * step < n_cols) sum = softmax_dot(sum, dy[u], y[u]);
  });
  sum = block_reduce<op_sum>(sum, scratch);
  loop_row<N, U>(n_cols, load, [&](int64_t col, int64_t step) {
#pragma unroll
    for (int u = 0; u < U; u++)
      if (col + u * step < n_cols) store_vec<T, N>(dX + col + u * step, softmax_dx(dy[u], y[u], sum));
  });
}

/* ---- rows side by side, n_inner apart ------------------------------------------------------------------ */
/* `width` neighbouring rows to a block (a power of two), and blockDim.x / width slices of their columns */
constexpr int INNER_THREADS = 512, INNER_WIDTH = 64;
struct inner_place {
  int64_t row, i;
  int slice, slices, width;
  bool live;
  __device__ __forceinline__ inner_place(int width, int64_t n_inner)
      : slice((int)threadIdx.x / width), slices((int)blockDim.x / width), width(width) {
    const int64_t tiles = (n_inner + width - 1) / width;
    row = blockIdx.x / tiles;
    i = (blockIdx.x - row * tiles) * width + threadIdx.x % width;
    live = i < n_inner;
  }
  /* the value of all slices of a row, added up as a tree; all threads call and hold it */
  template <class V, class Add> __device__ __forceinline__ V over_slices(V v, V *scratch, Add add) const {
    scratch[threadIdx.x] = v;
    for (int half = slices / 2; half > 0; half /= 2) {
      __syncthreads();
      if (slice < half) scratch[threadIdx.x] = add(scratch[threadIdx.x], scratch[threadIdx.x + half * width]);
    }
    __syncthreads();
    return scratch[threadIdx.x % width];
  }
};

template <typename T>
__global__ void __launch_bounds__(INNER_THREADS)
    softmax_fwd_inner_kernel(T *Y, const T *X, int64_t n_cols, int64_t n_inner, int64_t X_row_stride,
                             int width) {
  constexpr int U = 4;
  __shared__ softmax_state scratch[INNER_THREADS];
  const inner_place at(width, n_inner);
  X += at.row * X_row_stride + at.i;
  Y += at.row * n_cols * n_inner + at.i;
  softmax_state s = softmax_nothing();
  if (at.live)
    for (int64_t c = at.slice; c < n_cols; c += U * at.slices) {
      float z[U][1];
#pragma unroll
      for (int u = 0; u < U; u++)
        z[u][0] = c + u * at.slices < n_cols ? to_f32(X[(c + u * at.slices) * n_inner]) : -INFINITY;
      softmax_push(s, z);
    }
  s = at.over_slices(s, scratch,
                     [](const softmax_state &a, const softmax_state &b) { return ce_merge(a, b); });
  const float scale = 1.0f / s.d;
  if (at.live)
    for (int64_t c = at.slice; c < n_cols; c += at.slices)
      from_f32(Y[c * n_inner], softmax_exp(to_f32(X[c * n_inner]), s.m) * scale);
}

template <typename T>
__global__ void __launch_bounds__(INNER_THREADS)
    softmax_bwd_inner_kernel(T *dX, const T *dY, const T *Y, int64_t n_cols, int64_t n_inner,
                             int64_t dY_row_stride, int64_t Y_row_stride, int width) {
  __shared__ float scratch[INNER_THREADS];
  const inner_place at(width, n_inner);
  Y += at.row * Y_row_stride + at.i;
  dY += at.row * dY_row_stride + at.i;
  dX += at.row * n_cols * n_inner + at.i;
  float s = 0.0f;
  if (at.live)
    for (int64_t c = at.slice; c < n_cols; c += at.slices)
      s = fmaf(to_f32(dY[c * n_inner]), to_f32(Y[c * n_inner]), s);
  s = at.over_slices(s, scratch, [](float a, float b) { return a + b; });
  if (at.live)
    for (int64_t c = at.slice; c < n_cols; c += at.slices)
      from_f32(dX[c * n_inner], to_f32(Y[c * n_inner]) * (to_f32(dY[c * n_inner]) - s));
}

/* ---- launch plans: pure functions of the sizes --------------------------------------------------------- */
struct row_plan {
  int threads_per_row, threads, vectors; /* vectors 0: loop over the row */
};
row_plan plan_rows(int64_t n_vecs, bool aligned) {
  constexpr int NARROW = 64; /* vectors: up to here, 2 a thread keep the lanes of a warp busy */
  const int vectors = aligned && n_vecs <= NARROW ? 2 : SOFTMAX_NV;
  if (n_vecs > (int64_t)SOFTMAX_MAX_THREADS * SOFTMAX_NV) return {LOOP_THREADS, LOOP_THREADS, 0};
  const int threads_per_row = softmax_threads(n_vecs, vectors, vectors == 2 ? 8 : 16);
  /* narrow rows share a block of 128 threads; a wider one has a block, which then has one row alone */
  return {threads_per_row, threads_per_row <= GPU_MIN_LANES ? 128 : threads_per_row, vectors};
}
/* width 64 makes accesses of 128 bytes of 16-bit elements; about 8 columns a thread before there are more
 * slices */
void plan_inner(int64_t n_cols, int64_t n_inner, int *width, int *threads) {
  *width = 2;
  while (*width < INNER_WIDTH && *width < n_inner) *width *= 2;
  int slices = 1;
  while (slices * *width < INNER_THREADS && (slices * *width < GPU_MIN_LANES || slices * 8 < n_cols))
    slices *= 2;
  *threads = slices * *width;
}
} // namespace

extern "C" liger_status liger_softmax_fwd_cuda(const liger_softmax_fwd_args *a, void *stream_) {
  const gpu_stream stream = (gpu_stream)stream_;
  if (a->n_rows == 0 || a->n_cols == 0 || a->n_inner == 0) return LIGER_OK;
  liger_status status = LIGER_OK;
  if (a->n_inner == 1 && liger_internal_softmax_fwd_cluster(a, stream, &status)) return status;
  LIGER_DISPATCH_DTYPE(a->x_dtype, T, {
    T *const Y = (T *)a->Y;
    const T *const X = (const T *)a->X;
    if (a->n_inner > 1) {
      int width, threads;
      plan_inner(a->n_cols, a->n_inner, &width, &threads);
      const int64_t grid = a->n_rows * ((a->n_inner + width - 1) / width);
      if (grid > GPU_MAX_GRID) return LIGER_ERR_SIZE;
      softmax_fwd_inner_kernel<T>
          <<<(unsigned)grid, threads, 0, stream>>>(Y, X, a->n_cols, a->n_inner, a->X_row_stride, width);
      return (liger_status)LIGER_RT(GetLastError)();
    }
    constexpr int VEC = vec_width<T>::value;
    const bool aligned = rows_aligned(X, a->X_row_stride, a->n_cols, sizeof(T)) &&
                         rows_aligned(Y, a->n_cols, a->n_cols, sizeof(T));
    const row_plan p = plan_rows(a->n_cols / (aligned ? VEC : 1), aligned);
    const int64_t per_block = p.threads / p.threads_per_row, grid = (a->n_rows + per_block - 1) / per_block;
    if (grid > GPU_MAX_GRID) return LIGER_ERR_SIZE;
#define FWD(N, NV)                                                                                   \
  softmax_fwd_kernel<T, N, NV><<<(unsigned)grid, p.threads, 0, stream>>>(Y, X, a->n_rows, a->n_cols, \
                                                                         a->X_row_stride, p.threads_per_row)
#define FWD_LOOP(N) \
  softmax_fwd_loop_kernel<T, N><<<(unsigned)grid, p.threads, 0, stream>>>(Y, X, a->n_cols, a->X_row_stride)
    if (p.vectors == 0 && aligned) FWD_LOOP(VEC);
    else if (p.vectors == 0) FWD_LOOP(1);
    else if (p.vectors == 2) FWD(VEC, 2);
    else if (aligned) FWD(VEC, SOFTMAX_NV);
    else FWD(1, SOFTMAX_NV);
  });
  return (liger_status)LIGER_RT(GetLastError)();
}

extern "C" liger_status liger_softmax_bwd_cuda(const liger_softmax_bwd_args *a, void *stream_) {
  const gpu_stream stream = (gpu_stream)stream_;
  if (a->n_rows == 0 || a->n_cols == 0 || a->n_inner == 0) return LIGER_OK;
  liger_status status = LIGER_OK;
  if (a->n_inner == 1 && liger_internal_softmax_bwd_cluster(a, stream, &status)) return status;
  LIGER_DISPATCH_DTYPE(a->x_dtype, T, {
    T *const dX = (T *)a->dX;
    const T *const dY = (const T *)a->dY, *const Y = (const T *)a->Y;
    if (a->n_inner > 1) {
      int width, threads;
      plan_inner(a->n_cols, a->n_inner, &width, &threads);
      const int64_t grid = a->n_rows * ((a->n_inner + width - 1) / width);
      if (grid > GPU_MAX_GRID) return LIGER_ERR_SIZE;
      softmax_bwd_inner_kernel<T><<<(unsigned)grid, threads, 0, stream>>>(
          dX, dY, Y, a->n_cols, a->n_inner, a->dY_row_stride, a->Y_row_stride, width);
      return (liger_status)LIGER_RT(GetLastError)();
    }
    constexpr int VEC = vec_width<T>::value;
    const bool aligned = rows_aligned(Y, a->Y_row_stride, a->n_cols, sizeof(T)) &&
                         rows_aligned(dY, a->dY_row_stride, a->n_cols, sizeof(T)) &&
                         rows_aligned(dX, a->n_cols, a->n_cols, sizeof(T));
    row_plan p = plan_rows(a->n_cols / (aligned ? VEC : 1), aligned);
    const size_t shared = aligned ? (size_t)p.vectors * 16 * p.threads : 0;
    if (p.vectors == SOFTMAX_NV && aligned &&
        !gpu_allow_shared(softmax_bwd_kernel<T, VEC, SOFTMAX_NV>, shared))
      p = {LOOP_THREADS, LOOP_THREADS, 0};
    const int64_t per_block = p.threads / p.threads_per_row, grid = (a->n_rows + per_block - 1) / per_block;
    if (grid > GPU_MAX_GRID) return LIGER_ERR_SIZE;
#define BWD(N, NV)                                                             \
  softmax_bwd_kernel<T, N, NV><<<(unsigned)grid, p.threads, shared, stream>>>( \
      dX, dY, Y, a->n_rows, a->n_cols, a->dY_row_stride, a->Y_row_stride, p.threads_per_row)
#define BWD_LOOP(N)             \
  softmax_bwd_loop_kernel<T, N> \
      <<<(unsigned)grid, p.threads, 0, stream>>>(dX, dY, Y, a->n_cols, a->dY_row_stride, a->Y_row_stride)
    if (p.vectors == 0 && aligned) BWD_LOOP(VEC);
    else if (p.vectors == 0) BWD_LOOP(1);
    else if (p.vectors == 2) BWD(VEC, 2);
    else if (aligned) BWD(VEC, SOFTMAX_NV);
    else BWD(1, SOFTMAX_NV);
  });
  return (liger_status)LIGER_RT(GetLastError)();
}
