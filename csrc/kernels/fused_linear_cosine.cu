/* fused_linear_cosine   the rows of it, see fused_linear_cosine.c; walks in distill.cuh
 * Rounding   fp32 to the end, dX rounded once
 * Floor      3*N*s bytes: both blocks of logits read once, dX written    (N = n_rows*n_cols)
 * Plan       two passes: the rows' products with themselves and each other; dX, from the row's end back */
#include "distill_hard.cuh"

namespace {
constexpr float COSINE_EPS = 1e-8f;

/* dX may lie over X: a thread writes the elements that it has just read */
template <class Hard, typename T, int N>
__global__ void __launch_bounds__(DISTILL_THREADS, 1)
    fused_linear_cosine_kernel(const divergence_params p, const typename Hard::params h) {
  __shared__ float scratch[3][BLOCK_SCRATCH];
  const int64_t row = blockIdx.x;
  const T *const X = (const T *)p.X + row * p.X_row_stride, *const Y = (const T *)p.Y + row * p.Y_row_stride;
  T *const dX = p.dX ? (T *)p.dX + row * p.dX_row_stride : nullptr;
  const row_cut cut = cut_row<T, N>(X, p.n_cols);
  Hard hard(h);
  if (nothing_of_row<T, N>(p, hard, row, X, dX, cut)) return; /* the whole block */
  const float of_loss = loss_scale(p), of_soft = grad_scale(p) * hard.soft_weight();
  float xx = 0.0f, yy = 0.0f, xy = 0.0f;
  walk_pair<T, N>(X, typed_row<T>{Y}, cut, false, [&](auto &x, auto &y, int64_t col) {
    hard.push(x, col);
#pragma unroll
    for (int j = 0; j < (int)(sizeof(x) / sizeof(float)); j++) {
      xx = fmaf(x[j], x[j], xx);
      yy = fmaf(y[j], y[j], yy);
      xy = fmaf(x[j], y[j], xy);
    }
  });
  hard.finish(row, softmax_nothing());
  const float length = sqrtf(block_reduce<op_sum>(xx, scratch[0]));
  const float y_length = sqrtf(block_reduce<op_sum>(yy, scratch[1]));
  xy = block_reduce<op_sum>(xy, scratch[2]);
  const float eps = COSINE_EPS * p.temperature; /* by comparisons that a NaN survives */
  const float A = length < eps ? eps : length, B = y_length < eps ? eps : y_length, c = xy / A / B;
  if (p.loss && threadIdx.x == 0) p.loss[row] = of_loss == 0.0f ? 0.0f : of_loss * p.parameter * (1.0f - c);
  if (!dX) return;
  const float of = of_soft * p.parameter / A, of_y = -of / B, of_x = length == 0.0f ? 0.0f : of * c / length;
  walk_pair<T, N>(X, typed_row<T>{Y}, cut, true, [&](auto &x, auto &y, int64_t col) {
    constexpr int M = sizeof(x) / sizeof(float);
    const int hit = hard.template hit<M>(col);
#pragma unroll
    for (int j = 0; j < M; j++) {
      const float z = x[j];
      x[j] = hard.template add<sizeof(T) == 2>(fmaf(of_x, z, of_y * y[j]), 0.0f, z, col + j, j == hit);
    }
    store_gradient<T>(dX, col, x);
  });
}

template <class Hard>
liger_status launch(const liger_divergence_args *a, const typename Hard::params &h, gpu_stream stream) {
  const divergence_params p = divergence_params_of(a);
  LIGER_DISPATCH_DTYPE(a->x_dtype, T, {
    constexpr int N = vec_width<T>::value;
    const bool alike = divergence_cut_alike(a->X, a->X_row_stride, a->Y, a->Y_row_stride, sizeof(T)) &&
                       (!a->dX ||
                        divergence_cut_alike(a->X, a->X_row_stride, a->dX, a->dX_row_stride, sizeof(T)));
    const int threads = divergence_threads(p.n_cols, sizeof(T), DISTILL_THREADS);
    const unsigned grid = (unsigned)p.n_rows;
    if (alike) fused_linear_cosine_kernel<Hard, T, N><<<grid, threads, 0, stream>>>(p, h);
    else fused_linear_cosine_kernel<Hard, T, 1><<<grid, threads, 0, stream>>>(p, h);
  });
  return (liger_status)LIGER_RT(GetLastError)();
}
} // namespace

extern "C" liger_status liger_fused_linear_cosine_cuda(const liger_divergence_args *a, void *stream_) {
  const gpu_stream stream = (gpu_stream)stream_;
  if (a->n_rows == 0) return LIGER_OK;
  if (a->n_rows > GPU_MAX_GRID) return LIGER_ERR_SIZE;
  if (a->x_dtype != a->y_dtype) return LIGER_ERR_DTYPE;
  if (!a->hard.loss) return launch<no_hard_loss>(a, {}, stream);
  hard_loss_params h = hard_loss_params_of(a);
  h.apart = true; /* the soft loss has no softmax */
  return launch<hard_loss>(a, h, stream);
}
