/* The gated linear units' arithmetic, forward and backward: C = act(g A) * B * d and its gradients
 * (csrc/liger.h). The loop is elementwise.h's.
 *
 * An op file brings two inline functions and makes its kernels of them by
 *   LIGER_GLU(name, activation, activation_grad)
 *   real activation(real x)                      act(x)
 *   real activation_grad(real x, real *value)    act'(x), and act(x) in *value */
#ifndef LIGER_GLU_H
#define LIGER_GLU_H
#include "elementwise.h"

typedef real glu_activation(real x);
typedef real glu_activation_grad(real x, real *value);
typedef struct {
  real gate, down;
} glu_multipliers;

LIGER_INLINE void glu_fwd_loop(void *restrict c, const void *restrict a, const void *restrict b, int64_t n,
                               glu_activation *activation, glu_multipliers m, liger_dtype t) {
  for (int64_t i = 0; i < n; i++)
    store_element(c, i, activation(m.gate * load_element(a, i, t)) * (m.down * load_element(b, i, t)), t);
}
/* The gradients may lie over a and b, element for element: all of an element is read before any of it is
 * written, and nothing says `restrict`; simd says that no element is another's. */
LIGER_INLINE void glu_bwd_loop(void *da, void *db, const void *dc, const void *a, const void *b, int64_t n,
                               glu_activation_grad *activation_grad, glu_multipliers m, liger_dtype t) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    const real x = load_element(a, i, t), y = load_element(b, i, t), g = m.down * load_element(dc, i, t);
    real value;
    const real slope = activation_grad(m.gate * x, &value);
    store_element(da, i, g * y * (slope * m.gate), t);
    store_element(db, i, g * value, t);
  }
}

LIGER_INLINE liger_status glu_fwd(elementwise_tile *tile, const liger_glu_fwd_args *a, int64_t begin,
                                  int64_t end) {
  const glu_multipliers m = {(real)a->gate_multiplier, (real)a->down_multiplier};
  const elementwise_rows out[] = {{a->C, a->n_cols, a->c_dtype}};
  const elementwise_rows in[] = {{a->A, a->A_row_stride, a->a_dtype}, {a->B, a->B_row_stride, a->b_dtype}};
  return elementwise(tile, 1, out, 2, in, a->n_cols, &m, begin, end);
}
LIGER_INLINE liger_status glu_bwd(elementwise_tile *tile, const liger_glu_bwd_args *a, int64_t begin,
                                  int64_t end) {
  const glu_multipliers m = {(real)a->gate_multiplier, (real)a->down_multiplier};
  const elementwise_rows out[] = {{a->dA, a->dA_row_stride, a->a_dtype},
                                  {a->dB, a->dB_row_stride, a->b_dtype}};
  const elementwise_rows in[] = {{a->A, a->A_row_stride, a->a_dtype},
                                 {a->B, a->B_row_stride, a->b_dtype},
                                 {a->dC, a->dC_row_stride, a->c_dtype}};
  return elementwise(tile, 2, out, 3, in, a->n_cols, &m, begin, end);
}

/* static functions name_fwd and name_bwd of (args, begin, end) */
#define LIGER_GLU(name, activation, activation_grad)                                                       \
  LIGER_INLINE void name##_fwd_tile(void *const *out, const void *const *in, int64_t n, const void *m,     \
                                    liger_dtype t) {                                                       \
    glu_fwd_loop(out[0], in[0], in[1], n, activation, *(const glu_multipliers *)m, t);                     \
  }                                                                                                        \
  LIGER_INLINE void name##_bwd_tile(void *const *out, const void *const *in, int64_t n, const void *m,     \
                                    liger_dtype t) {                                                       \
    glu_bwd_loop(out[0], out[1], in[2], in[0], in[1], n, activation_grad, *(const glu_multipliers *)m, t); \
  }                                                                                                        \
  static liger_status name##_fwd(const liger_glu_fwd_args *a, int64_t begin, int64_t end) {                \
    return glu_fwd(name##_fwd_tile, a, begin, end);                                                        \
  }                                                                                                        \
  static liger_status name##_bwd(const liger_glu_bwd_args *a, int64_t begin, int64_t end) {                \
    return glu_bwd(name##_bwd_tile, a, begin, end);                                                        \
  }                                                                                                        \
  _Static_assert(sizeof(real) > 0, "")
#endif
