/* sparsemax   Y = max(X - tau, 0) with tau such that sum(Y) = 1
 *             dX = dY - mean of dY over Y > 0, where Y > 0, else 0
 * Shapes      X Y dX dY (n_rows, n_cols), last dim contiguous
 * Rounding    everything in `real`, relative to the row's maximum; one rounding at the store
 * Plan        Newton's steps on sum(max(X - tau, 0)) = 1 from below: tau' = (sum of X > tau, less 1) / their
 *             number. tau grows and the set X > tau shrinks, so once its size stays, tau is exact: no sort,
 *             and ties fall on one side together. A row of up to LIGER_TILE columns stays in its buffer
 * Source      arXiv:1602.02068 */
#include "primitives.h"

enum { SUM_BLOCK = 512 };

typedef struct {
  double sum;     /* of the z = X - m above tau */
  int64_t n, bad; /* their number; and of the NaN: in X, or of infinities */
} above;

static void add_above(above *s, const real *restrict x, int64_t n, real m, real tau) {
  for (int64_t k = 0; k < n; k += SUM_BLOCK) {
    const int64_t end = n - k < SUM_BLOCK ? n : k + SUM_BLOCK;
    real sum = 0;
    int count = 0, bad = 0;
#pragma omp simd reduction(+ : sum, count, bad)
    for (int64_t i = k; i < end; i++) {
      const real z = x[i] - m;
      sum += z > tau ? z : 0;
      count += z > tau;
      bad += z != z;
    }
    s->sum += (double)sum;
    s->n += count;
    s->bad += bad;
  }
}

/* columns [c, c + n) of the row; a row that fits the buffer is there already after the first time */
static void load_tile(real *restrict x, const liger_softmax_fwd_args *a, int64_t row, int64_t c, int64_t n) {
  load_row(x, a->X, row * a->X_row_stride + c, n, a->x_dtype);
}

liger_status LIGER_KERNEL(sparsemax_fwd)(const liger_softmax_fwd_args *a, int64_t row_begin,
                                         int64_t row_end) {
  real x[LIGER_TILE];
  const int64_t n_cols = a->n_cols;
  const int whole = n_cols <= LIGER_TILE;
  for (int64_t row = row_begin; row < row_end; row++) {
    real m = -INFINITY, tau = -1;
    for (int64_t c = 0; c < n_cols; c += LIGER_TILE) {
      const int64_t n = n_cols - c < LIGER_TILE ? n_cols - c : LIGER_TILE;
      load_tile(x, a, row, c, n);
#pragma omp simd reduction(max : m)
      for (int64_t i = 0; i < n; i++) m = x[i] > m ? x[i] : m;
    }
    for (int64_t before = INT64_MAX;;) {
      above s = {0, 0, 0};
      for (int64_t c = 0; c < n_cols; c += LIGER_TILE) {
        const int64_t n = n_cols - c < LIGER_TILE ? n_cols - c : LIGER_TILE;
        if (!whole) load_tile(x, a, row, c, n);
        add_above(&s, x, n, m, tau);
      }
      if (s.bad) tau = NAN;
      if (s.bad || s.n >= before) break;
      before = s.n;
      tau = (real)((s.sum - 1) / (double)s.n);
    }
    for (int64_t c = 0; c < n_cols; c += LIGER_TILE) {
      const int64_t n = n_cols - c < LIGER_TILE ? n_cols - c : LIGER_TILE;
      if (!whole) load_tile(x, a, row, c, n);
      for (int64_t i = 0; i < n; i++) {
        const real y = x[i] - m - tau;
        x[i] = y <= 0 ? 0 : y; /* a NaN stays */
      }
      store_row(a->Y, row * n_cols + c, x, n, a->x_dtype);
    }
  }
  return LIGER_OK;
}

liger_status LIGER_KERNEL(sparsemax_bwd)(const liger_softmax_bwd_args *a, int64_t row_begin,
                                         int64_t row_end) {
  real y[SUM_BLOCK], dy[SUM_BLOCK];
  const int64_t n_cols = a->n_cols;
  for (int64_t row = row_begin; row < row_end; row++) {
    double total = 0;
    int64_t n_above = 0;
    for (int pass = 0; pass < 2; pass++) {
      const real mean = n_above ? (real)(total / (double)n_above) : 0;
      for (int64_t c = 0; c < n_cols; c += SUM_BLOCK) {
        const int64_t n = n_cols - c < SUM_BLOCK ? n_cols - c : SUM_BLOCK;
        load_row(y, a->Y, row * a->Y_row_stride + c, n, a->x_dtype);
        load_row(dy, a->dY, row * a->dY_row_stride + c, n, a->x_dtype);
        if (pass == 0) {
          real sum = 0;
          int count = 0;
#pragma omp simd reduction(+ : sum, count)
          for (int64_t i = 0; i < n; i++) {
            sum += y[i] > 0 ? dy[i] : 0;
            count += y[i] > 0;
          }
          total += (double)sum;
          n_above += count;
        } else {
          for (int64_t i = 0; i < n; i++) dy[i] = y[i] > 0 ? dy[i] - mean : y[i]; /* 0, or NaN */
          store_row(a->dX, row * n_cols + c, dy, n, a->x_dtype);
        }
      }
    }
  }
  return LIGER_OK;
}
LIGER_CPU_ENTRY(sparsemax_fwd, liger_softmax_fwd_args, x_dtype);
LIGER_CPU_ENTRY(sparsemax_bwd, liger_softmax_bwd_args, x_dtype);
