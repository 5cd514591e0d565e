/* rope through the C API, against a loop in double. */
#include "harness.h"

enum { B = 2, S = 5, HQ = 3, HK = 1, N_POSITIONS = 9 };

/* heads before tokens (as q and k come out of a projection) or after; tables by token or by position_ids; of
 * the interleaved layout, every other column of the tables is read */
static void run(int64_t dim, int64_t rotary, int heads_first, int gathered, int backward, int interleaved,
                liger_dtype t, liger_dtype tt) {
  snprintf(where, sizeof where,
           "rope head_dim %ld rotary_dim %ld heads_first %d gathered %d backward %d interleaved %d %s %s",
           (long)dim, (long)rotary, heads_first, gathered, backward, interleaved, dtype_names[t],
           dtype_names[tt]);
  const int64_t h = rotary / 2, step = interleaved ? 2 : 1, width = interleaved ? rotary - 1 : rotary + 3;
  buf q = buf_random(B * HQ * S * dim, t, 1), k = buf_random(B * HK * S * dim, t, 1);
  buf qo = buf_new(q.n, t), ko = buf_new(k.n, t);
  const int64_t rows = gathered ? N_POSITIONS : B * S;
  buf cs = buf_random(rows * width, tt, 1), sn = buf_random(rows * width, tt, 1);
  int64_t ids[B * S];
  for (int64_t i = 0; i < B * S; i++) ids[i] = (i * 7 + 3) % N_POSITIONS;
  liger_rope_strides sq = heads_first ? (liger_rope_strides){HQ * S * dim, S * dim, dim}
                                      : (liger_rope_strides){S * HQ * dim, dim, HQ * dim};
  liger_rope_strides sk = heads_first ? (liger_rope_strides){HK * S * dim, S * dim, dim}
                                      : (liger_rope_strides){S * HK * dim, dim, HK * dim};
  liger_rope_args a = {.Q_out = qo.p,
                       .K_out = ko.p,
                       .Q = q.p,
                       .K = k.p,
                       .cos = cs.p,
                       .sin = sn.p,
                       .position_ids = gathered ? ids : NULL,
                       .Q_out_strides = sq,
                       .K_out_strides = sk,
                       .Q_strides = sq,
                       .K_strides = sk,
                       .cos_batch_stride = gathered ? 0 : S * width,
                       .cos_row_stride = width,
                       .sin_batch_stride = gathered ? 0 : S * width,
                       .sin_row_stride = width,
                       .table_col_stride = step,
                       .position_batch_stride = S,
                       .position_token_stride = 1,
                       .batch = B,
                       .n_q_heads = HQ,
                       .n_kv_heads = HK,
                       .seq_len = S,
                       .head_dim = dim,
                       .rotary_dim = rotary,
                       .n_positions = gathered ? N_POSITIONS : S,
                       .interleaved = interleaved,
                       .backward = backward,
                       .q_dtype = t,
                       .k_dtype = t,
                       .table_dtype = tt};
  expect(liger_rope_cpu(&a, 0, 3) == LIGER_OK && liger_rope_cpu(&a, 3, B * S) == LIGER_OK, "status");

  double *want = calloc((size_t)q.n, 8);
  for (int which = 0; which < 2; which++) {
    const buf in = which ? k : q;
    const liger_rope_strides st = which ? sk : sq;
    for (int64_t b = 0; b < B; b++)
      for (int64_t n = 0; n < (which ? HK : HQ); n++)
        for (int64_t s = 0; s < S; s++) {
          const int64_t x = b * st.batch + n * st.head + s * st.token,
                        row = (gathered ? ids[b * S + s] : b * S + s) * width;
          for (int64_t j = 0; j < dim; j++) want[x + j] = get(in, x + j);
          for (int64_t i = 0; i < h; i++) {
            const int64_t at = row + i * step, p = x + i * step, r = p + (interleaved ? 1 : h);
            const double c = get(cs, at), v = backward ? -get(sn, at) : get(sn, at);
            want[p] = get(in, p) * c - get(in, r) * v;
            want[r] = get(in, r) * c + get(in, p) * v;
          }
        }
    close_to(which ? "K" : "Q", which ? ko : qo, want, 4);
  }
  if (gathered && rotary) { /* a position past the table reads nothing and is seen */
    ids[1] = N_POSITIONS;
    liger_rope_cpu(&a, 0, B * S);
    expect(isnan(get(qo, sq.token)) && !isnan(get(qo, 0)),
           "a position outside the table gives NaN for that token alone");
  }
  buf all[] = {q, k, qo, ko, cs, sn};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) buf_free(all[i]);
  free(want);
}

int main(void) {
  const int64_t dims[][2] = {{2, 2}, {8, 8}, {10, 6}, {64, 64}, {66, 22}, {130, 130}};
  const liger_dtype types[] = {LIGER_F32, LIGER_BF16, LIGER_F16, LIGER_F64};
  for (size_t d = 0; d < sizeof dims / sizeof *dims; d++)
    for (int t = 0; t < 4; t++)
      for (int flags = 0; flags < 16; flags++)
        run(dims[d][0], dims[d][1], flags & 1, flags >> 1 & 1, flags >> 2 & 1, flags >> 3, types[t],
            flags & 2 ? types[t] : LIGER_F32);
  return finish("rope");
}
