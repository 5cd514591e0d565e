/* poly_norm  Y = w0 X^3 r3 + w1 X^2 r2 + w2 X r1 + b,   rk = 1/sqrt(mean(X^2k) + eps)                  per row
 *            with ak = k rk wk, ck = rk^2 mean(dY X^k) and wk the weight of X^k:
 *            dX = dY (a1 + a2 X + a3 X^2) - X (a1 c1 + a2 c2 X^2 + a3 c3 X^4)
 *            dW = sum over rows of rk sum_row(dY X^k), k = 3, 2, 1;   db = sum(dY)
 * Shapes     X Y dX dY (n_rows, n_cols), last dim contiguous; W dW (3); b db (1); rstd (n_rows, 3) real
 * Rounding   fp32 (fp64) to the end, one rounding at the store; sums in runs of LIGER_RUN elements, which are
 *            added up in fp64 inside a block
 * Plan       a row passes through `real` buffers of LIGER_TILE columns; a wider row is read twice
 * Source     arXiv:2411.03884 */
#include "primitives.h"

static int64_t tile_width(int64_t n_cols, int64_t col) {
  return n_cols - col < LIGER_TILE ? n_cols - col : LIGER_TILE;
}

LIGER_INLINE void add_powers(double *sum, const void *X, int64_t n, liger_dtype t) {
  for (int64_t c = 0; c < n; c += LIGER_RUN) {
    const int64_t end = run_end(c, n, LIGER_RUN);
    real s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s1, s2, s3)
    for (int64_t i = c; i < end; i++) {
      const real x = load_element(X, i, t), x2 = x * x;
      s1 += x2;
      s2 += x2 * x2;
      s3 += x2 * x2 * x2;
    }
    sum[0] += (double)s3;
    sum[1] += (double)s2;
    sum[2] += (double)s1;
  }
}
/* y = x (c[2] + x (c[1] + x c[0])) + b */
LIGER_INLINE void polynomial(void *Y, const void *X, const real *c, real b, int64_t n, liger_dtype t) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    const real x = load_element(X, i, t);
    store_element(Y, i, x * (c[2] + x * (c[1] + x * c[0])) + b, t);
  }
}

liger_status LIGER_KERNEL(poly_norm_fwd)(const liger_poly_norm_fwd_args *a, int64_t row_begin,
                                         int64_t row_end) {
  real x[LIGER_TILE], w[3] = {0}, b = 0;
  const int64_t n_cols = a->n_cols;
  const liger_dtype t = a->x_dtype;
  load_row(w, a->W, 0, 3, a->w_dtype);
  load_row(&b, a->b, 0, 1, a->b_dtype);
  for (int64_t row = row_begin; row < row_end; row++) {
    const void *X = NULL;
    double sum[3] = {0, 0, 0};
    for (int64_t c = 0; c < n_cols; c += LIGER_TILE) {
      X = view_row(x, a->X, row * a->X_row_stride + c, tile_width(n_cols, c), t);
      if (direct_dtype(t) == LIGER_BF16) add_powers(sum, X, tile_width(n_cols, c), LIGER_BF16);
      else add_powers(sum, X, tile_width(n_cols, c), LIGER_REAL);
    }
    real c3[3];
    for (int k = 0; k < 3; k++) {
      const real r = (real)(1 / sqrt(sum[k] / (double)n_cols + a->eps));
      ((real *)a->rstd)[3 * row + k] = r;
      c3[k] = w[k] * r;
    }
    for (int64_t c = 0; c < n_cols; c += LIGER_TILE) {
      const int64_t n = tile_width(n_cols, c), at = row * n_cols + c;
      if (n_cols > LIGER_TILE) X = view_row(x, a->X, row * a->X_row_stride + c, n, t);
      void *Y = element_direct(t) ? (void *)elements_at(a->Y, at, t) : x;
      if (direct_dtype(t) == LIGER_BF16) polynomial(Y, X, c3, b, n, LIGER_BF16);
      else polynomial(Y, X, c3, b, n, LIGER_REAL);
      if (!element_direct(t)) store_row(a->Y, at, x, n, t);
    }
  }
  return LIGER_OK;
}

/* sums of dY X^3, dY X^2, dY X, dY */
LIGER_INLINE void add_products(double *sum, const void *dY, const void *X, int64_t n, liger_dtype t) {
  for (int64_t c = 0; c < n; c += LIGER_RUN) {
    const int64_t end = run_end(c, n, LIGER_RUN);
    real s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
    for (int64_t i = c; i < end; i++) {
      const real x = load_element(X, i, t), dy = load_element(dY, i, t);
      s0 += dy;
      s1 += dy * x;
      s2 += dy * x * x;
      s3 += dy * x * x * x;
    }
    sum[0] += (double)s3;
    sum[1] += (double)s2;
    sum[2] += (double)s1;
    sum[3] += (double)s0;
  }
}
/* k = {a1, a2, a3, a1 c1, a2 c2, a3 c3} */
LIGER_INLINE void dx_tile(void *dX, const void *dY, const void *X, const real *k, int64_t n, liger_dtype t) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    const real x = load_element(X, i, t), x2 = x * x;
    const real slope = k[0] + x * (k[1] + x * k[2]), mean = k[3] + x2 * (k[4] + x2 * k[5]);
    store_element(dX, i, load_element(dY, i, t) * slope - x * mean, t);
  }
}

liger_status LIGER_KERNEL(poly_norm_bwd)(const liger_poly_norm_bwd_args *a, int64_t block_begin,
                                         int64_t block_end) {
  real x[LIGER_TILE], dy[LIGER_TILE], w[3] = {0};
  const int64_t n_cols = a->n_cols;
  const liger_dtype t = a->x_dtype;
  const int bf16 = direct_dtype(t) == LIGER_BF16;
  load_row(w, a->W, 0, 3, a->w_dtype);
  for (int64_t block = block_begin; block < block_end; block++) {
    double total[4] = {0, 0, 0, 0};
    int64_t row, last;
    for (block_rows(block, a->n_blocks, a->n_rows, &row, &last); row < last; row++) {
      const void *X = NULL, *dY = NULL;
      double sum[4] = {0, 0, 0, 0};
      for (int64_t c = 0; c < n_cols; c += LIGER_TILE) {
        const int64_t n = tile_width(n_cols, c);
        X = view_row(x, a->X, row * a->X_row_stride + c, n, t);
        dY = view_row(dy, a->dY, row * a->dY_row_stride + c, n, t);
        if (bf16) add_products(sum, dY, X, n, LIGER_BF16);
        else add_products(sum, dY, X, n, LIGER_REAL);
      }
      real k[6];
      for (int i = 0; i < 3; i++) { /* rstd and W have the highest power first */
        const real r = ((const real *)a->rstd)[3 * row + i];
        total[i] += (double)r * sum[i];
        k[2 - i] = (real)(3 - i) * r * w[i];
        k[5 - i] = k[2 - i] * r * r * (real)(sum[i] / (double)n_cols);
      }
      total[3] += sum[3];
      for (int64_t c = 0; c < n_cols; c += LIGER_TILE) {
        const int64_t n = tile_width(n_cols, c), at = row * n_cols + c;
        if (n_cols > LIGER_TILE) {
          X = view_row(x, a->X, row * a->X_row_stride + c, n, t);
          dY = view_row(dy, a->dY, row * a->dY_row_stride + c, n, t);
        }
        void *dX = element_direct(t) ? (void *)elements_at(a->dX, at, t) : dy;
        if (bf16) dx_tile(dX, dY, X, k, n, LIGER_BF16);
        else dx_tile(dX, dY, X, k, n, LIGER_REAL);
        if (!element_direct(t)) store_row(a->dX, at, dy, n, t);
      }
    }
    for (int i = 0; i < 4 && a->workspace; i++) {
      real *const to = (real *)a->workspace;
      to[i < 3 ? 3 * block + i : 3 * a->n_blocks + block] = (real)total[i];
    }
  }
  return LIGER_OK;
}

liger_status LIGER_KERNEL(poly_norm_params)(const liger_poly_norm_bwd_args *a, int64_t begin, int64_t end) {
  if (begin != 0 || end != 1) return LIGER_ERR_SIZE;
  const real *from = (const real *)a->workspace;
  if (a->dW) column_sum(a->dW, from, a->n_blocks, 3, 0, 3, a->w_dtype);
  if (a->db) column_sum(a->db, from + 3 * a->n_blocks, a->n_blocks, 1, 0, 1, a->b_dtype);
  return LIGER_OK;
}

#if LIGER_BASE_UNIT
/* Fixed by the sizes alone, so that the sums have the same bits whatever the thread count */
int64_t liger_poly_norm_bwd_blocks_cpu(int64_t n_rows, int64_t n_cols) {
  (void)n_cols;
  const int64_t n = n_rows / 16;
  return n < 1 ? 1 : n > 64 ? 64 : n;
}
#endif
LIGER_CPU_ENTRY(poly_norm_fwd, liger_poly_norm_fwd_args, x_dtype);
LIGER_CPU_ENTRY(poly_norm_bwd, liger_poly_norm_bwd_args, x_dtype);
LIGER_CPU_ENTRY(poly_norm_params, liger_poly_norm_bwd_args, x_dtype);
