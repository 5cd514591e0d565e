/* geglu      C = gelu(g A) * B * d, with gelu by `gelu`:
 *            tanh    x (1 + tanh u) / 2,   u = sqrt(2/pi) (x + .044715 x^3)
 *                    computed as x s with s = 1 / (1 + e^-2u), since (1 + tanh u) / 2 = s
 *                    gelu'(x) = s + 2 x s (1 - s) u'
 *            exact   x P(x),   P(x) = (1 + erf(x / sqrt 2)) / 2;   gelu'(x) = P(x) + x e^(-x^2 / 2) / sqrt(2 pi)
 *            quick   x s(1.702 x),   s(v) = 1 / (1 + e^-v);        gelu'(x) = s + 1.702 x s (1 - s)
 * Shapes     A B C dA dB dC (n_rows, n_cols), last dim contiguous; floor in glu.cuh, plan in elementwise.cuh
 * Rounding   fp32 to the end, one rounding at the store
 * Source     arXiv:1606.08415, arXiv:2002.05202; GemmaMLP, GELUActivation, QuickGELUActivation in transformers */
#include "glu.cuh"

namespace {
struct gelu_tanh {
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

struct gelu_exact {
  static constexpr float SQRT_HALF = 0.70710678118654752f, INV_SQRT_2_PI = 0.39894228040143268f;

  /* P(x). Near 0 erf by an odd polynomial, further out erfc by e^polynomial, so that the left tail does not
   * cancel; both within an ulp of 1 */
  template <bool EXACT> static __device__ __forceinline__ float normal_cdf(float x) {
    const float y = x * SQRT_HALF, t = fabsf(y), z = y * y;
    float p = -0x1.38ep-11f, r = fmaf(-0x1.22p-16f, t, 0x1.91cfb2p-12f);
    p = fmaf(p, z, 0x1.471a58p-8f);
    p = fmaf(p, z, -0x1.b691b2p-6f);
    p = fmaf(p, z, 0x1.ce1c44p-4f);
    p = fmaf(p, z, -0x1.8127p-2f);
    p = fmaf(p, z, 0x1.06eba8p-3f);
    const float near = 0.5f + 0.5f * fmaf(p, y, y);
    r = fmaf(r, z, fmaf(-0x1.fd1438p-9f, t, 0x1.8d6342p-6f));
    r = fmaf(r, t, -0x1.b55cb8p-4f);
    r = fmaf(r, t, -0x1.450aap-1f);
    r = fmaf(r, t, -0x1.079d0cp-3f);
    r = fmaf(r, t, -t);
    const float tail = 0.5f * (EXACT ? expf(r) : __expf(r));
    return t < 0.93f ? near : y < 0.0f ? tail : 1.0f - tail;
  }
  template <bool EXACT> static __device__ __forceinline__ float value(float x) {
    return x * normal_cdf<EXACT>(x);
  }
  template <bool EXACT> static __device__ __forceinline__ float slope(float x, float *value) {
    const float p = normal_cdf<EXACT>(x), h = -0.5f * x * x;
    *value = x * p;
    return p + x * (INV_SQRT_2_PI * (EXACT ? expf(h) : __expf(h)));
  }
};

struct gelu_quick {
  static constexpr float QUICK = 1.702f;

  template <bool EXACT> static __device__ __forceinline__ float value(float x) {
    float rest;
    return x * logistic<EXACT>(QUICK * x, &rest);
  }
  template <bool EXACT> static __device__ __forceinline__ float slope(float x, float *value) {
    float rest;
    const float s = logistic<EXACT>(QUICK * x, &rest);
    *value = x * s;
    return s + QUICK * *value * rest;
  }
};

template <class Args> liger_status launch_geglu(const Args *a, void *stream) {
  switch (a->gelu) {
  case LIGER_GELU_TANH: return launch_glu<gelu_tanh>(a, stream);
  case LIGER_GELU_EXACT: return launch_glu<gelu_exact>(a, stream);
  case LIGER_GELU_QUICK: return launch_glu<gelu_quick>(a, stream);
  default: return LIGER_ERR_OPTION;
  }
}
} // namespace

extern "C" liger_status liger_geglu_fwd_cuda(const liger_glu_fwd_args *a, void *stream) {
  return launch_geglu(a, stream);
}
extern "C" liger_status liger_geglu_bwd_cuda(const liger_glu_bwd_args *a, void *stream) {
  return launch_geglu(a, stream);
}
