/* fused_ce_tvd   cross entropy of a student's logits and total variation distance from a teacher's, per row, and dX;
 *            equations: csrc/liger_divergence.h
 * Shapes     X Y dX (n_rows, n_cols), last dim contiguous; ce tvd target and the stats (n_rows)
 * Rounding   fp32 (fp64) to the end; sums of a tile in fp32, of a row in fp64; dX is rounded once
 * Plan       forward: the two rows' softmax statistics, then tvd and sigma. Backward: one pass; m and log d are kept apart,
 *            since their sum rounds to 1e-3 where logits are 1e4 */
#include "divergence.h"

/* lse - m and m of the row's two softmaxes and sigma, where the glue keeps them */
static real *stat(const liger_fused_ce_tvd_args *a, int i, int64_t row) {
  return (real *)a->stats + i * a->n_rows + row;
}

static void ce_tvd_fwd(const liger_fused_ce_tvd_args *a, int64_t row, int64_t target) {
  real x[DIVERGENCE_TILE], y[DIVERGENCE_TILE];
  const row_softmax sx = softmax_of_row(a->X, row * a->X_row_stride, a->n_cols, a->x_dtype, 1);
  const row_softmax sy = softmax_of_row(a->Y, row * a->Y_row_stride, a->n_cols, a->x_dtype, 1);
  real x_target = 0;
  load_log_softmax(&x_target, a->X, row * a->X_row_stride + target, 1, a->x_dtype, 1, sx);
  double tvd = 0, sigma = 0;
  for (int64_t c = 0; c < a->n_cols; c += DIVERGENCE_TILE) {
    const int64_t n = a->n_cols - c < DIVERGENCE_TILE ? a->n_cols - c : DIVERGENCE_TILE;
    load_log_softmax(x, a->X, row * a->X_row_stride + c, n, a->x_dtype, 1, sx);
    load_log_softmax(y, a->Y, row * a->Y_row_stride + c, n, a->x_dtype, 1, sy);
    real sum = 0, signs = 0;
#pragma omp simd reduction(+ : sum, signs)
    for (int64_t i = 0; i < n; i++) {
      const real p = exp_nonpos(x[i]), q = exp_nonpos(y[i]), d = p - q;
      sum += d < 0 ? -d : d;
      signs += d > 0 ? p : d < 0 ? -p : 0;
    }
    tvd += (double)sum;
    sigma += (double)signs;
  }
  ((real *)a->ce)[row] = -x_target;
  ((real *)a->tvd)[row] = (real)(tvd / 2);
  *stat(a, 0, row) = sx.ref;
  *stat(a, 1, row) = sx.log_d;
  *stat(a, 2, row) = sy.ref;
  *stat(a, 3, row) = sy.log_d;
  *stat(a, 4, row) = (real)sigma;
}

static void ce_tvd_bwd(const liger_fused_ce_tvd_args *a, int64_t row, int64_t target) {
  real x[DIVERGENCE_TILE], y[DIVERGENCE_TILE];
  const row_softmax sx = {*stat(a, 0, row), *stat(a, 1, row)}, sy = {*stat(a, 2, row), *stat(a, 3, row)};
  const real of_ce = ((const real *)a->grad_ce)[row * a->grad_ce_stride], sigma = *stat(a, 4, row);
  const real of_tvd = ((const real *)a->grad_tvd)[row * a->grad_tvd_stride] / 2;
  for (int64_t c = 0; c < a->n_cols; c += DIVERGENCE_TILE) {
    const int64_t n = a->n_cols - c < DIVERGENCE_TILE ? a->n_cols - c : DIVERGENCE_TILE;
    load_log_softmax(x, a->X, row * a->X_row_stride + c, n, a->x_dtype, 1, sx);
    load_log_softmax(y, a->Y, row * a->Y_row_stride + c, n, a->x_dtype, 1, sy);
    for (int64_t i = 0; i < n; i++) {
      const real p = exp_nonpos(x[i]), q = exp_nonpos(y[i]), sign = p > q ? 1 : p < q ? -1 : 0;
      const real hit = i == target - c; /* p - 1 as one difference, before any factor */
      x[i] = of_ce * (p - hit) + of_tvd * p * (sign - sigma);
    }
    store_row(a->dX, row * a->dX_row_stride + c, x, n, a->x_dtype);
  }
}

/* a row without a loss of its own: 0 if it is ignored, NaN if its target is out of range */
static void ce_tvd_fill(const liger_fused_ce_tvd_args *a, int64_t row, real value) {
  real tile[DIVERGENCE_TILE];
  if (!a->dX) {
    ((real *)a->ce)[row] = ((real *)a->tvd)[row] = value;
    for (int i = 0; i < LIGER_CE_TVD_STATS; i++) *stat(a, i, row) = value;
    return;
  }
  for (int64_t i = 0; i < DIVERGENCE_TILE; i++) tile[i] = value;
  for (int64_t c = 0; c < a->n_cols; c += DIVERGENCE_TILE)
    store_row(a->dX, row * a->dX_row_stride + c, tile,
              a->n_cols - c < DIVERGENCE_TILE ? a->n_cols - c : DIVERGENCE_TILE, a->x_dtype);
}

liger_status LIGER_KERNEL(fused_ce_tvd)(const liger_fused_ce_tvd_args *a, int64_t row_begin,
                                        int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; row++) {
    const int64_t y = a->target[row * a->target_stride];
    if (y == a->ignore_index) ce_tvd_fill(a, row, 0);
    else if (y < 0 || y >= a->n_cols) ce_tvd_fill(a, row, NAN);
    else if (a->dX) ce_tvd_bwd(a, row, y);
    else ce_tvd_fwd(a, row, y);
  }
  return LIGER_OK;
}
LIGER_CPU_ENTRY(fused_ce_tvd, liger_fused_ce_tvd_args, x_dtype);
