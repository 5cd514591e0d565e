/* rms_norm   Y = X * rstd * (W + offset),   rstd = 1/sqrt(mean(X^2) + eps)          per row
 *            dX = rstd * (m - X * rstd^2 * mean(m * X)),  m = dY * (W + offset);  dW = sum_rows(dY * X * rstd)
 * Shapes     X Y dX dY (n_rows, n_cols), last dim contiguous; W dW (n_cols); rstd (n_rows) fp32, saved by fwd
 * Casting    llama: round X * rstd to X's dtype, then times W.  gemma, none: fp32 to the end, one rounding
 * Floor      fwd 2*N*s + n_cols*s + 4*n_rows bytes;  bwd 3*N*s + 2*n_cols*s + 4*n_rows    (N = n_rows*n_cols)
 * Plan       1 to 1024 threads per row, each holding 2 or 4 vectors of 16 bytes in registers, so a row is read once;
 *            rows that are too wide, or not made of aligned vectors, are looped over (the second read comes from cache).
 *            Backward: a persistent grid; dW in fp32 registers, one partial row per block, then a fixed-order column sum
 * Source     arXiv:1910.07467; LlamaRMSNorm and GemmaRMSNorm in transformers                                           */
#include "primitives.cuh"

namespace {

/* Sum over the threads of one row. More threads than a warp: the row has the whole block. All threads of the block call. */
__device__ __forceinline__ float row_sum(float v, int threads_per_row, float *scratch) {
  return threads_per_row <= GPU_LANES ? warp_reduce<op_sum>(v, threads_per_row) : block_reduce<op_sum>(v, scratch);
}

template <int N>
__device__ __forceinline__ void load_scale(float (&w)[N], const void *W, int64_t col, liger_dtype t, float offset, bool aligned) {
  if (W) {
    load_as_f32<N>(w, W, col, t, aligned);
#pragma unroll
    for (int j = 0; j < N; j++)
      w[j] += offset;
  } else {
#pragma unroll
    for (int j = 0; j < N; j++)
      w[j] = 1.0f;
  }
}

template <typename T>
__device__ __forceinline__ T normalised(float x, float rstd, float w, bool llama) {
  float v = x * rstd;
  if (llama)
    v = round_to<T>(v);
  T y;
  from_f32(y, v * w);
  return y;
}

/* ---- forward: NV vectors per thread in registers -------------------------------------------------------------------------- */
template <typename T, int NV>
__global__ void rms_norm_fwd_kernel(T *Y, float *rstd, const T *X, const void *W, int64_t n_rows, int64_t n_cols,
                                    int64_t X_row_stride, int64_t Y_row_stride, float eps, float offset, bool llama,
                                    liger_dtype w_dtype, bool w_aligned, int threads_per_row) {
  constexpr int VEC = vec_width<T>::value;
  __shared__ float scratch[BLOCK_SCRATCH];
  const int64_t row = (int64_t)blockIdx.x * (blockDim.x / threads_per_row) + threadIdx.x / threads_per_row;
  const int lane = threadIdx.x % threads_per_row;
  const bool live = row < n_rows; /* idle groups stay for the shuffles */
  vec<T, VEC> x[NV];
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < NV; i++) {
    const int64_t col = (int64_t)(i * threads_per_row + lane) * VEC;
    if (live && col < n_cols)
      x[i] = load_vec_stream<T, VEC>(X + row * X_row_stride + col);
  }
#pragma unroll
  for (int i = 0; i < NV; i++) {
    const int64_t col = (int64_t)(i * threads_per_row + lane) * VEC;
    if (live && col < n_cols) {
#pragma unroll
      for (int j = 0; j < VEC; j++)
        sum += to_f32(x[i].v[j]) * to_f32(x[i].v[j]);
    }
  }
  sum = row_sum(sum, threads_per_row, scratch);
  const float r = rsqrtf(sum / (float)n_cols + eps);
  if (!live)
    return;
  if (lane == 0)
    rstd[row] = r;
#pragma unroll
  for (int i = 0; i < NV; i++) {
    const int64_t col = (int64_t)(i * threads_per_row + lane) * VEC;
    if (col < n_cols) {
      float w[VEC];
      load_scale<VEC>(w, W, col, w_dtype, offset, w_aligned);
      vec<T, VEC> y;
#pragma unroll
      for (int j = 0; j < VEC; j++)
        y.v[j] = normalised<T>(to_f32(x[i].v[j]), r, w[j], llama);
      store_vec_stream<T, VEC>(Y + row * Y_row_stride + col, y);
    }
  }
}

/* ---- forward, any width and alignment: a block per row, VEC elements at a time --------------------------------------------- */
template <typename T, int VEC>
__global__ void rms_norm_fwd_loop_kernel(T *Y, float *rstd, const T *X, const void *W, int64_t n_cols, int64_t X_row_stride,
                                         int64_t Y_row_stride, float eps, float offset, bool llama, liger_dtype w_dtype,
                                         bool w_aligned) {
  __shared__ float scratch[BLOCK_SCRATCH];
  const int64_t row = blockIdx.x, step = (int64_t)blockDim.x * VEC;
  X += row * X_row_stride;
  Y += row * Y_row_stride;
  float sum = 0.0f;
  for (int64_t col = (int64_t)threadIdx.x * VEC; col < n_cols; col += step) {
    const vec<T, VEC> x = load_vec<T, VEC>(X + col);
#pragma unroll
    for (int j = 0; j < VEC; j++)
      sum += to_f32(x.v[j]) * to_f32(x.v[j]);
  }
  sum = block_reduce<op_sum>(sum, scratch);
  const float r = rsqrtf(sum / (float)n_cols + eps);
  if (threadIdx.x == 0)
    rstd[row] = r;
  for (int64_t col = (int64_t)threadIdx.x * VEC; col < n_cols; col += step) {
    const vec<T, VEC> x = load_vec<T, VEC>(X + col);
    float w[VEC];
    load_scale<VEC>(w, W, col, w_dtype, offset, w_aligned);
    vec<T, VEC> y;
#pragma unroll
    for (int j = 0; j < VEC; j++)
      y.v[j] = normalised<T>(to_f32(x.v[j]), r, w[j], llama);
    store_vec<T, VEC>(Y + col, y);
  }
}

/* ---- backward: NV vectors of X and of dY per thread, the next row's loads in flight while this one is reduced ---------------- */
template <typename T, int NV>
__global__ void __launch_bounds__(512)
    rms_norm_bwd_kernel(T *dX, float *dW_partial, const T *dY, const T *X, const void *W, const float *rstd, int64_t n_rows,
                        int64_t n_cols, int64_t dY_row_stride, int64_t X_row_stride, float offset, liger_dtype w_dtype,
                        bool w_aligned, int threads_per_row) {
  constexpr int VEC = vec_width<T>::value;
  extern __shared__ float group_dw[]; /* (groups, n_cols): only where several rows share the block */
  __shared__ float scratch[2][BLOCK_SCRATCH];
  const int groups = blockDim.x / threads_per_row, group = threadIdx.x / threads_per_row;
  const int lane = threadIdx.x % threads_per_row;
  const int64_t step = (int64_t)gridDim.x * groups;
  constexpr bool PREFETCH = NV <= 2; /* at 4 vectors the successors would spill */
  float dw[NV][VEC] = {};
  vec<T, VEC> x[NV], dy[NV], next_x[NV], next_dy[NV];

  const auto load = [&](vec<T, VEC>(&to_x)[NV], vec<T, VEC>(&to_dy)[NV], int64_t row) {
#pragma unroll
    for (int i = 0; i < NV; i++) {
      const int64_t col = (int64_t)(i * threads_per_row + lane) * VEC;
      if (row < n_rows && col < n_cols) {
        to_x[i] = load_vec_stream<T, VEC>(X + row * X_row_stride + col);
        to_dy[i] = load_vec_stream<T, VEC>(dY + row * dY_row_stride + col);
      }
    }
  };
  /* every group of the block makes the same number of turns, since the reductions need all threads */
  int64_t row = (int64_t)blockIdx.x * groups + group;
  if (PREFETCH)
    load(x, dy, row);
  int parity = 0;
  for (int64_t base = (int64_t)blockIdx.x * groups; base < n_rows; base += step, row += step, parity ^= 1) {
    if (PREFETCH)
      load(next_x, next_dy, row + step);
    else
      load(x, dy, row);
    const bool live = row < n_rows;
    const float r = live ? rstd[row] : 0.0f;
    float mean = 0.0f;
#pragma unroll
    for (int i = 0; i < NV; i++) {
      const int64_t col = (int64_t)(i * threads_per_row + lane) * VEC;
      if (live && col < n_cols) {
        float w[VEC];
        load_scale<VEC>(w, W, col, w_dtype, offset, w_aligned);
#pragma unroll
        for (int j = 0; j < VEC; j++) {
          const float xhat = to_f32(x[i].v[j]) * r, g = to_f32(dy[i].v[j]);
          dw[i][j] += g * xhat;
          mean += g * w[j] * xhat;
        }
      }
    }
    mean = row_sum(mean, threads_per_row, scratch[parity]) / (float)n_cols;
#pragma unroll
    for (int i = 0; i < NV; i++) {
      const int64_t col = (int64_t)(i * threads_per_row + lane) * VEC;
      if (live && col < n_cols) {
        float w[VEC];
        load_scale<VEC>(w, W, col, w_dtype, offset, w_aligned);
        vec<T, VEC> dx;
#pragma unroll
        for (int j = 0; j < VEC; j++)
          from_f32(dx.v[j], r * (to_f32(dy[i].v[j]) * w[j] - to_f32(x[i].v[j]) * r * mean));
        store_vec_stream<T, VEC>(dX + row * n_cols + col, dx);
      }
      if (PREFETCH) {
        x[i] = next_x[i];
        dy[i] = next_dy[i];
      }
    }
  }
  if (!dW_partial)
    return;
  dW_partial += (int64_t)blockIdx.x * n_cols;
  float *const to = groups > 1 ? group_dw + (int64_t)group * n_cols : dW_partial;
#pragma unroll
  for (int i = 0; i < NV; i++) {
    const int64_t col = (int64_t)(i * threads_per_row + lane) * VEC;
    if (col < n_cols) {
#pragma unroll
      for (int j = 0; j < VEC; j++)
        to[col + j] = dw[i][j];
    }
  }
  if (groups == 1)
    return;
  __syncthreads();
  for (int64_t col = threadIdx.x; col < n_cols; col += blockDim.x) {
    float s = 0.0f;
    for (int g = 0; g < groups; g++)
      s += group_dw[(int64_t)g * n_cols + col];
    dW_partial[col] = s;
  }
}

/* ---- backward, any width and alignment: a block per row in turn; a thread always owns the same columns of its partial row ------ */
template <typename T, int VEC>
__global__ void rms_norm_bwd_loop_kernel(T *dX, float *dW_partial, const T *dY, const T *X, const void *W, const float *rstd,
                                         int64_t n_rows, int64_t n_cols, int64_t dY_row_stride, int64_t X_row_stride,
                                         float offset, liger_dtype w_dtype, bool w_aligned) {
  __shared__ float scratch[2][BLOCK_SCRATCH];
  const int64_t step = (int64_t)blockDim.x * VEC, first_col = (int64_t)threadIdx.x * VEC;
  float *const dw = dW_partial ? dW_partial + (int64_t)blockIdx.x * n_cols : nullptr;
  if (dw)
    for (int64_t col = first_col; col < n_cols; col += step)
#pragma unroll
      for (int j = 0; j < VEC; j++)
        dw[col + j] = 0.0f;
  int parity = 0;
  for (int64_t row = blockIdx.x; row < n_rows; row += gridDim.x, parity ^= 1) {
    const T *x_row = X + row * X_row_stride, *dy_row = dY + row * dY_row_stride;
    const float r = rstd[row];
    float mean = 0.0f;
    for (int64_t col = first_col; col < n_cols; col += step) {
      const vec<T, VEC> x = load_vec<T, VEC>(x_row + col), dy = load_vec<T, VEC>(dy_row + col);
      float w[VEC];
      load_scale<VEC>(w, W, col, w_dtype, offset, w_aligned);
#pragma unroll
      for (int j = 0; j < VEC; j++) {
        const float xhat = to_f32(x.v[j]) * r, g = to_f32(dy.v[j]);
        if (dw)
          dw[col + j] += g * xhat;
        mean += g * w[j] * xhat;
      }
    }
    mean = block_reduce<op_sum>(mean, scratch[parity]) / (float)n_cols;
    for (int64_t col = first_col; col < n_cols; col += step) {
      const vec<T, VEC> x = load_vec<T, VEC>(x_row + col), dy = load_vec<T, VEC>(dy_row + col);
      float w[VEC];
      load_scale<VEC>(w, W, col, w_dtype, offset, w_aligned);
      vec<T, VEC> dx;
#pragma unroll
      for (int j = 0; j < VEC; j++)
        from_f32(dx.v[j], r * (to_f32(dy.v[j]) * w[j] - to_f32(x.v[j]) * r * mean));
      store_vec<T, VEC>(dX + row * n_cols + col, dx);
    }
  }
}

/* ---- launch plan: a pure function of the row's size ------------------------------------------------------------------------------ */
struct row_plan {
  int threads_per_row, threads, vectors; /* vectors 0: loop over the row */
};

row_plan plan_rows(int64_t n_cols, int elem_size, int max_threads) {
  const int64_t n_vecs = (n_cols * elem_size + 15) / 16;
  if (n_vecs > 4 * (int64_t)max_threads) /* more than the registers of a block hold */
    return {max_threads, max_threads, 0};
  const int vectors = n_vecs > 2 * (int64_t)max_threads ? 4 : 2; /* 2 in flight cover the latency; 4 only to reach wide rows */
  int threads_per_row = 1;
  while ((int64_t)threads_per_row * vectors < n_vecs)
    threads_per_row *= 2;
  /* narrow rows share a block of 128 threads: full warps, and many blocks to a multiprocessor */
  return {threads_per_row, threads_per_row < 128 && threads_per_row <= GPU_MIN_LANES ? 128 : threads_per_row, vectors};
}

constexpr int FWD_MAX_THREADS = 1024; /* rows of 16384 bf16 with 2 vectors, 32768 with 4 */
constexpr int BWD_MAX_THREADS = 512;  /* about 100 registers a thread: two inputs, their successors and dW */
constexpr int LOOP_THREADS = 512;

} // namespace

extern "C" liger_status liger_rms_norm_fwd_cuda(const liger_rms_norm_fwd_args *a, void *stream_) {
  const gpu_stream stream = (gpu_stream)stream_;
  if (a->n_rows == 0 || a->n_cols == 0)
    return LIGER_OK;
  if (a->n_rows > GPU_MAX_GRID)
    return LIGER_ERR_SIZE;
  LIGER_DISPATCH_DTYPE(a->x_dtype, T, {
    const bool aligned = rows_aligned(a->X, a->X_row_stride, a->n_cols, sizeof(T)) &&
                         rows_aligned(a->Y, a->Y_row_stride, a->n_cols, sizeof(T));
    const bool w_aligned = (uintptr_t)a->W % 16 == 0;
    const bool llama = a->casting == LIGER_CAST_LLAMA;
    const row_plan p = plan_rows(a->n_cols, sizeof(T), FWD_MAX_THREADS);
    const unsigned grid = (unsigned)((a->n_rows + p.threads / p.threads_per_row - 1) / (p.threads / p.threads_per_row));
#define FWD_KERNEL(NV)                                                                                                 \
  rms_norm_fwd_kernel<T, NV><<<grid, p.threads, 0, stream>>>(                                                          \
      (T *)a->Y, (float *)a->rstd, (const T *)a->X, a->W, a->n_rows, a->n_cols, a->X_row_stride, a->Y_row_stride,       \
      (float)a->eps, (float)a->offset, llama, a->w_dtype, w_aligned, p.threads_per_row)
#define FWD_LOOP_KERNEL(VEC)                                                                                           \
  rms_norm_fwd_loop_kernel<T, VEC><<<(unsigned)a->n_rows, LOOP_THREADS, 0, stream>>>(                                  \
      (T *)a->Y, (float *)a->rstd, (const T *)a->X, a->W, a->n_cols, a->X_row_stride, a->Y_row_stride, (float)a->eps,   \
      (float)a->offset, llama, a->w_dtype, w_aligned)
    if (!aligned)
      FWD_LOOP_KERNEL(1);
    else if (p.vectors == 2)
      FWD_KERNEL(2);
    else if (p.vectors == 4)
      FWD_KERNEL(4);
    else
      FWD_LOOP_KERNEL(vec_width<T>::value);
  });
  return (liger_status)LIGER_RT(GetLastError)();
}

/* About 1024 threads a multiprocessor; never more blocks than there are rows to deal out. */
extern "C" int64_t liger_rms_norm_bwd_blocks_cuda(int64_t n_rows, int64_t n_cols, liger_dtype x_dtype) {
  const row_plan p = plan_rows(n_cols, x_dtype == LIGER_F32 ? 4 : 2, BWD_MAX_THREADS);
  const int64_t rows_per_turn = p.threads / p.threads_per_row, turns = (n_rows + rows_per_turn - 1) / rows_per_turn;
  const int64_t resident = (int64_t)gpu_multiprocessors() * (1024 / p.threads);
  return turns < 1 ? 1 : turns < resident ? turns : resident;
}

extern "C" liger_status liger_rms_norm_bwd_cuda(const liger_rms_norm_bwd_args *a, void *stream_) {
  const gpu_stream stream = (gpu_stream)stream_;
  if (a->n_cols == 0)
    return LIGER_OK;
  LIGER_DISPATCH_DTYPE(a->x_dtype, T, {
    const bool aligned = rows_aligned(a->X, a->X_row_stride, a->n_cols, sizeof(T)) &&
                         rows_aligned(a->dY, a->dY_row_stride, a->n_cols, sizeof(T)) &&
                         rows_aligned(a->dX, a->n_cols, a->n_cols, sizeof(T));
    const bool w_aligned = (uintptr_t)a->W % 16 == 0;
    const row_plan p = plan_rows(a->n_cols, sizeof(T), BWD_MAX_THREADS);
    const int groups = p.threads / p.threads_per_row;
    const size_t shared = groups > 1 && a->dW ? (size_t)groups * a->n_cols * sizeof(float) : 0;
#define BWD_KERNEL(NV)                                                                                                 \
  rms_norm_bwd_kernel<T, NV><<<(unsigned)a->n_blocks, p.threads, shared, stream>>>(                                    \
      (T *)a->dX, (float *)a->dW_partial, (const T *)a->dY, (const T *)a->X, a->W, (const float *)a->rstd, a->n_rows,   \
      a->n_cols, a->dY_row_stride, a->X_row_stride, (float)a->offset, a->w_dtype, w_aligned, p.threads_per_row)
#define BWD_LOOP_KERNEL(VEC)                                                                                           \
  rms_norm_bwd_loop_kernel<T, VEC><<<(unsigned)a->n_blocks, LOOP_THREADS, 0, stream>>>(                                \
      (T *)a->dX, (float *)a->dW_partial, (const T *)a->dY, (const T *)a->X, a->W, (const float *)a->rstd, a->n_rows,   \
      a->n_cols, a->dY_row_stride, a->X_row_stride, (float)a->offset, a->w_dtype, w_aligned)
    if (!aligned)
      BWD_LOOP_KERNEL(1);
    else if (p.vectors == 2)
      BWD_KERNEL(2);
    else if (p.vectors == 4)
      BWD_KERNEL(4);
    else
      BWD_LOOP_KERNEL(vec_width<T>::value);
  });
  const liger_status status = (liger_status)LIGER_RT(GetLastError)();
  if (status != LIGER_OK || !a->dW)
    return status;
  return launch_column_sum(a->dW, (const float *)a->dW_partial, a->n_blocks, a->n_cols, a->w_dtype, stream);
}
