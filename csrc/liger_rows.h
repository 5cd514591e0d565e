/* More of the C API, by the rules of liger.h, which includes it: what sorts, gathers or normalises whole rows. */
#ifndef LIGER_ROWS_H
#define LIGER_ROWS_H
#include "liger.h"
#ifdef __cplusplus
extern "C" {
#endif

/* ---- softmax ----------------------------------------------------------------------------------------------
 *   Y = e^(X - m) / sum(e^(X - m)),  m = max X;      dX = Y (dY - sum(dY Y))       over the n_cols elements of a row
 * Element c of row (r, i) lies at r * row_stride + c * n_inner + i: n_inner is 1 for the last dimension. The
 * CPU functions take a range of tiles: tile t is LIGER_SOFTMAX_TILE neighbours i (or what is left) of
 * r = t / tiles per row. A row of -inf alone, or with a NaN or +inf, is NaN. */
enum { LIGER_SOFTMAX_TILE = 64 };

typedef struct {
  void *Y;       /* (n_rows, n_cols, n_inner), contiguous */
  const void *X; /* (n_rows, n_cols, n_inner), row stride X_row_stride */
  int64_t n_rows, n_cols, n_inner, X_row_stride;
  liger_dtype x_dtype;
} liger_softmax_fwd_args;

typedef struct {
  void *dX; /* (n_rows, n_cols, n_inner), contiguous; not dY or Y */
  const void *dY, *Y;
  int64_t n_rows, n_cols, n_inner, dY_row_stride, Y_row_stride;
  liger_dtype x_dtype;
} liger_softmax_bwd_args;

LIGER_API liger_status liger_softmax_fwd_cpu(const liger_softmax_fwd_args *a, int64_t tile_begin,
                                             int64_t tile_end);
LIGER_API liger_status liger_softmax_bwd_cpu(const liger_softmax_bwd_args *a, int64_t tile_begin,
                                             int64_t tile_end);
LIGER_API liger_status liger_softmax_fwd_cuda(const liger_softmax_fwd_args *a, void *stream);
LIGER_API liger_status liger_softmax_bwd_cuda(const liger_softmax_bwd_args *a, void *stream);

#ifdef __cplusplus
}
#endif
#endif
