/* tvd        total variation distance of probabilities, and dX: l = |X - Y| / 2, dX = sign(X - Y) / 2
 * Shapes     X Y dX (n_rows, n_cols), last dim contiguous; loss (n_rows), or (n_rows, n_cols)
 * Rounding   fp32 (fp64) to the end; sums of a tile in fp32, of a row in fp64; dX is rounded once. At a tie the
 *            subgradient 0, torch.abs's
 * Plan       one pass; see divergence.h */
#include "divergence.h"

static inline real tvd_tile(const liger_divergence_args *a, const real *restrict x, const real *restrict y,
                            real *restrict l, real *restrict d, int64_t n, real of_grad) {
  real sum = 0;
  (void)a;
  const real half = (real)0.5;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) {
    const real t = distance(x[i], y[i]);
    l[i] = half * (t < 0 ? -t : t);
    sum += l[i];
    d[i] = of_grad * (t > 0 ? half : t < 0 ? -half : t); /* 0 of a tie, NaN of a NaN */
  }
  return sum;
}

liger_status LIGER_KERNEL(tvd)(const liger_divergence_args *a, int64_t row_begin, int64_t row_end) {
  return divergence_rows(a, row_begin, row_end, tvd_tile);
}
LIGER_CPU_ENTRY(tvd, liger_divergence_args, x_dtype);
