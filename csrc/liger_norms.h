/* The norms' section of the C API; liger.h includes it. */
#ifndef LIGER_NORMS_H
#define LIGER_NORMS_H
#ifndef LIGER_H
#error "include liger.h"
#endif

/* ---- norms of rows: rms_norm, layer_norm, fused_add_rms_norm ------------------------------------------------
 *   s    = X + R rounded to x_dtype, or X          xhat = (s - mean) rstd, mean 0 in an RMS norm
 *   Y    = xhat (W + offset) + bias
 *   m    = dY (W + offset)
 *   dX   = rstd (m - mean_row(m) - xhat mean_row(m xhat)) + dS          mean_row(m): 0 in an RMS norm
 *   dW   = sum_rows(dY xhat),   dbias = sum_rows(dY)
 * All matrices (n_rows, n_cols), S and dX contiguous; a row stride of 0 is one row, repeated. "real" is fp64 for
 * fp64 inputs, else fp32. */
typedef enum { LIGER_CAST_NONE = 0, LIGER_CAST_LLAMA = 1, LIGER_CAST_GEMMA = 2 } liger_rms_norm_casting;

typedef struct {
  void *Y, *S;          /* x_dtype; S: X + R, NULL but in fused_add_rms_norm */
  void *mean, *rstd;    /* (n_rows), real; mean: NULL in an RMS norm */
  const void *X, *R;    /* x_dtype; R: NULL but in fused_add_rms_norm */
  const void *W, *bias; /* (n_cols); W NULL: no weight and no offset; bias NULL: none */
  int64_t n_rows, n_cols, X_row_stride, R_row_stride, Y_row_stride;
  double eps, offset;
  int casting; /* liger_rms_norm_casting: where an RMS norm rounds */
  liger_dtype x_dtype, w_dtype, bias_dtype;
} liger_norm_fwd_args;

typedef struct {
  void *dX;                         /* may be dY or X where the caller permits it */
  void *dW, *dbias;                 /* NULL: not wanted */
  void *dW_partial, *dbias_partial; /* (n_blocks, n_cols), real; NULL with dW, dbias */
  const void *dY, *dS, *X, *W;      /* X: what the forward normalised; dS: incoming gradient of S, or NULL */
  const void *mean, *rstd;
  int64_t n_rows, n_cols, dY_row_stride, dS_row_stride, X_row_stride;
  int64_t n_blocks; /* from liger_<op>_bwd_blocks_{cpu,cuda} */
  double offset;
  liger_dtype x_dtype, w_dtype, bias_dtype;
} liger_norm_bwd_args;

/* CPU ranges: rows forward, blocks of rows backward, columns of dW and dbias in _params, which adds the blocks'
 * partial sums in order */
LIGER_API liger_status liger_rms_norm_fwd_cpu(const liger_norm_fwd_args *a, int64_t row_begin,
                                              int64_t row_end);
LIGER_API int64_t liger_rms_norm_bwd_blocks_cpu(int64_t n_rows, int64_t n_cols);
LIGER_API liger_status liger_rms_norm_bwd_cpu(const liger_norm_bwd_args *a, int64_t block_begin,
                                              int64_t block_end);
LIGER_API liger_status liger_rms_norm_params_cpu(const liger_norm_bwd_args *a, int64_t col_begin,
                                                 int64_t col_end);
LIGER_API liger_status liger_rms_norm_fwd_cuda(const liger_norm_fwd_args *a, void *stream);
LIGER_API int64_t liger_rms_norm_bwd_blocks_cuda(int64_t n_rows, int64_t n_cols, liger_dtype x_dtype);
LIGER_API liger_status liger_rms_norm_bwd_cuda(const liger_norm_bwd_args *a, void *stream);

LIGER_API liger_status liger_layer_norm_fwd_cpu(const liger_norm_fwd_args *a, int64_t row_begin,
                                                int64_t row_end);
LIGER_API int64_t liger_layer_norm_bwd_blocks_cpu(int64_t n_rows, int64_t n_cols);
LIGER_API liger_status liger_layer_norm_bwd_cpu(const liger_norm_bwd_args *a, int64_t block_begin,
                                                int64_t block_end);
LIGER_API liger_status liger_layer_norm_params_cpu(const liger_norm_bwd_args *a, int64_t col_begin,
                                                   int64_t col_end);
LIGER_API liger_status liger_layer_norm_fwd_cuda(const liger_norm_fwd_args *a, void *stream);
LIGER_API int64_t liger_layer_norm_bwd_blocks_cuda(int64_t n_rows, int64_t n_cols, liger_dtype x_dtype);
LIGER_API liger_status liger_layer_norm_bwd_cuda(const liger_norm_bwd_args *a, void *stream);

LIGER_API liger_status liger_fused_add_rms_norm_fwd_cpu(const liger_norm_fwd_args *a, int64_t row_begin,
                                                        int64_t row_end);
LIGER_API int64_t liger_fused_add_rms_norm_bwd_blocks_cpu(int64_t n_rows, int64_t n_cols);
LIGER_API liger_status liger_fused_add_rms_norm_bwd_cpu(const liger_norm_bwd_args *a, int64_t block_begin,
                                                        int64_t block_end);
LIGER_API liger_status liger_fused_add_rms_norm_params_cpu(const liger_norm_bwd_args *a, int64_t col_begin,
                                                           int64_t col_end);
LIGER_API liger_status liger_fused_add_rms_norm_fwd_cuda(const liger_norm_fwd_args *a, void *stream);
LIGER_API int64_t liger_fused_add_rms_norm_bwd_blocks_cuda(int64_t n_rows, int64_t n_cols,
                                                           liger_dtype x_dtype);
LIGER_API liger_status liger_fused_add_rms_norm_bwd_cuda(const liger_norm_bwd_args *a, void *stream);

/* ---- group_norm -----------------------------------------------------------------------------------------------
 * A group is n_channels / n_groups channels of one batch entry; with xhat = (X - mean) rstd per group:
 *   Y  = xhat W + bias,   m = dY W,   dX = rstd (m - mean_group(m) - xhat mean_group(m xhat))
 *   dW = sum over batch and inner of dY xhat,   dbias = the same of dY
 * X Y dX dY are (n_batch, n_channels, n_inner), contiguous; W bias dW dbias (n_channels); mean rstd (n_batch,
 * n_groups), real. */
typedef struct {
  void *Y, *mean, *rstd;
  void *slice_stats;        /* GPU with n_slices > 1: 3 * n_batch * n_groups * n_slices fp32 */
  const void *X, *W, *bias; /* W NULL: 1; bias NULL: 0 */
  int64_t n_batch, n_channels, n_inner, n_groups;
  int64_t n_slices; /* from liger_group_norm_fwd_slices_cuda; 1 on the CPU */
  double eps;
  liger_dtype x_dtype, w_dtype, bias_dtype;
} liger_group_norm_fwd_args;

typedef struct {
  void *dX, *dW, *dbias; /* dW, dbias NULL: not wanted */
  void *dW_partial,
      *dbias_partial; /* (n_slices, n_batch, n_channels), real: always needed, dX is made of them */
  const void *dY, *X, *W, *mean, *rstd;
  int64_t n_batch, n_channels, n_inner, n_groups;
  int64_t n_slices; /* from liger_group_norm_bwd_slices_cuda; 1 on the CPU */
  liger_dtype x_dtype, w_dtype, bias_dtype;
} liger_group_norm_bwd_args;

/* CPU ranges: groups of all batch entries, in _params channels */
LIGER_API liger_status liger_group_norm_fwd_cpu(const liger_group_norm_fwd_args *a, int64_t group_begin,
                                                int64_t group_end);
LIGER_API liger_status liger_group_norm_bwd_cpu(const liger_group_norm_bwd_args *a, int64_t group_begin,
                                                int64_t group_end);
LIGER_API liger_status liger_group_norm_params_cpu(const liger_group_norm_bwd_args *a, int64_t channel_begin,
                                                   int64_t channel_end);
/* of a group's elements; of a channel's */
LIGER_API int64_t liger_group_norm_fwd_slices_cuda(int64_t group_size);
LIGER_API int64_t liger_group_norm_bwd_slices_cuda(int64_t n_inner);
LIGER_API liger_status liger_group_norm_fwd_cuda(const liger_group_norm_fwd_args *a, void *stream);
LIGER_API liger_status liger_group_norm_bwd_cuda(const liger_group_norm_bwd_args *a, void *stream);

/* ---- modulated_rms_norm -----------------------------------------------------------------------------------
 *   Y = xhat M + shift,   M = (W + offset)(1 + scale),   xhat = X rstd,   rstd = 1/sqrt(mean_row(X^2) + eps)
 *   dX = rstd (m - xhat mean_row(m xhat)),   m = dY M;   with G = sum(dY xhat) over the rows of a modulation:
 *   dscale = G (W + offset),   dshift = sum(dY) over them,   dW = sum over modulations of (1 + scale) G
 * Row r has modulation r / (n_rows / n_modulations). */
typedef struct {
  void *Y, *rstd;            /* (n_rows, n_cols) contiguous, x_dtype; (n_rows), real */
  const void *X, *W;         /* W (n_cols), or NULL: no weight and no offset */
  const void *scale, *shift; /* (n_modulations, n_cols); shift NULL: none */
  int64_t n_rows, n_cols, n_modulations, X_row_stride, scale_row_stride, shift_row_stride;
  double eps, offset;
  int casting; /* liger_rms_norm_casting */
  liger_dtype x_dtype, w_dtype, scale_dtype, shift_dtype;
} liger_modulated_rms_norm_fwd_args;

typedef struct {
  void *dX;                   /* (n_rows, n_cols), contiguous, x_dtype */
  void *dW, *dscale, *dshift; /* (n_cols), (n_modulations, n_cols) contiguous, twice; NULL: not wanted */
  void *workspace;            /* 3 * n_blocks * n_cols reals */
  const void *dY, *X, *W, *scale, *rstd;
  int64_t n_rows, n_cols, n_modulations, dY_row_stride, X_row_stride, scale_row_stride;
  int64_t n_blocks; /* from liger_modulated_rms_norm_bwd_blocks_{cpu,cuda} */
  double offset;
  liger_dtype x_dtype, w_dtype, scale_dtype, shift_dtype;
} liger_modulated_rms_norm_bwd_args;

/* How blocks share the rows: more blocks than modulations are a multiple of them, each a piece of one
 * modulation's rows; otherwise a block has some whole modulations. */
LIGER_API liger_status liger_modulated_rms_norm_fwd_cpu(const liger_modulated_rms_norm_fwd_args *a,
                                                        int64_t row_begin, int64_t row_end);
LIGER_API int64_t liger_modulated_rms_norm_bwd_blocks_cpu(int64_t n_rows, int64_t n_cols,
                                                          int64_t n_modulations, liger_dtype x_dtype);
LIGER_API liger_status liger_modulated_rms_norm_bwd_cpu(const liger_modulated_rms_norm_bwd_args *a,
                                                        int64_t block_begin, int64_t block_end);
LIGER_API liger_status liger_modulated_rms_norm_params_cpu(const liger_modulated_rms_norm_bwd_args *a,
                                                           int64_t col_begin, int64_t col_end);
LIGER_API liger_status liger_modulated_rms_norm_fwd_cuda(const liger_modulated_rms_norm_fwd_args *a,
                                                         void *stream);
LIGER_API int64_t liger_modulated_rms_norm_bwd_blocks_cuda(int64_t n_rows, int64_t n_cols,
                                                           int64_t n_modulations, liger_dtype x_dtype);
LIGER_API liger_status liger_modulated_rms_norm_bwd_cuda(const liger_modulated_rms_norm_bwd_args *a,
                                                         void *stream);
#endif
