/* softmax    Y = e^(X - m) / d, m = max X, d = sum(e^(X - m)); dX = Y (dY - sum(dY Y)) per row
 * Shapes     X Y dX dY (n_rows, n_cols, n_inner); the sums run over n_cols. Rows of n_inner 1 are contiguous
 * Rounding   everything in `real`, one rounding at the store
 * Plan       a row of up to LIGER_TILE columns is read once and each e^x computed once; a wider one passes
 *            through the buffer twice. n_inner > 1: LIGER_SOFTMAX_TILE neighbouring rows side by side, a
 *            column at a time
 * Source     online maximum and sum: arXiv:1805.02867; the function: torch.softmax */
#include "stream.h"

enum {
  SUM_BLOCK = 512
}; /* terms that go into one accumulator, so that its rounding does not grow with the row */

/* ---- contiguous rows ----------------------------------------------------------------------------------- */
LIGER_INLINE real max_of(const void *X, int64_t n, real m, liger_dtype t) {
#pragma omp simd reduction(max : m)
  for (int64_t i = 0; i < n; i++) { /* a NaN loses here and is found by the sum */
    const real x = load_element(X, i, t);
    m = x > m ? x : m;
  }
  return m;
}
/* e[0..n) = e^(X - m), and their sum. m is -inf or +inf where the result is to be NaN. */
LIGER_INLINE real exp_of(real *restrict e, const void *X, int64_t n, real m, liger_dtype t) {
  real sum = 0;
  for (int64_t k = 0; k < n; k += SUM_BLOCK) {
    const int64_t end = n - k < SUM_BLOCK ? n : k + SUM_BLOCK;
    real d = 0;
#pragma omp simd reduction(+ : d)
    for (int64_t i = k; i < end; i++) {
      e[i] = exp_nonpos(load_element(X, i, t) - m);
      d += e[i];
    }
    sum += d;
  }
  return sum;
}
LIGER_INLINE void scaled(void *restrict Y, const real *restrict e, int64_t n, real k, liger_dtype t) {
  for (int64_t i = 0; i < n; i++) store_element(Y, i, e[i] * k, t);
}
/* out[0..n) = e k in dtype t */
static void scale_to(void *out, real *e, int64_t n, real k, liger_dtype t) {
  if (direct_dtype(t) == LIGER_BF16) {
    scaled(out, e, n, k, LIGER_BF16);
  } else if (t == LIGER_REAL) {
    scaled(out, e, n, k, LIGER_REAL);
  } else {
    for (int64_t i = 0; i < n; i++) e[i] *= k;
    store_row(out, 0, e, n, t);
  }
}

/* A large result is written past the caches, in blocks, while the next row's blocks are on their way into
 * them; one of 16 bits is bound by its arithmetic instead. */
enum { OUT_BLOCK = 1024 };
static int is_large(int64_t n_rows, int64_t n_cols, liger_dtype t) {
  return t == LIGER_REAL && n_rows * n_cols * (int64_t)sizeof(real) > LIGER_STREAM_BYTES;
}

/* Y[offset..) = e k. next: what is read next, n elements, or NULL */
static void store_scaled(void *Y, int64_t offset, real *e, int64_t n, real k, liger_dtype t, int large,
                         const void *next) {
  if (!large) {
    scale_to((void *)elements_at(Y, offset, t), e, n, k, t);
    return;
  }
  real block[OUT_BLOCK];
  for (int64_t i = 0; i < n; i += OUT_BLOCK) {
    const int64_t m = n - i < OUT_BLOCK ? n - i : OUT_BLOCK, bytes = m * (int64_t)sizeof(real);
    if (next) prefetch_bytes(elements_at(next, i, t), bytes);
    scaled(block, e + i, m, k, LIGER_REAL);
    stream_bytes((void *)elements_at(Y, offset + i, t), block, (size_t)bytes);
  }
}

static void fwd_row(const liger_softmax_fwd_args *a, int64_t row, real *restrict x, real *restrict e,
                    int more) {
  const int64_t n_cols = a->n_cols, X_at = row * a->X_row_stride, Y_at = row * n_cols;
  const liger_dtype t = a->x_dtype;
  const int bf16 = direct_dtype(t) == LIGER_BF16, large = is_large(a->n_rows, n_cols, t);
  if (n_cols <= LIGER_TILE) {
    const void *const X = view_row(x, a->X, X_at, n_cols, t);
    const real m = bf16 ? max_of(X, n_cols, -INFINITY, LIGER_BF16) : max_of(X, n_cols, -INFINITY, LIGER_REAL);
    const real d = bf16 ? exp_of(e, X, n_cols, m, LIGER_BF16) : exp_of(e, X, n_cols, m, LIGER_REAL);
    store_scaled(a->Y, Y_at, e, n_cols, 1 / d, t, large,
                 more ? elements_at(a->X, X_at + a->X_row_stride, t) : NULL);
    return;
  }
  softmax_state s = softmax_empty;
  for (int64_t c = 0; c < n_cols; c += LIGER_TILE) {
    const int64_t n = n_cols - c < LIGER_TILE ? n_cols - c : LIGER_TILE;
    softmax_state tile = softmax_empty;
    load_row(x, a->X, X_at + c, n, t);
    for (int64_t k = 0; k < n; k += SUM_BLOCK)
      tile = softmax_push(tile, x + k, n - k < SUM_BLOCK ? n - k : SUM_BLOCK);
    s = softmax_merge(s, tile);
  }
  for (int64_t c = 0; c < n_cols; c += LIGER_TILE) {
    const int64_t n = n_cols - c < LIGER_TILE ? n_cols - c : LIGER_TILE;
    load_row(x, a->X, X_at + c, n, t);
    exp_of(e, x, n, s.m, LIGER_REAL);
    store_scaled(a->Y, Y_at + c, e, n, 1 / s.d, t, large, NULL);
  }
}

LIGER_INLINE real dot(const void *dY, const void *Y, int64_t n, liger_dtype t) {
  real sum = 0;
  for (int64_t k = 0; k < n; k += SUM_BLOCK) {
    const int64_t end = n - k < SUM_BLOCK ? n : k + SUM_BLOCK;
    real s = 0;
#pragma omp simd reduction(+ : s)
    for (int64_t i = k; i < end; i++) s += load_element(dY, i, t) * load_element(Y, i, t);
    sum += s;
  }
  return sum;
}
LIGER_INLINE void gradient(void *restrict dX, const void *dY, const void *Y, int64_t n, real s,
                           liger_dtype t) {
  for (int64_t i = 0; i < n; i++)
    store_element(dX, i, load_element(Y, i, t) * (load_element(dY, i, t) - s), t);
}

static void bwd_row(const liger_softmax_bwd_args *a, int64_t row, real *restrict y, real *restrict dy,
                    int more) {
  const int64_t n_cols = a->n_cols, Y_at = row * a->Y_row_stride, dY_at = row * a->dY_row_stride;
  const liger_dtype t = a->x_dtype;
  const int bf16 = direct_dtype(t) == LIGER_BF16, large = is_large(a->n_rows, n_cols, t);
  real s = 0;
  for (int64_t c = 0; c < n_cols; c += LIGER_TILE) {
    const int64_t n = n_cols - c < LIGER_TILE ? n_cols - c : LIGER_TILE;
    const void *const Y = view_row(y, a->Y, Y_at + c, n, t), *const dY = view_row(dy, a->dY, dY_at + c, n, t);
    s += bf16 ? dot(dY, Y, n, LIGER_BF16) : dot(dY, Y, n, LIGER_REAL);
  }
  real block[OUT_BLOCK];
  for (int64_t c = 0; c < n_cols; c += OUT_BLOCK) {
    const int64_t n = n_cols - c < OUT_BLOCK ? n_cols - c : OUT_BLOCK, at = row * n_cols + c;
    const int64_t bytes = n * (int64_t)dtype_size(t);
    if (large && more) {
      prefetch_bytes(elements_at(a->Y, Y_at + a->Y_row_stride + c, t), bytes);
      prefetch_bytes(elements_at(a->dY, dY_at + a->dY_row_stride + c, t), bytes);
    }
    const void *const Y = view_row(y, a->Y, Y_at + c, n, t), *const dY = view_row(dy, a->dY, dY_at + c, n, t);
    void *const dX = (void *)elements_at(a->dX, at, t);
    void *const to = large || !element_direct(t) ? (void *)block : dX;
    if (bf16) gradient(to, dY, Y, n, s, LIGER_BF16);
    else gradient(to, dY, Y, n, s, LIGER_REAL);
    if (large) stream_bytes(dX, block, (size_t)bytes);
    else if (!element_direct(t)) store_row(dX, 0, block, n, t);
  }
}

/* ---- rows side by side, n_inner apart: each loop below runs over n neighbouring rows ------------------- */
enum { INNER = LIGER_SOFTMAX_TILE, SUM_COLS = 32 };

static void fwd_inner(const liger_softmax_fwd_args *a, int64_t row, int64_t i0, int64_t n) {
  real x[INNER], m[INNER], d[INNER];
  const int64_t X_at = row * a->X_row_stride + i0, Y_at = row * a->n_cols * a->n_inner + i0;
  for (int64_t i = 0; i < n; i++) m[i] = -INFINITY, d[i] = 0;
  for (int64_t c = 0; c < a->n_cols; c++) {
    load_row(x, a->X, X_at + c * a->n_inner, n, a->x_dtype);
    for (int64_t i = 0; i < n; i++) m[i] = x[i] > m[i] ? x[i] : m[i];
  }
  for (int64_t first = 0; first < a->n_cols; first += SUM_COLS) {
    real part[INNER] = {0};
    for (int64_t c = first; c < a->n_cols && c < first + SUM_COLS; c++) {
      load_row(x, a->X, X_at + c * a->n_inner, n, a->x_dtype);
      for (int64_t i = 0; i < n; i++) part[i] += exp_nonpos(x[i] - m[i]);
    }
    for (int64_t i = 0; i < n; i++) d[i] += part[i];
  }
  for (int64_t i = 0; i < n; i++) d[i] = 1 / d[i];
  for (int64_t c = 0; c < a->n_cols; c++) {
    load_row(x, a->X, X_at + c * a->n_inner, n, a->x_dtype);
    for (int64_t i = 0; i < n; i++) x[i] = exp_nonpos(x[i] - m[i]) * d[i];
    store_row(a->Y, Y_at + c * a->n_inner, x, n, a->x_dtype);
  }
}

static void bwd_inner(const liger_softmax_bwd_args *a, int64_t row, int64_t i0, int64_t n) {
  real y[INNER], dy[INNER], s[INNER];
  const int64_t Y_at = row * a->Y_row_stride + i0, dY_at = row * a->dY_row_stride + i0;
  for (int64_t i = 0; i < n; i++) s[i] = 0;
  for (int64_t first = 0; first < a->n_cols; first += SUM_COLS) {
    real part[INNER] = {0};
    for (int64_t c = first; c < a->n_cols && c < first + SUM_COLS; c++) {
      load_row(y, a->Y, Y_at + c * a->n_inner, n, a->x_dtype);
      load_row(dy, a->dY, dY_at + c * a->n_inner, n, a->x_dtype);
      for (int64_t i = 0; i < n; i++) part[i] += dy[i] * y[i];
    }
    for (int64_t i = 0; i < n; i++) s[i] += part[i];
  }
  for (int64_t c = 0; c < a->n_cols; c++) {
    load_row(y, a->Y, Y_at + c * a->n_inner, n, a->x_dtype);
    load_row(dy, a->dY, dY_at + c * a->n_inner, n, a->x_dtype);
    for (int64_t i = 0; i < n; i++) y[i] *= dy[i] - s[i];
    store_row(a->dX, (row * a->n_cols + c) * a->n_inner + i0, y, n, a->x_dtype);
  }
}

/* row, first neighbour and their number of tile t */
static int64_t inner_tile(int64_t t, int64_t n_inner, int64_t *row, int64_t *i0) {
  const int64_t per_row = (n_inner + INNER - 1) / INNER;
  *row = t / per_row;
  *i0 = t % per_row * INNER;
  return n_inner - *i0 < INNER ? n_inner - *i0 : INNER;
}

liger_status LIGER_KERNEL(softmax_fwd)(const liger_softmax_fwd_args *a, int64_t tile_begin,
                                       int64_t tile_end) {
  real x[LIGER_TILE], e[LIGER_TILE];
  for (int64_t tile = tile_begin; tile < tile_end; tile++) {
    int64_t row, i0;
    const int64_t n = inner_tile(tile, a->n_inner, &row, &i0);
    if (a->n_inner == 1) fwd_row(a, row, x, e, tile + 1 < tile_end);
    else fwd_inner(a, row, i0, n);
  }
  stream_end();
  return LIGER_OK;
}
liger_status LIGER_KERNEL(softmax_bwd)(const liger_softmax_bwd_args *a, int64_t tile_begin,
                                       int64_t tile_end) {
  real y[LIGER_TILE], dy[LIGER_TILE];
  for (int64_t tile = tile_begin; tile < tile_end; tile++) {
    int64_t row, i0;
    const int64_t n = inner_tile(tile, a->n_inner, &row, &i0);
    if (a->n_inner == 1) bwd_row(a, row, y, dy, tile + 1 < tile_end);
    else bwd_inner(a, row, i0, n);
  }
  stream_end();
  return LIGER_OK;
}
LIGER_CPU_ENTRY(softmax_fwd, liger_softmax_fwd_args, x_dtype);
LIGER_CPU_ENTRY(softmax_bwd, liger_softmax_bwd_args, x_dtype);
