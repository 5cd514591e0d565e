/* swiglu     C = silu(g A) * B * d,   silu(x) = x s(x),   silu'(x) = s + x s (1 - s),   s(x) = 1 / (1 + e^-x)
 * Shapes     A B C dA dB dC (n_rows, n_cols), last dim contiguous; gradients in glu.h
 * Rounding   fp32 (fp64) to the end, one rounding at the store
 * Source     arXiv:2002.05202; LlamaMLP in transformers; the multipliers: FalconH1MLP */
#include "glu.h"

LIGER_INLINE real silu(real x) {
  real rest;
  return x * sigmoid_and_complement(x, &rest);
}

LIGER_INLINE real silu_grad(real x, real *value) {
  real rest;
  const real s = sigmoid_and_complement(x, &rest);
  *value = x * s;
  return s + *value * rest;
}

LIGER_GLU(silu, silu, silu_grad);

liger_status LIGER_KERNEL(swiglu_fwd)(const liger_glu_fwd_args *a, int64_t tile_begin, int64_t tile_end) {
  return silu_fwd(a, tile_begin, tile_end);
}
liger_status LIGER_KERNEL(swiglu_bwd)(const liger_glu_bwd_args *a, int64_t tile_begin, int64_t tile_end) {
  return silu_bwd(a, tile_begin, tile_end);
}
LIGER_CPU_ENTRY(swiglu_fwd, liger_glu_fwd_args, c_dtype);
LIGER_CPU_ENTRY(swiglu_bwd, liger_glu_bwd_args, c_dtype);
