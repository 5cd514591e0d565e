/* linear_logprob   logprob, lse, entropy, argmax, mean of a row of logits, log-probabilities of more ids, and
 *                  dX from the incoming gradients of all of them; equations: liger_linear_logprob_*_args
 * Shapes           X dX (n_rows, n_cols), last dim contiguous; outputs (n_rows), extra (n_rows, n_extra)
 * Rounding         everything in `real`; dX is rounded once, after the ids' terms are in
 * Plan             a row passes through a buffer of LP_TILE columns that stays in L1: once forward, with a
 *                  running maximum m, d = sum e^(z-m) and s = sum e^(z-m) (z-m), and once backward.
 *                  log p_j = (z_j - m) - log d and entropy = log d - s/d: differences to the maximum, so
 *                  that nothing cancels where logits are large
 * Source           online softmax arXiv:1805.02867; softcap arXiv:2408.00118                              */
#include "primitives.h"

/* below LP_FAR the exponential is 0: holding z - m there keeps 0 * inf out of the sums and changes nothing */
enum { LP_TILE = 2048, LP_FAR = -10000 };

/* z = inner x, or outer tanh(inner x) with a softcap; dz/dx = slope (1 - (z / outer)^2) */
typedef struct {
  real inner, outer, slope;
} logit_map;
static logit_map map_of(double logit_scale, double softcap, double temperature) {
  if (softcap == 0)
    return (logit_map){(real)(logit_scale / temperature), 0, (real)(logit_scale / temperature)};
  return (logit_map){(real)(logit_scale / softcap), (real)(softcap / temperature),
                     (real)(logit_scale / temperature)};
}
static void load_logits(real *restrict z, const void *X, int64_t offset, int64_t n, logit_map map,
                        liger_dtype t) {
  load_row(z, X, offset, n, t);
  if (map.outer != 0) {
    for (int64_t i = 0; i < n; i++) z[i] = map.outer * tanh_real(z[i] * map.inner);
  } else if (map.inner != 1) {
    for (int64_t i = 0; i < n; i++) z[i] *= map.inner;
  }
}
static real far_clamped(real x) { return x < LP_FAR ? LP_FAR : x; /* a NaN stays */ }

typedef struct {
  softmax_state softmax;
  real s;     /* sum e^(z-m) (z-m), for the entropy alone */
  double sum; /* sum z, for the mean alone: one addition per run */
  int64_t argmax;
} row_stats;

static row_stats read_row(const liger_linear_logprob_fwd_args *a, int64_t row, logit_map map, int entropy) {
  real z[LP_TILE];
  row_stats r = {softmax_empty, 0, 0, 0};
  for (int64_t c = 0; c < a->n_cols; c += LP_TILE) {
    const int64_t n = a->n_cols - c < LP_TILE ? a->n_cols - c : LP_TILE;
    load_logits(z, a->X, row * a->X_row_stride + c, n, map, a->x_dtype);
    const softmax_state before = r.softmax;
    if (!entropy) {
      r.softmax = softmax_push(before, z, n);
    } else {
      real m = before.m, d = 0, s = 0;
#pragma omp simd reduction(max : m)
      for (int64_t i = 0; i < n; i++) m = z[i] > m ? z[i] : m;
      const real ref = softmax_ref(m), scale = exp_real(before.m - ref);
#pragma omp simd reduction(+ : d, s)
      for (int64_t i = 0; i < n; i++) {
        const real e = exp_nonpos(z[i] - ref);
        d += e;
        s += e * far_clamped(z[i] - ref);
      }
      if (before.d != 0) { /* what is held so far, measured from the new maximum */
        s += scale * (r.s + before.d * far_clamped(before.m - ref));
        d += scale * before.d;
      }
      r.softmax = (softmax_state){m, d};
      r.s = s;
    }
    if (a->argmax && r.softmax.m > before.m) {
      int64_t i = 0;
      while (z[i] != r.softmax.m) i++;
      r.argmax = c + i;
    }
    if (a->mean_logit) {
      for (int64_t k = 0; k < n; k += LIGER_RUN) {
        const int64_t end = run_end(k, n, LIGER_RUN);
        real sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = k; i < end; i++) sum += z[i];
        r.sum += (double)sum;
      }
    }
  }
  return r;
}

/* a row without outputs of its own: 0 if it is ignored, NaN if its id is out of range */
static void fill_outputs(const liger_linear_logprob_fwd_args *a, int64_t row, real value) {
  void *const outputs[] = {a->logprob, a->lse, a->entropy, a->mean_logit};
  for (int i = 0; i < 4; i++)
    if (outputs[i]) ((real *)outputs[i])[row] = value;
  if (a->argmax) a->argmax[row] = value == 0 ? 0 : -1;
  for (int64_t k = 0; k < a->n_extra; k++) ((real *)a->extra)[row * a->n_extra + k] = value;
  for (int k = 0; a->stats && k < LIGER_LOGPROB_STATS; k++)
    ((real *)a->stats)[row * LIGER_LOGPROB_STATS + k] = 0;
}

/* z_id - lse, read again: a single element */
static real logprob_of(const liger_linear_logprob_fwd_args *a, int64_t row, int64_t id, logit_map map,
                       softmax_state s, real log_d) {
  real z = 0;
  load_logits(&z, a->X, row * a->X_row_stride + id, 1, map, a->x_dtype);
  return s.d == 0 || z == -INFINITY ? -INFINITY : (z - s.m) - log_d;
}

liger_status LIGER_KERNEL(linear_logprob_fwd)(const liger_linear_logprob_fwd_args *a, int64_t row_begin,
                                              int64_t row_end) {
  const logit_map map = map_of(a->logit_scale, a->softcap, a->temperature);
  for (int64_t row = row_begin; row < row_end; row++) {
    const int64_t y = a->ids[row * a->ids_stride];
    if (y == a->ignore_index || y < 0 || y >= a->n_cols) {
      fill_outputs(a, row, y == a->ignore_index ? 0 : NAN);
      continue;
    }
    const row_stats r = read_row(a, row, map, a->entropy != NULL);
    const softmax_state s = r.softmax;
    const int dead = s.d == 0; /* nothing but -inf */
    const real log_d = dead ? 0 : log_real(s.d), mean = dead ? 0 : r.s / s.d;
    ((real *)a->logprob)[row] = logprob_of(a, row, y, map, s, log_d);
    if (a->lse) ((real *)a->lse)[row] = s.m + log_d;
    if (a->entropy) ((real *)a->entropy)[row] = log_d - mean;
    if (a->mean_logit) ((real *)a->mean_logit)[row] = (real)(r.sum / (double)a->n_cols);
    if (a->argmax) a->argmax[row] = r.argmax;
    for (int64_t k = 0; k < a->n_extra; k++) {
      const int64_t id = a->extra_ids[row * a->extra_ids_row_stride + k];
      const int valid = id != a->ignore_index && id >= 0 && id < a->n_cols;
      ((real *)a->extra)[row * a->n_extra + k] = valid ? logprob_of(a, row, id, map, s, log_d)
                                                 : id == a->ignore_index ? 0
                                                                         : NAN;
    }
    if (a->stats) {
      real *const saved = (real *)a->stats + row * LIGER_LOGPROB_STATS;
      saved[0] = s.m;
      saved[1] = s.d;
      saved[2] = mean;
    }
  }
  return LIGER_OK;
}

static real gradient_of(const void *g, int64_t row, int64_t stride) {
  return g ? ((const real *)g)[row * stride] : 0;
}

static void write_gradient(const liger_linear_logprob_bwd_args *a, int64_t row, int64_t y, logit_map map) {
  real z[LP_TILE], dz[LP_TILE];
  const real *const saved = (const real *)a->stats + row * LIGER_LOGPROB_STATS;
  const real m = saved[0], mean = saved[2], k = saved[1] == 0 ? 0 : 1 / saved[1];
  const int64_t *const extra_ids = a->n_extra ? a->extra_ids + row * a->extra_ids_row_stride : NULL;
  const real *const dextra = a->n_extra ? (const real *)a->dextra + row * a->dextra_row_stride : NULL;
  /* the constant part of dz/dX goes into the factors; a dead row has no gradient */
  const real slope = k == 0 ? 0 : map.slope;
  const real g_y = slope * gradient_of(a->dlogprob, row, a->dlogprob_stride),
             g_entropy = slope * gradient_of(a->dentropy, row, a->dentropy_stride),
             g_mean = slope * gradient_of(a->dmean_logit, row, a->dmean_logit_stride) / (real)a->n_cols;
  real g_p = slope * gradient_of(a->dlse, row, a->dlse_stride) - g_y;
  for (int64_t i = 0; i < a->n_extra; i++)
    if (extra_ids[i] != a->ignore_index && extra_ids[i] >= 0 && extra_ids[i] < a->n_cols)
      g_p -= slope * dextra[i];
  for (int64_t c = 0; c < a->n_cols; c += LP_TILE) {
    const int64_t n = a->n_cols - c < LP_TILE ? a->n_cols - c : LP_TILE;
    if (k == 0) {
      memset(dz, 0, sizeof dz);
    } else {
      load_logits(z, a->X, row * a->X_row_stride + c, n, map, a->x_dtype);
      /* p (g_p - g_entropy (log p + entropy)) + g_mean, where log p + entropy = (z - m) - mean */
      for (int64_t i = 0; i < n; i++) {
        const real x = z[i] - m;
        dz[i] = k * exp_nonpos(x) * (g_p - g_entropy * (far_clamped(x) - mean)) + g_mean;
      }
      if (y >= c && y < c + n) dz[y - c] += g_y;
      for (int64_t i = 0; i < a->n_extra; i++) /* in order, so repeated ids add up the same way every time */
        if (extra_ids[i] >= c && extra_ids[i] < c + n && extra_ids[i] != a->ignore_index)
          dz[extra_ids[i] - c] += slope * dextra[i];
      if (map.outer != 0) {
        const real inv = 1 / map.outer;
        for (int64_t i = 0; i < n; i++) dz[i] *= 1 - (z[i] * inv) * (z[i] * inv);
      }
    }
    store_row(a->dX, row * a->X_row_stride + c, dz, n, a->x_dtype);
  }
}

liger_status LIGER_KERNEL(linear_logprob_bwd)(const liger_linear_logprob_bwd_args *a, int64_t row_begin,
                                              int64_t row_end) {
  const logit_map map = map_of(a->logit_scale, a->softcap, a->temperature);
  for (int64_t row = row_begin; row < row_end; row++) {
    const int64_t y = a->ids[row * a->ids_stride];
    if (y != a->ignore_index && y >= 0 && y < a->n_cols) {
      write_gradient(a, row, y, map);
      continue;
    }
    real zero[LP_TILE];
    memset(zero, 0, sizeof zero);
    for (int64_t c = 0; c < a->n_cols; c += LP_TILE)
      store_row(a->dX, row * a->X_row_stride + c, zero, a->n_cols - c < LP_TILE ? a->n_cols - c : LP_TILE,
                a->x_dtype);
  }
  return LIGER_OK;
}

LIGER_CPU_ENTRY(linear_logprob_fwd, liger_linear_logprob_fwd_args, x_dtype);
LIGER_CPU_ENTRY(linear_logprob_bwd, liger_linear_logprob_bwd_args, x_dtype);
