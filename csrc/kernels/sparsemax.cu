/* sparsemax   Y = max(X - tau, 0) with tau such that sum(Y) = 1
 *             dX = dY - mean of dY over Y > 0, where Y > 0, else 0
 * Shapes      X Y dX dY (n_rows, n_cols), last dim contiguous
 * Rounding    fp32 to the end, relative to the row's maximum; one rounding at the store
 * Floor       fwd 2*N*s bytes; bwd 3*N*s (N = n_rows*n_cols)
 * Plan        Newton's steps as in sparsemax.c, a block per row: up to 8 vectors of 16 bytes a thread stay in
 *             registers between the steps; wider rows are read again from cache in each
 * Source      arXiv:1602.02068 */
#include "softmax.cuh"

namespace {
constexpr int NV = SOFTMAX_NV, CHUNK = softmax_chunk<NV>::value, LOOP_THREADS = 1024;

/* What a step adds up over the row; merged by cross_entropy.cuh's trees. bad: 1 once a NaN was met. */
struct above {
  float top, sum, bad;
  int64_t n;
};
__device__ __forceinline__ above ce_merge(const above &a, const above &b) {
  return {fmaxf(a.top, b.top), __fadd_rn(a.sum, b.sum), fmaxf(a.bad, b.bad), a.n + b.n};
}
__device__ __forceinline__ above ce_shuffle(const above &s, int mask) {
  return {gpu_shfl_xor(s.top, mask), gpu_shfl_xor(s.sum, mask), gpu_shfl_xor(s.bad, mask),
          gpu_shfl_xor(s.n, mask)};
}

/* Steps to the row's tau. each(use): use(value) for each of this thread's elements; scratch: two arrays of
 * states. Every thread of the block gets the same statistics, so all leave together. */
template <class Each>
__device__ __forceinline__ void find_tau(float &m, float &tau, above (*scratch)[BLOCK_SCRATCH], Each each) {
  above s = {-INFINITY, 0.0f, 0.0f, 0};
  each([&](float x) { s.top = fmaxf(s.top, x); });
  m = ce_block_merge(s, scratch[0]).top;
  tau = -1.0f;
  int64_t before = INT64_MAX;
  for (int parity = 1;; parity ^= 1) {
    s = {0.0f, 0.0f, 0.0f, 0};
    each([&](float x) {
      const float z = x - m;
      if (z > tau) {
        s.sum += z;
        s.n++;
      }
      if (z != z) s.bad = 1.0f;
    });
    s = ce_block_merge(s, scratch[parity]);
    if (s.bad != 0.0f) tau = NAN;
    if (s.bad != 0.0f || s.n >= before) return;
    before = s.n;
    tau = (s.sum - 1.0f) / (float)s.n;
  }
}
__device__ __forceinline__ float sparsemax_of(float x, float m, float tau) {
  const float y = x - m - tau;
  return y <= 0.0f ? 0.0f : y; /* a NaN stays */
}

template <typename T, int N>
__global__ void __launch_bounds__(SOFTMAX_MAX_THREADS, 1)
    sparsemax_fwd_kernel(T *Y, const T *X, int64_t n_cols, int64_t X_row_stride) {
  __shared__ above scratch[2][BLOCK_SCRATCH];
  const int first = softmax_first<NV>((int)threadIdx.x), left = (int)(n_cols / N) - first;
  X += (int64_t)blockIdx.x * X_row_stride + (int64_t)first * N;
  Y += (int64_t)blockIdx.x * n_cols + (int64_t)first * N;
  vec<T, N> x[NV];
#pragma unroll
  for (int i = 0; i < NV; i++)
    if (i * CHUNK < left) x[i] = load_vec<T, N>(X + i * CHUNK * N);
  float m, tau;
  find_tau(m, tau, scratch, [&](auto use) {
#pragma unroll
    for (int i = 0; i < NV; i++) {
      softmax_keep_packed(x[i]);
      if (i * CHUNK >= left) continue;
      float v[N];
      unpack(v, x[i]);
#pragma unroll
      for (int j = 0; j < N; j++) use(v[j]);
    }
  });
#pragma unroll
  for (int i = 0; i < NV; i++) {
    if (i * CHUNK >= left) continue;
    float v[N];
    unpack(v, x[i]);
#pragma unroll
    for (int j = 0; j < N; j++) v[j] = sparsemax_of(v[j], m, tau);
    store_vec<T, N>(Y + i * CHUNK * N, pack<T, N>(v));
  }
}

template <typename T, int N>
__global__ void __launch_bounds__(LOOP_THREADS)
    sparsemax_fwd_loop_kernel(T *Y, const T *X, int64_t n_cols, int64_t X_row_stride) {
  __shared__ above scratch[2][BLOCK_SCRATCH];
  const int64_t first = (int64_t)threadIdx.x * N, step = (int64_t)blockDim.x * N;
  X += (int64_t)blockIdx.x * X_row_stride;
  Y += (int64_t)blockIdx.x * n_cols;
  float m, tau;
  find_tau(m, tau, scratch, [&](auto use) {
#pragma unroll 4
    for (int64_t col = first; col < n_cols; col += step) {
      float v[N];
      unpack(v, load_vec<T, N>(X + col));
#pragma unroll
      for (int j = 0; j < N; j++) use(v[j]);
    }
  });
  for (int64_t col = first; col < n_cols; col += step) {
    float v[N];
    unpack(v, load_vec<T, N>(X + col));
#pragma unroll
    for (int j = 0; j < N; j++) v[j] = sparsemax_of(v[j], m, tau);
    store_vec<T, N>(Y + col, pack<T, N>(v));
  }
}

/* a block per row, which is read twice: the second time from cache */
template <typename T, int N>
__global__ void __launch_bounds__(LOOP_THREADS)
    sparsemax_bwd_kernel(T *dX, const T *dY, const T *Y, int64_t n_cols, int64_t dY_row_stride,
                         int64_t Y_row_stride) {
  __shared__ above scratch[BLOCK_SCRATCH];
  const int64_t first = (int64_t)threadIdx.x * N, step = (int64_t)blockDim.x * N;
  Y += (int64_t)blockIdx.x * Y_row_stride;
  dY += (int64_t)blockIdx.x * dY_row_stride;
  dX += (int64_t)blockIdx.x * n_cols;
  above s = {0.0f, 0.0f, 0.0f, 0};
#pragma unroll 4
  for (int64_t col = first; col < n_cols; col += step) {
    float y[N], g[N];
    unpack(y, load_vec<T, N>(Y + col));
    unpack(g, load_vec<T, N>(dY + col));
#pragma unroll
    for (int j = 0; j < N; j++)
      if (y[j] > 0.0f) {
        s.sum += g[j];
        s.n++;
      }
  }
  s = ce_block_merge(s, scratch);
  const float mean = s.n > 0 ? s.sum / (float)s.n : 0.0f;
#pragma unroll 2
  for (int64_t col = first; col < n_cols; col += step) {
    float y[N], g[N];
    unpack(y, load_vec<T, N>(Y + col));
    unpack(g, load_vec<T, N>(dY + col));
#pragma unroll
    for (int j = 0; j < N; j++) g[j] = y[j] > 0.0f ? g[j] - mean : y[j]; /* 0, or NaN */
    store_vec<T, N>(dX + col, pack<T, N>(g));
  }
}
} // namespace

extern "C" liger_status liger_sparsemax_fwd_cuda(const liger_softmax_fwd_args *a, void *stream_) {
  const gpu_stream stream = (gpu_stream)stream_;
  if (a->n_rows == 0 || a->n_cols == 0) return LIGER_OK;
  if (a->n_inner != 1) return LIGER_ERR_OPTION;
  if (a->n_rows > GPU_MAX_GRID) return LIGER_ERR_SIZE;
  LIGER_DISPATCH_DTYPE(a->x_dtype, T, {
    constexpr int VEC = vec_width<T>::value;
    T *const Y = (T *)a->Y;
    const T *const X = (const T *)a->X;
    const bool aligned = rows_aligned(X, a->X_row_stride, a->n_cols, sizeof(T)) &&
                         rows_aligned(Y, a->n_cols, a->n_cols, sizeof(T));
    const int64_t n_vecs = a->n_cols / (aligned ? VEC : 1);
    const bool held = n_vecs <= (int64_t)SOFTMAX_MAX_THREADS * NV;
    const int threads = held ? softmax_threads(n_vecs, NV, 64) : LOOP_THREADS;
#define FWD(kernel, N) \
  kernel<T, N><<<(unsigned)a->n_rows, threads, 0, stream>>>(Y, X, a->n_cols, a->X_row_stride)
    if (held && aligned) FWD(sparsemax_fwd_kernel, VEC);
    else if (held) FWD(sparsemax_fwd_kernel, 1);
    else if (aligned) FWD(sparsemax_fwd_loop_kernel, VEC);
    else FWD(sparsemax_fwd_loop_kernel, 1);
  });
  return (liger_status)LIGER_RT(GetLastError)();
}

extern "C" liger_status liger_sparsemax_bwd_cuda(const liger_softmax_bwd_args *a, void *stream_) {
  const gpu_stream stream = (gpu_stream)stream_;
  if (a->n_rows == 0 || a->n_cols == 0) return LIGER_OK;
  if (a->n_inner != 1) return LIGER_ERR_OPTION;
  if (a->n_rows > GPU_MAX_GRID) return LIGER_ERR_SIZE;
  LIGER_DISPATCH_DTYPE(a->x_dtype, T, {
    constexpr int VEC = vec_width<T>::value;
    const T *const dY = (const T *)a->dY, *const Y = (const T *)a->Y;
    const bool aligned = rows_aligned(Y, a->Y_row_stride, a->n_cols, sizeof(T)) &&
                         rows_aligned(dY, a->dY_row_stride, a->n_cols, sizeof(T)) &&
                         rows_aligned(a->dX, a->n_cols, a->n_cols, sizeof(T));
    const int64_t n_vecs = a->n_cols / (aligned ? VEC : 1);
    const int threads = n_vecs < 4 * LOOP_THREADS ? softmax_threads(n_vecs, 4, 64) : LOOP_THREADS;
#define BWD(N)                                                                                          \
  sparsemax_bwd_kernel<T, N><<<(unsigned)a->n_rows, threads, 0, stream>>>((T *)a->dX, dY, Y, a->n_cols, \
                                                                          a->dY_row_stride, a->Y_row_stride)
    if (aligned) BWD(VEC);
    else BWD(1);
  });
  return (liger_status)LIGER_RT(GetLastError)();
}
