/* dyt        Y = gamma t + beta,   t = tanh(alpha X)
 *            dX = u alpha,   u = dY gamma (1 - t^2);   dalpha = sum(u X)
 *            dgamma = sum_rows(dY t),   dbeta = sum_rows(dY)
 *            with q = e^(-2 |alpha X|):   |t| = (1 - q) / (1 + q),   1 - t^2 = 4 q / (1 + q)^2
 * Shapes     X Y dX dY (n_rows, n_cols), last dim contiguous; gamma beta dgamma dbeta (n_cols); alpha dalpha (1)
 * Rounding   fp32 (fp64) to the end, one rounding at the store; dalpha by runs, in fp64 inside a block
 * Plan       tiles of LIGER_ELEMENT_TILE columns pass through `real` buffers, which stay in the first-level
 *            cache; backward by blocks of rows, whose partial sums are added in a fixed order
 * Source     arXiv:2503.10622 */
#include "primitives.h"

/* tanh x, and 1 - tanh^2 x without cancellation */
LIGER_INLINE real tanh_and_slope(real x, real *slope) {
  if (sizeof(real) == 4) {
    const float a = fabsf((float)x), q = exp_nonpos_f32(-2.0f * a), r = 1.0f / (1.0f + q);
    const float near = tanh_near_f32((float)x), far = (1.0f - q) * r;
    *slope = (real)(4.0f * q * r * r);
    return (real)(a < TANH_NEAR ? near : x < 0 ? -far : far);
  }
  const double q = exp(-2 * fabs((double)x)), r = 1 / (1 + q);
  *slope = (real)(4 * q * r * r);
  return (real)tanh((double)x);
}

static real scalar(const void *p, liger_dtype t) {
  real v = 0;
  load_row(&v, p, 0, 1, t);
  return v;
}
static int64_t tile_width(int64_t n_cols, int64_t col) {
  return n_cols - col < LIGER_ELEMENT_TILE ? n_cols - col : LIGER_ELEMENT_TILE;
}

LIGER_INLINE void fwd_tile(void *restrict y, const void *restrict x, const real *restrict gamma,
                           const real *restrict beta, int64_t n, real alpha, liger_dtype t) {
  for (int64_t i = 0; i < n; i++) {
    real slope;
    store_element(y, i, gamma[i] * tanh_and_slope(alpha * load_element(x, i, t), &slope) + beta[i], t);
  }
}

/* Columns outside, rows inside: the parameters of a tile are read once. */
liger_status LIGER_KERNEL(dyt_fwd)(const liger_dyt_fwd_args *a, int64_t row_begin, int64_t row_end) {
  real x[LIGER_ELEMENT_TILE], y[LIGER_ELEMENT_TILE], gamma[LIGER_ELEMENT_TILE], beta[LIGER_ELEMENT_TILE];
  const liger_dtype t = a->x_dtype;
  const real alpha = scalar(a->alpha, a->alpha_dtype);
  memset(beta, 0, sizeof beta);
  for (int64_t col = 0; col < a->n_cols; col += LIGER_ELEMENT_TILE) {
    const int64_t n = tile_width(a->n_cols, col);
    load_row(gamma, a->gamma, col, n, a->gamma_dtype);
    if (a->beta) load_row(beta, a->beta, col, n, a->beta_dtype);
    for (int64_t row = row_begin; row < row_end; row++) {
      const void *X = view_row(x, a->X, row * a->X_row_stride + col, n, t);
      const int64_t at = row * a->n_cols + col;
      void *Y = element_direct(t) ? (void *)elements_at(a->Y, at, t) : y;
      if (direct_dtype(t) == LIGER_BF16) fwd_tile(Y, X, gamma, beta, n, alpha, LIGER_BF16);
      else fwd_tile(Y, X, gamma, beta, n, alpha, LIGER_REAL);
      if (!element_direct(t)) store_row(a->Y, at, y, n, t);
    }
  }
  return LIGER_OK;
}

/* dX of a tile, its part of dgamma and dbeta added to theirs; returns its part of dalpha, by runs: short
 * ones in fp64, whose loop calls libm and is a single chain of additions */
LIGER_INLINE double bwd_tile(void *restrict dx, real *restrict dgamma, real *restrict dbeta,
                             const void *restrict dy, const void *restrict x, const real *restrict gamma,
                             int64_t n, real alpha, liger_dtype t) {
  const int64_t run = sizeof(real) == 4 ? 128 : 16;
  double dalpha = 0;
  for (int64_t c = 0; c < n; c += run) {
    const int64_t end = run_end(c, n, run);
    real sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = c; i < end; i++) {
      const real v = load_element(x, i, t), g = load_element(dy, i, t);
      real slope;
      const real th = tanh_and_slope(alpha * v, &slope), u = g * gamma[i] * slope;
      dgamma[i] += g * th;
      dbeta[i] += g;
      sum += u * v;
      store_element(dx, i, u * alpha, t);
    }
    dalpha += (double)sum;
  }
  return dalpha;
}

/* the workspace: dgamma and dbeta of every block (n_blocks, n_cols), then dalpha of every block */
typedef struct {
  real *dgamma, *dbeta, *dalpha;
} dyt_partials;
static dyt_partials partials(const liger_dyt_bwd_args *a, int64_t n_blocks) {
  real *p = (real *)a->workspace;
  const dyt_partials w = {p, p + n_blocks * a->n_cols, p + 2 * n_blocks * a->n_cols};
  return w;
}

liger_status LIGER_KERNEL(dyt_bwd)(const liger_dyt_bwd_args *a, int64_t block_begin, int64_t block_end) {
  real x[LIGER_ELEMENT_TILE], dy[LIGER_ELEMENT_TILE], dx[LIGER_ELEMENT_TILE], gamma[LIGER_ELEMENT_TILE];
  real dgamma[LIGER_ELEMENT_TILE], dbeta[LIGER_ELEMENT_TILE];
  const liger_dtype t = a->x_dtype;
  const real alpha = scalar(a->alpha, a->alpha_dtype);
  const int64_t n_blocks = liger_dyt_bwd_blocks_cpu(a->n_rows);
  const dyt_partials to = partials(a, n_blocks);
  for (int64_t block = block_begin; block < block_end; block++) {
    int64_t first, last;
    block_rows(block, n_blocks, a->n_rows, &first, &last);
    double dalpha = 0;
    for (int64_t col = 0; col < a->n_cols; col += LIGER_ELEMENT_TILE) {
      const int64_t n = tile_width(a->n_cols, col);
      load_row(gamma, a->gamma, col, n, a->gamma_dtype);
      memset(dgamma, 0, sizeof dgamma);
      memset(dbeta, 0, sizeof dbeta);
      for (int64_t row = first; row < last; row++) {
        const void *X = view_row(x, a->X, row * a->X_row_stride + col, n, t);
        const void *dY = view_row(dy, a->dY, row * a->dY_row_stride + col, n, t);
        const int64_t at = row * a->n_cols + col;
        void *dX = element_direct(t) ? (void *)elements_at(a->dX, at, t) : dx;
        dalpha += direct_dtype(t) == LIGER_BF16
                      ? bwd_tile(dX, dgamma, dbeta, dY, X, gamma, n, alpha, LIGER_BF16)
                      : bwd_tile(dX, dgamma, dbeta, dY, X, gamma, n, alpha, LIGER_REAL);
        if (!element_direct(t)) store_row(a->dX, at, dx, n, t);
      }
      if (a->dgamma) memcpy(to.dgamma + block * a->n_cols + col, dgamma, (size_t)n * sizeof(real));
      if (a->dbeta) memcpy(to.dbeta + block * a->n_cols + col, dbeta, (size_t)n * sizeof(real));
    }
    if (a->dalpha) to.dalpha[block] = (real)dalpha;
  }
  return LIGER_OK;
}

liger_status LIGER_KERNEL(dyt_params)(const liger_dyt_bwd_args *a, int64_t col_begin, int64_t col_end) {
  const int64_t n_blocks = liger_dyt_bwd_blocks_cpu(a->n_rows);
  const dyt_partials from = partials(a, n_blocks);
  if (col_end > a->n_cols) col_end = a->n_cols; /* without columns dalpha is still written */
  if (a->dgamma) column_sum(a->dgamma, from.dgamma, n_blocks, a->n_cols, col_begin, col_end, a->gamma_dtype);
  if (a->dbeta) column_sum(a->dbeta, from.dbeta, n_blocks, a->n_cols, col_begin, col_end, a->beta_dtype);
  if (a->dalpha && col_begin == 0) column_sum(a->dalpha, from.dalpha, n_blocks, 1, 0, 1, a->alpha_dtype);
  return LIGER_OK;
}

#if LIGER_BASE_UNIT
/* Fixed by the sizes alone, so that the sums have the same bits whatever the thread count; a block holds at
 * least 16 rows. */
int64_t liger_dyt_bwd_blocks_cpu(int64_t n_rows) {
  const int64_t n = n_rows / 16;
  return n < 1 ? 1 : n > 64 ? 64 : n;
}
int64_t liger_dyt_bwd_workspace_cpu(int64_t n_rows, int64_t n_cols, liger_dtype x_dtype) {
  (void)x_dtype;
  return liger_dyt_bwd_blocks_cpu(n_rows) * (2 * n_cols + 1);
}
#endif
LIGER_CPU_ENTRY(dyt_fwd, liger_dyt_fwd_args, x_dtype);
LIGER_CPU_ENTRY(dyt_bwd, liger_dyt_bwd_args, x_dtype);
LIGER_CPU_ENTRY(dyt_params, liger_dyt_bwd_args, x_dtype);
