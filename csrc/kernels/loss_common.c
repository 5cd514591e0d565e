/* What the losses share: the sum over rows that reduction="mean" and "sum" end in, and the incoming
 * gradient applied to a gradient that the forward saved.
 *
 * row_sum      out = sum(x) / divisor
 * scale_grad   dst = src * scale, per row or one scale for all; in place, rows whose scale is exactly 1
 *              are left alone */
#include "primitives.h"

liger_status LIGER_KERNEL(row_sum)(const liger_row_sum_args *a, int64_t begin, int64_t end) {
  const real *const x = (const real *)a->x;
  double s = 0; /* one addition per row: exactness costs nothing */
  for (int64_t i = begin; i < end; i++) s += (double)x[i];
  const double divisor = a->divisor ? (double)*(const real *)a->divisor : 1;
  *(real *)a->out = divisor == 0 ? 0 : (real)(s / divisor);
  return LIGER_OK;
}

liger_status LIGER_KERNEL(scale_grad)(const liger_scale_grad_args *a, int64_t row_begin, int64_t row_end) {
  enum { SCALE_TILE = 2048 };
  real x[SCALE_TILE];
  for (int64_t row = row_begin; row < row_end; row++) {
    const real scale = ((const real *)a->scale)[row * a->scale_stride];
    if (scale == 1 && a->dst == a->src) continue;
    for (int64_t c = 0; c < a->n_cols; c += SCALE_TILE) {
      const int64_t n = a->n_cols - c < SCALE_TILE ? a->n_cols - c : SCALE_TILE;
      load_row(x, a->src, row * a->src_row_stride + c, n, a->x_dtype);
      for (int64_t i = 0; i < n; i++) x[i] *= scale;
      store_row(a->dst, row * a->dst_row_stride + c, x, n, a->x_dtype);
    }
  }
  return LIGER_OK;
}

LIGER_CPU_ENTRY(row_sum, liger_row_sum_args, dtype);
LIGER_CPU_ENTRY(scale_grad, liger_scale_grad_args, scale_dtype);
