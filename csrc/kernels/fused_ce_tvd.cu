/* fused_ce_tvd   see fused_ce_tvd.c
 * Rounding   fp32 to the end, dX rounded once; exponentials by the special-function unit, 2 ulp
 * Floor      forward both rows once; backward both once, and dX
 * Plan       forward: the softmax statistics of both rows, then tvd and sigma; wide rows wait in the shared memory of a
 *            cluster on Hopper (fused_ce_tvd_sm90.cu), others are read twice by the walks of distill.cuh. Backward: one
 *            pass, 2 vectors of 16 bytes of each row in flight a thread */
#include "fused_ce_tvd.cuh"

namespace {
template <typename T, int N>
__global__ void __launch_bounds__(DISTILL_THREADS, 1) fused_ce_tvd_fwd_kernel(const ce_tvd_params p) {
  __shared__ row_softmax merge_scratch[2][BLOCK_SCRATCH];
  __shared__ float sum_scratch[2][BLOCK_SCRATCH];
  const int64_t row = blockIdx.x, target = p.target[row * p.target_stride];
  if (ce_tvd_without_loss(p, row, target, true)) return; /* the whole block */
  const T *const X = (const T *)p.X + row * p.X_row_stride, *const Y = (const T *)p.Y + row * p.Y_row_stride;
  const row_cut cut = cut_row<T, N>(X, p.n_cols);
  const log_softmax_pair s = softmax_of_pair<T, N>(X, Y, cut, 1.0f, merge_scratch);
  const ce_tvd_probabilities probabilities(s.sx.m, s.x_log_d, s.sy.m, s.y_log_d);
  ce_tvd_sums sums = {0.0f, 0.0f};
  walk_pair<T, N>(X, typed_row<T>{Y}, cut, true, [&](auto &x, auto &y, int64_t) {
    probabilities(x, y);
    sums.add(x, y);
  });
  sums.tvd = block_reduce<op_sum>(sums.tvd, sum_scratch[0]);
  sums.sigma = block_reduce<op_sum>(sums.sigma, sum_scratch[1]);
  if (threadIdx.x == 0) ce_tvd_write(p, row, to_f32(X[target]), s.sx, s.sy, s.x_log_d, s.y_log_d, sums);
}

constexpr int CE_TVD_BWD_THREADS = 512;

template <typename T, int N>
__global__ void __launch_bounds__(CE_TVD_BWD_THREADS, 2) fused_ce_tvd_bwd_kernel(const ce_tvd_params p) {
  const int64_t row = blockIdx.x, target = p.target[row * p.target_stride];
  const T *const X = (const T *)p.X + row * p.X_row_stride, *const Y = (const T *)p.Y + row * p.Y_row_stride;
  T *const dX = (T *)p.dX + row * p.dX_row_stride;
  const bool out_of_range = target < 0 || target >= p.n_cols;
  if (target == p.ignore_index || out_of_range) {
    row_fill<T, N>(dX, cut_row<T, N>(dX, p.n_cols), out_of_range && target != p.ignore_index ? NAN : 0.0f);
    return;
  }
  const row_cut cut = cut_row<T, N>(X, p.n_cols);
  const float sigma = p.stats[4 * p.n_rows + row], of_ce = p.grad_ce[row * p.grad_ce_stride],
              of_tvd = 0.5f * p.grad_tvd[row * p.grad_tvd_stride];
  const ce_tvd_probabilities probabilities(p.stats[row], p.stats[p.n_rows + row], p.stats[2 * p.n_rows + row],
                                           p.stats[3 * p.n_rows + row]);
  /* what p is multiplied by, in the three cases of the sign; the target's p - 1 is one difference, before any factor */
  const auto tvd_factor = [&](float sign) { return of_tvd * (sign - sigma); };
  const float above = of_ce + tvd_factor(1.0f), below = of_ce + tvd_factor(-1.0f),
              tie = of_ce + tvd_factor(0.0f);
  float x_target[1] = {to_f32(X[target])}, y_target[1] = {to_f32(Y[target])};
  probabilities(x_target, y_target);
  const float pt = x_target[0], qt = y_target[0];
  const float sign = pt > qt ? 1.0f : pt < qt ? -1.0f : 0.0f;
  const float of_target = of_ce * (pt - 1.0f) + pt * tvd_factor(sign);
  row_read_pair<N>(X, Y, cut, [&](const auto &xv, const auto &yv, int64_t col) {
    constexpr int M = (int)(sizeof(xv) / sizeof(T));
    float x[M], y[M];
    unpack(x, xv);
    unpack(y, yv);
    probabilities(x, y);
#pragma unroll
    for (int j = 0; j < M; j++) x[j] *= x[j] > y[j] ? above : x[j] < y[j] ? below : tie;
    if (col <= target && target < col + M) {
#pragma unroll
      for (int j = 0; j < M; j++) x[j] = col + j == target ? of_target : x[j];
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
  liger_status status;
  if (!a->dX && liger_internal_fused_ce_tvd_cluster(p, a->x_dtype, stream, &status)) return status;
  LIGER_DISPATCH_DTYPE(a->x_dtype, T, {
    constexpr int N = vec_width<T>::value;
    const bool alike = divergence_cut_alike(a->X, a->X_row_stride, a->Y, a->Y_row_stride, sizeof(T)) &&
                       (!a->dX ||
                        divergence_cut_alike(a->X, a->X_row_stride, a->dX, a->dX_row_stride, sizeof(T)));
    const int threads = divergence_threads(a->n_cols, sizeof(T),
                                           a->dX ? CE_TVD_BWD_THREADS : DISTILL_THREADS);
    const unsigned grid = (unsigned)a->n_rows;
    if (a->dX && alike) fused_ce_tvd_bwd_kernel<T, N><<<grid, threads, 0, stream>>>(p);
    else if (a->dX) fused_ce_tvd_bwd_kernel<T, 1><<<grid, threads, 0, stream>>>(p);
    else if (alike) fused_ce_tvd_fwd_kernel<T, N><<<grid, threads, 0, stream>>>(p);
    else fused_ce_tvd_fwd_kernel<T, 1><<<grid, threads, 0, stream>>>(p);
  });
  return (liger_status)LIGER_RT(GetLastError)();
}
