/* The gated linear units' one loop, forward and backward: C = act(g A) * B * d and its gradients
 * (csrc/liger.h).
 *
 * An op file defines, before including this,
 *   static inline real activation(real x)                      act(x)
 *   static inline real activation_grad(real x, real *value)    act'(x), and act(x) in *value
 * Tensors of one dtype that the loop converts itself are read and written once, in one pass. The others pass
 * through `real` buffers of a tile, which stay in the first-level cache. */
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

LIGER_INLINE void glu_fwd_tile(void *restrict c, const void *restrict a, const void *restrict b, int64_t n,
                               real gate, real down, liger_dtype t) {
  for (int64_t i = 0; i < n; i++)
    store_element(c, i, activation(gate * load_element(a, i, t)) * (down * load_element(b, i, t)), t);
}

static inline liger_status glu_fwd(const liger_glu_fwd_args *args, int64_t tile_begin, int64_t tile_end) {
  real a[LIGER_GLU_TILE], b[LIGER_GLU_TILE], c[LIGER_GLU_TILE];
  const real gate = (real)args->gate_multiplier, down = (real)args->down_multiplier;
  const liger_dtype t = args->c_dtype;
  const int direct = args->a_dtype == t && args->b_dtype == t && element_direct(t);
  for (int64_t tile = tile_begin; tile < tile_end; tile++) {
    int64_t row, col;
    const int64_t n = glu_tile(tile, args->n_cols, &row, &col);
    const int64_t A_at = row * args->A_row_stride + col, B_at = row * args->B_row_stride + col;
    const int64_t at = row * args->n_cols + col;
    if (direct) {
      const void *A = elements_at(args->A, A_at, t), *B = elements_at(args->B, B_at, t);
      void *C = (void *)elements_at(args->C, at, t);
      if (t == LIGER_BF16) glu_fwd_tile(C, A, B, n, gate, down, LIGER_BF16);
      else glu_fwd_tile(C, A, B, n, gate, down, LIGER_REAL);
    } else {
      load_row(a, args->A, A_at, n, args->a_dtype);
      load_row(b, args->B, B_at, n, args->b_dtype);
      glu_fwd_tile(c, a, b, n, gate, down, LIGER_REAL);
      store_row(args->C, at, c, n, t);
    }
  }
  return LIGER_OK;
}

LIGER_INLINE void glu_bwd_tile(void *restrict da, void *restrict db, const void *restrict dc,
                               const void *restrict a, const void *restrict b, int64_t n, real gate,
                               real down, liger_dtype t) {
  for (int64_t i = 0; i < n; i++) {
    real value;
    const real slope = activation_grad(gate * load_element(a, i, t), &value);
    const real g = down * load_element(dc, i, t);
    store_element(da, i, g * load_element(b, i, t) * (slope * gate), t);
    store_element(db, i, g * value, t);
  }
}

static inline liger_status glu_bwd(const liger_glu_bwd_args *args, int64_t tile_begin, int64_t tile_end) {
  real a[LIGER_GLU_TILE], b[LIGER_GLU_TILE], dc[LIGER_GLU_TILE], da[LIGER_GLU_TILE], db[LIGER_GLU_TILE];
  const real gate = (real)args->gate_multiplier, down = (real)args->down_multiplier;
  const liger_dtype t = args->c_dtype;
  const int direct = args->a_dtype == t && args->b_dtype == t && element_direct(t) && args->dA && args->dB;
  for (int64_t tile = tile_begin; tile < tile_end; tile++) {
    int64_t row, col;
    const int64_t n = glu_tile(tile, args->n_cols, &row, &col);
    const int64_t A_at = row * args->A_row_stride + col, B_at = row * args->B_row_stride + col;
    const int64_t dC_at = row * args->dC_row_stride + col, at = row * args->n_cols + col;
    if (direct) {
      const void *A = elements_at(args->A, A_at, t), *B = elements_at(args->B, B_at, t);
      const void *dC = elements_at(args->dC, dC_at, t);
      void *dA = (void *)elements_at(args->dA, at, t), *dB = (void *)elements_at(args->dB, at, t);
      if (t == LIGER_BF16) glu_bwd_tile(dA, dB, dC, A, B, n, gate, down, LIGER_BF16);
      else glu_bwd_tile(dA, dB, dC, A, B, n, gate, down, LIGER_REAL);
    } else {
      load_row(a, args->A, A_at, n, args->a_dtype);
      load_row(b, args->B, B_at, n, args->b_dtype);
      load_row(dc, args->dC, dC_at, n, t);
      glu_bwd_tile(da, db, dc, a, b, n, gate, down, LIGER_REAL);
      if (args->dA) store_row(args->dA, at, da, n, args->a_dtype);
      if (args->dB) store_row(args->dB, at, db, n, args->b_dtype);
    }
  }
  return LIGER_OK;
}
#endif
