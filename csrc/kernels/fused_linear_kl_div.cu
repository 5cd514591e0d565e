/* fused_linear_kl_div   the rows of it, see fused_linear_kl_div.c; walks in distill.cuh
 * Rounding   fp32 to the end, dX rounded once
 * Floor      logits read once, dX written, the target read once
 * Plan       two passes: the softmax statistics and the target's sum; loss and dX */
#include "distill.cuh"

namespace {
/* dX may lie over X: a thread writes the elements that it has just read */
template <typename T, int N>
__global__ void __launch_bounds__(DISTILL_THREADS, 1) fused_linear_kl_div_kernel(const divergence_params p) {
  __shared__ row_softmax merge_scratch[BLOCK_SCRATCH];
  __shared__ float sum_scratch[2][BLOCK_SCRATCH];
  const int64_t row = blockIdx.x;
  const T *const X = (const T *)p.X + row * p.X_row_stride;
  T *const dX = p.dX ? (T *)p.dX + row * p.dX_row_stride : nullptr;
  const row_cut cut = cut_row<T, N>(X, p.n_cols);
  if (ignored_row(p, row)) { /* the whole block leaves here */
    if (p.loss && threadIdx.x == 0) p.loss[row] = 0.0f;
    if (dX) row_fill<T, N>(dX, cut, 0.0f);
    return;
  }
  const int64_t y_first = row * p.Y_row_stride, y_size = p.y_dtype == LIGER_F32 ? 4 : 2;
  const uintptr_t y_vectors = (uintptr_t)p.Y + (uintptr_t)((y_first + cut.head) * y_size);
  const any_row Y = {p.Y, y_first, p.y_dtype, y_vectors % 16 == 0 && N * y_size % 16 == 0};
  const float of_loss = loss_scale(p), of_grad = grad_scale(p) / p.temperature;

  row_softmax s = softmax_nothing();
  float total = 0.0f, loss = 0.0f;
  walk_pair<T, N>(X, Y, cut, false, [&](auto &x, auto &y, int64_t) {
    divide(x, p.temperature);
    softmax_push(s, x);
#pragma unroll
    for (int j = 0; j < (int)(sizeof(y) / sizeof(float)); j++) total += y[j];
  });
  s = softmax_block_merge(s, merge_scratch);
  total = block_reduce<op_sum>(total, sum_scratch[0]);
  const float log_d = softmax_log_d(s);
  walk_pair<T, N>(X, Y, cut, true, [&](auto &x, auto &y, int64_t col) {
    divide(x, p.temperature);
#pragma unroll
    for (int j = 0; j < (int)(sizeof(x) / sizeof(float)); j++) {
      const float log_q = (x[j] - s.m) - log_d;
      loss += times(y[j], log_of(fmaxf(y[j], p.parameter)) - log_q);
      x[j] = of_grad * (expf(log_q) * total - y[j]);
    }
    if (dX) store_gradient<T>(dX, col, x);
  });
  loss = block_reduce<op_sum>(loss, sum_scratch[1]);
  if (p.loss && threadIdx.x == 0) p.loss[row] = of_loss == 0.0f ? 0.0f : of_loss * loss;
}
} // namespace

extern "C" liger_status liger_fused_linear_kl_div_cuda(const liger_divergence_args *a, void *stream_) {
  const gpu_stream stream = (gpu_stream)stream_;
  if (a->n_rows == 0) return LIGER_OK;
  if (a->n_rows > GPU_MAX_GRID) return LIGER_ERR_SIZE;
  if (a->y_dtype == LIGER_F64) return LIGER_ERR_DTYPE;
  const divergence_params p = divergence_params_of(a);
  LIGER_DISPATCH_DTYPE(a->x_dtype, T, {
    constexpr int N = vec_width<T>::value;
    const bool alike = !a->dX ||
                       divergence_cut_alike(a->X, a->X_row_stride, a->dX, a->dX_row_stride, sizeof(T));
    const int threads = divergence_threads(a->n_cols, sizeof(T), DISTILL_THREADS);
    if (alike) fused_linear_kl_div_kernel<T, N><<<(unsigned)a->n_rows, threads, 0, stream>>>(p);
    else fused_linear_kl_div_kernel<T, 1><<<(unsigned)a->n_rows, threads, 0, stream>>>(p);
  });
  return (liger_status)LIGER_RT(GetLastError)();
}
