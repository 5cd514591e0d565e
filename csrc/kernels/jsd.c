/* jsd        generalised Jensen-Shannon divergence of log-probabilities, and dX; equations: csrc/liger_divergence.h
 * Shapes     X Y dX (n_rows, n_cols), last dim contiguous; loss labels (n_rows)
 * Rounding   fp32 (fp64) to the end; sums of a tile in fp32, of a row in fp64; dX is rounded once
 * Plan       one pass: loss and gradient of a tile from the same exponentials; see divergence.h
 * Source     arXiv:2306.13649 (GKD) */
#include "divergence.h"

static inline real jsd_tile(const liger_divergence_args *a, const real *restrict x, const real *restrict y,
                            real *restrict l, real *restrict d, int64_t n, real of_grad) {
  real sum = 0;
  const real beta = (real)a->parameter, rest = (real)(1 - a->parameter);
  if (a->parameter == 0) {
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) {
      const jsd_element e = jsd_of_p(x[i], y[i]);
      l[i] = e.loss;
      sum += l[i];
      d[i] = of_grad * e.grad;
    }
  } else if (a->parameter == 1) {
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) {
      const jsd_element e = jsd_of_q(x[i], y[i]);
      l[i] = e.loss;
      sum += l[i];
      d[i] = of_grad * (e.grad + e.q);
    }
  } else {
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) {
      const jsd_element e = jsd_mid(x[i], y[i], beta, rest);
      l[i] = e.loss;
      sum += l[i];
      d[i] = of_grad * e.grad;
    }
  }
  return sum;
}

liger_status LIGER_KERNEL(jsd)(const liger_divergence_args *a, int64_t row_begin, int64_t row_end) {
  return divergence_rows(a, row_begin, row_end, jsd_tile);
}
LIGER_CPU_ENTRY(jsd, liger_divergence_args, x_dtype);
