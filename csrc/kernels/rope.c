/* rope       y_i = x_i c_i - x_{i+h} s_i,   y_{i+h} = x_{i+h} c_i + x_i s_i   (i < h = rotary_dim / 2);
 *            the rest is copied. Backward: the same with s negated
 * Shapes     Q K (batch, n_heads, seq_len, head_dim) of any strides but the last; tables (rows, >= h), see
 *            csrc/liger.h
 * Plan       blocks of tokens of one batch entry, as many as the buffers hold angles for: these are converted
 *            once for all heads of Q and K. A token's heads turn together where they lie side by side, else
 *            in groups small enough for the machine to follow every head as a stream of its own.
 * Rounding   fp32 (fp64) to the end, one rounding at the store
 * Source     arXiv:2104.09864; apply_rotary_pos_emb in transformers' modeling_llama.py, whose halves layout
 *            this is */
#include "primitives.h"

enum {
  ANGLES = 8192,   /* a block's cosines or sines; both stay in L2 while the heads pass */
  COLUMNS = 1024,  /* of a wide head at once, so that a block has several tokens */
  HEAD_STREAMS = 4 /* heads read and written side by side where each is far from the next */
};

/* n columns of both halves of a vector, which are `half` apart; out may be in */
LIGER_INLINE void rotate(void *out, const void *in, const real *c, const real *s, int64_t half, int64_t n,
                         liger_dtype t) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    const real x = load_element(in, i, t), y = load_element(in, half + i, t);
    store_element(out, i, x * c[i] - y * s[i], t);
    store_element(out, half + i, y * c[i] + x * s[i], t);
  }
}

/* the same for a dtype that has no direct loop */
static void rotate_buffered(void *out, const void *in, const real *c, const real *s, int64_t half, int64_t n,
                            liger_dtype t) {
  real x[2 * COLUMNS];
  load_row(x, in, 0, n, t);
  load_row(x + n, in, half, n, t);
  rotate(x, x, c, s, n, n, LIGER_REAL);
  store_row(out, 0, x, n, t);
  store_row(out, half, x + n, n, t);
}

/* Angles of columns [col, col + n) for tokens [s0, s0 + n_tokens) of batch entry b, n apart */
static void load_angles(const liger_rope_args *a, real *c, real *s, int64_t b, int64_t s0, int64_t n_tokens,
                        int64_t col, int64_t n) {
  for (int64_t i = 0; i < n_tokens; i++) {
    real *ci = c + i * n, *si = s + i * n;
    int64_t row = s0 + i, batch = b;
    if (a->position_ids) {
      row = a->position_ids[b * a->position_batch_stride + row * a->position_token_stride];
      batch = 0;
      if (row < 0 || row >= a->n_positions) {
        for (int64_t j = 0; j < n; j++) ci[j] = si[j] = (real)NAN;
        continue;
      }
    }
    load_row(ci, a->cos, batch * a->cos_batch_stride + row * a->cos_row_stride + col, n, a->table_dtype);
    load_row(si, a->sin, batch * a->sin_batch_stride + row * a->sin_row_stride + col, n, a->table_dtype);
  }
  if (a->backward)
    for (int64_t j = 0; j < n_tokens * n; j++) s[j] = -s[j];
}

/* tokens [s0, s0 + n_tokens) of batch entry b, columns [col, col + n) and [h + col, h + col + n), and their
 * angles, n per token */
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

/* The block of one tensor; behind the last columns the unrotated tail is copied. `direct`: t is a constant
 * that has a direct loop. */
LIGER_INLINE void rotate_tensor(const liger_rope_args *a, const tensor *x, const block *k, liger_dtype t,
                                int direct) {
  const liger_rope_strides *const is = x->in_strides, *const os = x->out_strides;
  const int64_t half = a->rotary_dim / 2, n = k->n, tail = k->col + n == half ? a->head_dim - 2 * half : 0;
  const int64_t group = is->head <= is->token ? x->n_heads : HEAD_STREAMS;
  for (int64_t first = 0; first < x->n_heads; first += group) {
    const int64_t last = x->n_heads - first < group ? x->n_heads : first + group;
    for (int64_t i = 0; i < k->n_tokens; i++) {
      const real *const c = k->c + i * n, *const s = k->s + i * n;
      for (int64_t head = first; head < last; head++) {
        const int64_t from = k->b * is->batch + head * is->head + (k->s0 + i) * is->token + k->col;
        const int64_t to = k->b * os->batch + head * os->head + (k->s0 + i) * os->token + k->col;
        const void *const in = elements_at(x->in, from, t);
        void *const out = (void *)elements_at(x->out, to, t);
        if (direct) rotate(out, in, c, s, half, n, t);
        else rotate_buffered(out, in, c, s, half, n, t);
        if (tail)
          memcpy((void *)elements_at(out, half + n, t), elements_at(in, half + n, t),
                 (size_t)tail * dtype_size(t));
      }
    }
  }
}
static void rotate_block(const liger_rope_args *a, const tensor *x, const block *k, liger_dtype t) {
  if (t == LIGER_REAL) rotate_tensor(a, x, k, LIGER_REAL, 1);
  else if (element_direct(t)) rotate_tensor(a, x, k, LIGER_BF16, 1);
  else rotate_tensor(a, x, k, t, 0);
}

liger_status LIGER_KERNEL(rope)(const liger_rope_args *a, int64_t token_begin, int64_t token_end) {
  _Alignas(64) real c[ANGLES], s[ANGLES];
  const tensor q = {a->Q_out, a->Q, &a->Q_out_strides, &a->Q_strides, a->n_q_heads};
  const tensor kv = {a->K_out, a->K, &a->K_out_strides, &a->K_strides, a->n_kv_heads};
  const int64_t half = a->rotary_dim / 2;
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
