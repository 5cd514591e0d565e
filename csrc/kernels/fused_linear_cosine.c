/* fused_linear_cosine   the rows of it: one minus the cosine of the angle between two rows of logits, and dX; equations:
 *            csrc/liger_divergence.h. Beside it, if asked for, the labels' cross entropy: distill_hard.h
 * Shapes     X Y dX (n_rows, n_cols), last dim contiguous, dX may be X; losses labels (n_rows)
 * Rounding   fp32 (fp64) to the end; sums of a tile in fp32, of a row in fp64; dX is rounded once
 * Plan       the three products of the rows with themselves and each other; dX
 * Source     torch.nn.functional.cosine_similarity, whose eps and whose gradient below it are these */
#include "distill_hard.h"

typedef struct {
  double xx, yy, xy;
} row_products;

static row_products products_of_row(const liger_divergence_args *a, int64_t row) {
  real x[DIVERGENCE_TILE], y[DIVERGENCE_TILE];
  row_products p = {0, 0, 0};
  for (int64_t c = 0; c < a->n_cols; c += DIVERGENCE_TILE) {
    const int64_t n = a->n_cols - c < DIVERGENCE_TILE ? a->n_cols - c : DIVERGENCE_TILE;
    const real *X = reals(x, a->X, row * a->X_row_stride + c, n, a->x_dtype);
    const real *Y = reals(y, a->Y, row * a->Y_row_stride + c, n, a->y_dtype);
    real xx = 0, yy = 0, xy = 0;
#pragma omp simd reduction(+ : xx, yy, xy)
    for (int64_t i = 0; i < n; i++) {
      xx += X[i] * X[i];
      yy += Y[i] * Y[i];
      xy += X[i] * Y[i];
    }
    p.xx += (double)xx;
    p.yy += (double)yy;
    p.xy += (double)xy;
  }
  return p;
}

/* dX = of_x X + of_y Y, and the cross entropy's part */
static void write_gradient(const liger_divergence_args *a, int64_t row, const hard_row *hard, real of_soft,
                           real of_x, real of_y) {
  real x[DIVERGENCE_TILE], y[DIVERGENCE_TILE], d[DIVERGENCE_TILE];
  for (int64_t c = 0; c < a->n_cols; c += DIVERGENCE_TILE) {
    const int64_t n = a->n_cols - c < DIVERGENCE_TILE ? a->n_cols - c : DIVERGENCE_TILE;
    const real *X = reals(x, a->X, row * a->X_row_stride + c, n, a->x_dtype);
    const real *Y = reals(y, a->Y, row * a->Y_row_stride + c, n, a->y_dtype);
    for (int64_t i = 0; i < n; i++) d[i] = of_x * X[i] + of_y * Y[i];
    if (hard) hard_add(a, row, hard, of_soft, d, c, n);
    store_row(a->dX, row * a->dX_row_stride + c, d, n, a->x_dtype);
  }
}

static void cosine_row(const liger_divergence_args *a, int64_t row, real of_loss, real of_soft) {
  hard_row h;
  const hard_row *const hard = a->hard.loss ? &h : NULL;
  if (hard) h = hard_begin(a, row, NULL);
  const row_products p = products_of_row(a, row);
  const double eps = 1e-8 * a->temperature, length = sqrt(p.xx), y_length = sqrt(p.yy);
  const double A = length < eps ? eps : length, B = y_length < eps ? eps : y_length, c = p.xy / A / B;
  if (a->loss) ((real *)a->loss)[row] = of_loss == 0 ? 0 : (real)((double)of_loss * a->parameter * (1 - c));
  if (!a->dX) return;
  const double of = (double)of_soft * a->parameter / A;
  write_gradient(a, row, hard, of_soft, (real)(length == 0 ? 0 : of * c / length), (real)(-of / B));
}

liger_status LIGER_KERNEL(fused_linear_cosine)(const liger_divergence_args *a, int64_t row_begin,
                                               int64_t row_end) {
  const real of_loss = loss_scale(a), of_soft = soft_scale(a);
  for (int64_t row = row_begin; row < row_end; row++) {
    if (ignored_row(a, row)) fill_row(a, row, 0);
    else if (hard_label_is_no_class(a, row)) fill_row(a, row, NAN);
    else cosine_row(a, row, of_loss, of_soft);
  }
  return LIGER_OK;
}
LIGER_CPU_ENTRY(fused_linear_cosine, liger_divergence_args, x_dtype);
