/* The gated linear units on a GPU: C = act(g A) * B * d and its gradients (csrc/liger.h), for the kernel of
 * elementwise.cuh. An op file brings
 *   struct act { static float value(float x); static float slope(float x, float *value); }, each templated
 *   on EXACT: whether the result is stored as fp32, or rounded to 16 bits, where the fast exponential and
 *   division do.
 * Floor      fwd 3*N*s bytes;  bwd 5*N*s    (N = n_rows*n_cols) */
#ifndef LIGER_GLU_CUH
#define LIGER_GLU_CUH
#include "elementwise.cuh"

namespace {

/* s = 1 / (1 + e^-x), and 1 - s without cancellation. e^-x is held inside the normal numbers; a NaN stays
 * one. */
template <bool EXACT> __device__ __forceinline__ float logistic(float x, float *complement) {
  const float c = x < -87.0f ? -87.0f : x > 87.0f ? 87.0f : x;
  const float e = EXACT ? expf(-c) : __expf(-c);
  const float s = EXACT ? 1.0f / (1.0f + e) : __fdividef(1.0f, 1.0f + e);
  *complement = e * s;
  return s;
}

/* C from A, B */
template <class Act> struct glu_fwd {
  static constexpr int IN = 2, OUT = 1;
  float gate, down;
  template <bool EXACT> __device__ __forceinline__ void apply(const float (&x)[IN], float (&y)[OUT]) const {
    y[0] = Act::template value<EXACT>(gate * x[0]) * down * x[1];
  }
};

/* dA, dB from A, B, dC */
template <class Act> struct glu_bwd {
  static constexpr int IN = 3, OUT = 2;
  float gate, down;
  template <bool EXACT> __device__ __forceinline__ void apply(const float (&x)[IN], float (&y)[OUT]) const {
    float value;
    const float slope = Act::template slope<EXACT>(gate * x[0], &value), g = x[2] * down;
    y[0] = g * x[1] * slope * gate;
    y[1] = g * value;
  }
};

template <class Act> liger_status launch_glu(const liger_glu_fwd_args *a, void *stream) {
  const elementwise_args<2, 1> args = {{a->A, a->B},
                                       {a->C},
                                       {a->A_row_stride, a->B_row_stride},
                                       {a->n_cols},
                                       {a->a_dtype, a->b_dtype},
                                       {a->c_dtype},
                                       a->n_rows,
                                       a->n_cols};
  const glu_fwd<Act> f = {(float)a->gate_multiplier, (float)a->down_multiplier};
  return launch_elementwise(args, f, stream);
}
template <class Act> liger_status launch_glu(const liger_glu_bwd_args *a, void *stream) {
  const elementwise_args<3, 2> args = {{a->A, a->B, a->dC},
                                       {a->dA, a->dB},
                                       {a->A_row_stride, a->B_row_stride, a->dC_row_stride},
                                       {a->dA_row_stride, a->dB_row_stride},
                                       {a->a_dtype, a->b_dtype, a->c_dtype},
                                       {a->a_dtype, a->b_dtype},
                                       a->n_rows,
                                       a->n_cols};
  const glu_bwd<Act> f = {(float)a->gate_multiplier, (float)a->down_multiplier};
  return launch_elementwise(args, f, stream);
}
} // namespace
#endif
