/* The labels' cross entropy beside a distillation's soft loss, on a CPU: its part of a row's loss and of dX. Equations:
 * csrc/liger_divergence.h. The row kernel begins a row with hard_begin, before dX is written, which may lie over X, and
 * passes every tile of dX through hard_add before it is stored. */
#ifndef LIGER_DISTILL_HARD_H
#define LIGER_DISTILL_HARD_H
#include "divergence.h"

typedef struct {
  row_softmax s;
  real of_grad; /* 0: no part of dX */
  int64_t label;
} hard_row;

static inline int64_t hard_label(const liger_divergence_args *a, int64_t row) {
  return a->labels[row * a->label_stride];
}
/* of a row that is not ignored */
static inline int hard_label_is_no_class(const liger_divergence_args *a, int64_t row) {
  return a->hard.loss && (hard_label(a, row) < 0 || hard_label(a, row) >= a->hard.n_cols);
}
/* what the divergence's part of dX is multiplied by, in the place of grad_scale */
static inline real soft_scale(const liger_divergence_args *a) {
  return grad_scale(a) * (a->hard.loss ? (real)a->hard.soft_weight : 1);
}

/* losses and dX of a row without any of its own */
static inline void fill_row(const liger_divergence_args *a, int64_t row, real value) {
  real tile[DIVERGENCE_TILE];
  for (int64_t i = 0; i < DIVERGENCE_TILE; i++) tile[i] = value;
  if (a->loss) ((real *)a->loss)[row] = value;
  if (a->hard.loss) ((real *)a->hard.loss)[row] = value;
  for (int64_t c = 0; a->dX && c < a->n_cols; c += DIVERGENCE_TILE)
    store_row(a->dX, row * a->dX_row_stride + c, tile,
              a->n_cols - c < DIVERGENCE_TILE ? a->n_cols - c : DIVERGENCE_TILE, a->x_dtype);
}

/* The row's loss is written. soft: the softmax of the soft loss, at its temperature, or NULL, if it has none */
static inline hard_row hard_begin(const liger_divergence_args *a, int64_t row, const softmax_state *soft) {
  const int64_t at = row * a->X_row_stride, y = hard_label(a, row);
  const int same = soft && a->temperature == 1 && a->hard.n_cols == a->n_cols;
  const softmax_state s = same ? *soft : state_of_row(a->X, at, a->hard.n_cols, a->x_dtype, 1);
  const int dead = s.m == -INFINITY && s.d == 0;
  const real of_loss = loss_scale(a), up = a->hard.grad ? *(const real *)a->hard.grad : 1;
  const hard_row h = {softmax_of_state(s), dead ? 0 : of_loss * (real)a->hard.weight * up, y};
  real log_p = 0;
  load_log_softmax(&log_p, a->X, at + y, 1, a->x_dtype, 1, h.s);
  ((real *)a->hard.loss)[row] = of_loss == 0 ? 0 : of_loss * -log_p;
  return h;
}

/* d[0..n) = dX of the columns from c on: the divergence's part, unless its factor is 0, and the cross entropy's */
static inline void hard_add(const liger_divergence_args *a, int64_t row, const hard_row *h, real of_soft,
                            real *restrict d, int64_t c, int64_t n) {
  real z[DIVERGENCE_TILE];
  if (of_soft == 0) memset(d, 0, (size_t)n * sizeof(real));
  if (h->of_grad == 0) return;
  const int64_t left = a->hard.n_cols - c, m = left < n ? left : n, y = h->label - c;
  if (m <= 0) return;
  load_log_softmax(z, a->X, row * a->X_row_stride + c, m, a->x_dtype, 1, h->s);
  for (int64_t i = 0; i < m; i++) {
    const real hit = i == y; /* p - 1 as one difference, before any factor */
    d[i] += h->of_grad * (exp_nonpos(z[i]) - hit);
  }
}
#endif
