/* What the divergences share on a GPU: functions of one element (their equations: csrc/liger_divergence.h), and the loop over
 * given (log-)probabilities. The steps are those of divergence.h. An op file of that loop brings
 *   struct op { op(const divergence_params &); divergence_element operator()(float x, float y) const; }
 * whose result has the element's loss and dl/dX.
 * Floor   forward 2*N*s bytes, with gradient 3*N*s    (N = n_rows*n_cols)
 * Plan    a block per row, one pass, VECS vectors of 16 bytes of each input in flight a thread. Rows whose start is
 *         not aligned (an odd vocabulary) begin and end with single elements */
#ifndef LIGER_DIVERGENCE_CUH
#define LIGER_DIVERGENCE_CUH
#include "row_pass.cuh"

/* The scalars are fp32 here, so that no kernel computes in fp64. */
struct divergence_params {
  float *loss;
  void *dX;
  const void *X, *Y;
  const int64_t *labels;
  const float *scale, *grad;
  int64_t n_rows, n_cols, X_row_stride, Y_row_stride, dX_row_stride, label_stride, grad_row_stride,
      ignore_index;
  float factor, parameter, rest, temperature; /* rest: 1 - parameter, subtracted in fp64 */
  bool elementwise;
  liger_dtype y_dtype;
};
static inline divergence_params divergence_params_of(const liger_divergence_args *a) {
  return {(float *)a->loss,
          a->dX,
          a->X,
          a->Y,
          a->labels,
          (const float *)a->scale,
          (const float *)a->grad,
          a->n_rows,
          a->n_cols,
          a->X_row_stride,
          a->Y_row_stride,
          a->dX_row_stride,
          a->label_stride,
          a->grad_row_stride,
          a->ignore_index,
          (float)a->factor,
          (float)a->parameter,
          (float)(1 - a->parameter),
          (float)a->temperature,
          a->elementwise != 0,
          a->y_dtype};
}

namespace {
/* ---- one element ---------------------------------------------------------------------------------------- */
struct divergence_element {
  float loss, grad;
};
struct jsd_element {
  float loss, grad, q; /* grad: dl/dX, for beta = 1 without the Q that a normalised row cancels */
};

constexpr float DIVERGENCE_LOG2E = 1.4426950408889634f, DIVERGENCE_LN2 = 0.6931471805599453f;

/* ln w of a normal w > 0, within 1 ulp; of anything else, a NaN too, a number that means nothing: multiply by w. With
 * w = 2^k m, m between sqrt(1/2) and sqrt(2), f = m - 1 (exact), z = f / (2 + f) and so 2 z = f - z f:
 *   ln m = 2 atanh z = 2 z + z z^2 p = f - z (f - z^2 p),  |z| < 0.1716,
 * in which the reciprocal's error meets the small term alone. */
__device__ __forceinline__ float log_of(float w) {
  const int k = (int)(__float_as_uint(w) - 0x3f3504f3u) & ~0x7fffff; /* times 2^23 */
  const float m = __uint_as_float(__float_as_uint(w) - (uint32_t)k);
  const float f = m - 1.0f, z = f * gpu_reciprocal(m + 1.0f), z2 = z * z;
  const float p = fmaf(fmaf(z2, 2.95800537e-1f, 3.9988777e-1f), z2, 6.66666865e-1f);
  return fmaf((float)k, DIVERGENCE_LN2 / 8388608, fmaf(-z, fmaf(-z2, p, f), f));
}

/* e^x, x at most 88, by the special-function unit: within 2 ulp, and |x| 2^-24 for the rounded product; below 2^-126
 * it is 0 */
__device__ __forceinline__ float exp_of(float x) { return gpu_exp2(x * DIVERGENCE_LOG2E); }

/* e^x - 1 of x <= 0, given e = e^x: a series where the difference would cancel (within 2^-24 there) */
__device__ __forceinline__ float expm1_of(float x, float e) {
  float p = fmaf(x, 1.08627765e-3f, 8.15627538e-3f);
  p = fmaf(p, x, 4.16233055e-2f);
  p = fmaf(p, x, 1.66662902e-1f);
  p = fmaf(p, x, 4.9999994e-1f);
  return x > -0.7f ? fmaf(p * x, x, x) : e - 1.0f;
}

/* a - b, where two equal infinities are no distance apart; p x, where p = 0 wins over an infinite x */
__device__ __forceinline__ float distance(float a, float b) { return a == b ? 0.0f : a - b; }
__device__ __forceinline__ float times(float p, float x) { return p == 0.0f ? 0.0f : p * x; }

/* |x - y|, cut where e^-|x - y| has long been 0, which keeps 0 * inf away. A NaN, that of two equal infinities too, is
 * cut with the rest: what it multiplies is the larger of the two probabilities, 0 there, or NaN. */
__device__ __forceinline__ float distance_cut(float x, float y) { return fminf(fabsf(y - x), 200.0f); }

/* 0 < beta < 1: see divergence.h. Of ln(M / larger) and ln(M / smaller), which are `size` apart, the logarithm gives
 * that of the side which M is nearer to: at a small beta the other one minus `size` would keep no digit of it. With t
 * the ratio less one, ln(1 + t) = 2 atanh z, z = t / (2 + t): a series of z up to 1/3, else by the special function.
 */
struct jsd_mid {
  float beta, rest;
  __device__ __forceinline__ jsd_mid(const divergence_params &p)
      : beta(fmaxf(p.parameter, 1.2e-38f)), rest(p.rest) {} /* no logarithm of a denormal */
  __device__ __forceinline__ jsd_element of(float x, float y) const {
    const bool y_is_larger = y > x;
    const float a = y_is_larger ? beta : rest, c = y_is_larger ? rest : beta;
    const float size = distance_cut(x, y), larger = exp_of(gpu_max(x, y)), e = exp_of(-size);
    const bool near_smaller = a < c * e; /* then e > a / c, and M / smaller = 1 + a (1 - e) / e is below 2 */
    const float unit = near_smaller ? e : 1.0f, k = near_smaller ? -a : c; /* t = k (e - 1) / unit */
    const float num = k * expm1_of(-size, e), w = fmaf(c, e, a);
    const bool low = !near_smaller && w < 0.7f; /* both ways are taken, of numbers whose logarithm is 0 */
    const float z = low ? 0.0f : num * gpu_reciprocal((num + unit) + unit), z2 = z * z;
    float p = fmaf(z2, 2.68514991e-1f, 2.82366186e-1f);
    p = fmaf(p, z2, 4.00075614e-1f);
    p = fmaf(p, z2, 6.66666389e-1f);
    const float v = fmaf(DIVERGENCE_LN2, gpu_log2(low ? w : 1.0f), fmaf(p * z2, z, z + z));
    const float smaller = larger * e, of_larger = -(a * larger * (near_smaller ? v - size : v));
    const float of_smaller = -(c * smaller * (near_smaller ? v : v + size));
    return {of_larger + of_smaller, y_is_larger ? of_smaller : of_larger, y_is_larger ? smaller : larger};
  }
  __device__ __forceinline__ divergence_element operator()(float x, float y) const {
    const jsd_element e = of(x, y);
    return {e.loss, e.grad};
  }
};

/* beta = 1/2: both sides weigh alike, and M is never much nearer to the smaller. Of s = |X - Y|, e = e^-s,
 *   v = -ln(M / larger) / 2 = (ln 2 - ln(1 + e)) / 2 = s / 4 - ln(cosh(s / 2)) / 2
 * by a series of e where s is large, of s^2 where X is near Y, each within 2^-24 (interpolated at the Chebyshev nodes) */
struct jsd_half {
  __device__ __forceinline__ jsd_half(const divergence_params &) {}
  __device__ __forceinline__ jsd_element of(float x, float y) const {
    const float s = distance_cut(x, y), larger = exp_of(gpu_max(x, y)), e = exp_of(-s), s2 = s * s;
    float near = fmaf(s2, -6.87097213e-7f, 1.24965354e-5f);
    near = fmaf(near, s2, -1.73088978e-4f);
    near = fmaf(near, s2, 2.60402285e-3f);
    near = fmaf(near, s2, -6.24999925e-2f);
    near = s * fmaf(near, s, 0.25f);
    float far = fmaf(e, -6.49079233e-2f, 1.18778475e-1f);
    far = fmaf(far, e, -1.66191995e-1f);
    far = fmaf(far, e, 2.49987021e-1f);
    far = fmaf(far, e, -4.9999994e-1f);
    far = fmaf(far, e, 0.5f * DIVERGENCE_LN2);
    const float v = s < 1.5f ? near : far, smaller = larger * e;
    const float of_larger = larger * v, of_smaller = smaller * fmaf(-0.5f, s, v);
    const bool y_is_larger = y > x;
    return {of_larger + of_smaller, y_is_larger ? of_smaller : of_larger, y_is_larger ? smaller : larger};
  }
  __device__ __forceinline__ divergence_element operator()(float x, float y) const {
    const jsd_element e = of(x, y);
    return {e.loss, e.grad};
  }
};
struct jsd_of_p { /* beta = 0 */
  __device__ __forceinline__ jsd_of_p(const divergence_params &) {}
  __device__ __forceinline__ jsd_element of(float x, float y) const {
    const float p = expf(y);
    return {times(p, distance(y, x)), -p, expf(x)};
  }
  __device__ __forceinline__ divergence_element operator()(float x, float y) const {
    const float p = expf(y);
    return {times(p, distance(y, x)), -p};
  }
};
struct jsd_of_q { /* beta = 1 */
  __device__ __forceinline__ jsd_of_q(const divergence_params &) {}
  __device__ __forceinline__ jsd_element of(float x, float y) const {
    const float q = expf(x), l = times(q, distance(x, y));
    return {l, l, q};
  }
  __device__ __forceinline__ divergence_element operator()(float x, float y) const {
    const jsd_element e = of(x, y);
    return {e.loss, e.grad + e.q};
  }
};

/* ---- rows ------------------------------------------------------------------------------------------------ */
__device__ __forceinline__ bool ignored_row(const divergence_params &p, int64_t row) {
  return p.labels && p.labels[row * p.label_stride] == p.ignore_index;
}
__device__ __forceinline__ float loss_scale(const divergence_params &p) {
  return p.factor * (p.scale ? *p.scale : 1.0f);
}
/* what dX is multiplied by beside an elementwise incoming gradient */
__device__ __forceinline__ float grad_scale(const divergence_params &p) {
  return loss_scale(p) * (p.grad && !p.elementwise ? *p.grad : 1.0f);
}

/* f(x, y, col) of every part of two rows that are cut alike, each once: x and y are vectors of N, or of one element.
 * Plain loads: past the caches they are 7 % slower (tvd, jsd and kl_div in fp32 on an H200); stores do not care. */
template <int N, typename T, class F>
__device__ __forceinline__ void row_read_pair(const T *X, const T *Y, const row_cut &cut, const F &f) {
  constexpr int VECS =
      2; /* 4 loads in flight a thread: more would spill, and 1024 threads hide the latency */
  const int64_t tid = threadIdx.x, step = blockDim.x;
  const auto one = [&](int64_t col) { f(load_vec<T, 1>(X + col), load_vec<T, 1>(Y + col), col); };
  if (tid < cut.head) one(tid);
  int64_t i = tid;
  for (; i + (VECS - 1) * step < cut.n_vecs; i += VECS * step) {
    vec<T, N> x[VECS], y[VECS];
#pragma unroll
    for (int u = 0; u < VECS; u++) {
      x[u] = load_vec<T, N>(X + cut.head + (i + u * step) * N);
      y[u] = load_vec<T, N>(Y + cut.head + (i + u * step) * N);
    }
#pragma unroll
    for (int u = 0; u < VECS; u++) f(x[u], y[u], cut.head + (i + u * step) * N);
  }
  for (; i < cut.n_vecs; i += step) {
    const int64_t col = cut.head + i * N;
    f(load_vec<T, N>(X + col), load_vec<T, N>(Y + col), col);
  }
  if (tid < cut.tail) one(cut.head + cut.n_vecs * N + tid);
}

/* N neighbouring elements from column col on: their losses' sum, or their losses stored; dX stored */
template <bool ELEMENTWISE, class Op, typename T, int N>
__device__ __forceinline__ float divergence_vector(const divergence_params &p, const Op &op, int64_t row,
                                                   int64_t col, const vec<T, N> &xv, const vec<T, N> &yv,
                                                   float of_loss, float of_grad, T *dX) {
  float x[N], y[N], d[N], sum = 0.0f;
  unpack(x, xv);
  unpack(y, yv);
#pragma unroll
  for (int j = 0; j < N; j++) {
    const divergence_element e = op(x[j], y[j]);
    d[j] = e.grad * of_grad;
    if (!ELEMENTWISE) sum += e.loss;
    if (ELEMENTWISE && p.loss) p.loss[row * p.n_cols + col + j] = of_loss * e.loss;
    if (ELEMENTWISE && p.grad) d[j] *= p.grad[row * p.grad_row_stride + col + j];
  }
  if (dX) store_vec<T, N>(dX + col, pack<T, N>(d));
  return sum;
}

/* N 1: rows that are not cut alike in every tensor */
template <class Op, int THREADS, typename T, int N>
__global__ void __launch_bounds__(THREADS, 1024 / THREADS) divergence_kernel(const divergence_params p) {
  __shared__ float scratch[BLOCK_SCRATCH];
  const int64_t row = blockIdx.x, tid = threadIdx.x, step = blockDim.x;
  const T *const X = (const T *)p.X + row * p.X_row_stride, *const Y = (const T *)p.Y + row * p.Y_row_stride;
  T *const dX = p.dX ? (T *)p.dX + row * p.dX_row_stride : nullptr;
  const row_cut cut = cut_row<T, N>(X, p.n_cols);
  if (ignored_row(p, row)) { /* the whole block leaves here */
    if (p.loss && p.elementwise)
      for (int64_t col = tid; col < p.n_cols; col += step) p.loss[row * p.n_cols + col] = 0.0f;
    else if (p.loss && tid == 0) p.loss[row] = 0.0f;
    if (dX) row_fill<T, N>(dX, cut, 0.0f);
    return;
  }
  const Op op(p);
  const float of_loss = loss_scale(p), of_grad = grad_scale(p);
  float sum = 0.0f;
  row_read_pair<N>(X, Y, cut, [&](const auto &x, const auto &y, int64_t col) {
    /* also a border that no load is moved across: without it the compiler spares registers, and the loads wait for each
     * other */
    if (p.elementwise) divergence_vector<true>(p, op, row, col, x, y, of_loss, of_grad, dX);
    else sum += divergence_vector<false>(p, op, row, col, x, y, of_loss, of_grad, dX);
  });
  if (!p.loss || p.elementwise) return;
  sum = block_reduce<op_sum>(sum, scratch);
  if (tid == 0) p.loss[row] = of_loss == 0.0f ? 0.0f : of_loss * sum;
}
} // namespace

/* every row of these tensors starts at the same distance from a 16-byte boundary. Host. */
static inline bool divergence_cut_alike(const void *a, int64_t a_row_stride, const void *b,
                                        int64_t b_row_stride, int elem_size) {
  return ((uintptr_t)a - (uintptr_t)b) % 16 == 0 && (a_row_stride - b_row_stride) * elem_size % 16 == 0;
}
/* threads of a block: enough for 2 vectors each, so that narrow rows share a multiprocessor; a power of two */
static inline int divergence_threads(int64_t n_cols, int elem_size, int most) {
  int threads = 64;
  while (threads < most && threads * 2 < n_cols * elem_size / 16) threads *= 2;
  return threads;
}

/* THREADS: of a block, at most. Two blocks of 512 a multiprocessor hide each other's reductions where an element costs
 * much (jsd in bf16, 4096 rows of 128256 on an H200: 0.838 ms, by blocks of 1024 0.879). */
template <class Op, int THREADS = 512>
static liger_status launch_divergence(const liger_divergence_args *a, void *stream) {
  if (a->n_rows == 0) return LIGER_OK;
  if (a->n_rows > GPU_MAX_GRID) return LIGER_ERR_SIZE;
  if (a->x_dtype != a->y_dtype) return LIGER_ERR_DTYPE;
  const divergence_params p = divergence_params_of(a);
  LIGER_DISPATCH_DTYPE(a->x_dtype, T, {
    constexpr int N = vec_width<T>::value;
    const bool alike = divergence_cut_alike(a->X, a->X_row_stride, a->Y, a->Y_row_stride, sizeof(T)) &&
                       (!a->dX ||
                        divergence_cut_alike(a->X, a->X_row_stride, a->dX, a->dX_row_stride, sizeof(T)));
    const int threads = divergence_threads(a->n_cols, sizeof(T), THREADS);
    const unsigned grid = (unsigned)a->n_rows;
    if (alike) divergence_kernel<Op, THREADS, T, N><<<grid, threads, 0, (gpu_stream)stream>>>(p);
    else divergence_kernel<Op, THREADS, T, 1><<<grid, threads, 0, (gpu_stream)stream>>>(p);
  });
  return (liger_status)LIGER_RT(GetLastError)();
}
#endif
