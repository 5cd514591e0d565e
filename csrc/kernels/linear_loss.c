/* What the block loop of a linear loss needs beside the products and the loss kernel.
 *
 * convert     dst = src, or dst + src: operands and results whose dtype is not the products', dW's
 *             accumulators
 * bias_grad   sum = column sums of dlogits, or sum + them. Rows are added in groups of 64 and the groups
 *             in order: as exact as a cascade, and the same bits whatever the thread count, since a column
 *             has one thread */
#include "primitives.h"

enum { LL_TILE = 2048, LL_COLS = 256, LL_GROUP = 64 };

liger_status LIGER_KERNEL(convert)(const liger_convert_args *a, int64_t row_begin, int64_t row_end) {
  real x[LL_TILE], sum[LL_TILE];
  for (int64_t row = row_begin; row < row_end; row++)
    for (int64_t c = 0; c < a->n_cols; c += LL_TILE) {
      const int64_t n = a->n_cols - c < LL_TILE ? a->n_cols - c : LL_TILE;
      load_row(x, a->src, row * a->src_row_stride + c, n, a->src_dtype);
      if (a->add) {
        load_row(sum, a->dst, row * a->dst_row_stride + c, n, a->dst_dtype);
        for (int64_t i = 0; i < n; i++) x[i] += sum[i];
      }
      store_row(a->dst, row * a->dst_row_stride + c, x, n, a->dst_dtype);
    }
  return LIGER_OK;
}

liger_status LIGER_KERNEL(bias_grad)(const liger_bias_grad_args *a, int64_t col_begin, int64_t col_end) {
  real x[LL_COLS], group[LL_COLS], sum[LL_COLS];
  for (int64_t c = col_begin; c < col_end; c += LL_COLS) {
    const int64_t n = col_end - c < LL_COLS ? col_end - c : LL_COLS;
    memset(sum, 0, sizeof sum);
    for (int64_t first = 0; first < a->n_rows; first += LL_GROUP) {
      const int64_t last = first + LL_GROUP < a->n_rows ? first + LL_GROUP : a->n_rows;
      memset(group, 0, sizeof group);
      for (int64_t row = first; row < last; row++) {
        load_row(x, a->X, row * a->X_row_stride + c, n, a->x_dtype);
        for (int64_t i = 0; i < n; i++) group[i] += x[i];
      }
      for (int64_t i = 0; i < n; i++) sum[i] += group[i];
    }
    real *restrict out = (real *)a->sum + c;
    for (int64_t i = 0; i < n; i++) out[i] = a->add ? out[i] + sum[i] : sum[i];
  }
  return LIGER_OK;
}

LIGER_CPU_ENTRY(convert, liger_convert_args, real_dtype);
LIGER_CPU_ENTRY(bias_grad, liger_bias_grad_args, x_dtype);
