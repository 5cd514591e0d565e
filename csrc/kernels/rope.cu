/* rope       y_i = x_i c_i - x_{i+h} s_i,   y_{i+h} = x_{i+h} c_i + x_i s_i   (i < h = rotary_dim / 2);
 *            the rest is copied. Backward: the same with s negated
 * Shapes     Q K (batch, n_heads, seq_len, head_dim) of any strides but the last; tables (rows, >= h), see
 *            csrc/liger.h
 * Floor      2*N*s bytes each way    (N = elements of Q and K; the tables are read once per token, for all
 *            heads)
 * Plan       one launch for Q and K. A thread owns one vector of 16 bytes of each half, of up to HEADS heads
 *            at a time, and keeps their angles in registers; a block takes one token or as many small ones
 *            as fill it
 * Rounding   fp32 to the end, one rounding at the store
 * Source     arXiv:2104.09864; apply_rotary_pos_emb in transformers' modeling_llama.py, whose halves layout
 *            this is */
#include "primitives.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int HEADS = 5; /* 10 loads of 16 bytes in flight, and one look-up of the angles for all of them */

/* Threads of a block: `columns` vectors of a half, times `groups` of heads, times tokens. */
struct rope_plan {
  int columns, groups, tokens;
  bool angles_aligned;
};

template <typename T, int VEC>
__global__ void __launch_bounds__(THREADS, 2) rope_kernel(const liger_rope_args a, const rope_plan plan) {
  const int column = threadIdx.x % plan.columns, group = threadIdx.x / plan.columns % plan.groups;
  const int64_t token = (int64_t)blockIdx.x * plan.tokens + threadIdx.x / (plan.columns * plan.groups);
  if (token >= a.batch * a.seq_len) return;
  /* a 64-bit division costs as much as the rest of the look-up */
  const int64_t b = (token | a.seq_len) >> 32 ? token / a.seq_len : (uint32_t)token / (uint32_t)a.seq_len,
                t = token - b * a.seq_len;
  const int half = (int)(a.rotary_dim / 2), n_heads = (int)(a.n_q_heads + a.n_kv_heads);
  const T *const Q = (const T *)a.Q + b * a.Q_strides.batch + t * a.Q_strides.token;
  const T *const K = (const T *)a.K + b * a.K_strides.batch + t * a.K_strides.token;
  T *const Q_out = (T *)a.Q_out + b * a.Q_out_strides.batch + t * a.Q_out_strides.token;
  T *const K_out = (T *)a.K_out + b * a.K_out_strides.batch + t * a.K_out_strides.token;
  const auto input = [&](int head) {
    return head < a.n_q_heads ? Q + head * a.Q_strides.head : K + (head - a.n_q_heads) * a.K_strides.head;
  };
  const auto output = [&](int head) {
    return head < a.n_q_heads ? Q_out + head * a.Q_out_strides.head
                              : K_out + (head - a.n_q_heads) * a.K_out_strides.head;
  };

  int64_t row = t, table_batch = b;
  if (a.position_ids) {
    row = a.position_ids[b * a.position_batch_stride + t * a.position_token_stride];
    table_batch = 0;
  }
  const bool known =
      row >= 0 && row < a.n_positions; /* nothing is read of a row that is not there: its token becomes NaN */
  for (int col = column * VEC; col < half; col += plan.columns * VEC) {
    float c[VEC], s[VEC];
    for (int first = group; first < n_heads; first += plan.groups * HEADS) {
      vec<T, VEC> lo[HEADS], hi[HEADS];
#pragma unroll
      for (int i = 0; i < HEADS; i++) {
        const int head = first + i * plan.groups;
        if (head < n_heads) {
          const T *const x = input(head) + col;
          lo[i] = load_vec_stream<T, VEC>(x);
          hi[i] = load_vec_stream<T, VEC>(x + half);
        }
      }
      if (first == group) { /* after the first loads, which nothing should hold up */
#pragma unroll
        for (int j = 0; j < VEC; j++) c[j] = s[j] = NAN;
        if (known) {
          load_as_f32<VEC>(c, a.cos, table_batch * a.cos_batch_stride + row * a.cos_row_stride + col,
                           a.table_dtype, plan.angles_aligned);
          load_as_f32<VEC>(s, a.sin, table_batch * a.sin_batch_stride + row * a.sin_row_stride + col,
                           a.table_dtype, plan.angles_aligned);
        }
        const float sign = a.backward ? -1.0f : 1.0f;
#pragma unroll
        for (int j = 0; j < VEC; j++) s[j] *= sign;
      }
#pragma unroll
      for (int i = 0; i < HEADS; i++) {
        const int head = first + i * plan.groups;
        if (head < n_heads) {
          float x[VEC], y[VEC];
          unpack(x, lo[i]);
          unpack(y, hi[i]);
#pragma unroll
          for (int j = 0; j < VEC; j++) {
            /* written out, so that every instantiation rounds alike */
            const float turned = fmaf(x[j], c[j], -__fmul_rn(y[j], s[j]));
            y[j] = fmaf(y[j], c[j], __fmul_rn(x[j], s[j]));
            x[j] = turned;
          }
          T *const out = output(head) + col;
          store_vec_stream<T, VEC>(out, pack<T, VEC>(x));
          store_vec_stream<T, VEC>(out + half, pack<T, VEC>(y));
        }
      }
    }
  }
  for (int64_t col = 2 * half + column * VEC; col < a.head_dim; col += plan.columns * VEC)
    for (int head = group; head < n_heads; head += plan.groups)
      store_vec_stream<T, VEC>(output(head) + col, load_vec_stream<T, VEC>(input(head) + col));
}

/* ---- launching ----------------------------------------------------------------------------------------- */
rope_plan plan_rope(int64_t half, int64_t n_heads, int vec, bool angles_aligned) {
  const int64_t n_vecs = (half + vec - 1) / vec, n_groups = (n_heads + HEADS - 1) / HEADS;
  const int columns = (int)(n_vecs < THREADS ? n_vecs : THREADS), most = THREADS / columns;
  const int groups = (int)(n_groups < most ? n_groups : most);
  return {columns, groups, THREADS / (columns * groups), angles_aligned};
}

bool vectors(const void *p, const liger_rope_strides &s, int size) {
  return (uintptr_t)p % 16 == 0 && s.batch * size % 16 == 0 && s.head * size % 16 == 0 &&
         s.token * size % 16 == 0;
}
bool vectors(const liger_rope_args &a, int size) {
  return a.rotary_dim / 2 * size % 16 == 0 && a.head_dim * size % 16 == 0 &&
         (!a.n_q_heads || (vectors(a.Q, a.Q_strides, size) && vectors(a.Q_out, a.Q_out_strides, size))) &&
         (!a.n_kv_heads || (vectors(a.K, a.K_strides, size) && vectors(a.K_out, a.K_out_strides, size)));
}
bool vectors(const void *table, int64_t batch_stride, int64_t row_stride, int size) {
  return (uintptr_t)table % 16 == 0 && batch_stride * size % 16 == 0 && row_stride * size % 16 == 0;
}

/* Q and K of one dtype, or one of them with no heads of the other */
liger_status launch_rope(const liger_rope_args &a, liger_dtype t, gpu_stream stream) {
  const int64_t n_heads = a.n_q_heads + a.n_kv_heads, n_tokens = a.batch * a.seq_len, half = a.rotary_dim / 2;
  if (n_heads == 0) return LIGER_OK;
  const int table_size = a.table_dtype == LIGER_F32 ? 4 : 2;
  const bool angles_aligned = vectors(a.cos, a.cos_batch_stride, a.cos_row_stride, table_size) &&
                              vectors(a.sin, a.sin_batch_stride, a.sin_row_stride, table_size);
  LIGER_DISPATCH_DTYPE(t, T, {
    constexpr int VEC = vec_width<T>::value;
    const bool whole = vectors(a, sizeof(T));
    const rope_plan p = plan_rope(half, n_heads, whole ? VEC : 1, angles_aligned);
    const int64_t grid = (n_tokens + p.tokens - 1) / p.tokens;
    if (grid > GPU_MAX_GRID) return LIGER_ERR_SIZE;
    const int threads = p.columns * p.groups * p.tokens;
    if (whole) rope_kernel<T, VEC><<<(unsigned)grid, threads, 0, stream>>>(a, p);
    else rope_kernel<T, 1><<<(unsigned)grid, threads, 0, stream>>>(a, p);
  });
  return (liger_status)LIGER_RT(GetLastError)();
}
} // namespace

extern "C" liger_status liger_rope_cuda(const liger_rope_args *a, void *stream) {
  if (a->batch * a->seq_len == 0 || a->head_dim == 0) return LIGER_OK;
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
