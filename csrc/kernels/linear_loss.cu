/* What the block loop of a linear loss needs beside products and loss kernel (definitions: linear_loss.c).
 *
 * convert     bound by memory: 8 neighbouring elements a thread, whole vectors where base, strides and
 *             width allow
 * bias_grad   a thread per column and slice of the rows; a second kernel adds the slices' sums in order:
 *             the same bits every run */
#include "primitives.cuh"

#define LIGER_GPU_UNIT 1
extern "C" {
#include "linear_loss_plan.c"
}

#define CONVERT_THREADS 256
#define CONVERT_WIDTH 8
#define BIAS_COLS 256
#define BIAS_MAX_SLICES 32

/* CONVERT_WIDTH neighbouring elements of a dtype that is the same for every thread; 16-byte accesses */
template <int N>
static __device__ __forceinline__ void load_wide(float (&x)[N], const void *p, int64_t i, liger_dtype t) {
  if (t == LIGER_F32) {
    float half[4];
#pragma unroll
    for (int j = 0; j < N; j += 4) {
      unpack<float, 4>(half, load_vec<float, 4>((const float *)p + i + j));
#pragma unroll
      for (int k = 0; k < 4; k++) x[j + k] = half[k];
    }
  } else if (t == LIGER_BF16) {
    unpack<gpu_bf16, N>(x, load_vec<gpu_bf16, N>((const gpu_bf16 *)p + i));
  } else {
    unpack<__half, N>(x, load_vec<__half, N>((const __half *)p + i));
  }
}
template <int N>
static __device__ __forceinline__ void store_wide(void *p, int64_t i, const float (&x)[N], liger_dtype t) {
  if (t == LIGER_F32) {
#pragma unroll
    for (int j = 0; j < N; j += 4) {
      const float half[4] = {x[j], x[j + 1], x[j + 2], x[j + 3]};
      store_vec<float, 4>((float *)p + i + j, pack<float, 4>(half));
    }
  } else if (t == LIGER_BF16) {
    store_vec<gpu_bf16, N>((gpu_bf16 *)p + i, pack<gpu_bf16, N>(x));
  } else {
    store_vec<__half, N>((__half *)p + i, pack<__half, N>(x));
  }
}

template <bool ADD>
__global__ void convert_kernel(liger_convert_args a, int64_t tiles_per_row, bool aligned) {
  constexpr int N = CONVERT_WIDTH;
  const int64_t row = blockIdx.x / tiles_per_row;
  const int64_t col = ((blockIdx.x % tiles_per_row) * CONVERT_THREADS + threadIdx.x) * N;
  if (col >= a.n_cols) return;
  const int64_t s = row * a.src_row_stride + col, d = row * a.dst_row_stride + col;
  if (aligned && col + N <= a.n_cols) {
    float x[N];
    load_wide<N>(x, a.src, s, a.src_dtype);
    if (ADD) {
      float sum[N];
      load_wide<N>(sum, a.dst, d, a.dst_dtype);
#pragma unroll
      for (int i = 0; i < N; i++) x[i] += sum[i];
    }
    store_wide<N>(a.dst, d, x, a.dst_dtype);
    return;
  }
  for (int64_t i = 0; i < N && col + i < a.n_cols; i++) {
    float x[1], sum[1] = {0.0f};
    load_as_f32<1>(x, a.src, s + i, a.src_dtype);
    if (ADD) load_as_f32<1>(sum, a.dst, d + i, a.dst_dtype);
    store_as(a.dst, d + i, x[0] + sum[0], a.dst_dtype);
  }
}

/* partial[slice][col] = the sum of the slice's rows */
template <typename T> __global__ void bias_grad_partial_kernel(liger_bias_grad_args a, int n_slices) {
  const int64_t tiles = (a.n_cols + BIAS_COLS - 1) / BIAS_COLS;
  const int64_t slice = blockIdx.x / tiles, col = (blockIdx.x % tiles) * BIAS_COLS + threadIdx.x;
  if (col >= a.n_cols) return;
  const int64_t r0 = a.n_rows * slice / n_slices, r1 = a.n_rows * (slice + 1) / n_slices;
  const T *p = (const T *)a.X + r0 * a.X_row_stride + col;
  float s = 0.0f;
#pragma unroll 8
  for (int64_t row = r0; row < r1; row++, p += a.X_row_stride) s += to_f32(*p);
  ((float *)a.workspace)[slice * a.n_cols + col] = s;
}

static __global__ void bias_grad_sum_kernel(liger_bias_grad_args a, int n_slices) {
  const int64_t col = (int64_t)blockIdx.x * BIAS_COLS + threadIdx.x;
  if (col >= a.n_cols) return;
  const float *partial = (const float *)a.workspace;
  float s = 0.0f;
  for (int i = 0; i < n_slices; i++) s += partial[i * a.n_cols + col];
  float *sum = (float *)a.sum + col;
  *sum = a.add ? *sum + s : s;
}

/* fixed by the sizes: at least 16 rows a slice, so that the partial sums stay small beside the logits */
static int bias_slices(int64_t n_rows) {
  const int64_t n = n_rows / 16;
  return n < 1 ? 1 : n > BIAS_MAX_SLICES ? BIAS_MAX_SLICES : (int)n;
}

static int plan_elem_size(liger_dtype t) { return t == LIGER_F32 ? 4 : 2; }

extern "C" LIGER_API liger_status liger_convert_cuda(const liger_convert_args *args, void *stream) {
  liger_convert_args a = *args;
  if (a.n_rows < 0 || a.n_cols < 0) return LIGER_ERR_SIZE;
  if (a.dst_dtype > LIGER_BF16 || a.src_dtype > LIGER_BF16) return LIGER_ERR_DTYPE;
  if (a.n_rows == 0 || a.n_cols == 0) return LIGER_OK;
  if (a.src_row_stride == a.n_cols &&
      a.dst_row_stride == a.n_cols) { /* one long row: any width gets whole vectors */
    a.n_cols *= a.n_rows;
    a.n_rows = 1;
  }
  const int src_size = plan_elem_size(a.src_dtype), dst_size = plan_elem_size(a.dst_dtype);
  const bool aligned = (uintptr_t)a.src % 16 == 0 && (uintptr_t)a.dst % 16 == 0 &&
                       (a.n_rows == 1 ||
                        (a.src_row_stride * src_size % 16 == 0 && a.dst_row_stride * dst_size % 16 == 0));
  const int64_t per_tile = CONVERT_THREADS * CONVERT_WIDTH, tiles = (a.n_cols + per_tile - 1) / per_tile;
  if (tiles > GPU_MAX_GRID / a.n_rows) return LIGER_ERR_SIZE;
  const unsigned grid = (unsigned)(tiles * a.n_rows);
  if (a.add) convert_kernel<true><<<grid, CONVERT_THREADS, 0, (gpu_stream)stream>>>(a, tiles, aligned);
  else convert_kernel<false><<<grid, CONVERT_THREADS, 0, (gpu_stream)stream>>>(a, tiles, aligned);
  return (liger_status)LIGER_RT(GetLastError)();
}

extern "C" LIGER_API int64_t liger_bias_grad_workspace_cuda(int64_t n_rows, int64_t n_cols) {
  return (int64_t)bias_slices(n_rows) * n_cols * (int64_t)sizeof(float);
}

extern "C" LIGER_API liger_status liger_bias_grad_cuda(const liger_bias_grad_args *a, void *stream) {
  if (a->n_rows < 0 || a->n_cols < 0) return LIGER_ERR_SIZE;
  if (a->n_cols == 0) return LIGER_OK;
  const int n_slices = bias_slices(a->n_rows);
  const int64_t tiles = (a->n_cols + BIAS_COLS - 1) / BIAS_COLS;
  if (tiles > GPU_MAX_GRID / n_slices) return LIGER_ERR_SIZE;
  LIGER_DISPATCH_DTYPE(a->x_dtype, T, {
    bias_grad_partial_kernel<T>
        <<<(unsigned)(tiles * n_slices), BIAS_COLS, 0, (gpu_stream)stream>>>(*a, n_slices);
  })
  bias_grad_sum_kernel<<<(unsigned)tiles, BIAS_COLS, 0, (gpu_stream)stream>>>(*a, n_slices);
  return (liger_status)LIGER_RT(GetLastError)();
}
