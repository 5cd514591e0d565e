/* What the divergences share on a CPU: functions of one element, and the loop over given (log-)probabilities, to
 * which an op file brings a divergence_tile. A row goes by in tiles of DIVERGENCE_TILE columns, fp32 (fp64) in
 * place, other dtypes through `real` buffers that stay in the first-level cache. */
#ifndef LIGER_DIVERGENCE_H
#define LIGER_DIVERGENCE_H
#include "primitives.h"

enum { DIVERGENCE_TILE = 1024 };

/* ---- one element ---------------------------------------------------------------------------------------- */
/* ln w of a normal w > 0, within 1 ulp: exponent and mantissa in [sqrt(1/2), sqrt(2)), a polynomial for the
 * latter (coefficients: Cephes). Of anything else, a NaN too, a number that means nothing: multiply by w.
 * less_one: w - 1, if the caller has it more exactly than w. */
static inline float log_of(float w, float less_one) {
  const int32_t k = (int32_t)(bits_of_f32(w) - 0x3f3504f3u) >> 23;
  const float n = (float)k, m = f32_of_bits(bits_of_f32(w) - ((uint32_t)k << 23)) - 1,
              f = k == 0 ? less_one : m;
  const float f2 = f * f;
  float p = 7.0376836292e-2f;
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const float tail = p * f * f2 - 2.12194440e-4f * n - 0.5f * f2;
  return f + tail + 0.693359375f * n;
}
static inline real log_positive(real w) {
  return sizeof(real) == 4 ? (real)log_of((float)w, (float)w - 1) : (real)log((double)w);
}

/* e^x and, without cancellation, e^x - 1 of x <= 0. Below -87 (in fp32) e^x is 0; a NaN stays. */
static inline real exp_and_expm1(real x, real *e) {
  if (sizeof(real) == 8) {
    *e = (real)exp((double)x);
    return (real)expm1((double)x);
  }
  const float t = -87.0f > (float)x ? -87.0f : (float)x;
  const float k = t * 0x1.715476p0f + EXP_MAGIC, n = k - EXP_MAGIC;
  const float r = (t - n * 0x1.62e400p-1f) - n * 0x1.7f7d1cp-20f;
  float p = 0x1.6a2434p-10f; /* as in exp_reduce, but for the last 1 */
  p = p * r + 0x1.1239e0p-7f;
  p = p * r + 0x1.5558f2p-5f;
  p = p * r + 0x1.555492p-3f;
  p = p * r + 0x1.fffffcp-2f;
  p = (p * r + 1.0f) * r;
  const float two_n = f32_of_bits((bits_of_f32(k) << 23) + 0x3f800000u);
  *e = (float)x < -87.0f ? 0 : (real)(two_n * p + two_n);
  return (real)(two_n * p + (two_n - 1.0f));
}

/* a - b, where two equal infinities are no distance apart */
static inline real distance(real a, real b) { return a == b ? 0 : a - b; }

/* What jsd says of one element. mid: 0 < beta < 1. The larger of P and Q comes from its logarithm, the other one
 * and M from the ratio e <= 1 of the two: nothing overflows, and what underflows is 0 in the result too.
 *   M = larger (a + c e),   a its weight, c = 1 - a;   ln(a + c e) = ln(1 + c (e - 1)), small where X is near Y */
typedef struct {
  real loss, grad, q; /* grad: dl/dX, for beta = 1 without the Q that a normalised row cancels */
} jsd_element;

LIGER_INLINE jsd_element jsd_mid(real x, real y, real beta, real rest) {
  const real far = sizeof(real) == 4 ? 200 : 1000; /* where e has long been 0; keeps 0 * inf away */
  const real d = distance(y, x), size = sizeof(real) == 4 ? (real)fabsf((float)d) : (real)fabs((double)d);
  const int y_is_larger = !(d <= 0); /* a NaN of either: the side that multiplies by its size */
  const real larger = exp_nonpos(y > x ? y : x), a = y_is_larger ? beta : rest, c = y_is_larger ? rest : beta;
  real e;
  const real t = c * exp_and_expm1(-size, &e), w = a + c * e;
  const real v = sizeof(real) == 4 ? (real)log_of((float)w, (float)t)
                 : w > (real)0.5   ? (real)log1p((double)t)
                                   : (real)log((double)w);
  const real smaller = larger * e, of_larger = -(a * larger * v);
  const real of_smaller = -(c * smaller * (v + (far < size ? far : size)));
  const jsd_element r = {of_larger + of_smaller, y_is_larger ? of_smaller : of_larger,
                         y_is_larger ? smaller : larger};
  return r;
}
LIGER_INLINE real times(real p, real x) { return p == 0 ? 0 : p * x; }
LIGER_INLINE jsd_element jsd_of_p(real x, real y) { /* beta = 0 */
  const real p = exp_nonpos(y);
  const jsd_element r = {times(p, distance(y, x)), -p, exp_nonpos(x)};
  return r;
}
LIGER_INLINE jsd_element jsd_of_q(real x, real y) { /* beta = 1 */
  const real q = exp_nonpos(x), l = times(q, distance(x, y));
  const jsd_element r = {l, l, q};
  return r;
}

/* Y (ln max(Y, eps) - X) */
LIGER_INLINE real kl_element(real x, real y, real eps) {
  return times(y, log_positive(y > eps ? y : eps) - x);
}

/* ---- rows ------------------------------------------------------------------------------------------------ */
static inline int ignored_row(const liger_divergence_args *a, int64_t row) {
  return a->labels && a->labels[row * a->label_stride] == a->ignore_index;
}
static inline real loss_scale(const liger_divergence_args *a) {
  return (real)a->factor * (a->scale ? *(const real *)a->scale : 1);
}
/* what dX of a row is multiplied by beside an elementwise incoming gradient */
static inline real grad_scale(const liger_divergence_args *a) {
  return loss_scale(a) * (a->grad && !a->elementwise ? *(const real *)a->grad : 1);
}

/* loss and dX of an ignored row */
static inline void clear_row(const liger_divergence_args *a, int64_t row) {
  static const real zeros[DIVERGENCE_TILE];
  if (a->loss && a->elementwise)
    memset((real *)a->loss + row * a->n_cols, 0, (size_t)a->n_cols * sizeof(real));
  else if (a->loss) ((real *)a->loss)[row] = 0;
  for (int64_t c = 0; a->dX && c < a->n_cols; c += DIVERGENCE_TILE)
    store_row(a->dX, row * a->dX_row_stride + c, zeros,
              a->n_cols - c < DIVERGENCE_TILE ? a->n_cols - c : DIVERGENCE_TILE, a->x_dtype);
}

/* Loss and gradient of n elements: l[i], d[i] = dl/dX times of_grad; returns the sum of l. x, y are logarithms of
 * at most 88: e^x comes from exp_nonpos. */
typedef real divergence_tile(const liger_divergence_args *a, const real *restrict x, const real *restrict y,
                             real *restrict l, real *restrict d, int64_t n, real of_grad);

static inline const real *reals(real *restrict buf, const void *p, int64_t offset, int64_t n, liger_dtype t) {
  if (t == LIGER_REAL) return (const real *)p + offset;
  load_row(buf, p, offset, n, t);
  return buf;
}

LIGER_INLINE liger_status divergence_rows(const liger_divergence_args *a, int64_t row_begin, int64_t row_end,
                                          divergence_tile *tile) {
  real x[DIVERGENCE_TILE], y[DIVERGENCE_TILE], l[DIVERGENCE_TILE], d[DIVERGENCE_TILE];
  const real of_loss = loss_scale(a), of_grad = grad_scale(a);
  const int direct = a->dX && a->x_dtype == LIGER_REAL;
  for (int64_t row = row_begin; row < row_end; row++) {
    if (ignored_row(a, row)) {
      clear_row(a, row);
      continue;
    }
    double sum = 0;
    for (int64_t c = 0; c < a->n_cols; c += DIVERGENCE_TILE) {
      const int64_t n = a->n_cols - c < DIVERGENCE_TILE ? a->n_cols - c : DIVERGENCE_TILE;
      const int64_t at = row * a->dX_row_stride + c;
      const real *X = reals(x, a->X, row * a->X_row_stride + c, n, a->x_dtype);
      const real *Y = reals(y, a->Y, row * a->Y_row_stride + c, n, a->y_dtype);
      real *dX = direct ? (real *)a->dX + at : d;
      sum += (double)tile(a, X, Y, l, dX, n, of_grad);
      if (a->elementwise && a->loss) {
        real *restrict out = (real *)a->loss + row * a->n_cols + c;
        for (int64_t i = 0; i < n; i++) out[i] = of_loss * l[i];
      }
      if (a->elementwise && a->grad && a->dX) {
        const real *restrict g = (const real *)a->grad + row * a->grad_row_stride + c;
        for (int64_t i = 0; i < n; i++) dX[i] *= g[i];
      }
      if (a->dX && !direct) store_row(a->dX, at, d, n, a->x_dtype);
    }
    if (a->loss && !a->elementwise) ((real *)a->loss)[row] = of_loss == 0 ? 0 : (real)((double)of_loss * sum);
  }
  return LIGER_OK;
}

/* ---- rows of logits -------------------------------------------------------------------------------------- */
/* z[i] = logit / temperature becomes (z - ref) - log_d: differences to the maximum first, exact for large logits */
typedef struct {
  real ref, log_d;
} row_softmax;

static inline void load_scaled(real *restrict z, const void *X, int64_t at, int64_t n, liger_dtype t,
                               real temperature) {
  load_row(z, X, at, n, t);
  if (temperature != 1)
    for (int64_t i = 0; i < n; i++) z[i] /= temperature;
}

static inline softmax_state state_of_row(const void *X, int64_t at, int64_t n_cols, liger_dtype t,
                                         real temperature) {
  real z[DIVERGENCE_TILE];
  softmax_state s = softmax_empty;
  for (int64_t c = 0; c < n_cols; c += DIVERGENCE_TILE) {
    const int64_t n = n_cols - c < DIVERGENCE_TILE ? n_cols - c : DIVERGENCE_TILE;
    load_scaled(z, X, at + c, n, t, temperature);
    s = softmax_push(s, z, n);
  }
  return s;
}
static inline row_softmax softmax_of_state(softmax_state s) {
  const row_softmax r = {softmax_ref(s.m), s.d == 0 ? 0 : log_real(s.d)}; /* d 0: nothing but -inf */
  return r;
}
static inline row_softmax softmax_of_row(const void *X, int64_t at, int64_t n_cols, liger_dtype t,
                                         real temperature) {
  return softmax_of_state(state_of_row(X, at, n_cols, t, temperature));
}

/* x[0..n) = the log-probabilities of n columns */
static inline void load_log_softmax(real *restrict x, const void *X, int64_t at, int64_t n, liger_dtype t,
                                    real temperature, row_softmax s) {
  load_scaled(x, X, at, n, t, temperature);
  for (int64_t i = 0; i < n; i++) x[i] = (x[i] - s.ref) - s.log_d;
}
#endif
