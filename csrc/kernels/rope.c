/* rope       y_i = x_i c_i - x_{i+h} s_i,   y_{i+h} = x_{i+h} c_i + x_i s_i   (i < h = rotary_dim / 2);
 *            the rest is copied. Backward: the same with s negated
 * Shapes     Q K (batch, n_heads, seq_len, head_dim) of any strides but the last; tables (rows, >= h), see
 *            csrc/liger.h
 * Plan       up to BLOCK_TOKENS tokens of one batch entry at a time: their angles go to buffers once for all
 *            heads of Q and K. Vectors that lie side by side, be they the heads of a token or the tokens of
 *            a head, pass through one buffer together.
 * Rounding   fp32 (fp64) to the end, one rounding at the store
 * Source     arXiv:2104.09864; apply_rotary_pos_emb in transformers' modeling_llama.py, whose halves layout
 *            this is */
#include "primitives.h"

enum {
  BLOCK_TOKENS = 32,
  ANGLES = 2048, /* of BLOCK_TOKENS tokens, or as many columns of fewer tokens */
  BUFFER = 2048  /* elements of side-by-side vectors; a wider head is cut into columns */
};

/* n_vecs vectors `stride` elements apart, of which columns [col, col + n) and [h + col, h + col + n) turn by
 * the angles at cos and sin, `angle_step` further on for each vector. Vectors that lie whole in the buffer
 * carry their unrotated tail along. */
typedef struct {
  void *out;
  const void *in;
  int64_t in_offset, in_stride, out_offset, out_stride, n_vecs;
} vectors;

static void rotate(real *restrict lo, real *restrict hi, const real *restrict c, const real *restrict s,
                   int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    const real x = lo[i], y = hi[i];
    lo[i] = x * c[i] - y * s[i];
    hi[i] = y * c[i] + x * s[i];
  }
}

/* whole vectors: as many at a time as the buffer holds, in one go where they are dense */
static void rotate_whole(const vectors *v, int64_t head_dim, int64_t half, const real *c, const real *s,
                         int64_t angle_step, liger_dtype t) {
  real x[BUFFER];
  const int64_t at_once = BUFFER / head_dim;
  for (int64_t first = 0; first < v->n_vecs; first += at_once) {
    const int64_t n = v->n_vecs - first < at_once ? v->n_vecs - first : at_once;
    if (v->in_stride == head_dim) load_row(x, v->in, v->in_offset + first * head_dim, n * head_dim, t);
    else
      for (int64_t i = 0; i < n; i++)
        load_row(x + i * head_dim, v->in, v->in_offset + (first + i) * v->in_stride, head_dim, t);
    for (int64_t i = 0; i < n; i++) {
      const int64_t angle = (first + i) * angle_step;
      rotate(x + i * head_dim, x + i * head_dim + half, c + angle, s + angle, half);
    }
    if (v->out_stride == head_dim) store_row(v->out, v->out_offset + first * head_dim, x, n * head_dim, t);
    else
      for (int64_t i = 0; i < n; i++)
        store_row(v->out, v->out_offset + (first + i) * v->out_stride, x + i * head_dim, head_dim, t);
  }
}

/* columns [col, col + n) of both halves, vector by vector */
static void rotate_columns(const vectors *v, int64_t half, int64_t col, int64_t n, const real *c,
                           const real *s, int64_t angle_step, liger_dtype t) {
  real x[BUFFER];
  for (int64_t i = 0; i < v->n_vecs; i++) {
    const int64_t in = v->in_offset + i * v->in_stride + col, out = v->out_offset + i * v->out_stride + col;
    load_row(x, v->in, in, n, t);
    load_row(x + n, v->in, in + half, n, t);
    rotate(x, x + n, c + i * angle_step, s + i * angle_step, n);
    store_row(v->out, out, x, n, t);
    store_row(v->out, out + half, x + n, n, t);
  }
}

static void copy_columns(const vectors *v, int64_t col, int64_t n, liger_dtype t) {
  const size_t size = dtype_size(t);
  for (int64_t i = 0; i < v->n_vecs; i++)
    memcpy((char *)v->out + (v->out_offset + i * v->out_stride + col) * (int64_t)size,
           (const char *)v->in + (v->in_offset + i * v->in_stride + col) * (int64_t)size, (size_t)n * size);
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

/* One tensor of the block: along its heads or along the tokens, whichever lie side by side. `n`: columns in
 * the angle buffers. */
static void rotate_tensor(const liger_rope_args *a, void *out, const void *in, const liger_rope_strides *os,
                          const liger_rope_strides *is, int64_t n_heads, liger_dtype t, int64_t b, int64_t s0,
                          int64_t n_tokens, int64_t col, int64_t n, const real *c, const real *s) {
  const int64_t half = a->rotary_dim / 2;
  const int along_heads = is->head == a->head_dim || is->token != a->head_dim;
  const int64_t n_runs = along_heads ? n_tokens : n_heads;
  for (int64_t run = 0; run < n_runs; run++) {
    const int64_t head = along_heads ? 0 : run, token = s0 + (along_heads ? run : 0);
    const vectors v = {
        .out = out,
        .in = in,
        .in_offset = b * is->batch + head * is->head + token * is->token,
        .in_stride = along_heads ? is->head : is->token,
        .out_offset = b * os->batch + head * os->head + token * os->token,
        .out_stride = along_heads ? os->head : os->token,
        .n_vecs = along_heads ? n_heads : n_tokens,
    };
    const int64_t angle = along_heads ? run * n : 0, angle_step = along_heads ? 0 : n;
    if (n == half && a->head_dim <= BUFFER) {
      rotate_whole(&v, a->head_dim, half, c + angle, s + angle, angle_step, t);
    } else {
      rotate_columns(&v, half, col, n, c + angle, s + angle, angle_step, t);
      if (col + n == half) copy_columns(&v, 2 * half, a->head_dim - 2 * half, t);
    }
  }
}

liger_status LIGER_KERNEL(rope)(const liger_rope_args *a, int64_t token_begin, int64_t token_end) {
  real c[ANGLES], s[ANGLES];
  const int64_t half = a->rotary_dim / 2;
  if (half == 0) return a->head_dim == 0 ? LIGER_OK : LIGER_ERR_SIZE;
  const int64_t width = half < ANGLES / 2 ? half : ANGLES / 2; /* columns at once */
  const int64_t most = width < ANGLES / BLOCK_TOKENS ? BLOCK_TOKENS : ANGLES / width;
  for (int64_t token = token_begin; token < token_end;) {
    const int64_t b = token / a->seq_len, s0 = token % a->seq_len;
    int64_t n_tokens = a->seq_len - s0 < token_end - token ? a->seq_len - s0 : token_end - token;
    n_tokens = n_tokens < most ? n_tokens : most;
    for (int64_t col = 0; col < half; col += width) {
      const int64_t n = half - col < width ? half - col : width;
      load_angles(a, c, s, b, s0, n_tokens, col, n);
      rotate_tensor(a, a->Q_out, a->Q, &a->Q_out_strides, &a->Q_strides, a->n_q_heads, a->q_dtype, b, s0,
                    n_tokens, col, n, c, s);
      rotate_tensor(a, a->K_out, a->K, &a->K_out_strides, &a->K_strides, a->n_kv_heads, a->k_dtype, b, s0,
                    n_tokens, col, n, c, s);
    }
    token += n_tokens;
  }
  return LIGER_OK;
}
LIGER_CPU_ENTRY(rope, liger_rope_args, q_dtype);
