/* rms_norm   Y = X * rstd * (W + offset),   rstd = 1/sqrt(mean(X^2) + eps)          per row
 *            dX = rstd * (m - X * rstd^2 * mean(m * X)),  m = dY * (W + offset)
 *            dW = sum_rows(dY * X * rstd)
 * Shapes     X Y dX dY (n_rows, n_cols), last dim contiguous; W dW (n_cols); rstd (n_rows) real, saved by fwd
 * Casting    llama: round X * rstd to X's dtype, then times W.  gemma, none: no rounding before the store
 * Plan       a row passes through `real` buffers of LIGER_TILE columns; a wider row is read twice
 * Source     arXiv:1910.07467; LlamaRMSNorm and GemmaRMSNorm in transformers */
#include "primitives.h"

/* w[0..n) = W[c..c+n) + offset, or 1 where there is no weight */
static void load_scale(real *restrict w, const void *W, int64_t c, int64_t n, liger_dtype w_dtype,
                       real offset) {
  if (!W) {
    for (int64_t i = 0; i < n; i++) w[i] = 1;
    return;
  }
  load_row(w, W, c, n, w_dtype);
  if (offset != 0)
    for (int64_t i = 0; i < n; i++) w[i] += offset;
}

LIGER_INLINE real sum_of_squares(const void *X, int64_t n, liger_dtype t) {
  real s = 0;
#pragma omp simd reduction(+ : s)
  for (int64_t i = 0; i < n; i++) s += load_element(X, i, t) * load_element(X, i, t);
  return s;
}
LIGER_INLINE void normalise(void *Y, const void *X, const real *w, int64_t n, real rstd, liger_dtype rounding,
                            liger_dtype t) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++)
    store_element(Y, i, round_element(load_element(X, i, t) * rstd, rounding) * w[i], t);
}
static void normalise_tile(void *Y, int64_t offset, real *x, const void *X, const real *w, int64_t n,
                           real rstd, int llama, liger_dtype t) {
  void *const to = (void *)elements_at(Y, offset, t);
  const int bf16 = direct_dtype(t) == LIGER_BF16;
  if (bf16 && llama) {
    normalise(to, X, w, n, rstd, LIGER_BF16, LIGER_BF16);
  } else if (bf16) {
    normalise(to, X, w, n, rstd, LIGER_REAL, LIGER_BF16);
  } else if (t == LIGER_REAL) {
    normalise(to, X, w, n, rstd, LIGER_REAL, LIGER_REAL);
  } else { /* X is x */
    for (int64_t i = 0; i < n; i++) x[i] *= rstd;
    if (llama) round_row(x, n, t);
    normalise(x, x, w, n, 1, LIGER_REAL, LIGER_REAL);
    store_row(Y, offset, x, n, t);
  }
}

liger_status LIGER_KERNEL(rms_norm_fwd)(const liger_rms_norm_fwd_args *a, int64_t row_begin,
                                        int64_t row_end) {
  real x[LIGER_TILE], w[LIGER_TILE];
  const int64_t n_cols = a->n_cols;
  const liger_dtype t = a->x_dtype;
  const int whole = n_cols <= LIGER_TILE; /* the row and the weight stay in the buffers */
  if (whole) load_scale(w, a->W, 0, n_cols, a->w_dtype, (real)a->offset);
  for (int64_t row = row_begin; row < row_end; row++) {
    const void *X = NULL;
    real sum = 0;
    for (int64_t c = 0; c < n_cols; c += LIGER_TILE) {
      const int64_t n = n_cols - c < LIGER_TILE ? n_cols - c : LIGER_TILE;
      X = view_row(x, a->X, row * a->X_row_stride + c, n, t);
      sum += direct_dtype(t) == LIGER_BF16 ? sum_of_squares(X, n, LIGER_BF16)
                                           : sum_of_squares(X, n, LIGER_REAL);
    }
    const real rstd = 1 / (real)sqrt((double)(sum / (real)n_cols + (real)a->eps));
    ((real *)a->rstd)[row] = rstd;
    for (int64_t c = 0; c < n_cols; c += LIGER_TILE) {
      const int64_t n = n_cols - c < LIGER_TILE ? n_cols - c : LIGER_TILE;
      if (!whole) {
        X = view_row(x, a->X, row * a->X_row_stride + c, n, t);
        load_scale(w, a->W, c, n, a->w_dtype, (real)a->offset);
      }
      normalise_tile(a->Y, row * a->Y_row_stride + c, x, X, w, n, rstd, a->casting == LIGER_CAST_LLAMA, t);
    }
  }
  return LIGER_OK;
}

/* the tile's part of sum(m * X * rstd), m = dY * (W + offset), and of dW = dY * X * rstd if there is a dw */
LIGER_INLINE real sum_tile(const void *dY, const void *X, const real *w, real *restrict dw, int64_t n,
                           real rstd, liger_dtype t) {
  real s = 0;
  if (dw) {
#pragma omp simd reduction(+ : s)
    for (int64_t i = 0; i < n; i++) {
      const real g = load_element(dY, i, t) * (load_element(X, i, t) * rstd);
      dw[i] += g;
      s += g * w[i];
    }
  } else {
#pragma omp simd reduction(+ : s)
    for (int64_t i = 0; i < n; i++) s += load_element(dY, i, t) * (load_element(X, i, t) * rstd) * w[i];
  }
  return s;
}
/* dX may be dY or X */
LIGER_INLINE void dx_tile(void *dX, const void *dY, const void *X, const real *w, int64_t n, real rstd,
                          real mean, liger_dtype t) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++)
    store_element(dX, i, rstd * (load_element(dY, i, t) * w[i] - load_element(X, i, t) * rstd * mean), t);
}

liger_status LIGER_KERNEL(rms_norm_bwd)(const liger_rms_norm_bwd_args *a, int64_t block_begin,
                                        int64_t block_end) {
  real x[LIGER_TILE], dy[LIGER_TILE], w[LIGER_TILE];
  const int64_t n_cols = a->n_cols;
  const liger_dtype t = a->x_dtype;
  const int bf16 = direct_dtype(t) == LIGER_BF16, whole = n_cols <= LIGER_TILE;
  if (whole) load_scale(w, a->W, 0, n_cols, a->w_dtype, (real)a->offset);
  for (int64_t block = block_begin; block < block_end; block++) {
    real *dw = a->dW ? (real *)a->dW_partial + block * n_cols : NULL;
    if (dw) memset(dw, 0, (size_t)n_cols * sizeof(real));
    int64_t row, last;
    for (block_rows(block, a->n_blocks, a->n_rows, &row, &last); row < last; row++) {
      const real rstd = ((const real *)a->rstd)[row];
      const void *X = NULL, *dY = NULL;
      real mean = 0;
      for (int64_t c = 0; c < n_cols; c += LIGER_TILE) {
        const int64_t n = n_cols - c < LIGER_TILE ? n_cols - c : LIGER_TILE;
        if (!whole) load_scale(w, a->W, c, n, a->w_dtype, (real)a->offset);
        X = view_row(x, a->X, row * a->X_row_stride + c, n, t);
        dY = view_row(dy, a->dY, row * a->dY_row_stride + c, n, t);
        real *const dw_tile = dw ? dw + c : NULL;
        mean += bf16 ? sum_tile(dY, X, w, dw_tile, n, rstd, LIGER_BF16)
                     : sum_tile(dY, X, w, dw_tile, n, rstd, LIGER_REAL);
      }
      mean /= (real)n_cols;
      for (int64_t c = 0; c < n_cols; c += LIGER_TILE) {
        const int64_t n = n_cols - c < LIGER_TILE ? n_cols - c : LIGER_TILE;
        if (!whole) {
          load_scale(w, a->W, c, n, a->w_dtype, (real)a->offset);
          X = view_row(x, a->X, row * a->X_row_stride + c, n, t);
          dY = view_row(dy, a->dY, row * a->dY_row_stride + c, n, t);
        }
        void *const dX = element_direct(t) ? (void *)elements_at(a->dX, row * n_cols + c, t) : dy;
        if (bf16) dx_tile(dX, dY, X, w, n, rstd, mean, LIGER_BF16);
        else dx_tile(dX, dY, X, w, n, rstd, mean, LIGER_REAL);
        if (!element_direct(t)) store_row(a->dX, row * n_cols + c, dy, n, t);
      }
    }
  }
  return LIGER_OK;
}

liger_status LIGER_KERNEL(rms_norm_dw)(const liger_rms_norm_bwd_args *a, int64_t col_begin, int64_t col_end) {
  column_sum(a->dW, (const real *)a->dW_partial, a->n_blocks, a->n_cols, col_begin, col_end, a->w_dtype);
  return LIGER_OK;
}

#if LIGER_BASE_UNIT
/* Fixed by the sizes alone, so that dW has the same bits whatever the thread count; a block holds at least
 * 16 rows. */
int64_t liger_rms_norm_bwd_blocks_cpu(int64_t n_rows, int64_t n_cols) {
  (void)n_cols;
  const int64_t n = n_rows / 16;
  return n < 1 ? 1 : n > 64 ? 64 : n;
}
#endif
LIGER_CPU_ENTRY(rms_norm_fwd, liger_rms_norm_fwd_args, x_dtype);
LIGER_CPU_ENTRY(rms_norm_bwd, liger_rms_norm_bwd_args, x_dtype);
LIGER_CPU_ENTRY(rms_norm_dw, liger_rms_norm_bwd_args, x_dtype);
