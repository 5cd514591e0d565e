/* modulated_rms_norm   Y = X * rstd * M + shift,   M = (W + offset) * (1 + scale),
 *                      rstd = 1/sqrt(mean(X^2) + eps)                                                per row
 *                      dX = rstd * (m - xhat * mean(m * xhat)),   m = dY * M,   xhat = X * rstd
 *                      with G = sum(dY * xhat) over the rows of a modulation:
 *                      dscale = G * (W + offset),   dshift = sum(dY),   dW = sum over them of (1 + scale) * G
 * Shapes     X Y dX dY (n_rows, n_cols), last dim contiguous; scale shift (n_modulations, n_cols); W (n_cols)
 * Casting    llama: round X * rstd to X's dtype, then times M.  gemma, none: no rounding before the store
 * Plan       norm.h's tiles; a block has whole modulations, or a piece of one, so that its sums G end with it
 * Source     arXiv:2212.09748 (adaLN), arXiv:1910.07467 */
#include "norm.h"

/* 1 + scale and W + offset of a tile, and their product */
static void load_modulation(real *restrict m, real *restrict one_scale, real *restrict w, const void *W,
                            liger_dtype w_dtype, double offset, const void *scale, int64_t scale_at,
                            liger_dtype scale_dtype, int64_t c, int64_t n) {
  norm_load_param(w, W, c, n, w_dtype, (real)offset, 1);
  norm_load_param(one_scale, scale, scale_at + c, n, scale_dtype, 1, 1);
  for (int64_t i = 0; i < n; i++) m[i] = w[i] * one_scale[i];
}
static int64_t tile_width(int64_t n_cols, int64_t c) {
  return n_cols - c < LIGER_TILE ? n_cols - c : LIGER_TILE;
}

LIGER_INLINE void modulate(void *Y, const void *X, const real *m, const real *shift, int64_t n, real rstd,
                           liger_dtype rounding, liger_dtype t) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++)
    store_element(Y, i, round_element(load_element(X, i, t) * rstd, rounding) * m[i] + shift[i], t);
}
static void modulate_tile(void *Y, int64_t at, real *x, const void *X, const real *m, const real *shift,
                          int64_t n, real rstd, int llama, liger_dtype t) {
  void *const to = (void *)elements_at(Y, at, t);
  if (direct_dtype(t) == LIGER_BF16) {
    if (llama) modulate(to, X, m, shift, n, rstd, LIGER_BF16, LIGER_BF16);
    else modulate(to, X, m, shift, n, rstd, LIGER_REAL, LIGER_BF16);
  } else if (t == LIGER_REAL) {
    modulate(to, X, m, shift, n, rstd, LIGER_REAL, LIGER_REAL);
  } else { /* X is x */
    for (int64_t i = 0; i < n; i++) x[i] *= rstd;
    if (llama) round_row(x, n, t);
    modulate(x, x, m, shift, n, 1, LIGER_REAL, LIGER_REAL);
    store_row(Y, at, x, n, t);
  }
}

liger_status LIGER_KERNEL(modulated_rms_norm_fwd)(const liger_modulated_rms_norm_fwd_args *a,
                                                  int64_t row_begin, int64_t row_end) {
  real x[LIGER_TILE], w[LIGER_TILE], m[LIGER_TILE], shift[LIGER_TILE], one_scale[LIGER_TILE];
  const int64_t n_cols = a->n_cols, rows_each = a->n_rows / (a->n_modulations ? a->n_modulations : 1);
  const liger_dtype t = a->x_dtype;
  int64_t loaded = -1; /* the modulation in the buffers, of rows that fit them */
  for (int64_t row = row_begin; row < row_end; row++) {
    const int64_t s = row / rows_each;
    const void *X = NULL;
    real sum = 0;
    for (int64_t c = 0; c < n_cols; c += LIGER_TILE) {
      const int64_t n = tile_width(n_cols, c);
      X = view_row(x, a->X, row * a->X_row_stride + c, n, t);
      sum += direct_dtype(t) == LIGER_BF16 ? norm_tile_stats(X, n, 0, 0, LIGER_BF16).sum_squares
                                           : norm_tile_stats(X, n, 0, 0, LIGER_REAL).sum_squares;
    }
    const real rstd = 1 / (real)sqrt((double)(sum / (real)n_cols + (real)a->eps));
    ((real *)a->rstd)[row] = rstd;
    for (int64_t c = 0; c < n_cols; c += LIGER_TILE) {
      const int64_t n = tile_width(n_cols, c);
      if (n_cols > LIGER_TILE) X = view_row(x, a->X, row * a->X_row_stride + c, n, t);
      if (n_cols > LIGER_TILE || loaded != s) {
        load_modulation(m, one_scale, w, a->W, a->w_dtype, a->offset, a->scale, s * a->scale_row_stride,
                        a->scale_dtype, c, n);
        norm_load_param(shift, a->shift, s * a->shift_row_stride + c, n, a->shift_dtype, 0, 0);
        loaded = s;
      }
      modulate_tile(a->Y, row * n_cols + c, x, X, m, shift, n, rstd, a->casting == LIGER_CAST_LLAMA, t);
    }
  }
  return LIGER_OK;
}

/* pieces that each modulation's rows are cut into */
static int64_t pieces_of(const liger_modulated_rms_norm_bwd_args *a) {
  return a->n_blocks > a->n_modulations && a->n_modulations ? a->n_blocks / a->n_modulations : 1;
}

/* The workspace: dW of every block; then two arrays (pieces, n_modulations, n_cols) of dscale and dshift, or,
 * where modulations are whole, of a block's G and dshift at hand. */
liger_status LIGER_KERNEL(modulated_rms_norm_bwd)(const liger_modulated_rms_norm_bwd_args *a,
                                                  int64_t block_begin, int64_t block_end) {
  real x[LIGER_TILE], dy[LIGER_TILE], w[LIGER_TILE], m[LIGER_TILE], one_scale[LIGER_TILE];
  const int64_t n_cols = a->n_cols, n_mods = a->n_modulations, pieces = pieces_of(a);
  const int64_t rows_each = a->n_rows / (n_mods ? n_mods : 1);
  const liger_dtype t = a->x_dtype;
  const int bf16 = direct_dtype(t) == LIGER_BF16;
  for (int64_t block = block_begin; block < block_end; block++) {
    real *const dw = (real *)a->workspace + block * n_cols;
    memset(dw, 0, (size_t)n_cols * sizeof(real));
    int64_t s = block / pieces, last_s = s + 1, piece = block % pieces;
    if (pieces == 1) block_rows(block, a->n_blocks, n_mods, &s, &last_s);
    for (; s < last_s; s++) {
      const int64_t slot = pieces > 1 ? piece * n_mods + s : block;
      real *const g = (real *)a->workspace + (a->n_blocks + slot) * n_cols;
      real *const h = (real *)a->workspace + (2 * a->n_blocks + slot) * n_cols;
      memset(g, 0, (size_t)n_cols * sizeof(real));
      memset(h, 0, (size_t)n_cols * sizeof(real));
      int64_t row, last;
      block_rows(piece, pieces, rows_each, &row, &last);
      int64_t loaded = 0;
      for (row += s * rows_each, last += s * rows_each; row < last; row++) {
        const real rstd = ((const real *)a->rstd)[row];
        const void *X = NULL, *dY = NULL;
        norm_sums sums = {0, 0};
        for (int64_t pass = 0; pass < 2; pass++) { /* the sums of the row, then dX */
          for (int64_t c = 0; c < n_cols; c += LIGER_TILE) {
            const int64_t n = tile_width(n_cols, c);
            if (pass == 0 || n_cols > LIGER_TILE) {
              X = view_row(x, a->X, row * a->X_row_stride + c, n, t);
              dY = view_row(dy, a->dY, row * a->dY_row_stride + c, n, t);
            }
            if (n_cols > LIGER_TILE || !loaded++)
              load_modulation(m, one_scale, w, a->W, a->w_dtype, a->offset, a->scale, s * a->scale_row_stride,
                              a->scale_dtype, c, n);
            if (pass == 0) {
              sums.mx += bf16 ? norm_sum(dY, X, m, g + c, h + c, n, 0, rstd, 0, 1, 1, LIGER_BF16).mx
                              : norm_sum(dY, X, m, g + c, h + c, n, 0, rstd, 0, 1, 1, LIGER_REAL).mx;
              continue;
            }
            void *const dX = element_direct(t) ? (void *)elements_at(a->dX, row * n_cols + c, t) : dy;
            if (bf16) norm_dx(dX, dY, X, NULL, m, n, 0, rstd, sums, 0, 0, LIGER_BF16);
            else norm_dx(dX, dY, X, NULL, m, n, 0, rstd, sums, 0, 0, LIGER_REAL);
            if (!element_direct(t)) store_row(a->dX, row * n_cols + c, dy, n, t);
          }
          sums.mx /= (real)n_cols;
        }
      }
      for (int64_t c = 0; c < n_cols; c += LIGER_TILE) {
        const int64_t n = tile_width(n_cols, c);
        load_modulation(m, one_scale, w, a->W, a->w_dtype, a->offset, a->scale, s * a->scale_row_stride,
                        a->scale_dtype, c, n);
        for (int64_t i = 0; i < n; i++) {
          dw[c + i] += one_scale[i] * g[c + i];
          g[c + i] *= w[i];
        }
        if (pieces > 1) continue;
        if (a->dscale) store_row(a->dscale, s * n_cols + c, g + c, n, a->scale_dtype);
        if (a->dshift) store_row(a->dshift, s * n_cols + c, h + c, n, a->shift_dtype);
      }
    }
  }
  return LIGER_OK;
}

liger_status LIGER_KERNEL(modulated_rms_norm_params)(const liger_modulated_rms_norm_bwd_args *a,
                                                     int64_t col_begin, int64_t col_end) {
  const int64_t n_cols = a->n_cols, pieces = pieces_of(a), all = a->n_modulations * n_cols;
  const real *const dw = (const real *)a->workspace;
  const real *const dscale = dw + a->n_blocks * n_cols, *const dshift = dscale + a->n_blocks * n_cols;
  if (a->dW) column_sum(a->dW, dw, a->n_blocks, n_cols, col_begin, col_end, a->w_dtype);
  for (int64_t at = 0; at < all && pieces > 1; at += n_cols) {
    if (a->dscale) column_sum(a->dscale, dscale, pieces, all, at + col_begin, at + col_end, a->scale_dtype);
    if (a->dshift) column_sum(a->dshift, dshift, pieces, all, at + col_begin, at + col_end, a->shift_dtype);
  }
  return LIGER_OK;
}

#if LIGER_BASE_UNIT
/* Fixed by the sizes alone, so that the sums have the same bits whatever the thread count: about 64 blocks,
 * of at least 16 rows where a modulation is cut. */
int64_t liger_modulated_rms_norm_bwd_blocks_cpu(int64_t n_rows, int64_t n_cols, int64_t n_modulations,
                                                liger_dtype x_dtype) {
  (void)n_cols, (void)x_dtype;
  if (n_modulations < 1) return 1;
  const int64_t most = n_rows / n_modulations / 16, wanted = 64 / n_modulations;
  const int64_t pieces = wanted < most ? wanted : most;
  return pieces > 1 ? pieces * n_modulations : n_modulations < 64 ? n_modulations : 64;
}
#endif
LIGER_CPU_ENTRY(modulated_rms_norm_fwd, liger_modulated_rms_norm_fwd_args, x_dtype);
LIGER_CPU_ENTRY(modulated_rms_norm_bwd, liger_modulated_rms_norm_bwd_args, x_dtype);
LIGER_CPU_ENTRY(modulated_rms_norm_params, liger_modulated_rms_norm_bwd_args, x_dtype);
