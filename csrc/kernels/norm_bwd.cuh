/* The backward kernels of norm.cuh, which includes this. With d = x - mean (x where not CENTRED), g = rstd dY and
 * m = g w, the fewest instructions an element:
 *   dX = m - shift - d slope + dS,   shift = mean_row(m) (CENTRED), slope = rstd^2 mean_row(m d)
 *   dW += g d,   dbias += dY */
#ifndef LIGER_NORM_BWD_CUH
#define LIGER_NORM_BWD_CUH
#include "primitives.cuh"

namespace {
/* what dX takes of a row */
struct norm_slope {
  float mean, shift, slope;
};
/* of the row's sums of m d and, if CENTRED, of m */
template <int N>
__device__ __forceinline__ norm_slope norm_finish_bwd(const float (&sum)[N], float inv_n, float mean,
                                                      float rstd) {
  return {mean, N > 1 ? sum[N - 1] * inv_n : 0.0f, sum[0] * inv_n * rstd * rstd};
}
/* adds a vector's part to the sums and gives its m */
template <int N, int SUMS>
__device__ __forceinline__ void norm_push_bwd(float (&m)[N], float (&sum)[SUMS], float (&dw)[N],
                                              float (&db)[N], const float (&x)[N], const float (&dy)[N],
                                              const float (&w)[N], float mean, float rstd) {
#pragma unroll
  for (int j = 0; j < N; j++) {
    const float d = SUMS > 1 ? x[j] - mean : x[j], g = dy[j] * rstd;
    dw[j] = fmaf(g, d, dw[j]);
    m[j] = g * w[j];
    sum[0] = fmaf(m[j], d, sum[0]);
    if (SUMS > 1) {
      sum[SUMS - 1] += m[j];
      db[j] += dy[j];
    }
  }
}
template <typename T, int N, bool CENTRED>
__device__ __forceinline__ vec<T, N> norm_dx(const vec<T, N> &x, const float (&m)[N], const norm_slope &k,
                                             const vec<T, N> *ds) {
  float v[N], dx[N];
  unpack(v, x);
#pragma unroll
  for (int j = 0; j < N; j++)
    dx[j] = CENTRED ? fmaf(-k.slope, v[j] - k.mean, m[j] - k.shift) : fmaf(-k.slope, v[j], m[j]);
  if (ds) {
    unpack(v, *ds);
#pragma unroll
    for (int j = 0; j < N; j++) dx[j] += v[j];
  }
  return pack<T, N>(dx);
}

/* Adds the block's groups of rows into its partial row: `sums` is the thread's own, `shared` room for
 * (groups, n_cols) floats. n_cols is a multiple of VEC. All threads call. */
template <int NV, int CHUNK, int VEC>
__device__ __forceinline__ void norm_store_partial(float *partial, const float (&sums)[NV][VEC],
                                                   float *shared, const row_walk<NV, CHUNK> &at,
                                                   int64_t n_cols) {
  partial += (int64_t)blockIdx.x * n_cols;
  __syncthreads(); /* the last use of `shared` is over */
  float *const to = (at.groups > 1 ? shared + (int64_t)at.group * n_cols : partial) +
                    (int64_t)at.first_vec * VEC;
#pragma unroll
  for (int i = 0; i < NV; i++)
    if (at.owns(i)) store_f32<VEC>(to + i * (CHUNK * VEC), sums[i]);
  if (at.groups == 1) return;
  __syncthreads();
  for (int64_t col = (int64_t)threadIdx.x * 4; col < n_cols; col += (int64_t)blockDim.x * 4) {
    float s[4] = {};
    for (int g = 0; g < at.groups; g++) {
      const vec<float, 4> v = load_vec<float, 4>(shared + (int64_t)g * n_cols + col);
#pragma unroll
      for (int j = 0; j < 4; j++) s[j] += v.v[j];
    }
    store_f32<4>(partial + col, s);
  }
}

/* The ring keeps X, dY and dS until the next turn of the thread that owns them, so the second pass may read them
 * there. With dS a row is half as much again, and chips with 100 KB of shared memory must hold two. It has room
 * for the groups' sums of a parameter too: at most twice the bytes of one input's rows. */
template <int NV, int CHUNK, bool ADD> using norm_bwd_ring = row_ring<NV, CHUNK, ADD ? 2 : 3, ADD ? 3 : 2>;

template <typename T, int NV, int CHUNK, bool CENTRED, bool ADD>
__global__ void __launch_bounds__(NORM_MAX_THREADS, 1)
    norm_bwd_kernel(const liger_norm_bwd_args a, int threads_per_row) {
  constexpr int VEC = vec_width<T>::value, NEXT = CHUNK * VEC, SUMS = CENTRED ? 2 : 1;
  constexpr int STAGES = ADD ? 2 : 3;
  /* what stays in registers between the passes, as far as there are any: the row; m, and the weight for good */
  constexpr bool KEEP_X = NV == 2, KEEP_M = NV * SUMS * (int)sizeof(float) * VEC <= 128;
  extern __shared__ uint4 dynamic_shared[];
  __shared__ float scratch[2][SUMS][BLOCK_SCRATCH];
  const norm_bwd_ring<NV, CHUNK, ADD> ring(dynamic_shared);
  row_walk<NV, CHUNK> at(threads_per_row, a.n_cols, VEC);
  const int64_t first_col = (int64_t)at.first_vec * VEC;
  const float inv_n = 1.0f / (float)a.n_cols;
  const float *const mean_of = (const float *)a.mean, *const rstd_of = (const float *)a.rstd;
  float w[KEEP_M ? NV : 1][VEC] = {}, dw[NV][VEC] = {}, db[NV][VEC] = {};

  int64_t next_row = at.row;
  const T *X = (const T *)a.X + next_row * a.X_row_stride + first_col;
  const T *dY = (const T *)a.dY + next_row * a.dY_row_stride + first_col;
  const T *dS = ADD && a.dS ? (const T *)a.dS + next_row * a.dS_row_stride + first_col : X;
  T *dX = (T *)a.dX + next_row * a.n_cols + first_col;
  const int64_t X_step = at.step * a.X_row_stride, dY_step = at.step * a.dY_row_stride,
                dS_step = ADD && a.dS ? at.step * a.dS_row_stride : 0, dX_step = at.step * a.n_cols;
  const auto fetch = [&](int stage) {
    const bool live = next_row < a.n_rows;
    ring.fetch(stage, 0, X, live, at);
    ring.fetch(stage, 1, dY, live, at);
    if constexpr (ADD) {
      ring.fetch(stage, 2, dS, live && a.dS, at); /* zeros without one */
      dS += dS_step;
    }
    gpu_copy_commit();
    next_row += at.step;
    X += X_step;
    dY += dY_step;
  };
#pragma unroll
  for (int s = 0; s < STAGES - 1; s++) fetch(s);
  const auto load_weight = [&](int i) {
    norm_load_param<VEC>(w[KEEP_M ? i : 0], a.W, first_col + i * NEXT, a.w_dtype, (float)a.offset, 1.0f);
  };
#pragma unroll
  for (int i = 0; i < NV; i++)
    if (KEEP_M && at.owns(i)) load_weight(i);
  /* a turn ahead, like the rows: nothing waits for device memory */
  float next_rstd = at.row < a.n_rows ? rstd_of[at.row] : 0.0f;
  float next_mean = CENTRED && at.row < a.n_rows ? mean_of[at.row] : 0.0f;
  for (int stage = 0, parity = 0; at.row - at.group < a.n_rows;
       at.row += at.step, dX += dX_step, parity ^= 1) {
    fetch(stage == 0 ? STAGES - 1 : stage - 1);
    const float rstd = next_rstd, mean = next_mean;
    if (at.row + at.step < a.n_rows) {
      next_rstd = rstd_of[at.row + at.step];
      if (CENTRED) next_mean = mean_of[at.row + at.step];
    }
    gpu_copy_wait<STAGES - 1>();
    const bool live = at.row < a.n_rows; /* else X and dY are zeros, and add nothing */
    vec<T, VEC> x[KEEP_X ? NV : 1];
    float m[KEEP_M ? NV : 1][VEC], sum[SUMS] = {};
#pragma unroll
    for (int i = 0; i < NV; i++) {
      float v[VEC], dy[VEC];
      x[KEEP_X ? i : 0] = ring.template read<T>(stage, 0, i);
      unpack(v, x[KEEP_X ? i : 0]);
      unpack(dy, ring.template read<T>(stage, 1, i));
      if (!KEEP_M && at.owns(i)) load_weight(i); /* from a cache */
      norm_push_bwd<VEC, SUMS>(m[KEEP_M ? i : 0], sum, dw[i], db[i], v, dy, w[KEEP_M ? i : 0], mean, rstd);
    }
    norm_row_sums<true, CHUNK>(sum, threads_per_row, scratch[parity]);
    const norm_slope k = norm_finish_bwd<SUMS>(sum, inv_n, mean, rstd);
#pragma unroll
    for (int i = 0; i < NV; i++) {
      vec<T, VEC> ds;
      if constexpr (ADD) ds = ring.template read<T>(stage, 2, i);
      if (!KEEP_X) x[0] = ring.template read<T>(stage, 0, i);
      if (!KEEP_M) {
        unpack(m[0], ring.template read<T>(stage, 1, i));
        if (at.owns(i)) load_weight(i);
#pragma unroll
        for (int j = 0; j < VEC; j++) m[0][j] *= rstd * w[0][j];
      }
      const vec<T, VEC> dx = norm_dx<T, VEC, CENTRED>(x[KEEP_X ? i : 0], m[KEEP_M ? i : 0], k,
                                                      ADD ? &ds : nullptr);
      if (live && at.owns(i)) store_vec<T, VEC>(dX + i * NEXT, dx);
    }
    stage = stage == STAGES - 1 ? 0 : stage + 1;
  }
  gpu_copy_wait<0>(); /* the ring is free from here on */
  if (a.dW_partial)
    norm_store_partial<NV, CHUNK, VEC>((float *)a.dW_partial, dw, (float *)dynamic_shared, at, a.n_cols);
  if constexpr (CENTRED) {
    if (a.dbias_partial)
      norm_store_partial<NV, CHUNK, VEC>((float *)a.dbias_partial, db, (float *)dynamic_shared, at, a.n_cols);
  }
}

/* any width and alignment: a block per row in turn; a thread always owns the same columns of its partial
 * rows */
template <typename T, int VEC, bool CENTRED, bool ADD>
__global__ void norm_bwd_loop_kernel(const liger_norm_bwd_args a) {
  constexpr int SUMS = CENTRED ? 2 : 1;
  __shared__ float scratch[2][SUMS][BLOCK_SCRATCH];
  const int64_t step = (int64_t)blockDim.x * VEC, first_col = (int64_t)threadIdx.x * VEC;
  const float inv_n = 1.0f / (float)a.n_cols;
  float *const dw = a.dW_partial ? (float *)a.dW_partial + (int64_t)blockIdx.x * a.n_cols : nullptr;
  float *const db = CENTRED && a.dbias_partial ? (float *)a.dbias_partial + (int64_t)blockIdx.x * a.n_cols
                                               : nullptr;
  for (int64_t col = first_col; col < a.n_cols; col += step)
#pragma unroll
    for (int j = 0; j < VEC; j++) {
      if (dw) dw[col + j] = 0.0f;
      if (db) db[col + j] = 0.0f;
    }
  int parity = 0;
  for (int64_t row = blockIdx.x; row < a.n_rows; row += gridDim.x, parity ^= 1) {
    const T *X = (const T *)a.X + row * a.X_row_stride, *dY = (const T *)a.dY + row * a.dY_row_stride;
    const float rstd = ((const float *)a.rstd)[row], mean = CENTRED ? ((const float *)a.mean)[row] : 0.0f;
    float sum[SUMS] = {};
    for (int64_t col = first_col; col < a.n_cols; col += step) {
      float v[VEC], g[VEC], w[VEC];
      unpack(v, load_vec<T, VEC>(X + col));
      unpack(g, load_vec<T, VEC>(dY + col));
      norm_load_param<VEC>(w, a.W, col, a.w_dtype, (float)a.offset, 1.0f);
#pragma unroll
      for (int j = 0; j < VEC; j++) {
        const float d = CENTRED ? v[j] - mean : v[j], m = g[j] * rstd * w[j];
        if (dw) dw[col + j] = fmaf(g[j] * rstd, d, dw[col + j]);
        if (db) db[col + j] += g[j];
        sum[0] = fmaf(m, d, sum[0]);
        if constexpr (CENTRED) sum[1] += m;
      }
    }
    norm_row_sums(sum, (int)blockDim.x, scratch[parity]);
    const norm_slope k = norm_finish_bwd<SUMS>(sum, inv_n, mean, rstd);
    for (int64_t col = first_col; col < a.n_cols; col += step) {
      float w[VEC], m[VEC];
      norm_load_param<VEC>(w, a.W, col, a.w_dtype, (float)a.offset, 1.0f);
      unpack(m, load_vec<T, VEC>(dY + col));
#pragma unroll
      for (int j = 0; j < VEC; j++) m[j] *= rstd * w[j];
      vec<T, VEC> ds;
      const bool add = ADD && a.dS;
      if (add) ds = load_vec<T, VEC>((const T *)a.dS + row * a.dS_row_stride + col);
      store_vec<T, VEC>((T *)a.dX + row * a.n_cols + col,
                        norm_dx<T, VEC, CENTRED>(load_vec<T, VEC>(X + col), m, k, add ? &ds : nullptr));
    }
  }
}
} // namespace
#endif
