/* cross_entropy   ce = (1 - a) w_y (lse - z_y) + a/V sum_i w_i (lse - z_i),   loss = t (ce_scale ce +
 * z_scale s lse^2)     per row
 *                 dX and the meaning of ce_scale, z_scale and t: see liger_cross_entropy_args
 * Shapes          X dX (n_rows, n_cols), last dim contiguous; loss z_loss accuracy predicted target
 * (n_rows); weight (n_cols)
 * Rounding        everything in `real`; p - 1 is formed before anything is rounded; dX is rounded once
 * Plan            a row passes in tiles that stay in L1, once for the softmax statistics and once more for
 *                 the gradient. Where dX can hold what the first pass computed (dX is `real`, no softcap, a
 *                 row that L2 holds), that pass leaves the exponentials there, relative to the maximum so
 *                 far, and the second only scales them; else it computes them anew from the logits in L2.
 *                 Rows in parts: the same steps, what a pass found kept in `state` between them
 * Source          label smoothing arXiv:1512.00567; z-loss arXiv:2204.02311; softcap arXiv:2408.00118;
 * online softmax arXiv:1805.02867 */
#include "primitives.h"

enum {
  CE_TILE = 1024,
  CE_KEPT = 128 /* tiles of a row whose exponentials may wait in dX for their factor: more leave the L2 */
};

/* what the forward pass over one row found */
typedef struct {
  softmax_state softmax;
  real wz, w;        /* sum_i w_i (z_i - ref(m)), sum_i w_i; for label smoothing alone */
  int64_t argmax;    /* the smallest index at a tie */
  real max[CE_KEPT]; /* of all columns up to a tile's end, where dX holds the tile's e^(z - max) */
} row_stats;

/* logits [c, c + n) of a row, softcapped: in place, or as `real` in buf */
static const real *view_logits(const liger_cross_entropy_args *a, int64_t row, int64_t c, int64_t n,
                               real *restrict buf) {
  const int64_t offset = row * a->X_row_stride + c;
  if (a->softcap == 0 && a->x_dtype == LIGER_REAL) return (const real *)a->X + offset;
  load_row(buf, a->X, offset, n, a->x_dtype);
  if (a->softcap != 0) {
    const real cap = (real)a->softcap, inv = 1 / cap;
    for (int64_t i = 0; i < n; i++) buf[i] = cap * tanh_real(buf[i] * inv);
  }
  return buf;
}

static void begin_row(row_stats *s) {
  s->softmax = softmax_empty;
  s->wz = s->w = 0;
  s->argmax = 0;
}

/* s with the n logits z that begin at column c; e, or NULL: where their exponentials go, and may lie over them */
LIGER_INLINE void read_tile(const liger_cross_entropy_args *a, const real *z, int64_t c, int64_t n,
                            int want_argmax, real *e, row_stats *s) {
  const real m_before = s->softmax.m, m = max_row(m_before, z, n), ref = softmax_ref(m);
  if (want_argmax && m > m_before) {
    int64_t i = 0;
    while (z[i] != m) i++;
    s->argmax = c + i;
  }
  if (a->label_smoothing != 0) { /* relative to the maximum, so that logits around 1e4 do not cancel */
    const real *restrict w = a->weight ? (const real *)a->weight + c : NULL;
    real wz = 0, w_tile = 0;
    if (w) {
#pragma omp simd reduction(+ : wz, w_tile)
      for (int64_t i = 0; i < n; i++) {
        wz += w[i] == 0 ? 0 : w[i] * (z[i] - ref); /* a class without weight may be masked by -inf */
        w_tile += w[i];
      }
    } else {
#pragma omp simd reduction(+ : wz)
      for (int64_t i = 0; i < n; i++) wz += z[i] - ref;
      w_tile = (real)n;
    }
    s->wz += wz - s->w * (ref - softmax_ref(m_before));
    s->w += w_tile;
  }
  s->softmax = softmax_add(s->softmax, z, e, n, m);
}

/* keep: the exponentials go to dX */
static void read_row(const liger_cross_entropy_args *a, int64_t row, int want_argmax, int keep,
                     row_stats *s) {
  real buf[CE_TILE];
  begin_row(s);
  for (int64_t c = 0; c < a->n_cols; c += CE_TILE) {
    const int64_t n = a->n_cols - c < CE_TILE ? a->n_cols - c : CE_TILE;
    const real *const z = view_logits(a, row, c, n, buf);
    if (keep) {
      read_tile(a, z, c, n, want_argmax, (real *)a->dX + row * a->dX_row_stride + c, s);
      s->max[c / CE_TILE] = s->softmax.m;
    } else {
      read_tile(a, z, c, n, want_argmax, NULL, s);
    }
  }
}

static void fill_gradient(const liger_cross_entropy_args *a, int64_t row, real value) {
  real dz[CE_TILE];
  for (int64_t i = 0; i < CE_TILE; i++) dz[i] = value;
  for (int64_t c = 0; c < a->n_cols; c += CE_TILE)
    store_row(a->dX, row * a->dX_row_stride + c, dz, a->n_cols - c < CE_TILE ? a->n_cols - c : CE_TILE,
              a->x_dtype);
}

/* the outputs of a row that has no loss of its own: value 0 for an ignored row, NaN for a label out of
 * range */
static void fill_row(const liger_cross_entropy_args *a, int64_t row, real value) {
  ((real *)a->loss)[row] = value;
  if (a->z_loss) ((real *)a->z_loss)[row] = value;
  if (a->accuracy) ((real *)a->accuracy)[row] = value;
  if (a->predicted) a->predicted[row] = -1;
  if (a->dX) fill_gradient(a, row, value);
}

/* out_i = k e^(z_i - m), both in dtype t; out may be z */
LIGER_INLINE void scaled_exp(void *out, const void *z, int64_t n, real k, real m, liger_dtype t) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) store_element(out, i, k * exp_nonpos(load_element(z, i, t) - m), t);
}

/* dX_i = (p_scale p_i - w_scale w_i) (1 - (z_i/softcap)^2), and column y = dz_y times that factor */
static void write_gradient(const liger_cross_entropy_args *a, int64_t row, int64_t y, const row_stats *s,
                           int kept, real p_scale, real w_scale, real dz_y) {
  real buf[CE_TILE], dz_buf[CE_TILE];
  const real k = p_scale / s->softmax.d, m = s->softmax.m, inv = a->softcap == 0 ? 0 : 1 / (real)a->softcap;
  const int direct = direct_dtype(a->x_dtype) == LIGER_BF16 && a->softcap == 0 && w_scale == 0;
  for (int64_t c = 0; c < a->n_cols; c += CE_TILE) {
    const int64_t n = a->n_cols - c < CE_TILE ? a->n_cols - c : CE_TILE, offset = row * a->dX_row_stride + c;
    real *const dz = a->x_dtype == LIGER_REAL ? (real *)a->dX + offset : dz_buf;
    const real *z = NULL;
    if (direct) {
      void *const out = (void *)elements_at(a->dX, offset, LIGER_BF16);
      scaled_exp(out, elements_at(a->X, row * a->X_row_stride + c, LIGER_BF16), n, k, m, LIGER_BF16);
      if (y >= c && y < c + n) store_element(out, y - c, dz_y, LIGER_BF16);
      continue;
    }
    if (kept) {
      const real f = k * exp_real(s->max[c / CE_TILE] - m);
      for (int64_t i = 0; i < n; i++) dz[i] *= f;
    } else {
      z = view_logits(a, row, c, n, buf);
      scaled_exp(dz, z, n, k, m, LIGER_REAL);
    }
    if (w_scale != 0) {
      const real *restrict w = a->weight ? (const real *)a->weight + c : NULL;
      for (int64_t i = 0; i < n; i++) dz[i] -= w ? w_scale * w[i] : w_scale;
    }
    if (y >= c && y < c + n) dz[y - c] = dz_y;
    if (a->softcap != 0)
      for (int64_t i = 0; i < n; i++) dz[i] *= 1 - (z[i] * inv) * (z[i] * inv);
    if (dz == dz_buf) store_row(a->dX, offset, dz, n, a->x_dtype);
  }
}

/* what the gradient of a row is made of; see write_gradient */
typedef struct {
  real p_scale, w_scale, dz_y;
  int dead; /* nothing but -inf: no probabilities, no gradient */
} row_factors;

/* From the statistics of a row and its target's logit. write: the row's outputs too */
static row_factors finish_row(const liger_cross_entropy_args *a, int64_t row, int64_t y, const row_stats *s,
                              real z_y, int write) {
  const real *const stats = (const real *)a->stats;
  const real ce_scale = stats[LIGER_CE_SCALE], z_scale = stats[LIGER_CE_Z_SCALE],
             w_sum = stats[LIGER_CE_W_SUM];
  const real smoothing = (real)a->label_smoothing, each = smoothing / (real)a->n_cols;
  const real w_y = a->weight ? ((const real *)a->weight)[y] : 1;
  row_factors f = {0, 0, 0, s->softmax.m == -INFINITY && s->softmax.d == 0};
  const real log_d = log_real(s->softmax.d), ref = softmax_ref(s->softmax.m), lse = s->softmax.m + log_d;
  /* differences to the maximum first: exact where the logits are large */
  const real log_p = f.dead || z_y == -INFINITY ? -INFINITY : (z_y - ref) - log_d;
  const real hard = (1 - smoothing) * w_y, t = a->token_scaling ? exp_real(log_p) : 1;
  if (write) {
    real ce = hard == 0 ? 0 : -hard * log_p; /* a coefficient of 0 wins over an infinite loss */
    if (each != 0) ce += f.dead ? INFINITY : each * (w_sum * log_d - s->wz);
    const real z_loss = a->lse_square_scale == 0 ? 0 : z_scale * (real)a->lse_square_scale * lse * lse;
    ((real *)a->loss)[row] = t == 0 ? 0 : t * ((ce_scale == 0 ? 0 : ce_scale * ce) + z_loss);
    if (a->z_loss) ((real *)a->z_loss)[row] = t == 0 ? 0 : t * z_loss;
    if (a->accuracy) ((real *)a->accuracy)[row] = s->argmax == y;
    if (a->predicted) a->predicted[row] = s->argmax;
  }
  if (!a->dX || f.dead) return f;
  const real g = a->row_grad ? ((const real *)a->row_grad)[row * a->row_grad_stride] : 1;
  const real scale = g * t * ce_scale, z_grad = g * t * z_scale * 2 * (real)a->lse_square_scale * lse;
  const real p_y = exp_real(log_p);
  f.p_scale = scale * (hard + each * w_sum) + z_grad;
  f.w_scale = scale * each;
  /* p - 1 as one difference, before any factor */
  f.dz_y = scale * (hard * (p_y - 1) + each * (w_sum * p_y - w_y)) + z_grad * p_y;
  return f;
}

static int is_class(const liger_cross_entropy_args *a, int64_t y) {
  return y != a->ignore_index && y >= 0 && y < a->n_cols;
}

liger_status LIGER_KERNEL(cross_entropy)(const liger_cross_entropy_args *a, int64_t row_begin,
                                         int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; row++) {
    const int64_t y = a->target[row * a->target_stride];
    if (!is_class(a, y)) {
      fill_row(a, row, y == a->ignore_index ? 0 : NAN);
      continue;
    }
    real buf = 0;
    const real z_y = *view_logits(a, row, y, 1, &buf); /* before dX, which may lie over X, is written */
    const int keep = a->dX && a->x_dtype == LIGER_REAL && a->softcap == 0 && a->n_cols <= CE_KEPT * CE_TILE;
    row_stats s;
    read_row(a, row, a->accuracy || a->predicted, keep, &s);
    const row_factors f = finish_row(a, row, y, &s, z_y, 1);
    if (!a->dX) continue;
    if (f.dead) fill_gradient(a, row, 0);
    else write_gradient(a, row, y, &s, keep, f.p_scale, f.w_scale, f.dz_y);
  }
  return LIGER_OK;
}

/* ---- rows in parts --------------------------------------------------------------------------------------- */
enum { STATE_M, STATE_D, STATE_WZ, STATE_W, STATE_ARGMAX, STATE_Z_Y };

static real *state_of(const liger_cross_entropy_part_args *p, int64_t row) {
  return (real *)p->state + row * LIGER_CE_STATE;
}
static void load_state(const real *from, row_stats *s) {
  s->softmax = (softmax_state){from[STATE_M], from[STATE_D]};
  s->wz = from[STATE_WZ];
  s->w = from[STATE_W];
  s->argmax = (int64_t)from[STATE_ARGMAX];
}

liger_status LIGER_KERNEL(cross_entropy_part_stats)(const liger_cross_entropy_part_args *p, int64_t row_begin,
                                                    int64_t row_end) {
  const liger_cross_entropy_args *const a = &p->rows;
  real buf[CE_TILE];
  for (int64_t row = row_begin; row < row_end; row++) {
    const int64_t y = a->target[row * a->target_stride], y_here = y - p->first_col;
    if (!is_class(a, y)) continue;
    real *const state = state_of(p, row);
    row_stats s;
    if (p->first_col) load_state(state, &s);
    else begin_row(&s);
    for (int64_t c = 0; c < p->n_part; c += CE_TILE) {
      const int64_t n = p->n_part - c < CE_TILE ? p->n_part - c : CE_TILE;
      read_tile(a, view_logits(a, row, c, n, buf), p->first_col + c, n, a->accuracy || a->predicted, NULL,
                &s);
    }
    state[STATE_M] = s.softmax.m;
    state[STATE_D] = s.softmax.d;
    state[STATE_WZ] = s.wz;
    state[STATE_W] = s.w;
    state[STATE_ARGMAX] = (real)s.argmax;
    if (y_here >= 0 && y_here < p->n_part) state[STATE_Z_Y] = *view_logits(a, row, y_here, 1, buf);
  }
  return LIGER_OK;
}

liger_status LIGER_KERNEL(cross_entropy_part_finish)(const liger_cross_entropy_part_args *p,
                                                     int64_t row_begin, int64_t row_end) {
  liger_cross_entropy_args a = p->rows;
  a.dX = NULL; /* outputs alone */
  for (int64_t row = row_begin; row < row_end; row++) {
    const int64_t y = a.target[row * a.target_stride];
    if (!is_class(&a, y)) {
      fill_row(&a, row, y == a.ignore_index ? 0 : NAN);
      continue;
    }
    row_stats s;
    load_state(state_of(p, row), &s);
    finish_row(&a, row, y, &s, state_of(p, row)[STATE_Z_Y], 1);
  }
  return LIGER_OK;
}

liger_status LIGER_KERNEL(cross_entropy_part_grad)(const liger_cross_entropy_part_args *p, int64_t row_begin,
                                                   int64_t row_end) {
  const liger_cross_entropy_args *const a = &p->rows;
  liger_cross_entropy_args part = *a; /* the part as if it were a row */
  part.n_cols = p->n_part;
  if (a->weight) part.weight = (const real *)a->weight + p->first_col;
  for (int64_t row = row_begin; row < row_end; row++) {
    const int64_t y = a->target[row * a->target_stride];
    row_stats s;
    row_factors f = {0, 0, 0, 1};
    if (is_class(a, y)) {
      load_state(state_of(p, row), &s);
      f = finish_row(a, row, y, &s, state_of(p, row)[STATE_Z_Y], 0);
    }
    if (f.dead) fill_gradient(&part, row, is_class(a, y) || y == a->ignore_index ? 0 : NAN);
    else write_gradient(&part, row, y - p->first_col, &s, 0, f.p_scale, f.w_scale, f.dz_y);
  }
  return LIGER_OK;
}

liger_status LIGER_KERNEL(cross_entropy_count)(const liger_cross_entropy_count_args *a, int64_t begin,
                                               int64_t end) {
  const real *const weight = (const real *)a->weight;
  double w_valid = 0, w_sum = weight ? 0 : (double)a->n_cols;
  int64_t n_valid = 0;
  for (int64_t row = begin; row < end; row++) {
    const int64_t y = a->target[row * a->target_stride];
    if (y == a->ignore_index) continue;
    n_valid++;
    w_valid += !weight ? 1 : y >= 0 && y < a->n_cols ? (double)weight[y] : 0;
  }
  for (int64_t i = 0; weight && i < a->n_cols; i++) w_sum += (double)weight[i];
  const int mean = a->reduction == LIGER_REDUCE_MEAN;
  real *const stats = (real *)a->stats;
  stats[LIGER_CE_SCALE] = !mean ? 1 : w_valid == 0 ? 0 : (real)(1 / w_valid);
  stats[LIGER_CE_Z_SCALE] = !mean ? 1 : n_valid == 0 ? 0 : (real)(1 / (double)n_valid);
  stats[LIGER_CE_W_SUM] = (real)w_sum;
  stats[LIGER_CE_N_VALID] = (real)n_valid;
  return LIGER_OK;
}

#if LIGER_BASE_UNIT
int64_t liger_cross_entropy_bad_label_cpu(const int64_t *target, int64_t target_stride, int64_t n_rows,
                                          int64_t n_cols, int64_t ignore_index) {
  for (int64_t row = 0; row < n_rows; row++) {
    const int64_t y = target[row * target_stride];
    if (y != ignore_index && (y < 0 || y >= n_cols)) return row;
  }
  return -1;
}
#endif
LIGER_CPU_ENTRY(cross_entropy, liger_cross_entropy_args, x_dtype);
LIGER_CPU_ENTRY(cross_entropy_part_stats, liger_cross_entropy_part_args, rows.x_dtype);
LIGER_CPU_ENTRY(cross_entropy_part_finish, liger_cross_entropy_part_args, rows.x_dtype);
LIGER_CPU_ENTRY(cross_entropy_part_grad, liger_cross_entropy_part_args, rows.x_dtype);
LIGER_CPU_ENTRY(cross_entropy_count, liger_cross_entropy_count_args, x_dtype);
