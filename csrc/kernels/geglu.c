/* geglu      C = gelu(g A) * B * d,   gelu(x) = x (1 + tanh u) / 2,   u = sqrt(2/pi) (x + .044715 x^3)
 *            computed as x s with s = 1 / (1 + e^-2u), since (1 + tanh u) / 2 = s
 *            gelu'(x) = s + 2 x s (1 - s) u'
 * Shapes     A B C dA dB dC (n_rows, n_cols), last dim contiguous; loop and gradients in glu.h
 * Rounding   fp32 (fp64) to the end, one rounding at the store
 * Source     arXiv:1606.08415, arXiv:2002.05202; GemmaMLP in transformers */
#include "primitives.h"

#define TWO_SQRT_2_OVER_PI ((real)1.5957691216057307117597842397375)
#define CUBIC ((real)0.044715)

static inline real activation(real x) {
  real rest;
  return x * sigmoid_and_complement(TWO_SQRT_2_OVER_PI * x * (1 + CUBIC * x * x), &rest);
}

static inline real activation_grad(real x, real *value) {
  real rest;
  const real x2 = x * x, s = sigmoid_and_complement(TWO_SQRT_2_OVER_PI * x * (1 + CUBIC * x2), &rest);
  *value = x * s;
  return s + *value * rest * (TWO_SQRT_2_OVER_PI * (1 + 3 * CUBIC * x2));
}

#include "glu.h"

liger_status LIGER_KERNEL(geglu_fwd)(const liger_glu_fwd_args *a, int64_t tile_begin, int64_t tile_end) {
  return glu_fwd(a, tile_begin, tile_end);
}
liger_status LIGER_KERNEL(geglu_bwd)(const liger_glu_bwd_args *a, int64_t tile_begin, int64_t tile_end) {
  return glu_bwd(a, tile_begin, tile_end);
}
LIGER_CPU_ENTRY(geglu_fwd, liger_glu_fwd_args, c_dtype);
LIGER_CPU_ENTRY(geglu_bwd, liger_glu_bwd_args, c_dtype);
