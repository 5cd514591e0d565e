/* relu_squared   Y = max(X, 0)^2,   dX = dY * 2 max(X, 0)
 * Shapes         X Y dX dY (n_rows, n_cols), last dim contiguous; loop in elementwise.h
 * Rounding       fp32 (fp64) to the end, one rounding at the store
 * Source         arXiv:2109.08668; ReLUSquaredActivation in transformers */
#include "elementwise.h"

/* a NaN stays one: x < 0 is false */
LIGER_INLINE real relu(real x) { return x < 0 ? 0 : x; }

LIGER_INLINE void fwd_loop(void *restrict y, const void *restrict x, int64_t n, liger_dtype t) {
  for (int64_t i = 0; i < n; i++) {
    const real r = relu(load_element(x, i, t));
    store_element(y, i, r * r, t);
  }
}
LIGER_INLINE void bwd_loop(void *restrict dx, const void *restrict dy, const void *restrict x, int64_t n,
                           liger_dtype t) {
  for (int64_t i = 0; i < n; i++)
    store_element(dx, i, load_element(dy, i, t) * (2 * relu(load_element(x, i, t))), t);
}
LIGER_INLINE void fwd_tile(void *const *out, const void *const *in, int64_t n, const void *options,
                           liger_dtype t) {
  (void)options;
  fwd_loop(out[0], in[0], n, t);
}
LIGER_INLINE void bwd_tile(void *const *out, const void *const *in, int64_t n, const void *options,
                           liger_dtype t) {
  (void)options;
  bwd_loop(out[0], in[1], in[0], n, t);
}

liger_status LIGER_KERNEL(relu_squared)(const liger_relu_squared_args *a, int64_t tile_begin,
                                        int64_t tile_end) {
  const elementwise_rows out = {a->Y, a->n_cols, a->x_dtype};
  const elementwise_rows in[] = {{a->X, a->X_row_stride, a->x_dtype}, {a->dY, a->dY_row_stride, a->x_dtype}};
  return a->dY ? elementwise(bwd_tile, 1, &out, 2, in, a->n_cols, NULL, tile_begin, tile_end)
               : elementwise(fwd_tile, 1, &out, 1, in, a->n_cols, NULL, tile_begin, tile_end);
}
LIGER_CPU_ENTRY(relu_squared, liger_relu_squared_args, x_dtype);
