/* rope       y_p = x_p c_i - x_r s_i,   y_r = x_r c_i + x_p s_i   (i < h = rotary_dim / 2);
 *            the rest is copied. Backward: the same with s negated
 * Layouts    (p, r) = (i, i + h), halves, or (2i, 2i + 1), interleaved
 * Shapes     Q K (batch, n_heads, seq_len, head_dim) of any strides but the last; tables (rows, >= h), see
 *            csrc/liger.h
 * Floor      2*N*s bytes each way    (N = elements of Q and K; the tables are read once per token, for all
 *            heads)
 * Plan       one launch for Q and K. A thread owns one vector of 16 bytes of each half, in either layout, of up
 *            to HEADS heads, whose angles it looks up once
 * Rounding   fp32 to the end, one rounding at the store
 * Source     arXiv:2104.09864, and arXiv:2409.12191 for M-RoPE; in transformers, modeling_llama.py has the
 *            halves, modeling_gptj.py and modeling_llama4.py the interleaved layout */
#include "primitives.cuh"

namespace {

/* Small blocks, which come and go one by one, and plain accesses: both measured, each some 3 % of the time. */
constexpr int THREADS = 64, BLOCKS_PER_SM = 12;
constexpr int HEADS = 4; /* 8 loads of 16 bytes in flight, and one look-up of the angles for all of them */

/* n / d by a product where n < 2^31 (Granlund and Montgomery, PLDI 1994). A thread divides before its first
 * load can start, so this is 1 % of the time. */
struct divisor {
  int64_t d;
  uint32_t factor;
  int shift;
};
divisor divisor_of(int64_t d) {
  divisor r = {d, 0, 0};
  while (r.shift < 31 && ((int64_t)1 << r.shift) < d) r.shift++;
  if (d < (int64_t)1 << 31)
    r.factor = (uint32_t)((((uint64_t)1 << 32) * (((uint64_t)1 << r.shift) - d)) / d + 1);
  return r;
}
__device__ __forceinline__ int64_t divide(int64_t n, const divisor &by) {
  return n >> 31 ? n / by.d : (int64_t)((__umulhi((uint32_t)n, by.factor) + (uint32_t)n) >> by.shift);
}

/* A token is `groups` items of up to HEADS neighbouring heads, the first `q_groups` of them Q's, so that a
 * thread steps through one tensor with one stride. An item is `columns` threads, a vector of each half
 * apiece. Neighbouring items are those whose bytes are nearest: of a token where its heads lie together, else
 * of neighbouring tokens. */
struct rope_plan {
  int q_groups, groups;
  bool tokens_together;
  bool complex; /* sines behind their cosines, which one vector takes together */
  divisor columns, inner, middle;
};

/* Angles of columns [col, col + N), of which col is a multiple, as the sections' are. ONE_TABLE: the columns lie
 * side by side in one table; else they are M-RoPE's, complex, or every other one. */
template <int N, bool ONE_TABLE>
__device__ __forceinline__ void load_angles(float *c, float *s, const liger_rope_args &a,
                                            const rope_plan &plan, int64_t b, int64_t row, int col) {
  int64_t c_at = b * a.cos_batch_stride + row * a.cos_row_stride,
          s_at = b * a.sin_batch_stride + row * a.sin_row_stride;
  float cs[N], sn[N];
  if constexpr (ONE_TABLE) {
    load_as_f32<N>(cs, a.cos, c_at + col, a.table_dtype, true);
    load_as_f32<N>(sn, a.sin, s_at + col, a.table_dtype, true);
  } else {
    const int section = (col >= a.section_2) + (col >= a.section_3);
    c_at += section * a.cos_section_stride;
    s_at += section * a.sin_section_stride;
    if (a.table_col_stride == 1) {
      load_as_f32<N>(cs, a.cos, c_at + col, a.table_dtype, true);
      load_as_f32<N>(sn, a.sin, s_at + col, a.table_dtype, true);
    } else if (N > 1 && plan.complex) {
      float both[2 * N];
      load_as_f32<2 * N>(both, a.cos, c_at + 2 * col, a.table_dtype, true);
#pragma unroll
      for (int j = 0; j < N; j++) {
        cs[j] = both[2 * j];
        sn[j] = both[2 * j + 1];
      }
    } else {
#pragma unroll
      for (int j = 0; j < N; j++) {
        float one[1];
        load_as_f32<1>(one, a.cos, c_at + 2 * (col + j), a.table_dtype);
        cs[j] = one[0];
        load_as_f32<1>(one, a.sin, s_at + 2 * (col + j), a.table_dtype);
        sn[j] = one[0];
      }
    }
  }
#pragma unroll
  for (int j = 0; j < N; j++) {
    c[j] = cs[j];
    s[j] = sn[j];
  }
}

/* (x, y) turned; written out, so that every instantiation rounds alike */
__device__ __forceinline__ void turn(float &x, float &y, float c, float s) {
  const float turned = fmaf(x, c, -__fmul_rn(y, s));
  y = fmaf(y, c, __fmul_rn(x, s));
  x = turned;
}

template <typename T, int VEC, bool INTERLEAVED, bool ONE_TABLE>
__global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM)
    rope_kernel(const liger_rope_args a, const rope_plan plan) {
  const int64_t thread = (int64_t)blockIdx.x * THREADS + threadIdx.x, item = divide(thread, plan.columns),
                outer = divide(item, plan.inner), b = divide(outer, plan.middle);
  if (b >= a.batch) return;
  const int64_t inner = item - outer * plan.inner.d, middle = outer - b * plan.middle.d,
                t = plan.tokens_together ? inner : middle;
  const int group = (int)(plan.tokens_together ? middle : inner),
            col = (int)(thread - item * plan.columns.d) * VEC;
  const int half = (int)(a.rotary_dim / 2);
  /* the thread's two vectors; those of one element are a pair, in the interleaved layout neighbours */
  constexpr bool NEIGHBOURS = INTERLEAVED && VEC == 1;
  const int at = NEIGHBOURS ? 2 * col : col, other = NEIGHBOURS ? 1 : half;
  const bool is_q = group < plan.q_groups;
  const int first = (is_q ? group : group - plan.q_groups) * HEADS;
  const int n = (int)(is_q ? a.n_q_heads : a.n_kv_heads) - first; /* heads from the item's first on */
  const liger_rope_strides in_at = is_q ? a.Q_strides : a.K_strides;
  const T *in = (const T *)(is_q ? a.Q : a.K) + b * in_at.batch + t * in_at.token + first * in_at.head + at;

  vec<T, VEC> lo[HEADS], hi[HEADS];
#pragma unroll
  for (int i = 0; i < HEADS; i++, in += in_at.head)
    if (i < n) {
      lo[i] = load_vec<T, VEC>(in);
      hi[i] = load_vec<T, VEC>(in + other);
    }
  /* the angles after the first loads, which nothing should hold up */
  int64_t row = t, table_batch = b;
  if (a.position_ids) {
    row = a.position_ids[b * a.position_batch_stride + t * a.position_token_stride];
    table_batch = 0;
  }
  float c[VEC], s[VEC];
  if (row >= 0 && row < a.n_positions) {
    if constexpr (INTERLEAVED && VEC > 1) { /* of the pairs of one vector, then of those of the other */
      load_angles<VEC / 2, ONE_TABLE>(c, s, a, plan, table_batch, row, col / 2);
      load_angles<VEC / 2, ONE_TABLE>(c + VEC / 2, s + VEC / 2, a, plan, table_batch, row, (half + col) / 2);
    } else {
      load_angles<VEC, ONE_TABLE>(c, s, a, plan, table_batch, row, col);
    }
  } else { /* nothing is read of a row that is not there: its token becomes NaN */
#pragma unroll
    for (int j = 0; j < VEC; j++) c[j] = s[j] = NAN;
  }
  const float sign = a.backward ? -1.0f : 1.0f;
#pragma unroll
  for (int j = 0; j < VEC; j++) s[j] *= sign;

  const liger_rope_strides out_at = is_q ? a.Q_out_strides : a.K_out_strides;
  T *out = (T *)(is_q ? a.Q_out : a.K_out) + b * out_at.batch + t * out_at.token + first * out_at.head + at;
#pragma unroll
  for (int i = 0; i < HEADS; i++, out += out_at.head)
    if (i < n) {
      float x[VEC], y[VEC];
      unpack(x, lo[i]);
      unpack(y, hi[i]);
      if constexpr (INTERLEAVED && VEC > 1) {
#pragma unroll
        for (int j = 0; j < VEC / 2; j++) {
          turn(x[2 * j], x[2 * j + 1], c[j], s[j]);
          turn(y[2 * j], y[2 * j + 1], c[VEC / 2 + j], s[VEC / 2 + j]);
        }
      } else {
#pragma unroll
        for (int j = 0; j < VEC; j++) turn(x[j], y[j], c[j], s[j]);
      }
      store_vec<T, VEC>(out, pack<T, VEC>(x));
      store_vec<T, VEC>(out + other, pack<T, VEC>(y));
    }
  if (a.head_dim > 2 * half) { /* the columns that do not turn */
    in += col - at - HEADS * in_at.head;
    out += col - at - HEADS * out_at.head;
    for (int i = 0; i < HEADS && i < n; i++)
      for (int64_t rest = 2 * half; col + rest < a.head_dim; rest += plan.columns.d * VEC)
        store_vec<T, VEC>(out + i * out_at.head + rest, load_vec<T, VEC>(in + i * in_at.head + rest));
  }
}

/* ---- launching ----------------------------------------------------------------------------------------- */
bool vectors(const void *p, const liger_rope_strides &s, int size) {
  return (uintptr_t)p % 16 == 0 && s.batch * size % 16 == 0 && s.head * size % 16 == 0 &&
         s.token * size % 16 == 0;
}
bool vectors(const liger_rope_args &a, int size) {
  return a.rotary_dim / 2 * size % 16 == 0 && a.head_dim * size % 16 == 0 &&
         (!a.n_q_heads || (vectors(a.Q, a.Q_strides, size) && vectors(a.Q_out, a.Q_out_strides, size))) &&
         (!a.n_kv_heads || (vectors(a.K, a.K_strides, size) && vectors(a.K_out, a.K_out_strides, size)));
}
bool vectors(const void *table, int64_t batch_stride, int64_t row_stride, int64_t section_stride, int size) {
  return (uintptr_t)table % 16 == 0 && batch_stride * size % 16 == 0 && row_stride * size % 16 == 0 &&
         section_stride * size % 16 == 0;
}
bool complex_angles(const liger_rope_args &a, int size) {
  return a.table_col_stride == 2 && (const char *)a.sin == (const char *)a.cos + size &&
         a.sin_row_stride == a.cos_row_stride && a.sin_batch_stride == a.cos_batch_stride &&
         a.sin_section_stride == a.cos_section_stride;
}

template <typename T, int VEC, bool INTERLEAVED>
void start(const liger_rope_args &a, const rope_plan &p, unsigned grid, gpu_stream stream) {
  if (a.table_col_stride == 1 && a.cos_section_stride == 0 && a.sin_section_stride == 0)
    rope_kernel<T, VEC, INTERLEAVED, true><<<grid, THREADS, 0, stream>>>(a, p);
  else rope_kernel<T, VEC, INTERLEAVED, false><<<grid, THREADS, 0, stream>>>(a, p);
}

/* Q and K of one dtype, or one of them with no heads of the other */
liger_status launch_rope(const liger_rope_args &a, liger_dtype t, gpu_stream stream) {
  const int64_t q_groups = (a.n_q_heads + HEADS - 1) / HEADS,
                groups = q_groups + (a.n_kv_heads + HEADS - 1) / HEADS, half = a.rotary_dim / 2;
  if (groups == 0) return LIGER_OK;
  const int table_size = a.table_dtype == LIGER_F32 ? 4 : 2;
  const bool complex = complex_angles(a, table_size);
  const bool tables = vectors(a.cos, a.cos_batch_stride, a.cos_row_stride, a.cos_section_stride,
                              table_size) &&
                      (complex || vectors(a.sin, a.sin_batch_stride, a.sin_row_stride, a.sin_section_stride,
                                          table_size));
  LIGER_DISPATCH_DTYPE(t, T, {
    constexpr int VEC = vec_width<T>::value;
    const bool whole = vectors(a, sizeof(T)) && tables && a.section_2 % VEC == 0 && a.section_3 % VEC == 0;
    const liger_rope_strides &in = a.n_q_heads ? a.Q_strides : a.K_strides;
    const bool tokens_together = in.token < in.head;
    const int64_t columns = whole ? half / VEC : half,
                  grid = (a.batch * a.seq_len * groups * columns + THREADS - 1) / THREADS;
    const rope_plan p = {(int)q_groups,
                         (int)groups,
                         tokens_together,
                         complex,
                         divisor_of(columns),
                         divisor_of(tokens_together ? a.seq_len : groups),
                         divisor_of(tokens_together ? groups : a.seq_len)};
    if (grid > GPU_MAX_GRID) return LIGER_ERR_SIZE;
    if (whole && a.interleaved) start<T, VEC, true>(a, p, (unsigned)grid, stream);
    else if (whole) start<T, VEC, false>(a, p, (unsigned)grid, stream);
    else if (a.interleaved) start<T, 1, true>(a, p, (unsigned)grid, stream);
    else start<T, 1, false>(a, p, (unsigned)grid, stream);
  });
  return (liger_status)LIGER_RT(GetLastError)();
}
} // namespace

extern "C" liger_status liger_rope_cuda(const liger_rope_args *a, void *stream) {
  if (a->batch * a->seq_len == 0 || a->head_dim == 0) return LIGER_OK;
  if (a->table_col_stride != 1 && a->table_col_stride != 2) return LIGER_ERR_SIZE;
  if (a->rotary_dim < 2 || a->n_q_heads + a->n_kv_heads > INT32_MAX || a->head_dim > INT32_MAX / 2)
    return LIGER_ERR_SIZE;
  if (a->table_dtype == LIGER_F64) return LIGER_ERR_DTYPE;
  if (a->q_dtype == a->k_dtype) return launch_rope(*a, a->q_dtype, (gpu_stream)stream);
  liger_rope_args one = *a;
  one.n_kv_heads = 0;
  const liger_status status = launch_rope(one, a->q_dtype, (gpu_stream)stream);
  if (status != LIGER_OK) return status;
  one = *a;
  one.n_q_heads = 0;
  return launch_rope(one, a->k_dtype, (gpu_stream)stream);
}
