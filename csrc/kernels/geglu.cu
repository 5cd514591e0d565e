/* geglu      C = gelu(g A) * B * d,   gelu(x) = x (1 + tanh u) / 2,   u = sqrt(2/pi) (x + .044715 x^3)
 *            computed as x s with s = 1 / (1 + e^-2u), since (1 + tanh u) / 2 = s
 *            gelu'(x) = s + 2 x s (1 - s) u'
 * Shapes     A B C dA dB dC (n_rows, n_cols), last dim contiguous; loop, plan and floor in glu.cuh
 * Rounding   fp32 to the end, one rounding at the store
 * Source     arXiv:1606.08415, arXiv:2002.05202; GemmaMLP in transformers */
#include "glu.cuh"

namespace {
struct gelu {
  static constexpr float TWO_SQRT_2_OVER_PI = 1.5957691216057307f, CUBIC = 0.044715f;

  template <bool EXACT> static __device__ __forceinline__ float value(float x) {
    float rest;
    return x * logistic<EXACT>(TWO_SQRT_2_OVER_PI * x * (1.0f + CUBIC * x * x), &rest);
  }
  template <bool EXACT> static __device__ __forceinline__ float slope(float x, float *value) {
    float rest;
    const float x2 = x * x, s = logistic<EXACT>(TWO_SQRT_2_OVER_PI * x * (1.0f + CUBIC * x2), &rest);
    *value = x * s;
    return s + *value * rest * (TWO_SQRT_2_OVER_PI * (1.0f + 3.0f * CUBIC * x2));
  }
};
} // namespace

extern "C" liger_status liger_geglu_fwd_cuda(const liger_glu_fwd_args *a, void *stream) {
  return launch_glu<gelu>(a, stream);
}
extern "C" liger_status liger_geglu_bwd_cuda(const liger_glu_bwd_args *a, void *stream) {
  return launch_glu<gelu>(a, stream);
}
