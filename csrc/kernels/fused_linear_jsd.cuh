/* fused_linear_jsd   the kernels of its rows, see fused_linear_jsd.c; walks in distill.cuh. Hard: with the labels' cross
 *            entropy or without, each in a file of its own
 * Rounding   fp32 to the end, dX rounded once; 16-bit logits by the fast exponential and logarithm, see below
 * Floor      3*N*s bytes: both blocks of logits read once, dX written    (N = n_rows*n_cols)
 * Plan       three passes, the softmax statistics of both rows, the loss with sum g, dX; two for beta = 0, where sum g
 *            is -1. A multiprocessor has one row at work, so that the later passes find part of theirs in L2 */
#ifndef LIGER_FUSED_LINEAR_JSD_CUH
#define LIGER_FUSED_LINEAR_JSD_CUH
#include "distill_hard.cuh"

namespace {
template <int M> __device__ __forceinline__ void copy(float (&to)[M], const float (&from)[M]) {
#pragma unroll
  for (int j = 0; j < M; j++) to[j] = from[j];
}
/* ONE_PASS: sum g is known to be -1. dX may lie over X: a thread writes the elements that it has just read. */
template <class Op, class Hard, typename T, int N, bool ONE_PASS>
__global__ void __launch_bounds__(DISTILL_THREADS, 1)
    fused_linear_jsd_kernel(const divergence_params p, const typename Hard::params h) {
  __shared__ row_softmax merge_scratch[2][BLOCK_SCRATCH];
  __shared__ float sum_scratch[2][BLOCK_SCRATCH];
  const int64_t row = blockIdx.x;
  const T *const X = (const T *)p.X + row * p.X_row_stride, *const Y = (const T *)p.Y + row * p.Y_row_stride;
  T *const dX = p.dX ? (T *)p.dX + row * p.dX_row_stride : nullptr;
  const row_cut cut = cut_row<T, N>(X, p.n_cols);
  Hard hard(h);
  if (nothing_of_row<T, N>(p, hard, row, X, dX, cut)) return; /* the whole block */
  const Op op(p);
  const float of_loss = loss_scale(p), of_grad = grad_scale(p) * hard.soft_weight() / p.temperature;
  const log_softmax_pair log_softmax = softmax_of_pair<T, N>(
      X, Y, cut, p.temperature, merge_scratch, [&](const auto &z, int64_t col) { hard.push(z, col); });
  hard.finish(row, log_softmax.sx);
  float loss = 0.0f, total = 0.0f;
  if (ONE_PASS && dX) {
    walk_pair<T, N>(X, typed_row<T>{Y}, cut, true, [&](auto &x, auto &y, int64_t col) {
      constexpr int M = sizeof(x) / sizeof(float);
      const int hit = hard.template hit<M>(col);
      float z[M];
      copy(z, x);
      log_softmax(x, y);
#pragma unroll
      for (int j = 0; j < M; j++) {
        const jsd_element e = op.of(x[j], y[j]);
        loss += e.loss;
        x[j] = hard.template add<false>(of_grad * (e.grad + e.q), e.q, z[j], col + j, j == hit);
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
    constexpr int M = sizeof(x) / sizeof(float);
    const int hit = hard.template hit<M>(col);
    float z[M];
    copy(z, x);
    log_softmax(x, y);
#pragma unroll
    for (int j = 0; j < M; j++) {
      const jsd_element e = op.of(x[j], y[j]);
      x[j] = hard.template add<false>(of_grad * (e.grad - e.q * total), e.q, z[j], col + j, j == hit);
    }
    store_gradient<T>(dX, col, x);
  });
}

/* ---- 16-bit logits with 0 < beta < 1: from the logits themselves, in logarithms of base 2 -------------------------
 * Of a row, with k = log2(e) / temperature, x and y the logarithms of its probabilities Q and P:
 *   s = y - x,  w = lg(M / Q) = lg(rest + beta 2^s),  S = sum Q w
 *   loss = ln 2 rest sum (P (s - w) beta / rest - Q w),  dX = ln 2 rest Q (S - w)
 * Rounding   the special functions' 2^-22 of a logarithm, below eager's; where P is near Q, and w no more than that
 *            error, the series of w, whose coefficients are the cumulants of a coin. s is cut where P or Q is no
 *            number, so that infinite logits are no distance apart */
constexpr float JSD_LN2 = 0.6931471805599453f;

/* m: the largest logit, finite; d: see above. The same bits whichever is a. */
struct logits_stats {
  row_softmax x, y;
};
__device__ __forceinline__ row_softmax logits_merge(const row_softmax &a, const row_softmax &b, float k) {
  const float m = fmaxf(a.m, b.m);
  return {m, __fadd_rn(__fmul_rn(a.d, gpu_exp2((a.m - m) * k)), __fmul_rn(b.d, gpu_exp2((b.m - m) * k)))};
}
template <int N> __device__ __forceinline__ void logits_push(row_softmax &s, const float (&z)[N], float k) {
  float c = z[0], d = 0.0f;
#pragma unroll
  for (int j = 1; j < N; j++) c = fmaxf(c, z[j]); /* a NaN loses here and is found by the sum */
  if (c > s.m) {
    s.d *= gpu_exp2((s.m - c) * k);
    s.m = c;
  }
#pragma unroll
  for (int j = 0; j < N; j++) d += gpu_exp2((z[j] - s.m) * k);
  s.d += d;
}
/* over `width` lanes, a power of two; all lanes call and hold the result */
__device__ __forceinline__ logits_stats logits_warp_merge(logits_stats s, int width, float k) {
  for (int mask = width / 2; mask > 0; mask /= 2) {
    const row_softmax x = {gpu_shfl_xor(s.x.m, mask), gpu_shfl_xor(s.x.d, mask)};
    const row_softmax y = {gpu_shfl_xor(s.y.m, mask), gpu_shfl_xor(s.y.d, mask)};
    s = {logits_merge(s.x, x, k), logits_merge(s.y, y, k)};
  }
  return s;
}
/* over a block whose number of warps is a power of two; scratch: shared, BLOCK_SCRATCH */
__device__ __forceinline__ logits_stats logits_block_merge(logits_stats s, float k, logits_stats *scratch) {
  s = logits_warp_merge(s, GPU_LANES, k);
  const int n_warps = ((int)blockDim.x + GPU_LANES - 1) / GPU_LANES;
  if (threadIdx.x % GPU_LANES == 0) scratch[threadIdx.x / GPU_LANES] = s;
  __syncthreads();
  return logits_warp_merge(scratch[threadIdx.x & (n_warps - 1)], n_warps, k);
}

/* One row's elements. */
struct jsd_of_logits {
  float k, beta, rest, ratio;   /* ratio: beta / rest */
  float mx, my, ax, ay;         /* x = (X - mx) k - ax, y likewise */
  float h[5], of_w, of_nothing; /* dX = Q (of_nothing + w of_w) */

  __device__ __forceinline__ jsd_of_logits(const divergence_params &p)
      : k(DISTILL_LOG2E / p.temperature), beta(p.parameter), rest(p.rest), ratio(beta / rest) {
    const float g = beta * rest, skew = g * (rest - beta), c = JSD_LN2;
    h[0] = c * g / 2, h[1] = c * c * skew / 6, h[2] = c * c * c * g * (1 - 6 * g) / 24;
    h[3] = c * c * c * c * skew * (1 - 12 * g) / 120;
    h[4] = c * c * c * c * c * g * (1 - 30 * g + 120 * g * g) / 720;
  }
  __device__ __forceinline__ void set(const logits_stats &s) {
    mx = s.x.m, my = s.y.m;
    ax = s.x.d == 0.0f ? 0.0f : log2f(s.x.d); /* a row of nothing but -inf has no sum */
    ay = s.y.d == 0.0f ? 0.0f : log2f(s.y.d);
  }
  /* loss: a row's sum of add's; S so far */
  __device__ __forceinline__ void add(float X, float Y, float &loss, float &S) const {
    const float x = fmaf(X - mx, k, -ax), y = fmaf(Y - my, k, -ay);
    const float s = fminf(fmaxf(y - x, -200.0f), 120.0f), far = gpu_log2(fmaf(beta, gpu_exp2(s), rest));
    const float near = s * fmaf(s, fmaf(fmaf(fmaf(fmaf(h[4], s, h[3]), s, h[2]), s, h[1]), s, h[0]), beta);
    const float w = fabsf(s) < 0.72f ? near : far, v = gpu_exp2(x) * w;
    S += v;
    loss += fmaf(gpu_exp2(y), ratio * (s - w), -v);
  }
  __device__ __forceinline__ float loss_of(float sum) const { return JSD_LN2 * rest * sum; }
  /* before the gradients: loss and S are the whole row's */
  __device__ __forceinline__ void finish(float loss, float S, float of_grad) {
    of_w = -of_grad * JSD_LN2 * rest;
    of_nothing = -of_w * (S + 0.0f * loss); /* a NaN of Y is in the loss alone */
  }
  /* q: the probability of X */
  __device__ __forceinline__ float gradient(float X, float Y, float &q) const {
    const float x = fmaf(X - mx, k, -ax), y = fmaf(Y - my, k, -ay);
    const float w = gpu_log2(fmaf(beta, gpu_exp2(fminf(y - x, 120.0f)), rest));
    q = gpu_exp2(x);
    return q * fmaf(w, of_w, of_nothing);
  }
};

/* dX may lie over X, as above */
template <class Hard, typename T, int N>
__global__ void __launch_bounds__(DISTILL_THREADS, 1)
    fused_linear_jsd_fast_kernel(const divergence_params p, const typename Hard::params h) {
  __shared__ logits_stats merge_scratch[BLOCK_SCRATCH];
  __shared__ float sum_scratch[2][BLOCK_SCRATCH];
  const int64_t row = blockIdx.x;
  const T *const X = (const T *)p.X + row * p.X_row_stride, *const Y = (const T *)p.Y + row * p.Y_row_stride;
  T *const dX = p.dX ? (T *)p.dX + row * p.dX_row_stride : nullptr;
  const row_cut cut = cut_row<T, N>(X, p.n_cols);
  Hard hard(h);
  if (nothing_of_row<T, N>(p, hard, row, X, dX, cut)) return; /* the whole block */
  jsd_of_logits op(p);
  const float of_loss = loss_scale(p), of_grad = grad_scale(p) * hard.soft_weight() / p.temperature;
  logits_stats s = {softmax_nothing(), softmax_nothing()};
  walk_pair<T, N>(X, typed_row<T>{Y}, cut, false, [&](auto &x, auto &y, int64_t col) {
    hard.push(x, col);
    logits_push(s.x, x, op.k);
    logits_push(s.y, y, op.k);
  });
  s = logits_block_merge(s, op.k, merge_scratch);
  op.set(s);
  hard.finish(row, s.x);
  float loss = 0.0f, total = 0.0f;
  walk_pair<T, N>(X, typed_row<T>{Y}, cut, true, [&](auto &x, auto &y, int64_t) {
#pragma unroll
    for (int j = 0; j < (int)(sizeof(x) / sizeof(float)); j++) op.add(x[j], y[j], loss, total);
  });
  loss = block_reduce<op_sum>(loss, sum_scratch[0]);
  if (p.loss && threadIdx.x == 0) p.loss[row] = of_loss == 0.0f ? 0.0f : of_loss * op.loss_of(loss);
  if (!dX) return;
  op.finish(loss, block_reduce<op_sum>(total, sum_scratch[1]), of_grad);
  walk_pair<T, N>(X, typed_row<T>{Y}, cut, false, [&](auto &x, auto &y, int64_t col) {
    constexpr int M = sizeof(x) / sizeof(float);
    const int hit = hard.template hit<M>(col);
#pragma unroll
    for (int j = 0; j < M; j++) {
      float q;
      const float z = x[j], d = op.gradient(z, y[j], q);
      x[j] = hard.template add<true>(d, q, z, col + j, j == hit);
    }
    store_gradient<T>(dX, col, x);
  });
}

template <class Op, class Hard, typename T, bool ONE_PASS>
void launch(const divergence_params &p, const typename Hard::params &h, bool alike, gpu_stream stream) {
  constexpr int N = vec_width<T>::value;
  const int threads = divergence_threads(p.n_cols, sizeof(T), DISTILL_THREADS);
  const unsigned grid = (unsigned)p.n_rows;
  if (alike) fused_linear_jsd_kernel<Op, Hard, T, N, ONE_PASS><<<grid, threads, 0, stream>>>(p, h);
  else fused_linear_jsd_kernel<Op, Hard, T, 1, ONE_PASS><<<grid, threads, 0, stream>>>(p, h);
}
template <class Hard, typename T>
void launch_mid(const divergence_params &p, const typename Hard::params &h, bool alike, gpu_stream stream) {
  constexpr int N = vec_width<T>::value;
  const int threads = divergence_threads(p.n_cols, sizeof(T), DISTILL_THREADS);
  const unsigned grid = (unsigned)p.n_rows;
  if constexpr (sizeof(T) == 4) launch<jsd_mid, Hard, T, false>(p, h, alike, stream);
  else if (alike) fused_linear_jsd_fast_kernel<Hard, T, N><<<grid, threads, 0, stream>>>(p, h);
  else fused_linear_jsd_fast_kernel<Hard, T, 1><<<grid, threads, 0, stream>>>(p, h);
}
template <class Hard>
liger_status launch_rows(const liger_divergence_args *a, const typename Hard::params &h, gpu_stream stream) {
  const divergence_params p = divergence_params_of(a);
  LIGER_DISPATCH_DTYPE(a->x_dtype, T, {
    const bool alike = divergence_cut_alike(a->X, a->X_row_stride, a->Y, a->Y_row_stride, sizeof(T)) &&
                       (!a->dX ||
                        divergence_cut_alike(a->X, a->X_row_stride, a->dX, a->dX_row_stride, sizeof(T)));
    if (a->parameter == 0) launch<jsd_of_p, Hard, T, true>(p, h, alike, stream);
    else if (a->parameter == 1) launch<jsd_of_q, Hard, T, false>(p, h, alike, stream);
    else launch_mid<Hard, T>(p, h, alike, stream);
  });
  return (liger_status)LIGER_RT(GetLastError)();
}
} // namespace

/* of rows that have a->hard: fused_linear_jsd_hard.cu */
liger_status fused_linear_jsd_hard(const liger_divergence_args *a, gpu_stream stream);
#endif
