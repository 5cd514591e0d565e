/* group_norm   Y = xhat * W + bias,   xhat = (X - mean) * rstd,   rstd = 1/sqrt(var(X) + eps)        per group
 *              dX = rstd * (m - mean(m) - xhat * mean(m * xhat)),   m = dY * W
 *              dW = sum over batch and inner of dY * xhat,   dbias = the same of dY
 * Shapes       X Y dX dY (n_batch, n_channels, n_inner), contiguous; W bias (n_channels); a group is n_channels /
 *              n_groups neighbouring channels of one batch entry: n_inner times as many elements in a row
 * Statistics   as layer_norm's, of the whole group
 * Plan         forward: a group is read for its statistics and again, channel by channel. Backward: sums of each
 *              channel give both the group's means and, added up over the batch in order, dW and dbias
 * Source       arXiv:1803.08494; torch.nn.GroupNorm */
#include "norm.h"

static real load_scalar(const void *P, int64_t i, liger_dtype t, real otherwise) {
  real p = otherwise;
  if (P) load_row(&p, P, i, 1, t);
  return p;
}

LIGER_INLINE void scale_run(void *Y, const void *X, int64_t n, norm_stats s, real scale, real shift,
                            liger_dtype t) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++)
    store_element(Y, i, ((load_element(X, i, t) - s.mean) - s.rest) * scale + shift, t);
}

liger_status LIGER_KERNEL(group_norm_fwd)(const liger_group_norm_fwd_args *a, int64_t group_begin,
                                          int64_t group_end) {
  real x[LIGER_TILE];
  const liger_dtype t = a->x_dtype;
  const int bf16 = direct_dtype(t) == LIGER_BF16;
  const int64_t n_inner = a->n_inner, channels = a->n_channels / a->n_groups, size = channels * n_inner;
  for (int64_t group = group_begin; group < group_end; group++) {
    norm_stats s = {0, 0, 0, 0};
    for (int64_t c = 0; c < size; c += LIGER_TILE) {
      const int64_t n = size - c < LIGER_TILE ? size - c : LIGER_TILE;
      s = norm_merge(s, norm_view_stats(view_row(x, a->X, group * size + c, n, t), n, 1, t), 1);
    }
    const real rstd = 1 / (real)sqrt((double)(s.sum_squares / (real)(size ? size : 1) + (real)a->eps));
    ((real *)a->mean)[group] = s.mean + s.rest;
    ((real *)a->rstd)[group] = rstd;
    for (int64_t k = 0; k < channels; k++) {
      const int64_t channel = group % a->n_groups * channels + k;
      const real scale = rstd * load_scalar(a->W, channel, a->w_dtype, 1);
      const real shift = load_scalar(a->bias, channel, a->bias_dtype, 0);
      for (int64_t c = 0; c < n_inner; c += LIGER_TILE) {
        const int64_t n = n_inner - c < LIGER_TILE ? n_inner - c : LIGER_TILE;
        const int64_t at = group * size + k * n_inner + c;
        const void *X = view_row(x, a->X, at, n, t);
        void *const Y = element_direct(t) ? (void *)elements_at(a->Y, at, t) : x;
        if (bf16) scale_run(Y, X, n, s, scale, shift, LIGER_BF16);
        else scale_run(Y, X, n, s, scale, shift, LIGER_REAL);
        if (!element_direct(t)) store_row(a->Y, at, x, n, t);
      }
    }
  }
  return LIGER_OK;
}

/* sums of dY * xhat and of dY: of pieces first, so that the sums of a long channel do not walk away */
enum { PIECE = 1024 };
LIGER_INLINE norm_sums sum_run(const void *dY, const void *X, int64_t n, real mean, real rstd,
                               liger_dtype t) {
  norm_sums s = {0, 0};
  for (int64_t c = 0; c < n; c += PIECE) {
    const int64_t end = n - c < PIECE ? n : c + PIECE;
    real dw = 0, db = 0;
#pragma omp simd reduction(+ : dw, db)
    for (int64_t i = c; i < end; i++) {
      const real dy = load_element(dY, i, t);
      dw += dy * ((load_element(X, i, t) - mean) * rstd);
      db += dy;
    }
    s.m += db;
    s.mx += dw;
  }
  return s;
}
/* dX may be dY */
LIGER_INLINE void dx_run(void *dX, const void *dY, const void *X, int64_t n, real mean, real rstd, real w,
                         norm_sums s, liger_dtype t) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    const real xhat = (load_element(X, i, t) - mean) * rstd;
    store_element(dX, i, rstd * ((load_element(dY, i, t) * w - s.m) - xhat * s.mx), t);
  }
}

liger_status LIGER_KERNEL(group_norm_bwd)(const liger_group_norm_bwd_args *a, int64_t group_begin,
                                          int64_t group_end) {
  real x[LIGER_TILE], dy[LIGER_TILE];
  const liger_dtype t = a->x_dtype;
  const int bf16 = direct_dtype(t) == LIGER_BF16;
  const int64_t n_inner = a->n_inner, channels = a->n_channels / a->n_groups, size = channels * n_inner;
  for (int64_t group = group_begin; group < group_end; group++) {
    const real rstd = ((const real *)a->rstd)[group], mean = ((const real *)a->mean)[group];
    norm_sums of_group = {0, 0};
    for (int64_t k = 0; k < channels; k++) {
      norm_sums s = {0, 0};
      for (int64_t c = 0; c < n_inner; c += LIGER_TILE) {
        const int64_t n = n_inner - c < LIGER_TILE ? n_inner - c : LIGER_TILE;
        const int64_t at = group * size + k * n_inner + c;
        const void *X = view_row(x, a->X, at, n, t), *dY = view_row(dy, a->dY, at, n, t);
        const norm_sums tile = bf16 ? sum_run(dY, X, n, mean, rstd, LIGER_BF16)
                                    : sum_run(dY, X, n, mean, rstd, LIGER_REAL);
        s.m += tile.m;
        s.mx += tile.mx;
      }
      const real w = load_scalar(a->W, group % a->n_groups * channels + k, a->w_dtype, 1);
      ((real *)a->dW_partial)[group * channels + k] = s.mx;
      ((real *)a->dbias_partial)[group * channels + k] = s.m;
      of_group.m += w * s.m;
      of_group.mx += w * s.mx;
    }
    of_group.m /= (real)size;
    of_group.mx /= (real)size;
    for (int64_t k = 0; k < channels; k++) {
      const real w = load_scalar(a->W, group % a->n_groups * channels + k, a->w_dtype, 1);
      for (int64_t c = 0; c < n_inner; c += LIGER_TILE) {
        const int64_t n = n_inner - c < LIGER_TILE ? n_inner - c : LIGER_TILE;
        const int64_t at = group * size + k * n_inner + c;
        const void *X = view_row(x, a->X, at, n, t), *dY = view_row(dy, a->dY, at, n, t);
        void *const dX = element_direct(t) ? (void *)elements_at(a->dX, at, t) : dy;
        if (bf16) dx_run(dX, dY, X, n, mean, rstd, w, of_group, LIGER_BF16);
        else dx_run(dX, dY, X, n, mean, rstd, w, of_group, LIGER_REAL);
        if (!element_direct(t)) store_row(a->dX, at, dy, n, t);
      }
    }
  }
  return LIGER_OK;
}

liger_status LIGER_KERNEL(group_norm_params)(const liger_group_norm_bwd_args *a, int64_t channel_begin,
                                             int64_t channel_end) {
  if (a->dW)
    column_sum(a->dW, (const real *)a->dW_partial, a->n_batch, a->n_channels, channel_begin, channel_end,
               a->w_dtype);
  if (a->dbias)
    column_sum(a->dbias, (const real *)a->dbias_partial, a->n_batch, a->n_channels, channel_begin,
               channel_end, a->bias_dtype);
  return LIGER_OK;
}
LIGER_CPU_ENTRY(group_norm_fwd, liger_group_norm_fwd_args, x_dtype);
LIGER_CPU_ENTRY(group_norm_bwd, liger_group_norm_bwd_args, x_dtype);
LIGER_CPU_ENTRY(group_norm_params, liger_group_norm_bwd_args, x_dtype);
