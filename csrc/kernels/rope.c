/* rope       y_p = x_p c_i - x_r s_i,   y_r = x_r c_i + x_p s_i   (i < h = rotary_dim / 2);
 *            the rest is copied. Backward: the same with s negated
 * Layouts    (p, r) = (i, i + h), halves, or (2i, 2i + 1), interleaved
 * Shapes     Q K (batch, n_heads, seq_len, head_dim) of any strides but the last; tables (rows, >= h), see
 *            csrc/liger.h
 * Plan       blocks of tokens of one batch entry, as many as the buffers hold angles for: these are converted
 *            once for all heads of Q and K. A token's heads turn together where they lie side by side, else
 *            in groups small enough for the machine to follow every head as a stream of its own.
 * Rounding   fp32 (fp64) to the end, one rounding at the store
 * Source     arXiv:2104.09864, and arXiv:2409.12191 for M-RoPE; in transformers, modeling_llama.py has the
 *            halves, modeling_gptj.py and modeling_llama4.py the interleaved layout */
#include "primitives.h"

enum {
  ANGLES = 8192,   /* a block's cosines or sines; both stay in L2 while the heads pass */
  COLUMNS = 1024,  /* of a wide head at once, so that a block has several tokens */
  HEAD_STREAMS = 4 /* heads read and written side by side where each is far from the next */
};

/* Where the pairs of a vector are: i-th at i * step, its partner `other` further on. */
typedef struct {
  int64_t step, other;
} pairs;
#define HALVES(half) ((pairs){1, half})
#define INTERLEAVED ((pairs){2, 1})

/* n pairs of a vector; out may be in */
LIGER_INLINE void rotate(void *out, const void *in, const real *c, const real *s, pairs p, int64_t n,
                         liger_dtype t) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    const real x = load_element(in, i * p.step, t), y = load_element(in, i * p.step + p.other, t);
    store_element(out, i * p.step, x * c[i] - y * s[i], t);
    store_element(out, i * p.step + p.other, y * c[i] + x * s[i], t);
  }
}

/* the same for a dtype that has no direct loop */
LIGER_INLINE void rotate_buffered(void *out, const void *in, const real *c, const real *s, pairs p, int64_t n,
                                  liger_dtype t) {
  real x[2 * COLUMNS];
  if (p.step == 2) {
    load_row(x, in, 0, 2 * n, t);
    rotate(x, x, c, s, p, n, LIGER_REAL);
    store_row(out, 0, x, 2 * n, t);
  } else {
    load_row(x, in, 0, n, t);
    load_row(x + n, in, p.other, n, t);
    rotate(x, x, c, s, HALVES(n), n, LIGER_REAL);
    store_row(out, 0, x, n, t);
    store_row(out, p.other, x + n, n, t);
  }
}

/* n columns of a table from `offset` on */
static void load_columns(real *d, const void *table, int64_t offset, int64_t n, int64_t stride,
                         liger_dtype t) {
  real every[2 * LIGER_TILE];
  if (stride == 1) {
    load_row(d, table, offset, n, t);
    return;
  }
  for (int64_t i = 0; i < n; i += LIGER_TILE) {
    const int64_t m = n - i < LIGER_TILE ? n - i : LIGER_TILE;
    load_row(every, table, offset + 2 * i, 2 * m - 1, t); /* nothing behind the last one may be read */
    for (int64_t j = 0; j < m; j++) d[i + j] = every[2 * j];
  }
}

/* Angles of columns [col, col + n) for tokens [s0, s0 + n_tokens) of batch entry b, n apart */
static void load_angles(const liger_rope_args *a, real *c, real *s, int64_t b, int64_t s0, int64_t n_tokens,
                        int64_t col, int64_t n) {
  const int64_t section_end[3] = {a->section_2, a->section_3, a->rotary_dim / 2};
  for (int64_t i = 0; i < n_tokens; i++) {
    real *const ci = c + i * n, *const si = s + i * n;
    int64_t row = s0 + i, batch = b;
    if (a->position_ids) {
      row = a->position_ids[b * a->position_batch_stride + row * a->position_token_stride];
      batch = 0;
      if (row < 0 || row >= a->n_positions) {
        for (int64_t j = 0; j < n; j++) ci[j] = si[j] = (real)NAN;
        continue;
      }
    }
    int64_t begin = col;
    for (int64_t section = 0; section < 3; section++) {
      const int64_t end = section_end[section] < col + n ? section_end[section] : col + n;
      if (end <= begin) continue;
      const int64_t c_at = section * a->cos_section_stride + batch * a->cos_batch_stride +
                           row * a->cos_row_stride + begin * a->table_col_stride;
      const int64_t s_at = section * a->sin_section_stride + batch * a->sin_batch_stride +
                           row * a->sin_row_stride + begin * a->table_col_stride;
      load_columns(ci + begin - col, a->cos, c_at, end - begin, a->table_col_stride, a->table_dtype);
      load_columns(si + begin - col, a->sin, s_at, end - begin, a->table_col_stride, a->table_dtype);
      begin = end;
    }
  }
  if (a->backward)
    for (int64_t j = 0; j < n_tokens * n; j++) s[j] = -s[j];
}

/* tokens [s0, s0 + n_tokens) of batch entry b, pairs [col, col + n), and their angles, n per token */
typedef struct {
  int64_t b, s0, n_tokens, col, n;
  const real *c, *s;
} block;
typedef struct {
  void *out;
  const void *in;
  const liger_rope_strides *out_strides, *in_strides;
  int64_t n_heads;
} tensor;

/* The block of one tensor; behind the last pairs the unrotated tail is copied. `direct`: t is a constant
 * that has a direct loop. */
LIGER_INLINE void rotate_tensor(const liger_rope_args *a, const tensor *x, const block *k, pairs p,
                                liger_dtype t, int direct) {
  const liger_rope_strides *const is = x->in_strides, *const os = x->out_strides;
  const int64_t half = a->rotary_dim / 2, n = k->n, tail = k->col + n == half ? a->head_dim - 2 * half : 0;
  const int64_t behind = (n - 1) * p.step + p.other + 1; /* the block's last element, where the tail begins */
  const int64_t group = is->head <= is->token ? x->n_heads : HEAD_STREAMS;
  for (int64_t first = 0; first < x->n_heads; first += group) {
    const int64_t last = x->n_heads - first < group ? x->n_heads : first + group;
    for (int64_t i = 0; i < k->n_tokens; i++) {
      const real *const c = k->c + i * n, *const s = k->s + i * n;
      for (int64_t head = first; head < last; head++) {
        const int64_t from = k->b * is->batch + head * is->head + (k->s0 + i) * is->token + k->col * p.step;
        const int64_t to = k->b * os->batch + head * os->head + (k->s0 + i) * os->token + k->col * p.step;
        const void *const in = elements_at(x->in, from, t);
        void *const out = (void *)elements_at(x->out, to, t);
        if (direct) rotate(out, in, c, s, p, n, t);
        else rotate_buffered(out, in, c, s, p, n, t);
        if (tail)
          memcpy((void *)elements_at(out, behind, t), elements_at(in, behind, t),
                 (size_t)tail * dtype_size(t));
      }
    }
  }
}
LIGER_INLINE void rotate_pairs(const liger_rope_args *a, const tensor *x, const block *k, pairs p,
                               liger_dtype t) {
  if (t == LIGER_REAL) rotate_tensor(a, x, k, p, LIGER_REAL, 1);
  else if (element_direct(t)) rotate_tensor(a, x, k, p, LIGER_BF16, 1);
  else rotate_tensor(a, x, k, p, t, 0);
}
static void rotate_block(const liger_rope_args *a, const tensor *x, const block *k, liger_dtype t) {
  if (a->interleaved) rotate_pairs(a, x, k, INTERLEAVED, t);
  else rotate_pairs(a, x, k, HALVES(a->rotary_dim / 2), t);
}

liger_status LIGER_KERNEL(rope)(const liger_rope_args *a, int64_t token_begin, int64_t token_end) {
  _Alignas(64) real c[ANGLES], s[ANGLES];
  const tensor q = {a->Q_out, a->Q, &a->Q_out_strides, &a->Q_strides, a->n_q_heads};
  const tensor kv = {a->K_out, a->K, &a->K_out_strides, &a->K_strides, a->n_kv_heads};
  const int64_t half = a->rotary_dim / 2;
  if (a->table_col_stride != 1 && a->table_col_stride != 2) return LIGER_ERR_SIZE;
  if (half == 0) return a->head_dim == 0 ? LIGER_OK : LIGER_ERR_SIZE;
  const int64_t width = half < COLUMNS ? half : COLUMNS, most = ANGLES / width;
  for (int64_t token = token_begin; token < token_end;) {
    block k = {.b = token / a->seq_len, .s0 = token % a->seq_len, .c = c, .s = s};
    k.n_tokens = a->seq_len - k.s0 < token_end - token ? a->seq_len - k.s0 : token_end - token;
    k.n_tokens = k.n_tokens < most ? k.n_tokens : most;
    for (k.col = 0; k.col < half; k.col += width) {
      k.n = half - k.col < width ? half - k.col : width;
      load_angles(a, c, s, k.b, k.s0, k.n_tokens, k.col, k.n);
      rotate_block(a, &q, &k, a->q_dtype);
      rotate_block(a, &kv, &k, a->k_dtype);
    }
    token += k.n_tokens;
  }
  return LIGER_OK;
}
LIGER_CPU_ENTRY(rope, liger_rope_args, q_dtype);
