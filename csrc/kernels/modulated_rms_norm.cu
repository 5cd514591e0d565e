/* modulated_rms_norm   Y = X * rstd * M + shift,   M = (W + offset) * (1 + scale),
 *                      rstd = 1/sqrt(mean(X^2) + eps)                                                per row
 *                      dX = rstd * (m - xhat * mean(m * xhat)),   m = dY * M,   xhat = X * rstd
 *                      with G = sum(dY * xhat) over the rows of a modulation:
 *                      dscale = G * (W + offset),   dshift = sum(dY),   dW = sum over them of (1 + scale) * G
 * Shapes     X Y dX dY (n_rows, n_cols), last dim contiguous; scale shift (n_modulations, n_cols); W (n_cols)
 * Casting    llama: round X * rstd to X's dtype, then times M.  gemma, none: no rounding before the store
 * Floor      fwd 2*N*s bytes;  bwd 3*N*s    (N = n_rows*n_cols; modulations of many rows)
 * Plan       forward: a block per row, 32 to 512 threads with 4 vectors of 16 bytes each in registers. Backward: 2
 *            vectors, M and the sums G in registers, the next rows on their way to shared memory; a block has whole
 *            modulations or a piece of one, so that its sums end with it, and one column sum adds the pieces in
 *            fixed order. Rows that are too wide or not made of aligned vectors are looped over, their sums in the
 *            workspace, where a thread owns its columns
 * Source     arXiv:2212.09748 (adaLN), arXiv:1910.07467 */
#include "row_part.cuh"

namespace {

constexpr int FWD_VECTORS = 4, BWD_VECTORS = 2, BWD_THREADS_PER_SM = 512;

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

template <typename T, int NV, int VEC>
__global__ void __launch_bounds__(NORM_MAX_THREADS)
    modulated_rms_norm_fwd_kernel(const liger_modulated_rms_norm_fwd_args a, int threads_per_row) {
  __shared__ float scratch[2][1][BLOCK_SCRATCH];
  row_part<T, NV, VEC> part(threads_per_row, a.n_cols);
  const float inv_n = 1.0f / (float)a.n_cols;
  const int64_t rows_each = a.n_rows / a.n_modulations;
  int parity = 0;
  for (int64_t row = blockIdx.x; row < a.n_rows; row += gridDim.x, parity ^= 1) {
    float v[VEC], none[VEC], sum[1] = {};
    part.open((const T *)a.X + row * a.X_row_stride, nullptr, true);
#pragma unroll NV> 0 ? NV : 1
    for (int i = 0; i < part.count(); i++)
      if (NV || part.owns(i)) {
        part.get(i, v, none);
#pragma unroll
        for (int j = 0; j < VEC; j++) sum[0] = fmaf(v[j], v[j], sum[0]);
      }
    norm_row_sums(sum, threads_per_row, scratch[parity]);
    const float r = rsqrtf(fmaf(sum[0], inv_n, (float)a.eps));
    if (threadIdx.x == 0) ((float *)a.rstd)[row] = r;
    const int64_t s = row / rows_each;
#pragma unroll NV> 0 ? NV : 1
    for (int i = 0; i < part.count(); i++)
      if (part.owns(i)) {
        float w[VEC], one_scale[VEC], shift[VEC] = {};
        load_modulation<VEC>(w, one_scale, a, s, part.col(i));
        const int64_t at = s * a.shift_row_stride + part.col(i);
        if (a.shift)
          load_as_f32<VEC>(shift, a.shift, at, a.shift_dtype,
                           VEC > 1 && at % VEC == 0 && (uintptr_t)a.shift % 16 == 0);
        part.get(i, v, none);
#pragma unroll
        for (int j = 0; j < VEC; j++) v[j] *= r;
        if (a.casting == LIGER_CAST_LLAMA) {
          const vec<T, VEC> rounded = pack<T, VEC>(v);
          unpack(v, rounded);
        }
#pragma unroll
        for (int j = 0; j < VEC; j++) v[j] = fmaf(v[j], w[j] * one_scale[j], shift[j]);
        store_vec<T, VEC>((T *)a.Y + row * a.n_cols + part.col(i), pack<T, VEC>(v));
      }
  }
}

/* rows [first, last) of piece `piece` when n are dealt out to `pieces` */
__device__ __forceinline__ void piece_of(int64_t piece, int64_t pieces, int64_t n, int64_t *first,
                                         int64_t *last) {
  const int64_t q = n / pieces, more = n % pieces;
  *first = piece * q + (piece < more ? piece : more);
  *last = *first + q + (piece < more);
}

/* The workspace: dW of every block; then two arrays (pieces, n_modulations, n_cols) of dscale and dshift, or,
 * where modulations are whole, a row of each for every block. */
template <typename T, int NV, int VEC>
__global__ void __launch_bounds__(NORM_MAX_THREADS)
    modulated_rms_norm_bwd_kernel(const liger_modulated_rms_norm_bwd_args a, int64_t pieces,
                                  int threads_per_row) {
  __shared__ float scratch[2][1][BLOCK_SCRATCH];
  extern __shared__ uint4 dynamic_shared[];
  row_part<T, NV, VEC> part(threads_per_row, a.n_cols);
  const float inv_n = 1.0f / (float)a.n_cols;
  const int64_t rows_each = a.n_rows / a.n_modulations, block = blockIdx.x, piece = block % pieces;
  int64_t s = block / pieces, last_s = s + 1;
  if (pieces == 1) piece_of(block, a.n_blocks, a.n_modulations, &s, &last_s);
  float *const dw = (float *)a.workspace + block * a.n_cols;
  for (int i = 0; i < part.count(); i++)
    if (part.owns(i))
      for (int j = 0; j < VEC; j++) dw[part.col(i) + j] = 0.0f;
  /* a block's rows are neighbours, of one modulation after the other */
  int64_t row, end;
  piece_of(piece, pieces, rows_each, &row, &end);
  row += s * rows_each;
  end += (last_s - 1) * rows_each;
  row_feed<T, NV, VEC> feed(dynamic_shared, part, a, row, 1, end - row);
  float next_r = row < end ? ((const float *)a.rstd)[row] : 0.0f; /* a turn ahead, like the rows */
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
    for (; row < last; row++, parity ^= 1) {
      float v[VEC], dy[VEC], sum[1] = {};
      const float r = next_r;
      if (row + 1 < end) next_r = ((const float *)a.rstd)[row + 1];
      if constexpr (NV > 0) feed.next(part);
      else part.open((const T *)a.X + row * a.X_row_stride, (const T *)a.dY + row * a.dY_row_stride, true);
#pragma unroll NV> 0 ? NV : 1
      for (int i = 0; i < part.count(); i++)
        if (part.owns(i)) {
          part.get(i, v, dy);
          if constexpr (NV == 0) load_m(M[0], i);
#pragma unroll
          for (int j = 0; j < VEC; j++) {
            const float g = dy[j] * r, m = g * M[NV ? i : 0][j];
            if constexpr (NV > 0) {
              G[i][j] = fmaf(g, v[j], G[i][j]);
              H[i][j] += dy[j];
            } else {
              g_row[part.col(i) + j] += g * v[j];
              h_row[part.col(i) + j] += dy[j];
            }
            sum[0] = fmaf(m, v[j], sum[0]);
          }
        }
      norm_row_sums(sum, threads_per_row, scratch[parity]);
      const float slope = sum[0] * inv_n * r * r;
#pragma unroll NV> 0 ? NV : 1
      for (int i = 0; i < part.count(); i++)
        if (part.owns(i)) {
          part.get(i, v, dy);
          if constexpr (NV == 0) load_m(M[0], i);
#pragma unroll
          for (int j = 0; j < VEC; j++) v[j] = fmaf(-slope, v[j], dy[j] * r * M[NV ? i : 0][j]);
          store_vec<T, VEC>((T *)a.dX + row * a.n_cols + part.col(i), pack<T, VEC>(v));
        }
    }
#pragma unroll NV> 0 ? NV : 1
    for (int i = 0; i < part.count(); i++) /* the modulation's sums, or the piece's */
      if (part.owns(i)) {
        const int64_t col = part.col(i);
        float w[VEC], one_scale[VEC];
        load_modulation<VEC>(w, one_scale, a, s, col);
#pragma unroll
        for (int j = 0; j < VEC; j++) {
          const float g = NV ? G[NV ? i : 0][j] : g_row[col + j], h = NV ? H[NV ? i : 0][j] : h_row[col + j];
          dw[col + j] = fmaf(one_scale[j], g, dw[col + j]);
          if (pieces > 1) {
            g_row[col + j] = g * w[j];
            h_row[col + j] = h;
          } else {
            if (a.dscale) store_as(a.dscale, s * a.n_cols + col + j, g * w[j], a.scale_dtype);
            if (a.dshift) store_as(a.dshift, s * a.n_cols + col + j, h, a.shift_dtype);
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
    const int threads = row_threads(a->n_cols, sizeof(T), FWD_VECTORS);
    if (!aligned)
      modulated_rms_norm_fwd_kernel<T, 0, 1><<<grid, NORM_MAX_THREADS, 0, stream>>>(*a, NORM_MAX_THREADS);
    else if (threads == 0)
      modulated_rms_norm_fwd_kernel<T, 0, VEC><<<grid, NORM_MAX_THREADS, 0, stream>>>(*a, NORM_MAX_THREADS);
    else modulated_rms_norm_fwd_kernel<T, FWD_VECTORS, VEC><<<grid, threads, 0, stream>>>(*a, threads);
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
                           rows_aligned(a->dX, a->n_cols, a->n_cols, sizeof(T));
      const int threads = row_threads(a->n_cols, sizeof(T), BWD_VECTORS);
      const auto fed = modulated_rms_norm_bwd_kernel<T, BWD_VECTORS, VEC>;
      const size_t shared = row_feed<T, BWD_VECTORS, VEC>::bytes(threads);
      if (!aligned)
        modulated_rms_norm_bwd_kernel<T, 0, 1>
            <<<grid, NORM_MAX_THREADS, 0, stream>>>(*a, pieces, NORM_MAX_THREADS);
      else if (threads == 0 || !gpu_allow_shared(fed, shared))
        modulated_rms_norm_bwd_kernel<T, 0, VEC>
            <<<grid, NORM_MAX_THREADS, 0, stream>>>(*a, pieces, NORM_MAX_THREADS);
      else fed<<<grid, threads, shared, stream>>>(*a, pieces, threads);
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
