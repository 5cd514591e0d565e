/* fused_ce_tvd   see fused_ce_tvd.c; walks in distill.cuh and divergence.cuh
 * Rounding   fp32 to the end, dX rounded once; exponentials by the special-function unit, 2 ulp
 * Floor      forward both rows once; backward both once, and dX
 * Plan       forward: the softmax statistics of both rows, then tvd and sigma. Both rows kept in the shared memory of a
 *            cluster between the two passes were slower on an H200 (4096 rows of 128256: bf16 1.22 against 1.11 ms, fp32
 *            2.80 against 1.80). Backward: one pass, 2 vectors of 16 bytes of each row in flight a thread */
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

/* The probabilities of both rows, from each row's m and log d: the same bits in the forward's sigma and in the backward,
 * so that they agree on the signs. Differences to m first: the rounded product with log2(e) is then small where the
 * probability is not. */
struct ce_tvd_probabilities {
  float x_m, y_m, x_scale, y_scale;
  __device__ __forceinline__ ce_tvd_probabilities(float x_m, float x_log_d, float y_m, float y_log_d)
      : x_m(x_m), y_m(y_m), x_scale(expf(-x_log_d)), y_scale(expf(-y_log_d)) {}
  template <int M> __device__ __forceinline__ void operator()(float (&x)[M], float (&y)[M]) const {
#pragma unroll
    for (int j = 0; j < M; j++) {
      /* rounded products: fused into a difference, one of two equal ones would be exact */
      x[j] = __fmul_rn(softmax_exp(x[j], x_m), x_scale);
      y[j] = __fmul_rn(softmax_exp(y[j], y_m), y_scale);
    }
  }
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
  const log_softmax_pair s = softmax_of_pair<T, N>(X, Y, cut, 1.0f, merge_scratch);
  const ce_tvd_probabilities probabilities(s.sx.m, s.x_log_d, s.sy.m, s.y_log_d);
  float tvd = 0.0f, sigma = 0.0f;
  walk_pair<T, N>(X, typed_row<T>{Y}, cut, true, [&](auto &x, auto &y, int64_t) {
    probabilities(x, y);
#pragma unroll
    for (int j = 0; j < (int)(sizeof(x) / sizeof(float)); j++) {
      const float d = x[j] - y[j];
      tvd += fabsf(d);
      if (x[j] != y[j]) sigma += copysignf(x[j], d);
    }
  });
  tvd = block_reduce<op_sum>(tvd, sum_scratch[0]);
  sigma = block_reduce<op_sum>(sigma, sum_scratch[1]);
  if (threadIdx.x != 0) return;
  p.ce[row] = -((to_f32(X[target]) - s.sx.m) - s.x_log_d);
  p.tvd[row] = 0.5f * tvd;
  p.stats[row] = s.sx.m;
  p.stats[p.n_rows + row] = s.x_log_d;
  p.stats[2 * p.n_rows + row] = s.sy.m;
  p.stats[3 * p.n_rows + row] = s.y_log_d;
  p.stats[4 * p.n_rows + row] = sigma;
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
