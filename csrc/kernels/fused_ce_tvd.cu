/* fused_ce_tvd   see fused_ce_tvd.c; walks in distill.cuh
 * Rounding   fp32 to the end, dX rounded once
 * Floor      forward both rows once; backward both once, and dX
 * Plan       forward: the softmax statistics of both rows, then tvd and sigma. Backward: one pass */
#include "distill.cuh"

namespace {
struct ce_tvd_params {
  float *ce, *tvd, *stats;
  void *dX;
  const void *X, *Y;
  const int64_t *target;
  const float *grad_ce, *grad_tvd;
  int64_t n_rows, n_cols, X_row_stride, Y_row_stride, dX_row_stride, target_stride, grad_ce_stride,
      grad_tvd_stride;
  int64_t ignore_index;
};

template <typename T, int N>
__global__ void __launch_bounds__(DISTILL_THREADS, 1) fused_ce_tvd_fwd_kernel(const ce_tvd_params p) {
  __shared__ row_softmax merge_scratch[2][BLOCK_SCRATCH];
  __shared__ float sum_scratch[2][BLOCK_SCRATCH];
  const int64_t row = blockIdx.x, target = p.target[row * p.target_stride];
  if (target == p.ignore_index || target < 0 || target >= p.n_cols) { /* the whole block leaves here */
    const float value = target == p.ignore_index ? 0.0f : NAN;
    if (threadIdx.x == 0) p.ce[row] = p.tvd[row] = value;
    if (threadIdx.x < LIGER_CE_TVD_STATS) p.stats[threadIdx.x * p.n_rows + row] = value;
    return;
  }
  const T *const X = (const T *)p.X + row * p.X_row_stride, *const Y = (const T *)p.Y + row * p.Y_row_stride;
  const row_cut cut = cut_row<T, N>(X, p.n_cols);
  const log_softmax_pair log_softmax = softmax_of_pair<T, N>(X, Y, cut, 1.0f, merge_scratch);
  float tvd = 0.0f, sigma = 0.0f;
  walk_pair<T, N>(X, typed_row<T>{Y}, cut, true, [&](auto &x, auto &y, int64_t) {
    log_softmax(x, y);
#pragma unroll
    for (int j = 0; j < (int)(sizeof(x) / sizeof(float)); j++) {
      const float prob = expf(x[j]), d = prob - expf(y[j]);
      tvd += fabsf(d);
      sigma += d > 0.0f ? prob : d < 0.0f ? -prob : 0.0f;
    }
  });
  tvd = block_reduce<op_sum>(tvd, sum_scratch[0]);
  sigma = block_reduce<op_sum>(sigma, sum_scratch[1]);
  if (threadIdx.x != 0) return;
  p.ce[row] = -((to_f32(X[target]) - log_softmax.sx.m) - log_softmax.x_log_d);
  p.tvd[row] = 0.5f * tvd;
  p.stats[row] = log_softmax.sx.m;
  p.stats[p.n_rows + row] = log_softmax.x_log_d;
  p.stats[2 * p.n_rows + row] = log_softmax.sy.m;
  p.stats[3 * p.n_rows + row] = log_softmax.y_log_d;
  p.stats[4 * p.n_rows + row] = sigma;
}

template <typename T, int N>
__global__ void __launch_bounds__(DISTILL_THREADS, 1) fused_ce_tvd_bwd_kernel(const ce_tvd_params p) {
  const int64_t row = blockIdx.x, target = p.target[row * p.target_stride];
  const T *const X = (const T *)p.X + row * p.X_row_stride, *const Y = (const T *)p.Y + row * p.Y_row_stride;
  T *const dX = (T *)p.dX + row * p.dX_row_stride;
  const bool out_of_range = target < 0 || target >= p.n_cols;
  if (target == p.ignore_index || out_of_range) {
    row_fill<T, N>(dX, cut_row<T, N>(dX, p.n_cols), out_of_range && target != p.ignore_index ? NAN : 0.0f);
    return;
  }
  const float sigma = p.stats[4 * p.n_rows + row], of_ce = p.grad_ce[row * p.grad_ce_stride],
              of_tvd = 0.5f * p.grad_tvd[row * p.grad_tvd_stride];
  const log_softmax_pair log_softmax = {{p.stats[row], 1.0f},
                                        {p.stats[2 * p.n_rows + row], 1.0f},
                                        p.stats[p.n_rows + row],
                                        p.stats[3 * p.n_rows + row],
                                        1.0f};
  walk_pair<T, N>(X, typed_row<T>{Y}, cut_row<T, N>(X, p.n_cols), false, [&](auto &x, auto &y, int64_t col) {
    log_softmax(x, y);
#pragma unroll
    for (int j = 0; j < (int)(sizeof(x) / sizeof(float)); j++) {
      const float prob = expf(x[j]), q = expf(y[j]), sign = prob > q ? 1.0f : prob < q ? -1.0f : 0.0f;
      /* p - 1 as one difference, before any factor */
      x[j] = of_ce * (prob - (col + j == target ? 1.0f : 0.0f)) + of_tvd * prob * (sign - sigma);
    }
    store_gradient<T>(dX, col, x);
  });
}
} // namespace

extern "C" liger_status liger_fused_ce_tvd_cuda(const liger_fused_ce_tvd_args *a, void *stream_) {
  const gpu_stream stream = (gpu_stream)stream_;
  if (a->n_rows == 0) return LIGER_OK;
  if (a->n_rows > GPU_MAX_GRID) return LIGER_ERR_SIZE;
  const ce_tvd_params p = {(float *)a->ce,
                           (float *)a->tvd,
                           (float *)a->stats,
                           a->dX,
                           a->X,
                           a->Y,
                           a->target,
                           (const float *)a->grad_ce,
                           (const float *)a->grad_tvd,
                           a->n_rows,
                           a->n_cols,
                           a->X_row_stride,
                           a->Y_row_stride,
                           a->dX_row_stride,
                           a->target_stride,
                           a->grad_ce_stride,
                           a->grad_tvd_stride,
                           a->ignore_index};
  LIGER_DISPATCH_DTYPE(a->x_dtype, T, {
    constexpr int N = vec_width<T>::value;
    const bool alike = divergence_cut_alike(a->X, a->X_row_stride, a->Y, a->Y_row_stride, sizeof(T)) &&
                       (!a->dX ||
                        divergence_cut_alike(a->X, a->X_row_stride, a->dX, a->dX_row_stride, sizeof(T)));
    const int threads = divergence_threads(a->n_cols, sizeof(T), DISTILL_THREADS);
    const unsigned grid = (unsigned)a->n_rows;
    if (a->dX && alike) fused_ce_tvd_bwd_kernel<T, N><<<grid, threads, 0, stream>>>(p);
    else if (a->dX) fused_ce_tvd_bwd_kernel<T, 1><<<grid, threads, 0, stream>>>(p);
    else if (alike) fused_ce_tvd_fwd_kernel<T, N><<<grid, threads, 0, stream>>>(p);
    else fused_ce_tvd_fwd_kernel<T, 1><<<grid, threads, 0, stream>>>(p);
  });
  return (liger_status)LIGER_RT(GetLastError)();
}
