/* What the paths of fused_ce_tvd share on a GPU; equations: csrc/liger_divergence.h */
#ifndef LIGER_FUSED_CE_TVD_CUH
#define LIGER_FUSED_CE_TVD_CUH
#include "distill.cuh"

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

/* The forward by clusters, which read both rows once. False: this device, build, width or alignment is not its; nothing
 * was launched. */
bool liger_internal_fused_ce_tvd_cluster(const ce_tvd_params &p, liger_dtype t, gpu_stream stream,
                                         liger_status *status);

namespace {
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

/* sums over a row: |p - q|, and p with the sign of p - q */
struct ce_tvd_sums {
  float tvd, sigma;
  template <int M> __device__ __forceinline__ void add(const float (&p)[M], const float (&q)[M]) {
#pragma unroll
    for (int j = 0; j < M; j++) {
      const float d = p[j] - q[j];
      tvd += fabsf(d);
      if (p[j] != q[j]) sigma += copysignf(p[j], d);
    }
  }
};

/* Whether the row's label leaves it without losses of its own; then they are written, by the block that `writes`. */
__device__ __forceinline__ bool ce_tvd_without_loss(const ce_tvd_params &p, int64_t row, int64_t target,
                                                    bool writes) {
  if (target != p.ignore_index && target >= 0 && target < p.n_cols) return false;
  const float value = target == p.ignore_index ? 0.0f : NAN;
  if (!writes) return true;
  if (threadIdx.x == 0) p.ce[row] = p.tvd[row] = value;
  if (threadIdx.x < LIGER_CE_TVD_STATS) p.stats[threadIdx.x * p.n_rows + row] = value;
  return true;
}

/* one thread; x, y: the rows' statistics, x_log_d, y_log_d: the logarithms of their d */
__device__ __forceinline__ void ce_tvd_write(const ce_tvd_params &p, int64_t row, float x_target,
                                             const row_softmax &x, const row_softmax &y, float x_log_d,
                                             float y_log_d, const ce_tvd_sums &sums) {
  p.ce[row] = -((x_target - x.m) - x_log_d);
  p.tvd[row] = 0.5f * sums.tvd;
  p.stats[row] = x.m;
  p.stats[p.n_rows + row] = x_log_d;
  p.stats[2 * p.n_rows + row] = y.m;
  p.stats[3 * p.n_rows + row] = y_log_d;
  p.stats[4 * p.n_rows + row] = sums.sigma;
}
} // namespace
#endif
