/* kl_div     Kullback-Leibler divergence of log-probabilities X from a target, and dX; equations: csrc/liger_divergence.h
 * Shapes     X Y dX (n_rows, n_cols), last dim contiguous; loss (n_rows), or (n_rows, n_cols)
 * Rounding   fp32 (fp64) to the end; sums of a tile in fp32, of a row in fp64; dX is rounded once
 * Plan       one pass; see divergence.h
 * Source     torch.nn.KLDivLoss, whose target of 0 this takes for 0 whatever X is */
#include "divergence.h"

static inline real kl_div_tile(const liger_divergence_args *a, const real *restrict x, const real *restrict y,
                               real *restrict l, real *restrict d, int64_t n, real of_grad) {
  real sum = 0;
  const real eps = (real)a->parameter;
  if (a->log_target) {
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) {
      const real p = exp_nonpos(y[i]);
      l[i] = times(p, distance(y[i], x[i]));
      sum += l[i];
      d[i] = of_grad * -p;
    }
  } else {
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) {
      l[i] = kl_element(x[i], y[i], eps);
      sum += l[i];
      d[i] = of_grad * -y[i];
    }
  }
  return sum;
}

liger_status LIGER_KERNEL(kl_div)(const liger_divergence_args *a, int64_t row_begin, int64_t row_end) {
  return divergence_rows(a, row_begin, row_end, kl_div_tile);
}
LIGER_CPU_ENTRY(kl_div, liger_divergence_args, x_dtype);
