/* The gated linear units' one loop, forward and backward: C = act(g A) * B * d and its gradients (csrc/liger.h).
 *
 * An op file defines, before including this,
 *   static inline real activation(real x)                      act(x)
 *   static inline real activation_grad(real x, real *value)    act'(x), and act(x) in *value
 * A tile passes through `real` buffers that stay in the first-level cache; nothing but A and B is needed backward.  */
#ifndef LIGER_GLU_H
#define LIGER_GLU_H
#include "primitives.h"

/* row, first column and width of tile t */
static inline int64_t glu_tile(int64_t t, int64_t n_cols, int64_t *row, int64_t *col) {
  const int64_t per_row = (n_cols + LIGER_GLU_TILE - 1) / LIGER_GLU_TILE;
  *row = t / per_row;
  *col = t % per_row * LIGER_GLU_TILE;
  return n_cols - *col < LIGER_GLU_TILE ? n_cols - *col : LIGER_GLU_TILE;
}

static inline liger_status glu_fwd(const liger_glu_fwd_args *args, int64_t tile_begin, int64_t tile_end) {
  real a[LIGER_GLU_TILE], b[LIGER_GLU_TILE];
  const real gate = (real)args->gate_multiplier, down = (real)args->down_multiplier;
  for (int64_t t = tile_begin; t < tile_end; t++) {
    int64_t row, col;
    const int64_t n = glu_tile(t, args->n_cols, &row, &col);
    load_row(a, args->A, row * args->A_row_stride + col, n, args->a_dtype);
    load_row(b, args->B, row * args->B_row_stride + col, n, args->b_dtype);
    for (int64_t i = 0; i < n; i++)
      a[i] = activation(gate * a[i]) * (down * b[i]);
    store_row(args->C, row * args->n_cols + col, a, n, args->c_dtype);
  }
  return LIGER_OK;
}

static inline liger_status glu_bwd(const liger_glu_bwd_args *args, int64_t tile_begin, int64_t tile_end) {
  real a[LIGER_GLU_TILE], b[LIGER_GLU_TILE], dc[LIGER_GLU_TILE];
  const real gate = (real)args->gate_multiplier, down = (real)args->down_multiplier;
  for (int64_t t = tile_begin; t < tile_end; t++) {
    int64_t row, col;
    const int64_t n = glu_tile(t, args->n_cols, &row, &col);
    load_row(a, args->A, row * args->A_row_stride + col, n, args->a_dtype);
    load_row(b, args->B, row * args->B_row_stride + col, n, args->b_dtype);
    load_row(dc, args->dC, row * args->dC_row_stride + col, n, args->c_dtype);
    for (int64_t i = 0; i < n; i++) {
      real value;
      const real slope = activation_grad(gate * a[i], &value), g = down * dc[i];
      a[i] = g * b[i] * slope * gate;
      b[i] = g * value;
    }
    if (args->dA)
      store_row(args->dA, row * args->n_cols + col, a, n, args->a_dtype);
    if (args->dB)
      store_row(args->dB, row * args->n_cols + col, b, n, args->b_dtype);
  }
  return LIGER_OK;
}
#endif
