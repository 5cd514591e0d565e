/* The loop of every norm over whole rows, forward and backward (csrc/liger.h has the equations).
 *
 * The bodies are inlined into an op's kernels with constant flags, so that each op has loops of its own:
 *   centred   the mean is subtracted (layer norm), else nothing is (RMS norm)
 *   add       forward: s = X + R is stored and normalised; backward: dS is added to dX
 * Statistics of a row that is wider than a buffer are those of its tiles, merged (Chan, Golub, LeVeque 1979):
 * such a row is read twice, any other once. */
#ifndef LIGER_NORM_H
#define LIGER_NORM_H
#include "primitives.h"

/* p[0..n) = P[c..c+n) + plus, or `otherwise` where there is no P */
static void norm_load_param(real *restrict p, const void *P, int64_t c, int64_t n, liger_dtype t, real plus,
                            real otherwise) {
  if (!P) {
    for (int64_t i = 0; i < n; i++) p[i] = otherwise;
    return;
  }
  load_row(p, P, c, n, t);
  if (plus != 0)
    for (int64_t i = 0; i < n; i++) p[i] += plus;
}

/* ---- statistics ---------------------------------------------------------------------------------------- */
/* Of n elements so far: their mean is mean + rest, and sum_squares is the sum of the squares of their distances
 * from it; in an RMS norm of their distances from 0. The rest is what one `real` cannot hold of the mean of
 * large numbers; 16-bit elements have none, since their sums are near exact and x - mean is not. */
typedef struct {
  real mean, rest, sum_squares;
  int64_t n;
} norm_stats;

LIGER_INLINE norm_stats norm_tile_stats(const void *X, int64_t n, int centred, int has_rest, liger_dtype t) {
  real sum = 0, rest = 0, squares = 0;
  for (int64_t c = 0; centred && c < n; c += LIGER_RUN) {
    const int64_t end = run_end(c, n, LIGER_RUN);
    real run = 0;
#pragma omp simd reduction(+ : run)
    for (int64_t i = c; i < end; i++) run += load_element(X, i, t);
    sum += run;
  }
  const real mean = sum / (real)n;
  for (int64_t c = 0; c < n; c += LIGER_RUN) {
    const int64_t end = run_end(c, n, LIGER_RUN);
    real run_rest = 0, run_squares = 0;
#pragma omp simd reduction(+ : run_rest, run_squares)
    for (int64_t i = c; i < end; i++) {
      const real x = centred ? load_element(X, i, t) - mean : load_element(X, i, t);
      if (centred) run_rest += x;
      run_squares += x * x;
    }
    rest += run_rest;
    squares += run_squares;
  }
  rest = has_rest ? rest / (real)n : 0;
  const norm_stats s = {mean, rest, squares - (real)n * rest * rest, n};
  return s;
}
/* of n elements as view_row gave them, of a tensor of dtype t */
LIGER_INLINE norm_stats norm_view_stats(const void *view, int64_t n, int centred, liger_dtype t) {
  return direct_dtype(t) == LIGER_BF16 ? norm_tile_stats(view, n, centred, 0, LIGER_BF16)
                                       : norm_tile_stats(view, n, centred, t == LIGER_REAL, LIGER_REAL);
}
LIGER_INLINE norm_stats norm_merge(norm_stats a, norm_stats b, int centred) {
  if (a.n == 0) return b;
  const real n = (real)(a.n + b.n), share = (real)b.n / n;
  const real d = centred ? (b.mean - a.mean) + (b.rest - a.rest) : 0;
  const norm_stats s = {a.mean, a.rest + d * share, a.sum_squares + b.sum_squares + d * d * (real)a.n * share,
                        a.n + b.n};
  return s;
}

/* ---- forward ------------------------------------------------------------------------------------------- */
LIGER_INLINE void norm_add(void *S, const void *X, const void *R, int64_t n, liger_dtype t) {
  for (int64_t i = 0; i < n; i++) store_element(S, i, load_element(X, i, t) + load_element(R, i, t), t);
}
/* S = X + R as stored; returns where to read the sum: S itself, or x */
static const void *norm_add_tile(void *S, int64_t S_at, const void *X, int64_t X_at, const void *R,
                                 int64_t R_at, real *x, int64_t n, liger_dtype t) {
  void *const s = (void *)elements_at(S, S_at, t);
  if (element_direct(t)) {
    const void *from = elements_at(X, X_at, t), *residual = elements_at(R, R_at, t);
    if (t == LIGER_BF16) norm_add(s, from, residual, n, LIGER_BF16);
    else norm_add(s, from, residual, n, LIGER_REAL);
    return s;
  }
  real r[512];
  load_row(x, X, X_at, n, t);
  for (int64_t c = 0; c < n; c += 512) {
    const int64_t m = n - c < 512 ? n - c : 512;
    load_row(r, R, R_at + c, m, t);
    for (int64_t i = 0; i < m; i++) x[c + i] += r[i];
  }
  store_row(S, S_at, x, n, t);
  load_row(x, S, S_at, n, t);
  return x;
}

LIGER_INLINE void norm_scale(void *Y, const void *X, const real *w, const real *b, int64_t n, norm_stats s,
                             real rstd, int centred, liger_dtype rounding, liger_dtype t) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    const real x = load_element(X, i, t);
    if (centred) store_element(Y, i, ((x - s.mean) - s.rest) * rstd * w[i] + b[i], t);
    else store_element(Y, i, round_element(x * rstd, rounding) * w[i], t);
  }
}
LIGER_INLINE void norm_scale_tile(void *Y, int64_t at, real *x, const void *X, const real *w, const real *b,
                                  int64_t n, norm_stats s, real rstd, int centred, int llama, liger_dtype t) {
  void *const to = (void *)elements_at(Y, at, t);
  const int bf16 = direct_dtype(t) == LIGER_BF16;
  if (bf16 && llama && !centred) {
    norm_scale(to, X, w, b, n, s, rstd, centred, LIGER_BF16, LIGER_BF16);
  } else if (bf16) {
    norm_scale(to, X, w, b, n, s, rstd, centred, LIGER_REAL, LIGER_BF16);
  } else if (t == LIGER_REAL) {
    norm_scale(to, X, w, b, n, s, rstd, centred, LIGER_REAL, LIGER_REAL);
  } else { /* X is x */
    if (!centred && llama) {
      for (int64_t i = 0; i < n; i++) x[i] *= rstd;
      round_row(x, n, t);
      rstd = 1;
    }
    norm_scale(x, x, w, b, n, s, rstd, centred, LIGER_REAL, LIGER_REAL);
    store_row(Y, at, x, n, t);
  }
}

LIGER_INLINE liger_status norm_fwd(const liger_norm_fwd_args *a, int64_t row_begin, int64_t row_end,
                                   int centred, int add) {
  real x[LIGER_TILE], w[LIGER_TILE], b[LIGER_TILE];
  const int64_t n_cols = a->n_cols;
  const liger_dtype t = a->x_dtype;
  const int whole = n_cols <= LIGER_TILE; /* the row and the parameters stay in the buffers */
  for (int64_t row = row_begin; row < row_end; row++) {
    const void *X = NULL;
    norm_stats s = {0, 0, 0, 0};
    for (int64_t c = 0; c < n_cols; c += LIGER_TILE) {
      const int64_t n = n_cols - c < LIGER_TILE ? n_cols - c : LIGER_TILE, X_at = row * a->X_row_stride + c;
      X = add ? norm_add_tile(a->S, row * n_cols + c, a->X, X_at, a->R, row * a->R_row_stride + c, x, n, t)
              : view_row(x, a->X, X_at, n, t);
      s = norm_merge(s, norm_view_stats(X, n, centred, t), centred);
    }
    const real rstd = 1 / (real)sqrt((double)(s.sum_squares / (real)n_cols + (real)a->eps));
    ((real *)a->rstd)[row] = rstd;
    if (centred) ((real *)a->mean)[row] = s.mean + s.rest;
    for (int64_t c = 0; c < n_cols; c += LIGER_TILE) {
      const int64_t n = n_cols - c < LIGER_TILE ? n_cols - c : LIGER_TILE;
      if (!whole)
        X = add ? view_row(x, a->S, row * n_cols + c, n, t)
                : view_row(x, a->X, row * a->X_row_stride + c, n, t);
      if (!whole || row == row_begin) {
        norm_load_param(w, a->W, c, n, a->w_dtype, (real)a->offset, 1);
        if (centred) norm_load_param(b, a->bias, c, n, a->bias_dtype, 0, 0);
      }
      norm_scale_tile(a->Y, row * a->Y_row_stride + c, x, X, w, b, n, s, rstd, centred,
                      a->casting == LIGER_CAST_LLAMA, t);
    }
  }
  return LIGER_OK;
}

/* ---- backward ------------------------------------------------------------------------------------------ */
/* sums over a row: of m, and of m * xhat */
typedef struct {
  real m, mx;
} norm_sums;

/* the tile's part of the sums; dw += dY * xhat and db += dY where they are wanted */
LIGER_INLINE norm_sums norm_sum(const void *dY, const void *X, const real *w, real *restrict dw,
                                real *restrict db, int64_t n, real mean, real rstd, int centred, int has_dw,
                                int has_db, liger_dtype t) {
  real m = 0, mx = 0;
#pragma omp simd reduction(+ : m, mx)
  for (int64_t i = 0; i < n; i++) {
    const real x = load_element(X, i, t), dy = load_element(dY, i, t);
    const real g = dy * ((centred ? x - mean : x) * rstd);
    if (has_dw) dw[i] += g;
    if (has_db) db[i] += dy;
    mx += g * w[i];
    if (centred) m += dy * w[i];
  }
  const norm_sums s = {m, mx};
  return s;
}
LIGER_INLINE norm_sums norm_sum_tile(const void *dY, const void *X, const real *w, real *dw, real *db,
                                     int64_t n, real mean, real rstd, int centred, liger_dtype t) {
  if (dw && db) return norm_sum(dY, X, w, dw, db, n, mean, rstd, centred, 1, centred, t);
  if (dw) return norm_sum(dY, X, w, dw, db, n, mean, rstd, centred, 1, 0, t);
  if (db && centred) return norm_sum(dY, X, w, dw, db, n, mean, rstd, centred, 0, 1, t);
  return norm_sum(dY, X, w, dw, db, n, mean, rstd, centred, 0, 0, t);
}

/* dX may be dY */
LIGER_INLINE void norm_dx(void *dX, const void *dY, const void *X, const void *dS, const real *w, int64_t n,
                          real mean, real rstd, norm_sums s, int centred, int add, liger_dtype t) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    const real x = load_element(X, i, t), m = load_element(dY, i, t) * w[i];
    const real xhat = (centred ? x - mean : x) * rstd;
    const real dx = rstd * ((centred ? m - s.m : m) - xhat * s.mx);
    store_element(dX, i, add ? dx + load_element(dS, i, t) : dx, t);
  }
}

LIGER_INLINE liger_status norm_bwd(const liger_norm_bwd_args *a, int64_t block_begin, int64_t block_end,
                                   int centred, int add) {
  real x[LIGER_TILE], dy[LIGER_TILE], w[LIGER_TILE], ds[LIGER_TILE];
  const int64_t n_cols = a->n_cols;
  const liger_dtype t = a->x_dtype;
  const int bf16 = direct_dtype(t) == LIGER_BF16, whole = n_cols <= LIGER_TILE;
  if (whole) norm_load_param(w, a->W, 0, n_cols, a->w_dtype, (real)a->offset, 1);
  for (int64_t block = block_begin; block < block_end; block++) {
    real *const dw = a->dW ? (real *)a->dW_partial + block * n_cols : NULL;
    real *const db = a->dbias ? (real *)a->dbias_partial + block * n_cols : NULL;
    if (dw) memset(dw, 0, (size_t)n_cols * sizeof(real));
    if (db) memset(db, 0, (size_t)n_cols * sizeof(real));
    int64_t row, last;
    for (block_rows(block, a->n_blocks, a->n_rows, &row, &last); row < last; row++) {
      const real rstd = ((const real *)a->rstd)[row], mean = centred ? ((const real *)a->mean)[row] : 0;
      const void *X = NULL, *dY = NULL;
      norm_sums s = {0, 0};
      for (int64_t c = 0; c < n_cols; c += LIGER_TILE) {
        const int64_t n = n_cols - c < LIGER_TILE ? n_cols - c : LIGER_TILE;
        if (!whole) norm_load_param(w, a->W, c, n, a->w_dtype, (real)a->offset, 1);
        X = view_row(x, a->X, row * a->X_row_stride + c, n, t);
        dY = view_row(dy, a->dY, row * a->dY_row_stride + c, n, t);
        real *const dw_tile = dw ? dw + c : NULL, *const db_tile = db ? db + c : NULL;
        const norm_sums tile = bf16 ? norm_sum_tile(dY, X, w, dw_tile, db_tile, n, mean, rstd, centred,
                                                    LIGER_BF16)
                                    : norm_sum_tile(dY, X, w, dw_tile, db_tile, n, mean, rstd, centred,
                                                    LIGER_REAL);
        s.m += tile.m;
        s.mx += tile.mx;
      }
      s.m /= (real)n_cols;
      s.mx /= (real)n_cols;
      for (int64_t c = 0; c < n_cols; c += LIGER_TILE) {
        const int64_t n = n_cols - c < LIGER_TILE ? n_cols - c : LIGER_TILE;
        if (!whole) {
          norm_load_param(w, a->W, c, n, a->w_dtype, (real)a->offset, 1);
          X = view_row(x, a->X, row * a->X_row_stride + c, n, t);
          dY = view_row(dy, a->dY, row * a->dY_row_stride + c, n, t);
        }
        const void *const dS = add && a->dS ? view_row(ds, a->dS, row * a->dS_row_stride + c, n, t) : NULL;
        void *const dX = element_direct(t) ? (void *)elements_at(a->dX, row * n_cols + c, t) : dy;
        if (bf16 && dS) norm_dx(dX, dY, X, dS, w, n, mean, rstd, s, centred, add, LIGER_BF16);
        else if (bf16) norm_dx(dX, dY, X, dS, w, n, mean, rstd, s, centred, 0, LIGER_BF16);
        else if (dS) norm_dx(dX, dY, X, dS, w, n, mean, rstd, s, centred, add, LIGER_REAL);
        else norm_dx(dX, dY, X, dS, w, n, mean, rstd, s, centred, 0, LIGER_REAL);
        if (!element_direct(t)) store_row(a->dX, row * n_cols + c, dy, n, t);
      }
    }
  }
  return LIGER_OK;
}

static inline liger_status norm_params(const liger_norm_bwd_args *a, int64_t col_begin, int64_t col_end) {
  if (a->dW)
    column_sum(a->dW, (const real *)a->dW_partial, a->n_blocks, a->n_cols, col_begin, col_end, a->w_dtype);
  if (a->dbias)
    column_sum(a->dbias, (const real *)a->dbias_partial, a->n_blocks, a->n_cols, col_begin, col_end,
               a->bias_dtype);
  return LIGER_OK;
}

#if LIGER_BASE_UNIT
/* Fixed by the sizes alone, so that dW has the same bits whatever the thread count; a block holds at least
 * 16 rows. */
static inline int64_t norm_blocks(int64_t n_rows) {
  const int64_t n = n_rows / 16;
  return n < 1 ? 1 : n > 64 ? 64 : n;
}
#endif
#endif
