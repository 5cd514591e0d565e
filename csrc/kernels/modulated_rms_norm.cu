/* modulated_rms_norm   Y = X * rstd * M + shift,   M = (W + offset) * (1 + scale),
 *                      rstd = 1/sqrt(mean(X^2) + eps)                                                per row
 *                      dX = rstd * (m - xhat * mean(m * xhat)),   m = dY * M,   xhat = X * rstd
 *                      with G = sum(dY * xhat) over the rows of a modulation:
 *                      dscale = G * (W + offset),   dshift = sum(dY),   dW = sum over them of (1 + scale) * G
 * Shapes     X Y dX dY (n_rows, n_cols), last dim contiguous; scale shift (n_modulations, n_cols); W (n_cols)
 * Casting    llama: round X * rstd to X's dtype, then times M.  gemma, none: no rounding before the store
 * Floor      fwd 2*N*s bytes;  bwd 3*N*s    (N = n_rows*n_cols; modulations of many rows)
 * Plan       forward: a block per row, 32 to 512 threads with 4 vectors of 16 bytes each in registers, and the
 *            parameters from the caches, two vectors of each at once when the row's rstd is known. Backward: 2
 *            vectors, M and the sums G in registers, the next rows on their way to shared memory; a block has whole
 *            modulations or a piece of one, so that its sums end with it, and one column sum adds the pieces in
 *            fixed order. Rows that are too wide or not made of aligned vectors are looped over, their sums in the
 *            workspace, where a thread owns its columns
 * Source     arXiv:2212.09748 (adaLN), arXiv:1910.07467 */
#include "row_part.cuh"

namespace {

constexpr int FWD_VECTORS = 4, BWD_VECTORS = 2, BWD_THREADS_PER_SM = 512;
constexpr int BWD_STAGES = 5, FEW_STAGES = 3; /* the latter where shared memory is under 160 KB */
constexpr int PARAM_VECTORS = 2; /* of each of W, scale and shift that a thread has in registers */

/* w = W + offset, one_scale = 1 + scale of a thread's columns */
template <int VEC, class Args>
__device__ __forceinline__ void load_modulation(float (&w)[VEC], float (&one_scale)[VEC], const Args &a,
                                                int64_t s, int64_t col) {
  norm_load_param<VEC>(w, a.W, col, a.w_dtype, (float)a.offset, 1.0f);
  const int64_t at = s * a.scale_row_stride + col;
  load_as_f32<VEC>(one_scale, a.scale, at, a.scale_dtype,
                   VEC > 1 && at % VEC == 0 && (uintptr_t)a.scale % 16 == 0);
#pragma unroll
  for (int j = 0; j < VEC; j++) one_scale[j] += 1.0f;
}

/* What Y takes of the parameters for a vector of columns. PACKED: they are whole vectors of X's dtype, all on their way
 * before one is waited for; of a dtype that is not known before, they come one after the other. */
template <typename T, int VEC, bool PACKED> struct fwd_modulation {
  float m[VEC], b[VEC];
  __device__ __forceinline__ void load(const liger_modulated_rms_norm_fwd_args &a, int64_t s, int64_t col) {
    const int64_t at = s * a.shift_row_stride + col;
    float one_scale[VEC];
#pragma unroll
    for (int j = 0; j < VEC; j++) m[j] = 1.0f, b[j] = 0.0f;
    if constexpr (PACKED) {
      const vec<T, VEC> scale = load_vec<T, VEC>((const T *)a.scale + s * a.scale_row_stride + col);
      vec<T, VEC> w, shift;
      if (a.W) w = load_vec<T, VEC>((const T *)a.W + col);
      if (a.shift) shift = load_vec<T, VEC>((const T *)a.shift + at);
      if (a.W) {
        unpack(m, w);
#pragma unroll
        for (int j = 0; j < VEC; j++) m[j] += (float)a.offset;
      }
      unpack(one_scale, scale);
#pragma unroll
      for (int j = 0; j < VEC; j++) m[j] = fmaf(one_scale[j], m[j], m[j]);
      if (a.shift) unpack(b, shift);
    } else {
      load_modulation<VEC>(m, one_scale, a, s, col);
#pragma unroll
      for (int j = 0; j < VEC; j++) m[j] *= one_scale[j];
      if (a.shift)
        load_as_f32<VEC>(b, a.shift, at, a.shift_dtype,
                         VEC > 1 && at % VEC == 0 && (uintptr_t)a.shift % 16 == 0);
    }
  }
  __device__ __forceinline__ vec<T, VEC> apply(const vec<T, VEC> &x, float rstd, bool llama) const {
    float v[VEC];
    unpack(v, x);
#pragma unroll
    for (int j = 0; j < VEC; j++) v[j] *= rstd;
    if (llama) {
      const vec<T, VEC> rounded = pack<T, VEC>(v);
      unpack(v, rounded);
    }
#pragma unroll
    for (int j = 0; j < VEC; j++) v[j] = fmaf(v[j], m[j], b[j]);
    return pack<T, VEC>(v);
  }
};

/* ROWS rows of one modulation, NV vectors of each to a thread of the block. Parameters are read beside the rows, or,
 * where their registers would keep other rows waiting, from the cache when the row's rstd is known. */
template <typename T, int NV, int ROWS, bool PACKED>
__global__ void __launch_bounds__(NORM_MAX_THREADS)
    modulated_rms_norm_fwd_kernel(const liger_modulated_rms_norm_fwd_args a) {
  constexpr int VEC = vec_width<T>::value, NEXT = 32 * VEC; /* columns from a thread's vector to its next */
  constexpr int PARAMS = NV < PARAM_VECTORS ? NV : PARAM_VECTORS;
  __shared__ float scratch[ROWS][BLOCK_SCRATCH];
  const row_walk<NV, 32> at((int)blockDim.x, a.n_cols, VEC);
  const int64_t row = (int64_t)blockIdx.x * ROWS, s = row / (a.n_rows / a.n_modulations);
  const int64_t first_col = (int64_t)at.first_vec * VEC;
  vec<T, VEC> x[ROWS][NV] = {};
#pragma unroll
  for (int k = 0; k < ROWS; k++)
#pragma unroll
    for (int i = 0; i < NV; i++)
      if (at.owns(i))
        x[k][i] = load_vec<T, VEC>((const T *)a.X + (row + k) * a.X_row_stride + first_col + i * NEXT);
  fwd_modulation<T, VEC, PACKED> params[PARAMS];
  const auto load_params = [&](int first) {
#pragma unroll
    for (int i = 0; i < PARAMS; i++)
      if (at.owns(first + i)) params[i].load(a, s, first_col + (first + i) * NEXT);
  };
  if constexpr (NV == PARAMS) load_params(0);
  float sum[ROWS] = {}, rstd[ROWS];
#pragma unroll
  for (int k = 0; k < ROWS; k++) {
#pragma unroll
    for (int i = 0; i < NV; i++) sum[k] = norm_push<T, VEC, true>(sum[k], x[k][i]); /* zeros beyond the row */
    norm_stay_packed(x[k]);
  }
  norm_row_sums(sum, (int)blockDim.x, scratch);
#pragma unroll
  for (int k = 0; k < ROWS; k++) {
    rstd[k] = rsqrtf(fmaf(sum[k], 1.0f / (float)a.n_cols, (float)a.eps));
    if (threadIdx.x == 0) ((float *)a.rstd)[row + k] = rstd[k];
  }
#pragma unroll
  for (int first = 0; first < NV; first += PARAMS) {
    if constexpr (NV > PARAMS) load_params(first);
#pragma unroll
    for (int i = 0; i < PARAMS; i++)
#pragma unroll
      for (int k = 0; k < ROWS; k++) {
        const int64_t col = first_col + (first + i) * NEXT;
        if (at.owns(first + i))
          store_vec<T, VEC>((T *)a.Y + (row + k) * a.n_cols + col,
                            params[i].apply(x[k][first + i], rstd[k], a.casting == LIGER_CAST_LLAMA));
      }
  }
}

/* any width and alignment: a block a row, VEC elements at a time */
template <typename T, int VEC>
__global__ void __launch_bounds__(NORM_MAX_THREADS)
    modulated_rms_norm_fwd_loop_kernel(const liger_modulated_rms_norm_fwd_args a) {
  __shared__ float scratch[1][BLOCK_SCRATCH];
  const int64_t row = blockIdx.x, s = row / (a.n_rows / a.n_modulations);
  const int64_t step = (int64_t)blockDim.x * VEC, first_col = (int64_t)threadIdx.x * VEC;
  const T *const X = (const T *)a.X + row * a.X_row_stride;
  float sum[1] = {0.0f};
  for (int64_t col = first_col; col < a.n_cols; col += step)
    sum[0] = norm_push<T, VEC, true>(sum[0], load_vec<T, VEC>(X + col));
  norm_row_sums(sum, (int)blockDim.x, scratch);
  const float rstd = rsqrtf(fmaf(sum[0], 1.0f / (float)a.n_cols, (float)a.eps));
  if (threadIdx.x == 0) ((float *)a.rstd)[row] = rstd;
  for (int64_t col = first_col; col < a.n_cols; col += step) {
    fwd_modulation<T, VEC, false> params;
    params.load(a, s, col);
    store_vec<T, VEC>((T *)a.Y + row * a.n_cols + col,
                      params.apply(load_vec<T, VEC>(X + col), rstd, a.casting == LIGER_CAST_LLAMA));
  }
}

/* rows [first, last) of piece `piece` when n are dealt out to `pieces` */
__device__ __forceinline__ void piece_of(int64_t piece, int64_t pieces, int64_t n, int64_t *first,
                                         int64_t *last) {
  const int64_t q = n / pieces, more = n % pieces;
  *first = piece * q + (piece < more ? piece : more);
  *last = *first + q + (piece < more);
}

/* fp32 sums of a vector's columns in the workspace, which begins at a multiple of 16 bytes where VEC is not 1 */
template <int VEC> __device__ __forceinline__ void load_sums(float (&v)[VEC], const float *p) {
  load_typed<float, VEC>(v, p, VEC > 1);
}
template <int VEC> __device__ __forceinline__ void store_sums(float *p, const float (&v)[VEC]) {
  if constexpr (VEC > 1) store_f32<VEC>(p, v);
  else p[0] = v[0];
}

/* The workspace: dW of every block; then two arrays (pieces, n_modulations, n_cols) of dscale and dshift, or,
 * where modulations are whole, a row of each for every block. */
template <typename T, int NV, int VEC, int STAGES>
__global__ void __launch_bounds__(NORM_MAX_THREADS)
    modulated_rms_norm_bwd_kernel(const liger_modulated_rms_norm_bwd_args a, int64_t pieces,
                                  int threads_per_row) {
  constexpr int ROWS = NV ? 2 : 1; /* of a turn: what waits for one waits for the other too */
  __shared__ float scratch[2][ROWS][BLOCK_SCRATCH];
  extern __shared__ uint4 dynamic_shared[];
  row_part<T, NV, VEC> part(threads_per_row, a.n_cols), second = part;
  const float inv_n = 1.0f / (float)a.n_cols;
  const int64_t rows_each = a.n_rows / a.n_modulations, block = blockIdx.x, piece = block % pieces;
  int64_t s = block / pieces, last_s = s + 1;
  if (pieces == 1) piece_of(block, a.n_blocks, a.n_modulations, &s, &last_s);
  float *const dw = (float *)a.workspace + block * a.n_cols;
  const int64_t first_s = s;
  /* a block's rows are neighbours, of one modulation after the other */
  int64_t row, end;
  piece_of(piece, pieces, rows_each, &row, &end);
  row += s * rows_each;
  end += (last_s - 1) * rows_each;
  row_feed<T, NV, VEC, STAGES> feed(dynamic_shared, part, a, row, 1, end - row);
  float next_r[ROWS]; /* a turn ahead, like the rows */
  const auto load_rstd = [&](int64_t next) {
#pragma unroll
    for (int k = 0; k < ROWS; k++) next_r[k] = next + k < end ? ((const float *)a.rstd)[next + k] : 0.0f;
  };
  load_rstd(row);
  int parity = 0;
  for (; s < last_s; s++) {
    const int64_t slot = pieces > 1 ? piece * a.n_modulations + s : block;
    float *const g_row = (float *)a.workspace + (a.n_blocks + slot) * a.n_cols;
    float *const h_row = (float *)a.workspace + (2 * a.n_blocks + slot) * a.n_cols;
    float G[NV ? NV : 1][VEC] = {}, H[NV ? NV : 1][VEC] = {};
    if constexpr (NV == 0)
      for (int i = 0; i < part.count(); i++)
        if (part.owns(i))
          for (int j = 0; j < VEC; j++) g_row[part.col(i) + j] = h_row[part.col(i) + j] = 0.0f;
    float M[NV ? NV : 1][VEC] = {}; /* of a thread's columns, where they stay the same */
    const auto load_m = [&](float (&m)[VEC], int i) {
      float w[VEC], one_scale[VEC];
      load_modulation<VEC>(w, one_scale, a, s, part.col(i));
#pragma unroll
      for (int j = 0; j < VEC; j++) m[j] = w[j] * one_scale[j];
    };
    if constexpr (NV > 0) {
#pragma unroll
      for (int i = 0; i < NV; i++)
        if (part.owns(i)) load_m(M[i], i);
    }
    const int64_t last = pieces == 1 ? (s + 1) * rows_each : end;
    const auto push = [&](const row_part<T, NV, VEC> &of, float r, float sum) {
      float v[VEC], dy[VEC];
#pragma unroll NV> 0 ? NV : 1
      for (int i = 0; i < of.count(); i++)
        if (of.owns(i)) {
          of.get(i, v, dy);
          if constexpr (NV == 0) load_m(M[0], i);
#pragma unroll
          for (int j = 0; j < VEC; j++) {
            const float p = dy[j] * v[j]; /* the fewest instructions */
            if constexpr (NV > 0) {
              G[i][j] = fmaf(p, r, G[i][j]);
              H[i][j] += dy[j];
            } else {
              g_row[of.col(i) + j] += p * r;
              h_row[of.col(i) + j] += dy[j];
            }
            sum = fmaf(p, M[NV ? i : 0][j], sum);
          }
        }
      return sum;
    };
    const auto store_dx = [&](const row_part<T, NV, VEC> &of, float r, float sum, int64_t to) {
      float v[VEC], dy[VEC];
      const float slope = sum * inv_n * r * r * r;
#pragma unroll NV> 0 ? NV : 1
      for (int i = 0; i < of.count(); i++)
        if (of.owns(i)) {
          of.get(i, v, dy);
          if constexpr (NV == 0) load_m(M[0], i);
#pragma unroll
          for (int j = 0; j < VEC; j++) v[j] = fmaf(-slope, v[j], dy[j] * r * M[NV ? i : 0][j]);
          store_vec<T, VEC>((T *)a.dX + to * a.n_cols + of.col(i), pack<T, VEC>(v));
        }
    };
    while (row < last) {
      const bool two = ROWS > 1 && row + 1 < last;
      float r[ROWS], sum[ROWS] = {};
#pragma unroll
      for (int k = 0; k < ROWS; k++) r[k] = next_r[k];
      load_rstd(row + (two ? 2 : 1));
      if constexpr (NV > 0) {
        feed.next(part);
        if (two) feed.next(second);
      } else {
        part.open((const T *)a.X + row * a.X_row_stride, (const T *)a.dY + row * a.dY_row_stride, true);
      }
      sum[0] = push(part, r[0], 0.0f);
      if (two) sum[ROWS - 1] = push(second, r[ROWS - 1], 0.0f);
      norm_row_sums(sum, threads_per_row, scratch[parity]);
      store_dx(part, r[0], sum[0], row);
      if (two) store_dx(second, r[ROWS - 1], sum[ROWS - 1], row + 1);
      row += two ? 2 : 1;
      parity ^= 1;
    }
#pragma unroll NV> 0 ? NV : 1
    for (int i = 0; i < part.count(); i++) /* the modulation's sums, or the piece's */
      if (part.owns(i)) {
        const int64_t col = part.col(i);
        float w[VEC], one_scale[VEC], g[VEC], h[VEC], sums[VEC] = {}; /* dW of the modulations before */
        load_modulation<VEC>(w, one_scale, a, s, col);
        if (NV == 0) load_sums<VEC>(g, g_row + col), load_sums<VEC>(h, h_row + col);
        if (s > first_s) load_sums<VEC>(sums, dw + col);
#pragma unroll
        for (int j = 0; j < VEC; j++) {
          if (NV > 0) g[j] = G[NV ? i : 0][j], h[j] = H[NV ? i : 0][j];
          sums[j] = fmaf(one_scale[j], g[j], sums[j]);
          g[j] *= w[j];
        }
        store_sums<VEC>(dw + col, sums);
        if (pieces > 1) {
          store_sums<VEC>(g_row + col, g);
          store_sums<VEC>(h_row + col, h);
        } else {
#pragma unroll
          for (int j = 0; j < VEC; j++) {
            if (a.dscale) store_as(a.dscale, s * a.n_cols + col + j, g[j], a.scale_dtype);
            if (a.dshift) store_as(a.dshift, s * a.n_cols + col + j, h[j], a.shift_dtype);
          }
        }
      }
  }
}

/* ---- launching: a plan of the row's size, which does not ask for alignment ----------------------------- */
int size_of(liger_dtype t) { return t == LIGER_F32 ? 4 : 2; }
/* threads of a row that fits their registers; 0: it does not */
int row_threads(int64_t n_cols, int elem_size, int vectors) {
  const int64_t n_vecs = norm_vectors(n_cols, elem_size);
  if (n_vecs > (int64_t)vectors * NORM_MAX_THREADS) return 0;
  int threads = GPU_MIN_LANES;
  while ((int64_t)threads * vectors < n_vecs) threads *= 2;
  return threads;
}
} // namespace

extern "C" liger_status liger_modulated_rms_norm_fwd_cuda(const liger_modulated_rms_norm_fwd_args *a,
                                                          void *stream_) {
  const gpu_stream stream = (gpu_stream)stream_;
  if (a->n_rows == 0 || a->n_cols == 0) return LIGER_OK;
  if (a->n_rows > GPU_MAX_GRID) return LIGER_ERR_SIZE;
  const unsigned grid = (unsigned)a->n_rows;
  LIGER_DISPATCH_DTYPE(a->x_dtype, T, {
    constexpr int VEC = vec_width<T>::value;
    const bool aligned = rows_aligned(a->X, a->X_row_stride, a->n_cols, sizeof(T)) &&
                         rows_aligned(a->Y, a->n_cols, a->n_cols, sizeof(T));
    const auto packed = [&](const void *p, int64_t stride, liger_dtype t) {
      return !p || (t == a->x_dtype && rows_aligned(p, stride, a->n_cols, sizeof(T)));
    };
    const bool all_packed = packed(a->W, 0, a->w_dtype) &&
                            packed(a->scale, a->scale_row_stride, a->scale_dtype) &&
                            packed(a->shift, a->shift_row_stride, a->shift_dtype);
    const int threads = row_threads(a->n_cols, sizeof(T), FWD_VECTORS),
              threads_of_one = row_threads(a->n_cols, sizeof(T), 1);
    if (!aligned) modulated_rms_norm_fwd_loop_kernel<T, 1><<<grid, NORM_MAX_THREADS, 0, stream>>>(*a);
    else if (threads == 0)
      modulated_rms_norm_fwd_loop_kernel<T, VEC><<<grid, NORM_MAX_THREADS, 0, stream>>>(*a);
    else if (!all_packed)
      modulated_rms_norm_fwd_kernel<T, FWD_VECTORS, 1, false><<<grid, threads, 0, stream>>>(*a);
    else if (threads_of_one > 0 && a->n_rows / a->n_modulations % 4 == 0)
      modulated_rms_norm_fwd_kernel<T, 1, 4, true><<<grid / 4, threads_of_one, 0, stream>>>(*a);
    else modulated_rms_norm_fwd_kernel<T, FWD_VECTORS, 1, true><<<grid, threads, 0, stream>>>(*a);
  });
  return (liger_status)LIGER_RT(GetLastError)();
}

extern "C" int64_t liger_modulated_rms_norm_bwd_blocks_cuda(int64_t n_rows, int64_t n_cols,
                                                            int64_t n_modulations, liger_dtype x_dtype) {
  if (n_modulations < 1) return 1;
  const int threads = row_threads(n_cols, size_of(x_dtype), BWD_VECTORS);
  const int64_t target = (int64_t)gpu_multiprocessors() *
                         (BWD_THREADS_PER_SM / (threads ? threads : NORM_MAX_THREADS));
  const int64_t most = n_rows / n_modulations, wanted = target / n_modulations;
  const int64_t pieces = wanted < most ? wanted : most;
  return pieces > 1 ? pieces * n_modulations : n_modulations < target ? n_modulations : target;
}

extern "C" liger_status liger_modulated_rms_norm_bwd_cuda(const liger_modulated_rms_norm_bwd_args *a,
                                                          void *stream_) {
  const gpu_stream stream = (gpu_stream)stream_;
  if (a->n_cols == 0) return LIGER_OK;
  const int64_t n_mods = a->n_modulations, pieces = a->n_blocks > n_mods && n_mods ? a->n_blocks / n_mods : 1;
  if (a->n_blocks > GPU_MAX_GRID) return LIGER_ERR_SIZE;
  const unsigned grid = (unsigned)a->n_blocks;
  if (n_mods)
    LIGER_DISPATCH_DTYPE(a->x_dtype, T, {
      constexpr int VEC = vec_width<T>::value;
      const bool aligned = rows_aligned(a->X, a->X_row_stride, a->n_cols, sizeof(T)) &&
                           rows_aligned(a->dY, a->dY_row_stride, a->n_cols, sizeof(T)) &&
                           rows_aligned(a->dX, a->n_cols, a->n_cols, sizeof(T)) &&
                           (uintptr_t)a->workspace % 16 == 0;
      const int threads = row_threads(a->n_cols, sizeof(T), BWD_VECTORS);
      const auto run = [&](auto kernel, int threads, size_t shared) {
        const bool fits = threads > 0 && gpu_allow_shared(kernel, shared);
        if (fits) kernel<<<grid, threads, shared, stream>>>(*a, pieces, threads);
        return fits;
      };
      const auto fed = modulated_rms_norm_bwd_kernel<T, BWD_VECTORS, VEC, BWD_STAGES>,
                 fed_less = modulated_rms_norm_bwd_kernel<T, BWD_VECTORS, VEC, FEW_STAGES>;
      if (!aligned) run(modulated_rms_norm_bwd_kernel<T, 0, 1, 1>, NORM_MAX_THREADS, 0);
      else if (!run(fed, threads, row_feed<T, BWD_VECTORS, VEC, BWD_STAGES>::bytes(threads)) &&
               !run(fed_less, threads, row_feed<T, BWD_VECTORS, VEC, FEW_STAGES>::bytes(threads)))
        run(modulated_rms_norm_bwd_kernel<T, 0, VEC, 1>, NORM_MAX_THREADS, 0);
    });
  const liger_status status = (liger_status)LIGER_RT(GetLastError)();
  const int64_t each = a->n_blocks * a->n_cols, all = n_mods * a->n_cols;
  const float *const dw = (const float *)a->workspace;
  column_sums sums;
  sums.add(a->dW, dw, n_mods ? a->n_blocks : 0, a->n_cols, a->w_dtype);
  if (pieces > 1) {
    sums.add(a->dscale, dw + each, pieces, all, a->scale_dtype);
    sums.add(a->dshift, dw + 2 * each, pieces, all, a->shift_dtype);
  }
  return status == LIGER_OK ? launch_column_sums(sums, stream) : status;
}
