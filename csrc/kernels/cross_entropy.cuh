/* What the two paths of cross_entropy share: the arguments as a kernel takes them, the running statistics of a row, and what
 * follows from them. The equations stand at liger_cross_entropy_args. */
#ifndef LIGER_CROSS_ENTROPY_CUH
#define LIGER_CROSS_ENTROPY_CUH
#include "primitives.cuh"

/* The scalars are fp32 here, so that no kernel computes in fp64. */
struct ce_params {
  float *loss, *z_loss, *accuracy;
  int64_t *predicted;
  void *dX;
  const void *X;
  const int64_t *target;
  const float *weight, *stats, *row_grad;
  int64_t n_rows, n_cols, X_row_stride, dX_row_stride, target_stride, row_grad_stride, ignore_index;
  float smoothing, lse_square_scale, softcap;
  bool token_scaling;
};

static inline ce_params ce_params_of(const liger_cross_entropy_args *a) {
  return {(float *)a->loss,
          (float *)a->z_loss,
          (float *)a->accuracy,
          a->predicted,
          a->dX,
          a->X,
          a->target,
          (const float *)a->weight,
          (const float *)a->stats,
          (const float *)a->row_grad,
          a->n_rows,
          a->n_cols,
          a->X_row_stride,
          a->dX_row_stride,
          a->target_stride,
          a->row_grad_stride,
          a->ignore_index,
          (float)a->label_smoothing,
          (float)a->lse_square_scale,
          (float)a->softcap,
          a->token_scaling != 0};
}

/* Whether the kernels need the code for label smoothing, softcap and argmax, which costs registers and time. */
static inline bool ce_is_full(const ce_params &p) {
  return p.smoothing != 0.0f || p.softcap != 0.0f || p.accuracy || p.predicted;
}

/* Launches the path that keeps a row in shared memory. False: this device, build, width or alignment is not its; nothing was
 * launched. */
bool liger_internal_cross_entropy_ring(const ce_params &p, liger_dtype x_dtype, gpu_stream stream,
                                       liger_status *status);

namespace {
constexpr float LOG2E = 1.4426950408889634f;
/* The maximum of nothing. Finite, so that no difference of maxima is inf - inf; a row of -inf leaves d = 0 behind. */
constexpr float CE_LOWEST = -3.402823466e38f;

/* FULL: with label smoothing, argmax or softcap; without, the code for them would cost registers and time for nothing */
struct ce_plain {
  float m, d; /* the largest element, sum of e^(z - m) */
};
struct ce_full {
  float m, d;
  float wz, w;    /* sum w_i (z_i - m), sum w_i; for label smoothing alone */
  int64_t argmax; /* the smallest index at a tie */
};
template <bool FULL> struct ce_state_of {
  typedef ce_plain type;
};
template <> struct ce_state_of<true> {
  typedef ce_full type;
};
__device__ __forceinline__ void ce_reset(ce_plain &s) {
  s.m = CE_LOWEST;
  s.d = 0.0f;
}
__device__ __forceinline__ void ce_reset(ce_full &s) {
  s.m = CE_LOWEST;
  s.d = s.wz = s.w = 0.0f;
  s.argmax = INT64_MAX;
}

/* Exponentials are taken to base 2: e^z = 2^(z L) with L = LOG2E, and d counts in units of 2^fl(m L), fl rounding
 * to fp32. So an element costs one multiply-add, z L - fl(m L), whose product is exact: logits around 1e4 lose
 * nothing, and ce_lost() returns what fl() took. From 2^20 on that would be no small part of an octave (and an
 * overflow at last): there differences come first and the unit is e^m. */
__device__ __forceinline__ bool ce_base2(float m) { return fabsf(m) < 1048576.0f; }
__device__ __forceinline__ float ce_unit(float m) { return __fmul_rn(m, LOG2E); }
/* log2(e^m / unit of m) */
__device__ __forceinline__ float ce_lost(float m) { return ce_base2(m) ? fmaf(m, LOG2E, -ce_unit(m)) : 0.0f; }
/* units of a over units of b */
__device__ __forceinline__ float ce_ratio(float a, float b) {
  return gpu_exp2(ce_base2(a) && ce_base2(b) ? ce_unit(a) - ce_unit(b)
                                             : fmaf(a - b, LOG2E, ce_lost(b) - ce_lost(a)));
}
/* log(unit of m) - m */
__device__ __forceinline__ float ce_log_unit(float m) { return -0.6931471805599453f * ce_lost(m); }
/* log of the sum of e^(z - m) over n_cols elements. Of one it is 0, not the rounding that exponentials to base 2
 * leave; a NaN goes on. */
__device__ __forceinline__ float ce_log_sum(float m, float d, int64_t n_cols) {
  return n_cols == 1 && d > 0.0f ? 0.0f : logf(d) + ce_log_unit(m);
}
/* e = e^z in units of m, for U vectors at once: one branch, which the exponentials of all of them share */
template <int U, int N>
__device__ __forceinline__ void ce_exp(float (&e)[U][N], const float (&z)[U][N], float m) {
  if (ce_base2(m)) {
    const float unit = ce_unit(m);
#pragma unroll
    for (int u = 0; u < U; u++)
#pragma unroll
      for (int j = 0; j < N; j++) e[u][j] = gpu_exp2(fmaf(z[u][j], LOG2E, -unit));
  } else {
#pragma unroll
    for (int u = 0; u < U; u++)
#pragma unroll
      for (int j = 0; j < N; j++) e[u][j] = gpu_exp2((z[u][j] - m) * LOG2E);
  }
}

/* wz measured from m instead of from s.m */
__device__ __forceinline__ float ce_shifted(const ce_full &s, float m) {
  return s.w == 0.0f ? s.wz : s.wz - s.w * (m - s.m);
}

/* The same bits whichever is a: the lanes of a warp that exchange states all arrive at one. */
__device__ __forceinline__ float ce_merged_d(float a_m, float a_d, float b_m, float b_d, float m) {
  return __fadd_rn(__fmul_rn(a_d, ce_ratio(a_m, m)), __fmul_rn(b_d, ce_ratio(b_m, m)));
}
__device__ __forceinline__ ce_plain ce_merge(const ce_plain &a, const ce_plain &b) {
  const float m = fmaxf(a.m, b.m);
  return {m, ce_merged_d(a.m, a.d, b.m, b.d, m)};
}
__device__ __forceinline__ ce_full ce_merge(const ce_full &a, const ce_full &b) {
  const float m = fmaxf(a.m, b.m);
  const int64_t first = a.argmax < b.argmax ? a.argmax : b.argmax;
  return {m, ce_merged_d(a.m, a.d, b.m, b.d, m), ce_shifted(a, m) + ce_shifted(b, m), a.w + b.w,
          a.m > b.m   ? a.argmax
          : b.m > a.m ? b.argmax
                      : first};
}
__device__ __forceinline__ ce_plain ce_shuffle(const ce_plain &s, int mask) {
  return {gpu_shfl_xor(s.m, mask), gpu_shfl_xor(s.d, mask)};
}
__device__ __forceinline__ ce_full ce_shuffle(const ce_full &s, int mask) {
  return {gpu_shfl_xor(s.m, mask), gpu_shfl_xor(s.d, mask), gpu_shfl_xor(s.wz, mask), gpu_shfl_xor(s.w, mask),
          gpu_shfl_xor(s.argmax, mask)};
}

/* The state of `width` lanes (a power of two) that differ in their low bits, as a tree. All lanes call and hold the result. */
template <class State> __device__ __forceinline__ State ce_warp_merge(State s, int width) {
  for (int mask = width / 2; mask > 0; mask /= 2) s = ce_merge(s, ce_shuffle(s, mask));
  return s;
}

/* The block's state; the number of warps is a power of two. All threads call and hold the result. scratch: shared,
 * BLOCK_SCRATCH states. */
template <class State> __device__ __forceinline__ State ce_block_merge(State s, State *scratch) {
  s = ce_warp_merge(s, GPU_LANES);
  const int n_warps = ((int)blockDim.x + GPU_LANES - 1) / GPU_LANES;
  if (threadIdx.x % GPU_LANES == 0) scratch[threadIdx.x / GPU_LANES] = s;
  __syncthreads();
  return ce_warp_merge(scratch[threadIdx.x & (n_warps - 1)], n_warps);
}

/* z[0..N) = the logits of N neighbouring elements */
template <bool FULL, typename T, int N>
__device__ __forceinline__ void ce_logits(float (&z)[N], const vec<T, N> &x, const ce_params &p) {
  unpack(z, x);
  if (FULL && p.softcap != 0.0f) {
    const float inv = 1.0f / p.softcap;
#pragma unroll
    for (int j = 0; j < N; j++) z[j] = p.softcap * tanhf(z[j] * inv);
  }
}

/* dz/dX, z after the softcap */
__device__ __forceinline__ float ce_slope(const ce_params &p, float z) {
  if (p.softcap == 0.0f) return 1.0f;
  const float r = z / p.softcap;
  return 1.0f - r * r;
}

/* s with U vectors of N logits; vector u begins at column col + u * step. */
template <int U, int N>
__device__ __forceinline__ float ce_rescale(ce_plain &s, const float (&)[U][N], float c, int64_t, int64_t) {
  if (c > s.m) {
    s.d *= ce_ratio(s.m, c);
    s.m = c;
  }
  return s.m;
}
template <int U, int N>
__device__ __forceinline__ float ce_rescale(ce_full &s, const float (&z)[U][N], float c, int64_t col,
                                            int64_t step) {
  if (c > s.m) {
    s.d *= ce_ratio(s.m, c);
    s.wz = ce_shifted(s, c);
    s.m = c;
#pragma unroll
    for (int u = U - 1; u >= 0; u--)
#pragma unroll
      for (int j = N - 1; j >= 0; j--) s.argmax = z[u][j] == c ? col + u * step + j : s.argmax;
  }
  return s.m;
}
__device__ __forceinline__ void ce_add_weighted(ce_plain &, const ce_params &, float, int64_t) {}
__device__ __forceinline__ void ce_add_weighted(ce_full &s, const ce_params &p, float z, int64_t col) {
  if (p.smoothing == 0.0f) return;
  const float w = p.weight ? p.weight[col] : 1.0f;
  s.wz += w == 0.0f ? 0.0f : w * (z - s.m); /* a class without weight may be masked by -inf */
  s.w += w;
}
template <class State, int U, int N>
__device__ __forceinline__ void ce_push(State &s, const ce_params &p, const float (&z)[U][N], int64_t col,
                                        int64_t step) {
  float c[U], d[U]; /* a chain for each vector: one of all would wait for itself */
#pragma unroll
  for (int u = 0; u < U; u++) {
    c[u] = z[u][0];
#pragma unroll
    for (int j = 1; j < N; j++) c[u] = fmaxf(c[u], z[u][j]); /* a NaN loses here and is found by the sum */
  }
#pragma unroll
  for (int u = 1; u < U; u++) c[0] = fmaxf(c[0], c[u]);
  float e[U][N];
  ce_exp(e, z, ce_rescale(s, z, c[0], col, step));
#pragma unroll
  for (int u = 0; u < U; u++) {
    d[u] = 0.0f;
#pragma unroll
    for (int j = 0; j < N; j++) {
      d[u] += e[u][j];
      ce_add_weighted(s, p, z[u][j], col + u * step + j);
    }
  }
#pragma unroll
  for (int u = 1; u < U; u++) d[0] += d[u];
  s.d += d[0];
}

template <bool FULL, class State, typename T, int U, int N>
__device__ __forceinline__ void ce_push_vectors(State &s, const ce_params &p, const vec<T, N> (&x)[U],
                                                int64_t col, int64_t step) {
  float z[U][N];
#pragma unroll
  for (int u = 0; u < U; u++) ce_logits<FULL>(z[u], x[u], p);
  ce_push(s, p, z, col, step);
}

/* ---- what follows from the statistics of a row ------------------------------------------------------------------------------ */
struct ce_target {
  int64_t y;
  float z, w;
  bool skip; /* ignored, or out of range: the row is filled */
  float fill;
};
/* Read before dX, which may lie over X, is written. */
template <bool FULL, typename T>
__device__ __forceinline__ ce_target ce_load_target(const ce_params &p, int64_t row) {
  ce_target t;
  t.y = p.target[row * p.target_stride];
  t.skip = t.y == p.ignore_index || t.y < 0 || t.y >= p.n_cols;
  t.fill = t.y == p.ignore_index ? 0.0f : NAN;
  t.z = 0.0f;
  t.w = 1.0f;
  if (!t.skip) {
    vec<T, 1> x;
    x.v[0] = ((const T *)p.X)[row * p.X_row_stride + t.y];
    float z[1];
    ce_logits<FULL>(z, x, p);
    t.z = z[0];
    if (p.weight) t.w = p.weight[t.y];
  }
  return t;
}

struct ce_gradient {
  float k, m;    /* k times e^z in units of m is the gradient through p */
  float w_scale; /* label smoothing's part of every column */
  float dz_y;    /* the target's column, whole: its thread stores it over what ce_dx made of it */
};
__device__ __forceinline__ float ce_wz(const ce_plain &) { return 0.0f; }
__device__ __forceinline__ float ce_wz(const ce_full &s) { return s.wz; }
__device__ __forceinline__ int64_t ce_argmax(const ce_plain &) { return 0; }
__device__ __forceinline__ int64_t ce_argmax(const ce_full &s) {
  return s.argmax == INT64_MAX ? 0 : s.argmax;
}

/* One thread writes the row's outputs (write); all learn the gradient's factors. The steps are those of cross_entropy.c. */
template <class State>
__device__ __forceinline__ ce_gradient ce_finish(const ce_params &p, int64_t row, const State &s,
                                                 const ce_target &t, bool write) {
  const float ce_scale = p.stats[LIGER_CE_SCALE], z_scale = p.stats[LIGER_CE_Z_SCALE],
              w_sum = p.stats[LIGER_CE_W_SUM];
  const bool dead = s.d == 0.0f; /* nothing but -inf: no probabilities, no gradient */
  const float log_d = ce_log_sum(s.m, s.d, p.n_cols);
  const float lse = s.m + log_d, each = p.smoothing / (float)p.n_cols;
  const float log_p = dead || t.z == -INFINITY ? -INFINITY : (t.z - s.m) - log_d;
  const float hard = (1.0f - p.smoothing) * t.w, scaling = p.token_scaling ? expf(log_p) : 1.0f;
  if (write) {
    float ce = hard == 0.0f ? 0.0f : -hard * log_p; /* a coefficient of 0 wins over an infinite loss */
    if (each != 0.0f) ce += dead ? INFINITY : each * (w_sum * log_d - ce_wz(s));
    const float z_loss = p.lse_square_scale == 0.0f ? 0.0f : z_scale * p.lse_square_scale * lse * lse;
    p.loss[row] = scaling == 0.0f ? 0.0f : scaling * ((ce_scale == 0.0f ? 0.0f : ce_scale * ce) + z_loss);
    if (p.z_loss) p.z_loss[row] = scaling == 0.0f ? 0.0f : scaling * z_loss;
    if (p.accuracy) p.accuracy[row] = ce_argmax(s) == t.y ? 1.0f : 0.0f;
    if (p.predicted) p.predicted[row] = ce_argmax(s);
  }
  ce_gradient g = {0.0f, 0.0f, 0.0f, 0.0f};
  if (dead || !p.dX) return g;
  const float scale = (p.row_grad ? p.row_grad[row * p.row_grad_stride] : 1.0f) * scaling;
  const float c = scale * ce_scale,
              z_grad = p.lse_square_scale == 0.0f ? 0.0f : scale * z_scale * 2.0f * p.lse_square_scale * lse;
  const float p_y = expf(log_p);
  g.k = (c * (hard + each * w_sum) + z_grad) / s.d;
  g.m = s.m;
  g.w_scale = c * each;
  g.dz_y = c * (hard * (p_y - 1.0f) + each * (w_sum * p_y - t.w)) +
           z_grad * p_y; /* p - 1 as one difference, before any factor */
  g.dz_y *= ce_slope(p, t.z);
  return g;
}

/* out = the gradient of U vectors of N columns, the target's left as if it were another's; vector u begins at
 * column col + u * step. Vectors outside the row may be among them: their results are not used. */
template <bool FULL, typename T, int U, int N>
__device__ __forceinline__ void ce_dx(vec<T, N> (&out)[U], const ce_params &p, const ce_gradient &g,
                                      const vec<T, N> (&x)[U], int64_t col, int64_t step) {
  float z[U][N], dz[U][N];
#pragma unroll
  for (int u = 0; u < U; u++) ce_logits<FULL>(z[u], x[u], p);
  ce_exp(dz, z, g.m);
#pragma unroll
  for (int u = 0; u < U; u++) {
#pragma unroll
    for (int j = 0; j < N; j++) dz[u][j] *= g.k;
    if (FULL && g.w_scale != 0.0f) {
      const int64_t first = col + u * step; /* a vector that is nobody's has no weights */
      const bool weighted = p.weight && first >= 0 && first + N <= p.n_cols;
#pragma unroll
      for (int j = 0; j < N; j++) dz[u][j] -= weighted ? g.w_scale * p.weight[first + j] : g.w_scale;
    }
    if (FULL && p.softcap != 0.0f) {
#pragma unroll
      for (int j = 0; j < N; j++) dz[u][j] *= ce_slope(p, z[u][j]);
    }
    out[u] = pack<T, N>(dz[u]);
  }
}

/* the outputs of a row that has no loss of its own: 0 if it is ignored, NaN if its label is out of range. One thread. */
__device__ __forceinline__ void ce_fill_outputs(const ce_params &p, int64_t row, float value) {
  p.loss[row] = value;
  if (p.z_loss) p.z_loss[row] = value;
  if (p.accuracy) p.accuracy[row] = value;
  if (p.predicted) p.predicted[row] = -1;
}
} // namespace
#endif
