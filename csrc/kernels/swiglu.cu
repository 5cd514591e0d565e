/* swiglu     C = silu(g A) * B * d,   silu(x) = x s(x),   silu'(x) = s + x s (1 - s),   s(x) = 1 / (1 + e^-x)
 * Shapes     A B C dA dB dC (n_rows, n_cols), last dim contiguous; floor in glu.cuh, plan in elementwise.cuh
 * Rounding   fp32 to the end, one rounding at the store
 * Source     arXiv:2002.05202; LlamaMLP in transformers; the multipliers: FalconH1MLP */
#include "glu.cuh"

namespace {
struct silu {
  template <bool EXACT> static __device__ __forceinline__ float value(float x) {
    float rest;
    return x * logistic<EXACT>(x, &rest);
  }
  template <bool EXACT> static __device__ __forceinline__ float slope(float x, float *value) {
    float rest;
    const float s = logistic<EXACT>(x, &rest);
    *value = x * s;
    return s + *value * rest;
  }
};
} // namespace

extern "C" liger_status liger_swiglu_fwd_cuda(const liger_glu_fwd_args *a, void *stream) {
  return launch_glu<silu>(a, stream);
}
extern "C" liger_status liger_swiglu_bwd_cuda(const liger_glu_bwd_args *a, void *stream) {
  return launch_glu<silu>(a, stream);
}
