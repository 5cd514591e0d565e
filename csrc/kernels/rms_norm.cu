/* rms_norm   Y = X * rstd * (W + offset),   rstd = 1/sqrt(mean(X^2) + eps)          per row
 *            dX = rstd * (m - X * rstd^2 * mean(m * X)),  m = dY * (W + offset);  dW = sum_rows(dY * X *
 *            rstd)
 * Shapes     X Y dX dY (n_rows, n_cols), last dim contiguous; W dW (n_cols); rstd (n_rows) fp32, saved by fwd
 * Casting    llama: round X * rstd to X's dtype, then times W.  gemma, none: fp32 to the end, one rounding
 * Floor      fwd 2*N*s + n_cols*s + 4*n_rows bytes;  bwd 3*N*s + 2*n_cols*s + 4*n_rows    (N = n_rows*n_cols)
 * Plan       persistent grid, 1 to 512 threads per row with 2 or 4 vectors of 16 bytes each, so a row is
 *            read once; the weight stays in registers, the next rows are on their way to shared memory.
 *            dW: fp32 registers, a partial row per block, then a fixed-order column sum. Rows that are too
 *            wide or not made of aligned vectors are looped over, from cache the second time
 * Source     arXiv:1910.07467; LlamaRMSNorm and GemmaRMSNorm in transformers */
#include "primitives.cuh"

namespace {

/* w[j] = W[col + j] + offset, or 1 without a weight; col is a multiple of N */
template <int N>
__device__ __forceinline__ void load_scale(float (&w)[N], const void *W, int64_t col, liger_dtype t,
                                           float offset) {
  if (W) {
    load_as_f32<N>(w, W, col, t, N > 1 && (uintptr_t)W % 16 == 0);
#pragma unroll
    for (int j = 0; j < N; j++) w[j] += offset;
  } else {
#pragma unroll
    for (int j = 0; j < N; j++) w[j] = 1.0f;
  }
}

/* y = x * rstd, rounded to T where the casting says so, times w */
template <typename T, int N>
__device__ __forceinline__ vec<T, N> normalise(const vec<T, N> &x, float rstd, const float (&w)[N],
                                               bool llama) {
  float v[N];
  unpack(v, x);
#pragma unroll
  for (int j = 0; j < N; j++) v[j] *= rstd;
  if (llama) {
    const vec<T, N> rounded = pack<T, N>(v);
    unpack(v, rounded);
  }
#pragma unroll
  for (int j = 0; j < N; j++) v[j] *= w[j];
  return pack<T, N>(v);
}

constexpr int STAGES = 3;

/* ---- forward ------------------------------------------------------------------------------------------- */
template <typename T, int NV, int CHUNK>
__global__ void __launch_bounds__(512)
    rms_norm_fwd_kernel(T *Y, float *rstd, const T *X, const void *W, int64_t n_rows, int64_t n_cols,
                        int64_t X_row_stride, int64_t Y_row_stride, float eps, float offset, bool llama,
                        liger_dtype w_dtype, int threads_per_row) {
  constexpr int VEC = vec_width<T>::value,
                NEXT = CHUNK * VEC; /* columns from one vector of a thread to its next */
  extern __shared__ uint4 dynamic_shared[];
  __shared__ float scratch[2][BLOCK_SCRATCH];
  const row_ring<NV, CHUNK, STAGES, 1> ring(dynamic_shared);
  row_walk<NV, CHUNK> at(threads_per_row, n_cols, VEC);
  const int64_t first_col = (int64_t)at.first_vec * VEC;
  const float inv_n = 1.0f / (float)n_cols;
  float w[NV][VEC] = {};

  int64_t next_row = at.row;
  X += next_row * X_row_stride + first_col;
  Y += next_row * Y_row_stride + first_col;
  const int64_t X_step = at.step * X_row_stride, Y_step = at.step * Y_row_stride;
  const auto fetch = [&](int stage) {
    ring.fetch(stage, 0, X, next_row < n_rows, at);
    gpu_copy_commit();
    next_row += at.step;
    X += X_step;
  };
#pragma unroll
  for (int s = 0; s < STAGES - 1; s++) fetch(s);
#pragma unroll
  for (int i = 0; i < NV; i++)
    if (at.owns(i)) load_scale<VEC>(w[i], W, first_col + i * NEXT, w_dtype, offset);
  for (int stage = 0, parity = 0; at.row - at.group < n_rows; at.row += at.step, Y += Y_step, parity ^= 1) {
    fetch(stage == 0 ? STAGES - 1 : stage - 1);
    gpu_copy_wait<STAGES - 1>();
    vec<T, VEC> x[NV];
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < NV; i++) {
      float v[VEC];
      x[i] = ring.template read<T>(stage, 0, i);
      unpack(v, x[i]);
#pragma unroll
      for (int j = 0; j < VEC; j++) sum = fmaf(v[j], v[j], sum);
    }
    sum = group_reduce<op_sum, false>(sum, threads_per_row, scratch[parity]);
    const float r = rsqrtf(fmaf(sum, inv_n, eps));
    const bool live = at.row < n_rows;
    if (live && at.lane == 0) rstd[at.row] = r;
#pragma unroll
    for (int i = 0; i < NV; i++) {
      const vec<T, VEC> y = normalise<T, VEC>(x[i], r, w[i], llama);
      if (live && at.owns(i)) store_vec<T, VEC>(Y + i * NEXT, y);
    }
    stage = stage == STAGES - 1 ? 0 : stage + 1;
  }
}

/* any width and alignment: a block per row, VEC elements at a time */
template <typename T, int VEC>
__global__ void rms_norm_fwd_loop_kernel(T *Y, float *rstd, const T *X, const void *W, int64_t n_cols,
                                         int64_t X_row_stride, int64_t Y_row_stride, float eps, float offset,
                                         bool llama, liger_dtype w_dtype) {
  __shared__ float scratch[BLOCK_SCRATCH];
  const int64_t row = blockIdx.x, step = (int64_t)blockDim.x * VEC;
  X += row * X_row_stride;
  Y += row * Y_row_stride;
  float sum = 0.0f;
  for (int64_t col = (int64_t)threadIdx.x * VEC; col < n_cols; col += step) {
    float v[VEC];
    unpack(v, load_vec<T, VEC>(X + col));
#pragma unroll
    for (int j = 0; j < VEC; j++) sum = fmaf(v[j], v[j], sum);
  }
  sum = block_reduce<op_sum>(sum, scratch);
  const float r = rsqrtf(sum / (float)n_cols + eps);
  if (threadIdx.x == 0) rstd[row] = r;
  for (int64_t col = (int64_t)threadIdx.x * VEC; col < n_cols; col += step) {
    float w[VEC];
    load_scale<VEC>(w, W, col, w_dtype, offset);
    store_vec<T, VEC>(Y + col, normalise<T, VEC>(load_vec<T, VEC>(X + col), r, w, llama));
  }
}

/* ---- backward ---------------------------------------------------------------------------------------------
 * With g = rstd * dY:  dW += g * X,  m = g * W,  dX = m - X * k,  k = rstd^2 * mean(m * X): seven
 * instructions an element. */
template <typename T, int NV, int CHUNK>
__global__ void __launch_bounds__(512)
    rms_norm_bwd_kernel(T *dX, float *dW_partial, const T *dY, const T *X, const void *W, const float *rstd,
                        int64_t n_rows, int64_t n_cols, int64_t dY_row_stride, int64_t X_row_stride,
                        float offset, liger_dtype w_dtype, int threads_per_row) {
  constexpr int VEC = vec_width<T>::value, NEXT = CHUNK * VEC;
  extern __shared__ uint4 dynamic_shared[];
  __shared__ float scratch[2][BLOCK_SCRATCH];
  const row_ring<NV, CHUNK, STAGES, 2> ring(dynamic_shared);
  row_walk<NV, CHUNK> at(threads_per_row, n_cols, VEC);
  const int64_t first_col = (int64_t)at.first_vec * VEC;
  const float inv_n = 1.0f / (float)n_cols;
  float w[NV][VEC] = {}, dw[NV][VEC] = {};

  int64_t next_row = at.row;
  X += next_row * X_row_stride + first_col;
  dY += next_row * dY_row_stride + first_col;
  dX += next_row * n_cols + first_col;
  const int64_t X_step = at.step * X_row_stride, dY_step = at.step * dY_row_stride,
                dX_step = at.step * n_cols;
  const auto fetch = [&](int stage) {
    ring.fetch(stage, 0, X, next_row < n_rows, at);
    ring.fetch(stage, 1, dY, next_row < n_rows, at);
    gpu_copy_commit();
    next_row += at.step;
    X += X_step;
    dY += dY_step;
  };
#pragma unroll
  for (int s = 0; s < STAGES - 1; s++) fetch(s);
#pragma unroll
  for (int i = 0; i < NV; i++)
    if (at.owns(i)) load_scale<VEC>(w[i], W, first_col + i * NEXT, w_dtype, offset);
  float next_r = at.row < n_rows ? rstd[at.row]
                                 : 0.0f; /* a turn ahead, like the rows: nothing waits for device memory */
  for (int stage = 0, parity = 0; at.row - at.group < n_rows; at.row += at.step, dX += dX_step, parity ^= 1) {
    fetch(stage == 0 ? STAGES - 1 : stage - 1);
    const float r = next_r;
    if (at.row + at.step < n_rows) next_r = rstd[at.row + at.step];
    gpu_copy_wait<STAGES - 1>();
    vec<T, VEC> x[NV];
    float m[NV][VEC], sum = 0.0f;
#pragma unroll
    for (int i = 0; i < NV; i++) {
      float v[VEC];
      x[i] = ring.template read<T>(stage, 0, i);
      unpack(v, x[i]);
      unpack(m[i], ring.template read<T>(stage, 1, i));
#pragma unroll
      for (int j = 0; j < VEC; j++) {
        const float g = m[i][j] * r;
        dw[i][j] = fmaf(g, v[j], dw[i][j]);
        m[i][j] = g * w[i][j];
        sum = fmaf(m[i][j], v[j], sum);
      }
    }
    const float k = group_reduce<op_sum, true>(sum, threads_per_row, scratch[parity]) * inv_n * r * r;
    const bool live = at.row < n_rows;
#pragma unroll
    for (int i = 0; i < NV; i++) {
      float v[VEC];
      unpack(v, x[i]);
#pragma unroll
      for (int j = 0; j < VEC; j++) v[j] = fmaf(-k, v[j], m[i][j]);
      if (live && at.owns(i)) store_vec<T, VEC>(dX + i * NEXT, pack<T, VEC>(v));
    }
    stage = stage == STAGES - 1 ? 0 : stage + 1;
  }
  if (!dW_partial) return;
  dW_partial += (int64_t)blockIdx.x * n_cols;
  float *const group_dw = (float *)
      dynamic_shared; /* (groups, n_cols), over the ring, where several rows share the block */
  float *const to = (at.groups > 1 ? group_dw + (int64_t)at.group * n_cols : dW_partial) + first_col;
  gpu_copy_wait<0>();
  __syncthreads();
#pragma unroll
  for (int i = 0; i < NV; i++)
    if (at.owns(i)) {
#pragma unroll
      for (int j = 0; j < VEC; j++) to[i * NEXT + j] = dw[i][j];
    }
  if (at.groups == 1) return;
  __syncthreads();
  for (int64_t col = threadIdx.x; col < n_cols; col += blockDim.x) {
    float s = 0.0f;
    for (int g = 0; g < at.groups; g++) s += group_dw[(int64_t)g * n_cols + col];
    dW_partial[col] = s;
  }
}

/* any width and alignment: a block per row in turn; a thread always owns the same columns of its partial
 * row */
template <typename T, int VEC>
__global__ void rms_norm_bwd_loop_kernel(T *dX, float *dW_partial, const T *dY, const T *X, const void *W,
                                         const float *rstd, int64_t n_rows, int64_t n_cols,
                                         int64_t dY_row_stride, int64_t X_row_stride, float offset,
                                         liger_dtype w_dtype) {
  __shared__ float scratch[2][BLOCK_SCRATCH];
  const int64_t step = (int64_t)blockDim.x * VEC, first_col = (int64_t)threadIdx.x * VEC;
  float *const dw = dW_partial ? dW_partial + (int64_t)blockIdx.x * n_cols : nullptr;
  if (dw)
    for (int64_t col = first_col; col < n_cols; col += step)
#pragma unroll
      for (int j = 0; j < VEC; j++) dw[col + j] = 0.0f;
  int parity = 0;
  for (int64_t row = blockIdx.x; row < n_rows; row += gridDim.x, parity ^= 1) {
    const T *x_row = X + row * X_row_stride, *dy_row = dY + row * dY_row_stride;
    const float r = rstd[row];
    float sum = 0.0f;
    for (int64_t col = first_col; col < n_cols; col += step) {
      float v[VEC], g[VEC], w[VEC];
      unpack(v, load_vec<T, VEC>(x_row + col));
      unpack(g, load_vec<T, VEC>(dy_row + col));
      load_scale<VEC>(w, W, col, w_dtype, offset);
#pragma unroll
      for (int j = 0; j < VEC; j++) {
        if (dw) dw[col + j] = fmaf(g[j] * r, v[j], dw[col + j]);
        sum = fmaf(g[j] * r * w[j], v[j], sum);
      }
    }
    const float k = block_reduce<op_sum>(sum, scratch[parity]) / (float)n_cols * r * r;
    for (int64_t col = first_col; col < n_cols; col += step) {
      float v[VEC], g[VEC], w[VEC];
      unpack(v, load_vec<T, VEC>(x_row + col));
      unpack(g, load_vec<T, VEC>(dy_row + col));
      load_scale<VEC>(w, W, col, w_dtype, offset);
#pragma unroll
      for (int j = 0; j < VEC; j++) v[j] = fmaf(-k, v[j], g[j] * r * w[j]);
      store_vec<T, VEC>(dX + row * n_cols + col, pack<T, VEC>(v));
    }
  }
}

/* ---- launch plan: a pure function of the row's size ---------------------------------------------------- */
struct row_plan {
  int threads_per_row, threads, vectors; /* vectors 0: loop over the row */
};

constexpr int MAX_THREADS = 512, LOOP_THREADS = 512;
constexpr int FWD_WIDE = 512, BWD_WIDE = 1025; /* vectors in a row from which on a thread takes 4 of them */
constexpr int FWD_TURNS = 4;                   /* rows that a block takes, one after the other */

row_plan plan_rows(int64_t n_cols, int elem_size, int wide) {
  const int64_t n_vecs = (n_cols * elem_size + 15) / 16;
  if (n_vecs > 4 * MAX_THREADS) /* more than a block holds */
    return {MAX_THREADS, MAX_THREADS, 0};
  const int vectors = n_vecs < wide ? 2 : 4; /* 4 halve the reductions, and the blocks that fit */
  int threads_per_row = 8;
  while ((int64_t)threads_per_row * vectors < n_vecs) threads_per_row *= 2;
  /* narrow rows share a block of 128 threads: full warps, and many blocks to a multiprocessor */
  return {threads_per_row, threads_per_row <= 32 ? 128 : threads_per_row, vectors};
}

/* Backward: one block of all the threads that the registers let reside, since each block costs a row of
 * partial sums, written and read; smaller ones where there would not be one for each multiprocessor. */
row_plan plan_bwd(int64_t n_rows, int64_t n_cols, int elem_size) {
  row_plan p = plan_rows(n_cols, elem_size, BWD_WIDE);
  const int64_t blocks = gpu_multiprocessors();
  while (p.threads < MAX_THREADS && n_rows >= 2 * blocks * (p.threads / p.threads_per_row)) p.threads *= 2;
  return p;
}

/* Forward: short-lived blocks, so that one that is done makes room for the next and the last turn is not a
 * round of its own, yet long-lived enough to fetch ahead and to load the weight once for several rows. */
int64_t fwd_blocks(const row_plan &p, int64_t n_rows) {
  const int64_t rows = (int64_t)(p.threads / p.threads_per_row) * FWD_TURNS,
                blocks = (n_rows + rows - 1) / rows;
  const int64_t least = 2 * gpu_multiprocessors(), turns = (blocks * FWD_TURNS);
  return blocks >= least ? blocks : turns < least ? turns : least;
}
/* Backward: a persistent grid of what resides at once, never more than there are turns. */
int64_t bwd_blocks(const row_plan &p, int64_t n_rows) {
  const int64_t rows = p.threads / p.threads_per_row, turns = (n_rows + rows - 1) / rows,
                resident = gpu_multiprocessors() * (MAX_THREADS / p.threads);
  return turns < 1 ? 1 : turns < resident ? turns : resident;
}

template <typename T, int NV, int CHUNK>
bool launch_fwd(const liger_rms_norm_fwd_args *a, const row_plan &p, gpu_stream stream) {
  const size_t shared = row_ring<NV, CHUNK, STAGES, 1>::bytes(p.threads);
  if (!gpu_allow_shared(rms_norm_fwd_kernel<T, NV, CHUNK>, shared)) return false;
  rms_norm_fwd_kernel<T, NV, CHUNK><<<(unsigned)fwd_blocks(p, a->n_rows), p.threads, shared, stream>>>(
      (T *)a->Y, (float *)a->rstd, (const T *)a->X, a->W, a->n_rows, a->n_cols, a->X_row_stride,
      a->Y_row_stride, (float)a->eps, (float)a->offset, a->casting == LIGER_CAST_LLAMA, a->w_dtype,
      p.threads_per_row);
  return true;
}

template <typename T, int VEC> void launch_fwd_loop(const liger_rms_norm_fwd_args *a, gpu_stream stream) {
  rms_norm_fwd_loop_kernel<T, VEC><<<(unsigned)a->n_rows, LOOP_THREADS, 0, stream>>>(
      (T *)a->Y, (float *)a->rstd, (const T *)a->X, a->W, a->n_cols, a->X_row_stride, a->Y_row_stride,
      (float)a->eps, (float)a->offset, a->casting == LIGER_CAST_LLAMA, a->w_dtype);
}

template <typename T, int NV, int CHUNK>
bool launch_bwd(const liger_rms_norm_bwd_args *a, const row_plan &p, gpu_stream stream) {
  const size_t shared = row_ring<NV, CHUNK, STAGES, 2>::bytes(
      p.threads); /* holds the groups' dW too: 8 floats a vector */
  if (!gpu_allow_shared(rms_norm_bwd_kernel<T, NV, CHUNK>, shared)) return false;
  rms_norm_bwd_kernel<T, NV, CHUNK><<<(unsigned)a->n_blocks, p.threads, shared, stream>>>(
      (T *)a->dX, (float *)a->dW_partial, (const T *)a->dY, (const T *)a->X, a->W, (const float *)a->rstd,
      a->n_rows, a->n_cols, a->dY_row_stride, a->X_row_stride, (float)a->offset, a->w_dtype,
      p.threads_per_row);
  return true;
}

template <typename T, int VEC> void launch_bwd_loop(const liger_rms_norm_bwd_args *a, gpu_stream stream) {
  rms_norm_bwd_loop_kernel<T, VEC><<<(unsigned)a->n_blocks, LOOP_THREADS, 0, stream>>>(
      (T *)a->dX, (float *)a->dW_partial, (const T *)a->dY, (const T *)a->X, a->W, (const float *)a->rstd,
      a->n_rows, a->n_cols, a->dY_row_stride, a->X_row_stride, (float)a->offset, a->w_dtype);
}

} // namespace

extern "C" liger_status liger_rms_norm_fwd_cuda(const liger_rms_norm_fwd_args *a, void *stream_) {
  const gpu_stream stream = (gpu_stream)stream_;
  if (a->n_rows == 0 || a->n_cols == 0) return LIGER_OK;
  if (a->n_rows > GPU_MAX_GRID) return LIGER_ERR_SIZE;
  LIGER_DISPATCH_DTYPE(a->x_dtype, T, {
    const bool aligned = rows_aligned(a->X, a->X_row_stride, a->n_cols, sizeof(T)) &&
                         rows_aligned(a->Y, a->Y_row_stride, a->n_cols, sizeof(T));
    const row_plan p = plan_rows(a->n_cols, sizeof(T), FWD_WIDE);
    if (!aligned) launch_fwd_loop<T, 1>(a, stream);
    else if (!(p.vectors == 4                              ? launch_fwd<T, 4, 32>(a, p, stream)
               : p.vectors == 2 && p.threads_per_row == 8  ? launch_fwd<T, 2, 8>(a, p, stream)
               : p.vectors == 2 && p.threads_per_row == 16 ? launch_fwd<T, 2, 16>(a, p, stream)
               : p.vectors == 2                            ? launch_fwd<T, 2, 32>(a, p, stream)
                                                           : false))
      launch_fwd_loop<T, vec_width<T>::value>(a, stream);
  });
  return (liger_status)LIGER_RT(GetLastError)();
}

extern "C" int64_t liger_rms_norm_bwd_blocks_cuda(int64_t n_rows, int64_t n_cols, liger_dtype x_dtype) {
  return bwd_blocks(plan_bwd(n_rows, n_cols, x_dtype == LIGER_F32 ? 4 : 2), n_rows);
}

extern "C" liger_status liger_rms_norm_bwd_cuda(const liger_rms_norm_bwd_args *a, void *stream_) {
  const gpu_stream stream = (gpu_stream)stream_;
  if (a->n_cols == 0) return LIGER_OK;
  LIGER_DISPATCH_DTYPE(a->x_dtype, T, {
    const bool aligned = rows_aligned(a->X, a->X_row_stride, a->n_cols, sizeof(T)) &&
                         rows_aligned(a->dY, a->dY_row_stride, a->n_cols, sizeof(T)) &&
                         rows_aligned(a->dX, a->n_cols, a->n_cols, sizeof(T));
    const row_plan p = plan_bwd(a->n_rows, a->n_cols, sizeof(T));
    if (!aligned) launch_bwd_loop<T, 1>(a, stream);
    else if (!(p.vectors == 4                              ? launch_bwd<T, 4, 32>(a, p, stream)
               : p.vectors == 2 && p.threads_per_row == 8  ? launch_bwd<T, 2, 8>(a, p, stream)
               : p.vectors == 2 && p.threads_per_row == 16 ? launch_bwd<T, 2, 16>(a, p, stream)
               : p.vectors == 2                            ? launch_bwd<T, 2, 32>(a, p, stream)
                                                           : false))
      launch_bwd_loop<T, vec_width<T>::value>(a, stream);
  });
  const liger_status status = (liger_status)LIGER_RT(GetLastError)();
  if (status != LIGER_OK || !a->dW) return status;
  return launch_column_sum(a->dW, (const float *)a->dW_partial, a->n_blocks, a->n_cols, a->w_dtype, stream);
}
