/* fused_linear_jsd   the rows of it, see fused_linear_jsd.c; walks in distill.cuh
 * Rounding   fp32 to the end, dX rounded once. 16-bit logits take the fast exponential and logarithm, whose error, 2^-22
 *            of a probability's logarithm, is below that of eager's logarithms
 * Floor      3*N*s bytes: both blocks of logits read once, dX written    (N = n_rows*n_cols)
 * Plan       three passes, the softmax statistics of both rows, the loss with sum g, dX; two for beta = 0, where sum g
 *            is -1. A multiprocessor has one row at work, so that the later passes find part of theirs in L2 */
#include "distill.cuh"

namespace {
/* jsd_mid by special functions, within 2^-22 of a logarithm; where X is near Y, whose logarithms would be no more than
 * that error, by the series of ln(a + c e^-s) + c s = s^2 H: H has the same coefficients for both signs of Y - X */
struct jsd_mid_fast {
  float beta, rest, h[5];
  __device__ __forceinline__ jsd_mid_fast(const divergence_params &p) : beta(p.parameter), rest(p.rest) {
    const float g = beta * rest, skew = g * (rest - beta);
    h[0] = g / 2, h[1] = skew / 6, h[2] = g * (1 - 6 * g) / 24, h[3] = skew * (1 - 12 * g) / 120;
    h[4] = g * (1 - 30 * g + 120 * g * g) / 720;
  }
  __device__ __forceinline__ jsd_element of(float x, float y) const {
    const float d = distance(y, x), size = fabsf(d), larger = gpu_exp2(DISTILL_LOG2E * (y > x ? y : x));
    const bool y_is_larger = !(d <= 0.0f), near = size < 0.5f;
    const float a = y_is_larger ? beta : rest, c = y_is_larger ? rest : beta;
    const float e = gpu_exp2(-DISTILL_LOG2E * size), v = __logf(fmaf(c, e, a));
    const float r = size * fmaf(fmaf(fmaf(fmaf(h[4], d, h[3]), d, h[2]), d, h[1]), d, h[0]);
    const float m_larger = near ? size * (r - c) : v;
    const float m_smaller = near ? size * (r + a) : v + (200.0f < size ? 200.0f : size);
    const float smaller = larger * e, of_larger = -(a * larger * m_larger);
    const float of_smaller = -(c * smaller * m_smaller);
    return {of_larger + of_smaller, y_is_larger ? of_smaller : of_larger, y_is_larger ? smaller : larger};
  }
};

/* dl/dlogit, sum: of g over the row */
template <class Op>
__device__ __forceinline__ float logit_gradient(const Op &op, float x, float y, float sum) {
  const jsd_element e = op.of(x, y);
  return e.grad - e.q * sum;
}
/* for 16 bits the gradient needs neither P nor the loss: -Q (rest ln(M / Q) + sum). Past e^80 Q is no number of them */
__device__ __forceinline__ float logit_gradient(const jsd_mid_fast &op, float x, float y, float sum) {
  const float d = distance(y, x),
              w = fmaf(op.beta, gpu_exp2(DISTILL_LOG2E * (80.0f < d ? 80.0f : d)), op.rest);
  return -gpu_exp2(DISTILL_LOG2E * x) * fmaf(op.rest, __logf(w), sum);
}

/* ONE_PASS: sum g is known to be -1. dX may lie over X: a thread writes the elements that it has just read. */
template <class Op, typename T, int N, bool ONE_PASS>
__global__ void __launch_bounds__(DISTILL_THREADS, 1) fused_linear_jsd_kernel(const divergence_params p) {
  __shared__ row_softmax merge_scratch[2][BLOCK_SCRATCH];
  __shared__ float sum_scratch[2][BLOCK_SCRATCH];
  const int64_t row = blockIdx.x;
  const T *const X = (const T *)p.X + row * p.X_row_stride, *const Y = (const T *)p.Y + row * p.Y_row_stride;
  T *const dX = p.dX ? (T *)p.dX + row * p.dX_row_stride : nullptr;
  const row_cut cut = cut_row<T, N>(X, p.n_cols);
  if (ignored_row(p, row)) { /* the whole block leaves here */
    if (p.loss && threadIdx.x == 0) p.loss[row] = 0.0f;
    if (dX) row_fill<T, N>(dX, cut, 0.0f);
    return;
  }
  const Op op(p);
  const float of_loss = loss_scale(p), of_grad = grad_scale(p) / p.temperature;
  const log_softmax_pair log_softmax = softmax_of_pair<T, N>(X, Y, cut, p.temperature, merge_scratch);
  float loss = 0.0f, total = 0.0f;
  if (ONE_PASS && dX) {
    walk_pair<T, N>(X, typed_row<T>{Y}, cut, true, [&](auto &x, auto &y, int64_t col) {
      log_softmax(x, y);
#pragma unroll
      for (int j = 0; j < (int)(sizeof(x) / sizeof(float)); j++) {
        const jsd_element e = op.of(x[j], y[j]);
        loss += e.loss;
        x[j] = of_grad * (e.grad + e.q);
      }
      store_gradient<T>(dX, col, x);
    });
  } else {
    walk_pair<T, N>(X, typed_row<T>{Y}, cut, true, [&](auto &x, auto &y, int64_t) {
      log_softmax(x, y);
#pragma unroll
      for (int j = 0; j < (int)(sizeof(x) / sizeof(float)); j++) {
        const jsd_element e = op.of(x[j], y[j]);
        loss += e.loss;
        total += e.grad;
      }
    });
  }
  loss = block_reduce<op_sum>(loss, sum_scratch[0]);
  if (p.loss && threadIdx.x == 0) p.loss[row] = of_loss == 0.0f ? 0.0f : of_loss * loss;
  if (ONE_PASS || !dX) return;
  total = block_reduce<op_sum>(total, sum_scratch[1]);
  walk_pair<T, N>(X, typed_row<T>{Y}, cut, false, [&](auto &x, auto &y, int64_t col) {
    log_softmax(x, y);
#pragma unroll
    for (int j = 0; j < (int)(sizeof(x) / sizeof(float)); j++)
      x[j] = of_grad * logit_gradient(op, x[j], y[j], total);
    store_gradient<T>(dX, col, x);
  });
}

template <class Op, typename T, bool ONE_PASS>
void launch(const divergence_params &p, bool alike, gpu_stream stream) {
  constexpr int N = vec_width<T>::value;
  const int threads = divergence_threads(p.n_cols, sizeof(T), DISTILL_THREADS);
  if (alike) fused_linear_jsd_kernel<Op, T, N, ONE_PASS><<<(unsigned)p.n_rows, threads, 0, stream>>>(p);
  else fused_linear_jsd_kernel<Op, T, 1, ONE_PASS><<<(unsigned)p.n_rows, threads, 0, stream>>>(p);
}
template <typename T> struct mid_of {
  typedef jsd_mid_fast type;
};
template <> struct mid_of<float> {
  typedef jsd_mid type;
};
} // namespace

extern "C" liger_status liger_fused_linear_jsd_cuda(const liger_divergence_args *a, void *stream_) {
  const gpu_stream stream = (gpu_stream)stream_;
  if (a->n_rows == 0) return LIGER_OK;
  if (a->n_rows > GPU_MAX_GRID) return LIGER_ERR_SIZE;
  if (a->x_dtype != a->y_dtype) return LIGER_ERR_DTYPE;
  const divergence_params p = divergence_params_of(a);
  LIGER_DISPATCH_DTYPE(a->x_dtype, T, {
    const bool alike = divergence_cut_alike(a->X, a->X_row_stride, a->Y, a->Y_row_stride, sizeof(T)) &&
                       (!a->dX ||
                        divergence_cut_alike(a->X, a->X_row_stride, a->dX, a->dX_row_stride, sizeof(T)));
    if (a->parameter == 0) launch<jsd_of_p, T, true>(p, alike, stream);
    else if (a->parameter == 1) launch<jsd_of_q, T, false>(p, alike, stream);
    else launch<typename mid_of<T>::type, T, false>(p, alike, stream);
  });
  return (liger_status)LIGER_RT(GetLastError)();
}
