/* linear_logprob   see linear_logprob.c; equations at liger_linear_logprob_*_args
 * Floor            forward N*s bytes, backward 2*N*s    (N = n_rows*n_cols)
 * Plan             a block per row. Forward: one read, statistics merged by cross_entropy.cuh's trees.
 *                  Backward: one read, one write; the few columns of extra ids are written once more, from
 *                  their logits as they were before (X and dX may be one), by one thread a column: no atomics,
 *                  the same bits every run
 * Source           online softmax arXiv:1805.02867; softcap arXiv:2408.00118                              */
#include "cross_entropy.cuh"
#include "row_pass.cuh"

namespace {
/* below this the exponential is 0: holding z - m there keeps 0 * inf out of the sums and changes nothing */
constexpr float LP_FAR = -1e4f;

/* z = inner x, or outer tanh(inner x) with a softcap; dz/dx = slope (1 - (z / outer)^2) */
struct lp_logits {
  float inner, outer, inv_outer, slope;
};
lp_logits lp_logits_of(double logit_scale, double softcap, double temperature) {
  const float slope = (float)(logit_scale / temperature);
  if (softcap == 0) return {slope, 0.0f, 0.0f, slope};
  return {(float)(logit_scale / softcap), (float)(softcap / temperature), (float)(temperature / softcap),
          slope};
}

struct lp_fwd_params {
  float *logprob, *lse, *entropy, *mean_logit, *extra, *stats;
  int64_t *argmax;
  const void *X;
  const int64_t *ids, *extra_ids;
  int64_t n_rows, n_cols, n_extra, X_row_stride, ids_stride, extra_ids_row_stride, ignore_index;
  lp_logits map;
};
struct lp_bwd_params {
  void *dX;
  float *scratch;
  const void *X;
  const float *stats, *dlogprob, *dlse, *dentropy, *dmean_logit, *dextra;
  const int64_t *ids, *extra_ids;
  int64_t n_rows, n_cols, n_extra, X_row_stride, ids_stride, extra_ids_row_stride, ignore_index;
  int64_t dlogprob_stride, dlse_stride, dentropy_stride, dmean_logit_stride, dextra_row_stride;
  lp_logits map;
};

/* FULL: with softcap, entropy, argmax or mean; without, ce_plain does */
struct lp_full {
  float m, d;
  float s, sum; /* sum e^(z - m) (z - m) in the units of d, sum z */
  int64_t argmax;
};
template <bool FULL> struct lp_state_of {
  typedef ce_plain type;
};
template <> struct lp_state_of<true> {
  typedef lp_full type;
};
__device__ __forceinline__ void ce_reset(lp_full &s) {
  s.m = CE_LOWEST;
  s.d = s.s = s.sum = 0.0f;
  s.argmax = INT64_MAX;
}
/* s.s in units of m, the same bits wherever it is computed */
__device__ __forceinline__ float lp_moved(const lp_full &s, float m) {
  return s.d == 0.0f ? 0.0f : __fmul_rn(ce_ratio(s.m, m), fmaf(s.d, fmaxf(s.m - m, LP_FAR), s.s));
}
__device__ __forceinline__ lp_full ce_merge(const lp_full &a, const lp_full &b) {
  const float m = fmaxf(a.m, b.m);
  const int64_t first = a.argmax < b.argmax ? a.argmax : b.argmax;
  return {m, ce_merged_d(a.m, a.d, b.m, b.d, m), __fadd_rn(lp_moved(a, m), lp_moved(b, m)), a.sum + b.sum,
          a.m > b.m   ? a.argmax
          : b.m > a.m ? b.argmax
                      : first};
}
__device__ __forceinline__ lp_full ce_shuffle(const lp_full &s, int mask) {
  return {gpu_shfl_xor(s.m, mask), gpu_shfl_xor(s.d, mask), gpu_shfl_xor(s.s, mask),
          gpu_shfl_xor(s.sum, mask), gpu_shfl_xor(s.argmax, mask)};
}

template <bool CAPPED, typename T, int N>
__device__ __forceinline__ void lp_load(float (&z)[N], const vec<T, N> &x, const lp_logits &map) {
  unpack(z, x);
#pragma unroll
  for (int j = 0; j < N; j++)
    z[j] = CAPPED && map.outer != 0.0f ? map.outer * tanhf(z[j] * map.inner) : z[j] * map.inner;
}
/* e^z in units of m, as in cross_entropy.cuh */
__device__ __forceinline__ float lp_exp(float z, float m, bool base2, float unit) {
  return gpu_exp2(base2 ? fmaf(z, LOG2E, -unit) : (z - m) * LOG2E);
}

/* s with U vectors of N logits; vector u begins at column col + u * step */
template <int U, int N>
__device__ __forceinline__ void lp_rescale(ce_plain &s, const float (&)[U][N], float c, int64_t, int64_t) {
  s.d *= ce_ratio(s.m, c);
}
template <int U, int N>
__device__ __forceinline__ void lp_rescale(lp_full &s, const float (&z)[U][N], float c, int64_t col,
                                           int64_t step) {
  s.s = lp_moved(s, c);
  s.d *= ce_ratio(s.m, c);
#pragma unroll
  for (int u = U - 1; u >= 0; u--)
#pragma unroll
    for (int j = N - 1; j >= 0; j--) s.argmax = z[u][j] == c ? col + u * step + j : s.argmax;
}
template <int N>
__device__ __forceinline__ void lp_add(ce_plain &s, const float (&)[N], const float (&e)[N]) {
  float d = 0.0f;
#pragma unroll
  for (int j = 0; j < N; j++) d += e[j];
  s.d += d;
}
template <int N>
__device__ __forceinline__ void lp_add(lp_full &s, const float (&z)[N], const float (&e)[N]) {
  float d = 0.0f, far = 0.0f, sum = 0.0f;
#pragma unroll
  for (int j = 0; j < N; j++) {
    d += e[j];
    far = fmaf(e[j], fmaxf(z[j] - s.m, LP_FAR), far); /* a NaN is in e too */
    sum += z[j];
  }
  s.d += d;
  s.s += far;
  s.sum += sum;
}
template <bool CAPPED, class State, typename T, int U, int N>
__device__ __forceinline__ void lp_push(State &s, const lp_logits &map, const vec<T, N> (&x)[U], int64_t col,
                                        int64_t step) {
  float z[U][N], c = CE_LOWEST;
#pragma unroll
  for (int u = 0; u < U; u++) {
    lp_load<CAPPED>(z[u], x[u], map);
    float of_vector = z[u][0];
#pragma unroll
    for (int j = 1; j < N; j++) of_vector = fmaxf(of_vector, z[u][j]); /* a NaN loses here; d finds it */
    c = fmaxf(c, of_vector);
  }
  if (c > s.m) {
    lp_rescale(s, z, c, col, step);
    s.m = c;
  }
  const bool base2 = ce_base2(s.m);
  const float unit = ce_unit(s.m);
#pragma unroll
  for (int u = 0; u < U; u++) {
    float e[N];
#pragma unroll
    for (int j = 0; j < N; j++) e[j] = lp_exp(z[u][j], s.m, base2, unit);
    lp_add(s, z[u], e);
  }
}

__device__ __forceinline__ bool lp_valid(int64_t id, int64_t n_cols, int64_t ignore_index) {
  return id != ignore_index && id >= 0 && id < n_cols;
}

/* ---- forward -------------------------------------------------------------------------------------------- */
/* what follows from the statistics; all threads of the row's block call */
__device__ __forceinline__ void lp_write_row(const lp_fwd_params &p, int64_t row, const ce_plain &s,
                                             float log_d) {
  if (p.lse) p.lse[row] = s.m + log_d;
  if (!p.stats) return;
  p.stats[row * LIGER_LOGPROB_STATS] = s.m;
  p.stats[row * LIGER_LOGPROB_STATS + 1] = s.d;
  p.stats[row * LIGER_LOGPROB_STATS + 2] = 0.0f;
}
__device__ __forceinline__ void lp_write_row(const lp_fwd_params &p, int64_t row, const lp_full &s,
                                             float log_d) {
  const float mean = s.d == 0.0f ? 0.0f : s.s / s.d;
  lp_write_row(p, row, ce_plain{s.m, s.d}, log_d);
  if (p.entropy) p.entropy[row] = s.d == 0.0f ? 0.0f : log_d - mean;
  if (p.mean_logit) p.mean_logit[row] = s.sum / (float)p.n_cols;
  if (p.argmax) p.argmax[row] = s.argmax == INT64_MAX ? 0 : s.argmax;
  if (p.stats) p.stats[row * LIGER_LOGPROB_STATS + 2] = mean;
}

template <typename T, bool FULL>
__global__ void __launch_bounds__(1024, 1) linear_logprob_fwd_block_kernel(const lp_fwd_params p) {
  typedef typename lp_state_of<FULL>::type state;
  constexpr int N = vec_width<T>::value, U = FULL ? 2 : 4; /* vectors in flight per thread */
  __shared__ state scratch[BLOCK_SCRATCH];
  const int64_t row = blockIdx.x, tid = threadIdx.x, y = p.ids[row * p.ids_stride];
  const T *const X = (const T *)p.X + row * p.X_row_stride;
  const int64_t *const extra_ids = p.extra_ids + row * p.extra_ids_row_stride;
  float *const extra = p.extra + row * p.n_extra;
  if (!lp_valid(y, p.n_cols, p.ignore_index)) { /* the whole block leaves here */
    const bool ignored = y == p.ignore_index;
    const float fill = ignored ? 0.0f : NAN;
    for (int64_t k = tid; k < p.n_extra; k += blockDim.x) extra[k] = fill;
    if (tid != 0) return;
    p.logprob[row] = fill;
    if (p.lse) p.lse[row] = fill;
    if (p.entropy) p.entropy[row] = fill;
    if (p.mean_logit) p.mean_logit[row] = fill;
    if (p.argmax) p.argmax[row] = ignored ? 0 : -1;
    if (p.stats)
      for (int i = 0; i < LIGER_LOGPROB_STATS; i++) p.stats[row * LIGER_LOGPROB_STATS + i] = 0.0f;
    return;
  }
  state s;
  ce_reset(s);
  row_read<U, N>(X, cut_row<T, N>(X, p.n_cols),
                 [&](const auto &x, int64_t col, int64_t step) { lp_push<FULL>(s, p.map, x, col, step); });
  s = ce_block_merge(s, scratch);
  const bool dead = s.d == 0.0f; /* nothing but -inf */
  const float log_d = ce_log_sum(s.m, s.d, p.n_cols);
  const auto logprob_of = [&](int64_t id) { /* a single element, read again */
                                            float z[1];
                                            lp_load<FULL>(z, load_vec<T, 1>(X + id), p.map);
                                            return dead || z[0] == -INFINITY ? -INFINITY
                                                                             : (z[0] - s.m) - log_d;
  };
  for (int64_t k = tid; k < p.n_extra; k += blockDim.x) {
    const int64_t id = extra_ids[k];
    extra[k] = lp_valid(id, p.n_cols, p.ignore_index) ? logprob_of(id) : id == p.ignore_index ? 0.0f : NAN;
  }
  if (tid != 0) return;
  p.logprob[row] = logprob_of(y);
  lp_write_row(p, row, s, dead ? -INFINITY : log_d);
}

/* ---- backward ------------------------------------------------------------------------------------------- */
/* the factors of a row's gradient, the constant part of dz/dX in all of them */
struct lp_gradient {
  float m, k, mean;                  /* p = k e^z in units of m; log p + entropy = (z - m) - mean */
  float g_p, g_entropy, g_mean, g_y; /* dz = p (g_p - g_entropy (log p + entropy)) + g_mean + [j = y] g_y */
  int64_t y;
};
__device__ __forceinline__ float lp_slope(float z, const lp_logits &map) {
  const float t = z * map.inv_outer;
  return 1.0f - t * t;
}
template <bool CAPPED, int N>
__device__ __forceinline__ void lp_dz(float (&dz)[N], const float (&z)[N], const lp_gradient &g,
                                      int64_t col) {
  const bool base2 = ce_base2(g.m);
  const float unit = ce_unit(g.m);
#pragma unroll
  for (int j = 0; j < N; j++)
    dz[j] = fmaf(g.k * lp_exp(z[j], g.m, base2, unit),
                 g.g_p - g.g_entropy * (fmaxf(z[j] - g.m, LP_FAR) - g.mean), g.g_mean);
  if ((uint64_t)(g.y - col) < (uint64_t)N) {
#pragma unroll
    for (int j = 0; j < N; j++) dz[j] += col + j == g.y ? g.g_y : 0.0f;
  }
}

/* N 1: rows of X and dX that are not cut alike */
template <typename T, int N, bool CAPPED>
__global__ void __launch_bounds__(1024, 1) linear_logprob_bwd_block_kernel(const lp_bwd_params p) {
  __shared__ float scratch[BLOCK_SCRATCH];
  const int64_t row = blockIdx.x, tid = threadIdx.x;
  const T *const X = (const T *)p.X + row * p.X_row_stride;
  T *const dX = (T *)p.dX + row * p.X_row_stride;
  const row_cut cut = cut_row<T, N>(X, p.n_cols);
  const float *const saved = p.stats + row * LIGER_LOGPROB_STATS;
  const auto incoming = [&](const float *g, int64_t stride) {
    return g ? g[row * stride] * p.map.slope : 0.0f;
  };
  lp_gradient g;
  g.y = p.ids[row * p.ids_stride];
  g.m = saved[0];
  if (!lp_valid(g.y, p.n_cols, p.ignore_index) || saved[1] == 0.0f) { /* the whole block leaves here */
    row_fill<T, N>(dX, cut, 0.0f);
    return;
  }
  g.k = 1.0f / saved[1];
  g.mean = saved[2];
  g.g_y = incoming(p.dlogprob, p.dlogprob_stride);
  g.g_entropy = incoming(p.dentropy, p.dentropy_stride);
  g.g_mean = incoming(p.dmean_logit, p.dmean_logit_stride) / (float)p.n_cols;
  g.g_p = incoming(p.dlse, p.dlse_stride) - g.g_y;

  /* extra ids: their logits put aside before X, which may be dX, is written; their gradients through p */
  const int64_t *const extra_ids = p.extra_ids + row * p.extra_ids_row_stride;
  const float *const dextra = p.dextra + row * p.dextra_row_stride;
  float *const aside = p.scratch + row * p.n_extra;
  if (p.n_extra) {
    float sum = 0.0f;
    for (int64_t k = tid; k < p.n_extra; k += blockDim.x) {
      const int64_t id = extra_ids[k];
      if (!lp_valid(id, p.n_cols, p.ignore_index)) continue;
      sum += dextra[k];
      float z[1];
      lp_load<CAPPED>(z, load_vec<T, 1>(X + id), p.map);
      aside[k] = z[0];
    }
    g.g_p -= p.map.slope * block_reduce<op_sum>(sum, scratch);
    __syncthreads();
  }

  row_map<4, N>(dX, X, cut, [&](const auto &x, int64_t col) {
    constexpr int M = sizeof(x.v) / sizeof(T);
    float z[M], dz[M];
    lp_load<CAPPED>(z, x, p.map);
    lp_dz<CAPPED>(dz, z, g, col);
    if (CAPPED) {
#pragma unroll
      for (int j = 0; j < M; j++) dz[j] *= lp_slope(z[j], p.map);
    }
    return pack<T, M>(dz);
  });
  if (!p.n_extra) return;

  __syncthreads(); /* the columns of extra ids are written over */
  for (int64_t k = tid; k < p.n_extra; k += blockDim.x) {
    const int64_t id = extra_ids[k];
    bool first = lp_valid(id, p.n_cols, p.ignore_index);
    for (int64_t i = 0; first && i < k; i++) first = extra_ids[i] != id;
    if (!first) continue; /* of equal ids the first one's thread adds up all, in order */
    const float z[1] = {aside[k]};
    float dz[1];
    lp_dz<CAPPED>(dz, z, g, id);
    for (int64_t i = k; i < p.n_extra; i++)
      if (extra_ids[i] == id) dz[0] += p.map.slope * dextra[i];
    from_f32(dX[id], CAPPED ? dz[0] * lp_slope(z[0], p.map) : dz[0]);
  }
}
} // namespace

extern "C" liger_status liger_linear_logprob_fwd_cuda(const liger_linear_logprob_fwd_args *a, void *stream_) {
  const gpu_stream stream = (gpu_stream)stream_;
  if (a->n_rows == 0) return LIGER_OK;
  if (a->n_rows < 0 || a->n_rows > GPU_MAX_GRID) return LIGER_ERR_SIZE;
  const lp_fwd_params p = {(float *)a->logprob,
                           (float *)a->lse,
                           (float *)a->entropy,
                           (float *)a->mean_logit,
                           (float *)a->extra,
                           (float *)a->stats,
                           a->argmax,
                           a->X,
                           a->ids,
                           a->extra_ids,
                           a->n_rows,
                           a->n_cols,
                           a->n_extra,
                           a->X_row_stride,
                           a->ids_stride,
                           a->extra_ids_row_stride,
                           a->ignore_index,
                           lp_logits_of(a->logit_scale, a->softcap, a->temperature)};
  const bool full = a->softcap != 0 || a->entropy || a->mean_logit || a->argmax;
  LIGER_DISPATCH_DTYPE(a->x_dtype, T, {
    const int threads = row_threads(a->n_cols, sizeof(T));
    const unsigned grid = (unsigned)a->n_rows;
    if (full) linear_logprob_fwd_block_kernel<T, true><<<grid, threads, 0, stream>>>(p);
    else linear_logprob_fwd_block_kernel<T, false><<<grid, threads, 0, stream>>>(p);
  });
  return (liger_status)LIGER_RT(GetLastError)();
}

extern "C" liger_status liger_linear_logprob_bwd_cuda(const liger_linear_logprob_bwd_args *a, void *stream_) {
  const gpu_stream stream = (gpu_stream)stream_;
  if (a->n_rows == 0) return LIGER_OK;
  if (a->n_rows < 0 || a->n_rows > GPU_MAX_GRID) return LIGER_ERR_SIZE;
  const lp_bwd_params p = {a->dX,
                           (float *)a->scratch,
                           a->X,
                           (const float *)a->stats,
                           (const float *)a->dlogprob,
                           (const float *)a->dlse,
                           (const float *)a->dentropy,
                           (const float *)a->dmean_logit,
                           (const float *)a->dextra,
                           a->ids,
                           a->extra_ids,
                           a->n_rows,
                           a->n_cols,
                           a->n_extra,
                           a->X_row_stride,
                           a->ids_stride,
                           a->extra_ids_row_stride,
                           a->ignore_index,
                           a->dlogprob_stride,
                           a->dlse_stride,
                           a->dentropy_stride,
                           a->dmean_logit_stride,
                           a->dextra_row_stride,
                           lp_logits_of(a->logit_scale, a->softcap, a->temperature)};
  LIGER_DISPATCH_DTYPE(a->x_dtype, T, {
    constexpr int N = vec_width<T>::value;
    const bool alike = ((uintptr_t)a->X - (uintptr_t)a->dX) % 16 == 0;
    const int threads = row_threads(a->n_cols, sizeof(T));
#define BWD_KERNEL(WIDTH, CAPPED) \
  linear_logprob_bwd_block_kernel<T, WIDTH, CAPPED><<<(unsigned)a->n_rows, threads, 0, stream>>>(p)
    if (alike && a->softcap != 0) BWD_KERNEL(N, true);
    else if (alike) BWD_KERNEL(N, false);
    else if (a->softcap != 0) BWD_KERNEL(1, true);
    else BWD_KERNEL(1, false);
  });
  return (liger_status)LIGER_RT(GetLastError)();
}
