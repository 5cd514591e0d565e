/* More of the C API, by the rules of liger.h, which includes it: what normalises or gathers whole rows. */
#ifndef LIGER_ROWS_H
#define LIGER_ROWS_H
#include "liger.h"
#ifdef __cplusplus
extern "C" {
#endif

/* ---- softmax ----------------------------------------------------------------------------------------------
 *   Y = e^(X - m) / sum(e^(X - m)),  m = max X;      dX = Y (dY - sum(dY Y))       per row of n_cols
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

/* ---- sparsemax --------------------------------------------------------------------------------------------
 *   Y = max(X - tau, 0) with tau such that sum(Y) = 1
 *   dX = dY - mean of dY over Y > 0, where Y > 0, else 0
 * n_inner is 1. The CPU functions take a range of rows. A row that has no such tau (a NaN, +inf, -inf alone)
 * is NaN. */
LIGER_API liger_status liger_sparsemax_fwd_cpu(const liger_softmax_fwd_args *a, int64_t row_begin,
                                               int64_t row_end);
LIGER_API liger_status liger_sparsemax_bwd_cpu(const liger_softmax_bwd_args *a, int64_t row_begin,
                                               int64_t row_end);
LIGER_API liger_status liger_sparsemax_fwd_cuda(const liger_softmax_fwd_args *a, void *stream);
LIGER_API liger_status liger_sparsemax_bwd_cuda(const liger_softmax_bwd_args *a, void *stream);

/* ---- embedding --------------------------------------------------------------------------------------------
 *   Y_t = W_{ids_t}
 *   dW_v = sum of dY_t over the t with ids_t = v, in the order of t; 0 for v = padding_idx
 * Backward takes the ids sorted (stably) and adds up each run of equal ids. The sorted ids are cut into
 * n_slices slices, whatever the runs; what a slice finds of a run that goes on outside it lands in `partial`,
 * and is added up in the slices' order: the same bits every run, and a million times one id is no single
 * thread's work. An id outside [0, n_embeddings): nothing is read or written out of bounds, the token's Y is
 * NaN, and its dY is in no gradient (the CPU glue refuses it before any work). */
typedef struct {
  void *Y;       /* (n_rows, n_cols), contiguous */
  const void *W; /* (n_embeddings, n_cols), row stride W_row_stride */
  const int64_t *ids;
  int64_t n_rows, n_cols, n_embeddings, W_row_stride;
  liger_dtype x_dtype;
} liger_embedding_fwd_args;

typedef struct {
  void *dW; /* (n_embeddings, n_cols), contiguous */
  /* (2, n_slices, n_cols) fp32 (fp64): of the run that began before the slice; of the one that goes on */
  void *partial;
  const void *dY; /* (n_rows, n_cols), row stride dY_row_stride */
  const int64_t *sorted_ids,
      *order; /* (n_rows): the ids in ascending order, and the row of dY that each has */
  int64_t n_rows, n_cols, n_embeddings, dY_row_stride;
  int64_t n_slices;    /* liger_embedding_slices(n_rows) */
  int64_t padding_idx; /* -1: none */
  liger_dtype x_dtype;
} liger_embedding_bwd_args;

/* at least 32 ids each; at most 2048 of them, which bounds `partial` and the last sum */
static inline int64_t liger_embedding_slices(int64_t n_rows) {
  return n_rows < 64 ? 1 : n_rows / 32 < 2048 ? n_rows / 32 : 2048;
}

LIGER_API liger_status liger_embedding_fwd_cpu(const liger_embedding_fwd_args *a, int64_t row_begin,
                                               int64_t row_end);
/* in this order: the slices' sums, [begin, end) of n_slices; the runs that cross slices, by the slice they
 * begin in; zeros in the rows of dW that no id names, [begin, end) of n_embeddings */
LIGER_API liger_status liger_embedding_bwd_cpu(const liger_embedding_bwd_args *a, int64_t slice_begin,
                                               int64_t slice_end);
LIGER_API liger_status liger_embedding_join_cpu(const liger_embedding_bwd_args *a, int64_t slice_begin,
                                                int64_t slice_end);
LIGER_API liger_status liger_embedding_zero_cpu(const liger_embedding_bwd_args *a, int64_t row_begin,
                                                int64_t row_end);
LIGER_API liger_status liger_embedding_fwd_cuda(const liger_embedding_fwd_args *a, void *stream);
LIGER_API liger_status liger_embedding_bwd_cuda(const liger_embedding_bwd_args *a, void *stream);
/* the first of n ids outside [0, n_embeddings), or -1 */
LIGER_API int64_t liger_embedding_bad_id_cpu(const int64_t *ids, int64_t n, int64_t n_embeddings);

#ifdef __cplusplus
}
#endif
#endif
