/* dyt        Y = gamma t + beta,   t = tanh(alpha X)
 *            dX = u alpha,   u = dY gamma (1 - t^2);   dalpha = sum(u X)
 *            dgamma = sum_rows(dY t),   dbeta = sum_rows(dY)
 *            with q = e^(-2 |alpha X|):   |t| = (1 - q) / (1 + q),   1 - t^2 = 4 q / (1 + q)^2
 * Shapes     X Y dX dY (n_rows, n_cols), last dim contiguous; gamma beta dgamma dbeta (n_cols); alpha dalpha (1)
 * Rounding   fp32 to the end, one rounding at the store
 * Floor      fwd 2*N*s bytes;  bwd 3*N*s    (N = n_rows*n_cols)
 * Plan       a thread owns 16 bytes of columns and walks down the rows, with the parameters of its columns in
 *            registers. Narrow rows lie side by side in a block, wide ones in several. Forward: small blocks of
 *            ROWS neighbouring rows a thread. Backward: a grid of what resides at once, through a ring in shared
 *            memory in which the next rows are on their way; sums in registers, a partial row for each group
 *            of threads and one dalpha a block, then fixed-order column sums in one launch. Where rows are not made of
 *            aligned vectors the same threads move the same elements one by one, so the bits are the same
 * Source     arXiv:2503.10622 */
#include "primitives.cuh"

namespace {

constexpr int THREADS = 256, FWD_THREADS = 128;
constexpr int ROWS = 4;              /* of a thread in forward; at least as many in backward */
constexpr int BWD_BLOCKS_PER_SM = 3; /* what the registers of the parameters and three sums let reside */
constexpr int STAGES = 4;            /* rows of a thread in shared memory, all but one of them on their way */

/* tanh x, and 1 - tanh^2 x without cancellation */
__device__ __forceinline__ float tanh_and_slope(float x, float *slope) {
  const float a = fabsf(x), z = x * x;
  const float q = expf(-2.0f * a), r = 1.0f / (1.0f + q);
  float p = fmaf(-5.70498872745e-3f, z, 2.06390887954e-2f);
  p = fmaf(p, z, -5.37397155531e-2f);
  p = fmaf(p, z, 1.33314422036e-1f);
  p = fmaf(p, z, -3.33332819422e-1f);
  *slope = 4.0f * q * r * r;
  return a < 0.625f ? fmaf(p * z, x, x) : copysignf((1.0f - q) * r, x); /* 1 - q would cancel */
}
/* The same for results of 16 bits, in the fewest instructions, which decide here; its error stays under that of
 * the rounding. With h = q / (1 + q), |t| = 1 - 2 h. Below 0.01 tanh x is x within 2^-14. */
__device__ __forceinline__ float tanh_and_slope_fast(float x, float *slope) {
  const float q = gpu_exp2(-2.885390082f * fabsf(x)), r = gpu_reciprocal(1.0f + q), h = q * r;
  const float far = copysignf(fmaf(-2.0f, h, 1.0f), x); /* before the choice, which is no branch then */
  *slope = 4.0f * (h * r);
  return fabsf(x) < 0.01f ? x : far;
}
/* tanh x alone: large x make the exponential 0 or infinite */
template <bool EXACT> __device__ __forceinline__ float tanh_of(float x) {
  float slope;
  if constexpr (EXACT) return tanh_and_slope(x, &slope);
  const float r = gpu_reciprocal(1.0f + gpu_exp2(2.885390082f * x)); /* 2 / ln 2 */
  const float far = fmaf(-2.0f, r, 1.0f);
  return fabsf(x) < 0.01f ? x : far;
}

/* ---- columns of a thread ------------------------------------------------------------------------------- */
struct dyt_plan {
  int threads_per_row, groups; /* a power of two; groups of threads in a block, each on rows of its own */
  int64_t col_tiles, row_blocks;
  __host__ __device__ int64_t n_partials() const { return row_blocks * groups; }
};

/* The first column of the thread, how many of its VEC columns exist, and its first row of `n_partials`. */
struct dyt_place {
  int64_t col, row, group_row;
  int n;
  __device__ __forceinline__ dyt_place(const dyt_plan &p, int64_t n_cols, int vec) {
    const int group = (int)threadIdx.x >> (__ffs(p.threads_per_row) - 1),
              lane = (int)threadIdx.x & (p.threads_per_row - 1);
    const int64_t row_block = blockIdx.x / (unsigned)p.col_tiles;
    col = ((blockIdx.x - row_block * p.col_tiles) * p.threads_per_row + lane) * vec;
    group_row = row_block * p.groups + group;
    n = n_cols - col <= 0 ? 0 : n_cols - col < vec ? (int)(n_cols - col) : vec;
  }
};

/* the thread's elements of a row that starts at p, as fp32; zeros where it has none */
template <typename T, bool VECTORS, int VEC>
__device__ __forceinline__ vec<T, VEC> load_part(const T *p, int n) {
  if constexpr (VECTORS) {
    return load_vec<T, VEC>(p);
  } else {
    vec<T, VEC> v;
#pragma unroll
    for (int j = 0; j < VEC; j++) {
      if (j < n) v.v[j] = p[j];
      else from_f32(v.v[j], 0.0f);
    }
    return v;
  }
}
template <typename T, bool VECTORS, int VEC>
__device__ __forceinline__ void store_part(T *p, const float (&x)[VEC], int n) {
  const vec<T, VEC> v = pack<T, VEC>(x);
  if constexpr (VECTORS) {
    store_vec<T, VEC>(p, v);
  } else {
#pragma unroll
    for (int j = 0; j < VEC; j++)
      if (j < n) p[j] = v.v[j];
  }
}
/* the thread's n values of a parameter of any dtype; zeros where there is none */
template <int VEC>
__device__ __forceinline__ void load_columns(float (&out)[VEC], const void *p, int64_t col, int n,
                                             liger_dtype t) {
  if (p && n == VEC) {
    load_as_f32<VEC>(out, p, col, t, (uintptr_t)p % 16 == 0);
  } else {
#pragma unroll
    for (int j = 0; j < VEC; j++) {
      float one[1] = {0.0f};
      if (p && j < n) load_as_f32<1>(one, p, col + j, t);
      out[j] = one[0];
    }
  }
}

/* ---- forward ------------------------------------------------------------------------------------------- */
template <typename T, bool VECTORS>
__global__ void __launch_bounds__(FWD_THREADS)
    dyt_fwd_kernel(const liger_dyt_fwd_args args, const dyt_plan plan, bool params_like_x) {
  constexpr int VEC = vec_width<T>::value;
  const dyt_place at(plan, args.n_cols, VEC);
  if (at.n == 0) return;
  const T *X = (const T *)args.X + at.col;
  T *Y = (T *)args.Y + at.col;
  /* rows first, first + step, ...: those of a block are neighbours */
  const int64_t first = at.group_row +
                        (int64_t)(blockIdx.x / (unsigned)plan.col_tiles) * plan.groups * (ROWS - 1);
  const int step = plan.groups;
  const int64_t X_step = step * args.X_row_stride, Y_step = step * args.n_cols;
  X += first * args.X_row_stride;
  Y += first * args.n_cols;
  vec<T, VEC> x[ROWS];
#pragma unroll
  for (int k = 0; k < ROWS; k++)
    if (first + k * step < args.n_rows) x[k] = load_part<T, VECTORS, VEC>(X + k * X_step, at.n);
  float alpha[1], gamma[VEC] = {}, beta[VEC] = {};
  if (VECTORS && params_like_x) { /* all on their way at once */
    vec<T, VEC> g, b;
    const T a = *(const T *)args.alpha;
    if (args.gamma) g = load_vec<T, VEC>((const T *)args.gamma + at.col);
    if (args.beta) b = load_vec<T, VEC>((const T *)args.beta + at.col);
    alpha[0] = to_f32(a);
    if (args.gamma) unpack(gamma, g);
    if (args.beta) unpack(beta, b);
  } else {
    load_as_f32<1>(alpha, args.alpha, 0, args.alpha_dtype);
    load_columns<VEC>(gamma, args.gamma, at.col, at.n, args.gamma_dtype);
    load_columns<VEC>(beta, args.beta, at.col, at.n, args.beta_dtype);
  }
#pragma unroll
  for (int k = 0; k < ROWS; k++)
    if (first + k * step < args.n_rows) {
      float v[VEC];
      unpack(v, x[k]);
#pragma unroll
      for (int j = 0; j < VEC; j++) v[j] = fmaf(gamma[j], tanh_of<sizeof(T) == 4>(alpha[0] * v[j]), beta[j]);
      store_part<T, VECTORS, VEC>(Y + k * Y_step, v, at.n);
    }
}

/* ---- backward ------------------------------------------------------------------------------------------ */
/* the workspace: dgamma and dbeta of every group (n_partials, n_cols), then dalpha of every block */
template <typename T, bool VECTORS>
__global__ void __launch_bounds__(THREADS, BWD_BLOCKS_PER_SM)
    dyt_bwd_kernel(const liger_dyt_bwd_args args, const dyt_plan plan) {
  constexpr int VEC = vec_width<T>::value;
  __shared__ float scratch[BLOCK_SCRATCH];
  __shared__ uint4 slots[VECTORS ? STAGES * 2 * THREADS : 1];
  const row_ring<1, GPU_MIN_LANES, STAGES, 2> ring(slots); /* the thread's own, so no barrier */
  const dyt_place at(plan, args.n_cols, VEC);
  const T *X = (const T *)args.X + at.col, *dY = (const T *)args.dY + at.col;
  T *dX = (T *)args.dX + at.col;
  float alpha[1], gamma[VEC], dgamma[VEC] = {}, dbeta[VEC] = {}, dalpha = 0.0f;
  load_as_f32<1>(alpha, args.alpha, 0, args.alpha_dtype);
  load_columns<VEC>(gamma, args.gamma, at.col, at.n, args.gamma_dtype);
  const int64_t step = plan.n_partials(), n_rows = at.n ? args.n_rows : 0; /* all meet at the reduction */
  int64_t next_row = at.group_row;
  const auto fetch = [&](int stage) {
    gpu_copy_async(ring.slot(stage, 0, 0), X, next_row < n_rows);
    gpu_copy_async(ring.slot(stage, 1, 0), dY, next_row < n_rows);
    gpu_copy_commit();
    next_row += step;
    X += step * args.X_row_stride;
    dY += step * args.dY_row_stride;
  };
  X += next_row * args.X_row_stride;
  dY += next_row * args.dY_row_stride;
  dX += next_row * args.n_cols;
  if constexpr (VECTORS) {
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) fetch(s);
  }
  int stage = 0;
  for (int64_t row = at.group_row; row < n_rows; row += step, dX += step * args.n_cols) {
    float v[VEC], g[VEC];
    if constexpr (VECTORS) {
      fetch(stage == 0 ? STAGES - 1 : stage - 1);
      gpu_copy_wait<STAGES - 1>();
      unpack(v, ring.template read<T>(stage, 0, 0));
      unpack(g, ring.template read<T>(stage, 1, 0));
      stage = stage == STAGES - 1 ? 0 : stage + 1;
    } else {
      unpack(v, load_part<T, false, VEC>(X, at.n));
      unpack(g, load_part<T, false, VEC>(dY, at.n));
      X += step * args.X_row_stride;
      dY += step * args.dY_row_stride;
    }
#pragma unroll
    for (int j = 0; j < VEC; j++) {
      float slope, x = alpha[0] * v[j];
      const float t = sizeof(T) == 4 ? tanh_and_slope(x, &slope) : tanh_and_slope_fast(x, &slope);
      const float u = g[j] * gamma[j] * slope;
      dgamma[j] = fmaf(g[j], t, dgamma[j]);
      dbeta[j] += g[j];
      dalpha = fmaf(u, v[j], dalpha);
      v[j] = u * alpha[0];
    }
    store_part<T, VECTORS, VEC>(dX, v, at.n);
  }
  if (!args.workspace) return;
  const int64_t n = step * args.n_cols, mine = at.group_row * args.n_cols + at.col;
  float *const to = (float *)args.workspace;
  if (VECTORS && at.n) {
    if (args.dgamma) store_f32<VEC>(to + mine, dgamma);
    if (args.dbeta) store_f32<VEC>(to + n + mine, dbeta);
  } else {
#pragma unroll
    for (int j = 0; j < VEC; j++)
      if (j < at.n) {
        if (args.dgamma) to[mine + j] = dgamma[j];
        if (args.dbeta) to[n + mine + j] = dbeta[j];
      }
  }
  dalpha = block_reduce<op_sum>(dalpha, scratch);
  if (threadIdx.x == 0) to[2 * n + blockIdx.x] = dalpha;
}

/* ---- launching ----------------------------------------------------------------------------------------- */
/* row_blocks: as many as ROWS rows a thread need, at most `most` blocks in all. A pure function of the sizes. */
dyt_plan plan_rows(int64_t n_rows, int64_t n_cols, int elem_size, int threads, int64_t most) {
  const int vec = 16 / elem_size;
  const int64_t n_vecs = n_cols ? (n_cols + vec - 1) / vec : 1;
  dyt_plan p = {1, 0, 0, 0};
  while (p.threads_per_row < threads && p.threads_per_row < n_vecs) p.threads_per_row *= 2;
  p.groups = threads / p.threads_per_row;
  p.col_tiles = (n_vecs + p.threads_per_row - 1) / p.threads_per_row;
  const int64_t rows = (int64_t)p.groups * ROWS, wanted = (n_rows + rows - 1) / rows;
  const int64_t limit = most / p.col_tiles > 0 ? most / p.col_tiles : 1;
  p.row_blocks = wanted < 1 ? 1 : wanted < limit ? wanted : limit;
  return p;
}
int size_of(liger_dtype t) { return t == LIGER_F32 ? 4 : 2; }
dyt_plan plan_bwd(int64_t n_rows, int64_t n_cols, liger_dtype t) {
  return plan_rows(n_rows, n_cols, size_of(t), THREADS, (int64_t)gpu_multiprocessors() * BWD_BLOCKS_PER_SM);
}

} // namespace

extern "C" liger_status liger_dyt_fwd_cuda(const liger_dyt_fwd_args *a, void *stream_) {
  const gpu_stream stream = (gpu_stream)stream_;
  if (a->n_rows == 0 || a->n_cols == 0) return LIGER_OK;
  const dyt_plan plan = plan_rows(a->n_rows, a->n_cols, size_of(a->x_dtype), FWD_THREADS, INT64_MAX);
  if (plan.row_blocks * plan.col_tiles > GPU_MAX_GRID) return LIGER_ERR_SIZE;
  const unsigned grid = (unsigned)(plan.row_blocks * plan.col_tiles);
  const auto like_x = [a](const void *p, liger_dtype t) {
    return !p || (t == a->x_dtype && (uintptr_t)p % 16 == 0);
  };
  const bool params = a->alpha_dtype == a->x_dtype && like_x(a->gamma, a->gamma_dtype) &&
                      like_x(a->beta, a->beta_dtype);
  LIGER_DISPATCH_DTYPE(a->x_dtype, T, {
    if (rows_aligned(a->X, a->X_row_stride, a->n_cols, sizeof(T)) &&
        rows_aligned(a->Y, a->n_cols, a->n_cols, sizeof(T)))
      dyt_fwd_kernel<T, true><<<grid, FWD_THREADS, 0, stream>>>(*a, plan, params);
    else dyt_fwd_kernel<T, false><<<grid, FWD_THREADS, 0, stream>>>(*a, plan, params);
  });
  return (liger_status)LIGER_RT(GetLastError)();
}

extern "C" int64_t liger_dyt_bwd_workspace_cuda(int64_t n_rows, int64_t n_cols, liger_dtype x_dtype) {
  const dyt_plan plan = plan_bwd(n_rows, n_cols, x_dtype);
  return 2 * plan.n_partials() * n_cols + plan.row_blocks * plan.col_tiles;
}

extern "C" liger_status liger_dyt_bwd_cuda(const liger_dyt_bwd_args *a, void *stream_) {
  const gpu_stream stream = (gpu_stream)stream_;
  if (a->n_cols == 0 && !a->dalpha) return LIGER_OK;
  const dyt_plan plan = plan_bwd(a->n_rows, a->n_cols, a->x_dtype);
  const int64_t blocks = plan.row_blocks * plan.col_tiles, n = plan.n_partials();
  if (blocks > GPU_MAX_GRID) return LIGER_ERR_SIZE;
  const unsigned grid = (unsigned)blocks;
  LIGER_DISPATCH_DTYPE(a->x_dtype, T, {
    if (rows_aligned(a->X, a->X_row_stride, a->n_cols, sizeof(T)) &&
        rows_aligned(a->dY, a->dY_row_stride, a->n_cols, sizeof(T)) &&
        rows_aligned(a->dX, a->n_cols, a->n_cols, sizeof(T)) && (uintptr_t)a->workspace % 16 == 0)
      dyt_bwd_kernel<T, true><<<grid, THREADS, 0, stream>>>(*a, plan);
    else dyt_bwd_kernel<T, false><<<grid, THREADS, 0, stream>>>(*a, plan);
  });
  const liger_status status = (liger_status)LIGER_RT(GetLastError)();
  const float *const from = (const float *)a->workspace;
  column_sums sums;
  sums.add(a->dgamma, from, n, a->n_cols, a->gamma_dtype);
  sums.add(a->dbeta, from + n * a->n_cols, n, a->n_cols, a->beta_dtype);
  sums.add(a->dalpha, from + 2 * n * a->n_cols, blocks, 1, a->alpha_dtype);
  return status == LIGER_OK ? launch_column_sums(sums, stream) : status;
}
