/* geglu      C = gelu(g A) * B * d, with gelu by `gelu`:
 *            tanh    x (1 + tanh u) / 2,   u = sqrt(2/pi) (x + .044715 x^3)
 *                    computed as x s with s = 1 / (1 + e^-2u), since (1 + tanh u) / 2 = s
 *                    gelu'(x) = s + 2 x s (1 - s) u'
 *            exact   x P(x),   P(x) = (1 + erf(x / sqrt 2)) / 2;   gelu'(x) = P(x) + x e^(-x^2 / 2) / sqrt(2 pi)
 *            quick   x s(1.702 x),   s(v) = 1 / (1 + e^-v);        gelu'(x) = s + 1.702 x s (1 - s)
 * Shapes     A B C dA dB dC (n_rows, n_cols), last dim contiguous; gradients in glu.h
 * Rounding   fp32 (fp64) to the end, one rounding at the store
 * Source     arXiv:1606.08415, arXiv:2002.05202; GemmaMLP, GELUActivation, QuickGELUActivation in transformers */
#include "glu.h"

#define TWO_SQRT_2_OVER_PI ((real)1.5957691216057307117597842397375)
#define CUBIC ((real)0.044715)
#define QUICK ((real)1.702)
#define SQRT_HALF 0.70710678118654752440
#define INV_SQRT_2_PI ((real)0.39894228040143267794)

LIGER_INLINE real gelu_tanh(real x) {
  real rest;
  return x * sigmoid_and_complement(TWO_SQRT_2_OVER_PI * x * (1 + CUBIC * x * x), &rest);
}
LIGER_INLINE real gelu_tanh_grad(real x, real *value) {
  real rest;
  const real x2 = x * x, s = sigmoid_and_complement(TWO_SQRT_2_OVER_PI * x * (1 + CUBIC * x2), &rest);
  *value = x * s;
  return s + *value * rest * (TWO_SQRT_2_OVER_PI * (1 + 3 * CUBIC * x2));
}

/* P(x). Near 0 erf by an odd polynomial, further out erfc by e^polynomial, so that the left tail does not
 * cancel; both within an ulp of 1 */
static inline float normal_cdf_f32(float x) {
  const float y = x * (float)SQRT_HALF, t = fabsf(y), z = y * y;
  float p = -0x1.38ep-11f, r = -0x1.22p-16f * t + 0x1.91cfb2p-12f;
  p = p * z + 0x1.471a58p-8f;
  p = p * z - 0x1.b691b2p-6f;
  p = p * z + 0x1.ce1c44p-4f;
  p = p * z - 0x1.8127p-2f;
  p = p * z + 0x1.06eba8p-3f;
  const float near = 0.5f + 0.5f * (p * y + y);
  r = r * z + (-0x1.fd1438p-9f * t + 0x1.8d6342p-6f);
  r = r * t - 0x1.b55cb8p-4f;
  r = r * t - 0x1.450aap-1f;
  r = r * t - 0x1.079d0cp-3f;
  const float tail = 0.5f * exp_nonpos_f32(r * t - t);
  return t < 0.93f ? near : y < 0 ? tail : 1.0f - tail;
}
LIGER_INLINE real normal_cdf(real x) {
  return sizeof(real) == 4 ? (real)normal_cdf_f32((float)x) : (real)(0.5 * erfc((double)x * -SQRT_HALF));
}
LIGER_INLINE real gelu_exact(real x) { return x * normal_cdf(x); }
LIGER_INLINE real gelu_exact_grad(real x, real *value) {
  const real p = normal_cdf(x);
  *value = x * p;
  return p + x * (INV_SQRT_2_PI * exp_nonpos(-x * x / 2));
}

LIGER_INLINE real gelu_quick(real x) {
  real rest;
  return x * sigmoid_and_complement(QUICK * x, &rest);
}
LIGER_INLINE real gelu_quick_grad(real x, real *value) {
  real rest;
  const real s = sigmoid_and_complement(QUICK * x, &rest);
  *value = x * s;
  return s + QUICK * *value * rest;
}

LIGER_GLU(tanh_form, gelu_tanh, gelu_tanh_grad);
LIGER_GLU(exact_form, gelu_exact, gelu_exact_grad);
LIGER_GLU(quick_form, gelu_quick, gelu_quick_grad);

liger_status LIGER_KERNEL(geglu_fwd)(const liger_glu_fwd_args *a, int64_t tile_begin, int64_t tile_end) {
  switch (a->gelu) {
  case LIGER_GELU_TANH: return tanh_form_fwd(a, tile_begin, tile_end);
  case LIGER_GELU_EXACT: return exact_form_fwd(a, tile_begin, tile_end);
  case LIGER_GELU_QUICK: return quick_form_fwd(a, tile_begin, tile_end);
  default: return LIGER_ERR_OPTION;
  }
}
liger_status LIGER_KERNEL(geglu_bwd)(const liger_glu_bwd_args *a, int64_t tile_begin, int64_t tile_end) {
  switch (a->gelu) {
  case LIGER_GELU_TANH: return tanh_form_bwd(a, tile_begin, tile_end);
  case LIGER_GELU_EXACT: return exact_form_bwd(a, tile_begin, tile_end);
  case LIGER_GELU_QUICK: return quick_form_bwd(a, tile_begin, tile_end);
  default: return LIGER_ERR_OPTION;
  }
}
LIGER_CPU_ENTRY(geglu_fwd, liger_glu_fwd_args, c_dtype);
LIGER_CPU_ENTRY(geglu_bwd, liger_glu_bwd_args, c_dtype);
