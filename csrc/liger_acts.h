/* The sections of the C API for activations of one tensor; liger.h includes it. */
#ifndef LIGER_ACTS_H
#define LIGER_ACTS_H
#ifndef LIGER_H
#error "include liger.h"
#endif

/* ---- relu_squared -----------------------------------------------------------------------------------------
 *   Y = max(X, 0)^2,   dX = dY * 2 max(X, 0) */
typedef struct {
  void *Y;        /* (n_rows, n_cols), contiguous: Y forward, dX backward */
  const void *dY; /* NULL forward */
  const void *X;
  int64_t n_rows, n_cols, dY_row_stride, X_row_stride;
  liger_dtype x_dtype;
} liger_relu_squared_args;

LIGER_API liger_status liger_relu_squared_cpu(const liger_relu_squared_args *a, int64_t tile_begin,
                                              int64_t tile_end);
LIGER_API liger_status liger_relu_squared_cuda(const liger_relu_squared_args *a, void *stream);

/* ---- dyt --------------------------------------------------------------------------------------------------
 *   Y = gamma tanh(alpha X) + beta                    alpha: a scalar; gamma, beta: one value per column
 *   dX = dY gamma alpha (1 - t^2),  t = tanh(alpha X);   dalpha = sum(dY gamma (1 - t^2) X)
 *   dgamma = sum_rows(dY t),   dbeta = sum_rows(dY) */
typedef struct {
  void *Y;                  /* (n_rows, n_cols), contiguous, x_dtype */
  const void *X, *alpha;    /* alpha (1) */
  const void *gamma, *beta; /* (n_cols); beta NULL: none */
  int64_t n_rows, n_cols, X_row_stride;
  liger_dtype x_dtype, alpha_dtype, gamma_dtype, beta_dtype;
} liger_dyt_fwd_args;

typedef struct {
  void *dX;                      /* (n_rows, n_cols), contiguous, x_dtype */
  void *dalpha, *dgamma, *dbeta; /* (1), (n_cols), (n_cols) in their parameters' dtypes; NULL: not wanted */
  void *workspace; /* liger_dyt_bwd_workspace_{cpu,cuda} elements of fp32 (fp64); unused if none is wanted */
  const void *dY, *X, *alpha, *gamma;
  int64_t n_rows, n_cols, dY_row_stride, X_row_stride;
  liger_dtype x_dtype, alpha_dtype, gamma_dtype, beta_dtype;
} liger_dyt_bwd_args;

LIGER_API liger_status liger_dyt_fwd_cpu(const liger_dyt_fwd_args *a, int64_t row_begin, int64_t row_end);
LIGER_API int64_t liger_dyt_bwd_blocks_cpu(int64_t n_rows);
LIGER_API int64_t liger_dyt_bwd_workspace_cpu(int64_t n_rows, int64_t n_cols, liger_dtype x_dtype);
/* dX of the blocks' rows and the blocks' partial sums; then the parameters' gradients = the partials added in
 * block order, columns [begin, end), dalpha with column 0 */
LIGER_API liger_status liger_dyt_bwd_cpu(const liger_dyt_bwd_args *a, int64_t block_begin, int64_t block_end);
LIGER_API liger_status liger_dyt_params_cpu(const liger_dyt_bwd_args *a, int64_t col_begin, int64_t col_end);
LIGER_API liger_status liger_dyt_fwd_cuda(const liger_dyt_fwd_args *a, void *stream);
LIGER_API int64_t liger_dyt_bwd_workspace_cuda(int64_t n_rows, int64_t n_cols, liger_dtype x_dtype);
LIGER_API liger_status liger_dyt_bwd_cuda(const liger_dyt_bwd_args *a, void *stream);

/* ---- poly_norm --------------------------------------------------------------------------------------------
 *   Y = w0 X^3 r3 + w1 X^2 r2 + w2 X r1 + b,   rk = 1/sqrt(mean_row(X^2k) + eps)
 *   dX = sum_k k X^(k-1) rk wk (dY - X^k rk^2 mean_row(dY X^k))     wk: the weight of X^k
 *   dW = sum over rows of rk sum_row(dY X^k), k = 3, 2, 1;   db = sum(dY) */
typedef struct {
  void *Y;               /* (n_rows, n_cols), contiguous, x_dtype */
  void *rstd;            /* (n_rows, 3), fp32 (fp64): r3, r2, r1 */
  const void *X, *W, *b; /* W (3), b (1) */
  int64_t n_rows, n_cols, X_row_stride;
  double eps;
  liger_dtype x_dtype, w_dtype, b_dtype;
} liger_poly_norm_fwd_args;

typedef struct {
  void *dX;        /* (n_rows, n_cols), contiguous, x_dtype */
  void *dW, *db;   /* (3), (1); NULL: not wanted */
  void *workspace; /* 4 * n_blocks elements of fp32 (fp64); NULL where neither is wanted */
  const void *dY, *X, *W, *rstd;
  int64_t n_rows, n_cols, dY_row_stride, X_row_stride;
  int64_t n_blocks; /* from liger_poly_norm_bwd_blocks_{cpu,cuda} */
  liger_dtype x_dtype, w_dtype, b_dtype;
} liger_poly_norm_bwd_args;

LIGER_API liger_status liger_poly_norm_fwd_cpu(const liger_poly_norm_fwd_args *a, int64_t row_begin,
                                               int64_t row_end);
LIGER_API int64_t liger_poly_norm_bwd_blocks_cpu(int64_t n_rows, int64_t n_cols);
LIGER_API liger_status liger_poly_norm_bwd_cpu(const liger_poly_norm_bwd_args *a, int64_t block_begin,
                                               int64_t block_end);
/* the parameters' gradients, once all blocks are done: begin 0, end 1 */
LIGER_API liger_status liger_poly_norm_params_cpu(const liger_poly_norm_bwd_args *a, int64_t begin,
                                                  int64_t end);
LIGER_API liger_status liger_poly_norm_fwd_cuda(const liger_poly_norm_fwd_args *a, void *stream);
LIGER_API int64_t liger_poly_norm_bwd_blocks_cuda(int64_t n_rows, int64_t n_cols, liger_dtype x_dtype);
LIGER_API liger_status liger_poly_norm_bwd_cuda(const liger_poly_norm_bwd_args *a, void *stream);
#endif
