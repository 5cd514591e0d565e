/* What the losses share: row_sum, out = sum(x) / divisor, and scale_grad, dst = src * scale; see liger.h
 * and loss_common.c.
 *
 * Plan   row_sum: slices of x, one per block, then their sums in order: the same bits every run.
 *        scale_grad: a persistent grid over pieces of rows, so that the launch whose scale is 1 ends in
 *        microseconds. */
#include "primitives.cuh"

namespace {
constexpr int SUM_THREADS = 1024;
constexpr int64_t SUM_SLICE = 16384, SUM_MAX_BLOCKS = 256;
int64_t sum_blocks(int64_t n) {
  const int64_t b = (n + SUM_SLICE - 1) / SUM_SLICE;
  return b < 1 ? 1 : b < SUM_MAX_BLOCKS ? b : SUM_MAX_BLOCKS;
}

/* out[block] = the sum of the block's slice of x, divided if there is a divisor */
__global__ void __launch_bounds__(SUM_THREADS)
    row_sum_kernel(float *out, const float *x, const float *divisor, int64_t n) {
  __shared__ float scratch[BLOCK_SCRATCH];
  const int64_t last = n * (blockIdx.x + 1) / gridDim.x;
  float s = 0.0f;
  for (int64_t i = n * blockIdx.x / gridDim.x + threadIdx.x; i < last; i += blockDim.x) s += x[i];
  s = block_reduce<op_sum>(s, scratch);
  if (threadIdx.x == 0) out[blockIdx.x] = !divisor ? s : *divisor == 0.0f ? 0.0f : s / *divisor;
}

constexpr int SCALE_THREADS = 512;

template <typename T, int N>
__global__ void __launch_bounds__(SCALE_THREADS)
    scale_grad_kernel(T *dst, const T *src, const float *scale, int64_t n_rows, int64_t n_cols,
                      int64_t dst_row_stride, int64_t src_row_stride, int64_t scale_stride) {
  if (scale_stride == 0 && dst == src && *scale == 1.0f) return;
  constexpr int64_t PIECE = (int64_t)SCALE_THREADS * N;
  const int64_t pieces = (n_cols + PIECE - 1) / PIECE;
  for (int64_t item = blockIdx.x; item < n_rows * pieces; item += gridDim.x) {
    const int64_t row = item / pieces, col = (item - row * pieces) * PIECE + (int64_t)threadIdx.x * N;
    const float s = scale[row * scale_stride];
    if (col >= n_cols || (s == 1.0f && dst == src)) continue;
    vec<T, N> x = load_vec<T, N>(src + row * src_row_stride + col);
#pragma unroll
    for (int j = 0; j < N; j++) from_f32(x.v[j], to_f32(x.v[j]) * s);
    store_vec<T, N>(dst + row * dst_row_stride + col, x);
  }
}
} // namespace

extern "C" int64_t liger_row_sum_workspace_cuda(int64_t n) { return sum_blocks(n) * (int64_t)sizeof(float); }

extern "C" liger_status liger_row_sum_cuda(const liger_row_sum_args *a, void *stream_) {
  const gpu_stream stream = (gpu_stream)stream_;
  if (a->dtype != LIGER_F32) return LIGER_ERR_DTYPE;
  const int64_t blocks = sum_blocks(a->n);
  const float *x = (const float *)a->x;
  int64_t n = a->n;
  if (blocks > 1) {
    row_sum_kernel<<<(unsigned)blocks, SUM_THREADS, 0, stream>>>((float *)a->workspace, x, nullptr, n);
    x = (const float *)a->workspace;
    n = blocks;
  }
  row_sum_kernel<<<1, SUM_THREADS, 0, stream>>>((float *)a->out, x, (const float *)a->divisor, n);
  return (liger_status)LIGER_RT(GetLastError)();
}

extern "C" liger_status liger_scale_grad_cuda(const liger_scale_grad_args *a, void *stream_) {
  const gpu_stream stream = (gpu_stream)stream_;
  if (a->n_rows == 0 || a->n_cols == 0) return LIGER_OK;
  if (a->scale_dtype != LIGER_F32) return LIGER_ERR_DTYPE;
  /* one scale for dense rows: one long row, so that narrow rows do not leave threads idle */
  const bool flat = a->scale_stride == 0 && a->dst_row_stride == a->n_cols && a->src_row_stride == a->n_cols;
  const int64_t n_rows = flat ? 1 : a->n_rows, n_cols = flat ? a->n_rows * a->n_cols : a->n_cols;
  LIGER_DISPATCH_DTYPE(a->x_dtype, T, {
    constexpr int N = vec_width<T>::value;
    const bool aligned = rows_aligned(a->src, flat ? n_cols : a->src_row_stride, n_cols, sizeof(T)) &&
                         rows_aligned(a->dst, flat ? n_cols : a->dst_row_stride, n_cols, sizeof(T));
    const int64_t piece = (int64_t)SCALE_THREADS * (aligned ? N : 1), pieces = (n_cols + piece - 1) / piece;
    const int64_t resident = (int64_t)gpu_multiprocessors() * (2048 / SCALE_THREADS);
    const int64_t grid = n_rows * pieces < resident ? n_rows * pieces : resident;
#define SCALE_KERNEL(VEC)                                                                         \
  scale_grad_kernel<T, VEC><<<(unsigned)grid, SCALE_THREADS, 0, stream>>>(                        \
      (T *)a->dst, (const T *)a->src, (const float *)a->scale, n_rows, n_cols, a->dst_row_stride, \
      a->src_row_stride, a->scale_stride)
    if (aligned) SCALE_KERNEL(N);
    else SCALE_KERNEL(1);
  });
  return (liger_status)LIGER_RT(GetLastError)();
}
