/* poly_norm  Y = w0 X^3 r3 + w1 X^2 r2 + w2 X r1 + b,   rk = 1/sqrt(mean(X^2k) + eps)                  per row
 *            with ak = k rk wk, ck = rk^2 mean(dY X^k) and wk the weight of X^k:
 *            dX = dY (a1 + a2 X + a3 X^2) - X (a1 c1 + a2 c2 X^2 + a3 c3 X^4)
 *            dW = sum over rows of rk sum_row(dY X^k), k = 3, 2, 1;   db = sum(dY)
 * Shapes     X Y dX dY (n_rows, n_cols), last dim contiguous; W dW (3); b db (1); rstd (n_rows, 3) fp32
 * Rounding   fp32 to the end, one rounding at the store
 * Floor      fwd 2*N*s bytes;  bwd 3*N*s    (N = n_rows*n_cols)
 * Plan       32 to 512 threads a row with 2 or 4 vectors of 16 bytes each in registers, so a row is read once;
 *            several blocks to a multiprocessor, each at another stage of its row. Backward: a persistent grid,
 *            so that the parameters' four sums are few, with the next rows on their way to shared memory, then
 *            column sums in fixed order. Rows that are too wide
 *            or not made of aligned vectors are looped over, from cache the second time
 * Source     arXiv:2411.03884 */
#include "row_part.cuh"

namespace {

constexpr int WIDE = 128;               /* vectors in a row from which on a thread takes 4 of them */
constexpr int BWD_THREADS_PER_SM = 512; /* what the ring lets reside */

__device__ __forceinline__ void load_weights(float (&w)[3], const void *W, liger_dtype t) {
#pragma unroll
  for (int k = 0; k < 3; k++) {
    float one[1];
    load_as_f32<1>(one, W, k, t);
    w[k] = one[0];
  }
}

template <typename T, int NV, int VEC>
__global__ void __launch_bounds__(NORM_MAX_THREADS)
    poly_norm_fwd_kernel(const liger_poly_norm_fwd_args a, int threads_per_row) {
  __shared__ float scratch[2][3][BLOCK_SCRATCH];
  row_part<T, NV, VEC> part(threads_per_row, a.n_cols);
  float w[3], b[1];
  load_weights(w, a.W, a.w_dtype);
  load_as_f32<1>(b, a.b, 0, a.b_dtype);
  const float inv_n = 1.0f / (float)a.n_cols, eps = (float)a.eps;
  auto &at = part.at;
  for (int parity = 0; at.row - at.group < a.n_rows; at.row += at.step, parity ^= 1) {
    const bool live = at.row < a.n_rows;
    float v[VEC], none[VEC], sum[3] = {};
    part.open((const T *)a.X + at.row * a.X_row_stride, nullptr, live);
#pragma unroll NV> 0 ? NV : 1
    for (int i = 0; i < part.count(); i++)
      if (NV || part.owns(i)) { /* beyond the row the registers hold zeros */
        part.get(i, v, none);
#pragma unroll
        for (int j = 0; j < VEC; j++) {
          const float x2 = v[j] * v[j], x4 = x2 * x2;
          sum[0] = fmaf(x4, x2, sum[0]);
          sum[1] = fmaf(x2, x2, sum[1]);
          sum[2] += x2;
        }
      }
    norm_row_sums(sum, threads_per_row, scratch[parity]);
    float c[3];
#pragma unroll
    for (int k = 0; k < 3; k++) {
      const float r = rsqrtf(fmaf(sum[k], inv_n, eps));
      if (live && at.lane == 0) ((float *)a.rstd)[3 * at.row + k] = r;
      c[k] = w[k] * r;
    }
    T *const Y = (T *)a.Y + at.row * a.n_cols;
#pragma unroll NV> 0 ? NV : 1
    for (int i = 0; i < part.count(); i++)
      if (live && part.owns(i)) {
        part.get(i, v, none);
#pragma unroll
        for (int j = 0; j < VEC; j++) v[j] = fmaf(v[j], fmaf(v[j], fmaf(v[j], c[0], c[1]), c[2]), b[0]);
        store_vec<T, VEC>(Y + part.col(i), pack<T, VEC>(v));
      }
  }
}

/* the workspace: a row of dW (3) for each group of threads, then its db */
template <typename T, int NV, int VEC>
__global__ void __launch_bounds__(NORM_MAX_THREADS)
    poly_norm_bwd_kernel(const liger_poly_norm_bwd_args a, int threads_per_row) {
  __shared__ float scratch[2][4][BLOCK_SCRATCH];
  extern __shared__ uint4 dynamic_shared[];
  row_part<T, NV, VEC> part(threads_per_row, a.n_cols);
  float w[3], total[4] = {};
  load_weights(w, a.W, a.w_dtype);
  const float inv_n = 1.0f / (float)a.n_cols;
  auto &at = part.at;
  row_feed<T, NV, VEC> feed(dynamic_shared, part, a, at.row, at.step,
                            (a.n_rows - at.row + at.step - 1) / at.step);
  float next_r[3] = {}; /* a turn ahead, like the rows */
#pragma unroll
  for (int k = 0; k < 3; k++)
    if (at.row < a.n_rows) next_r[k] = ((const float *)a.rstd)[3 * at.row + k];
  for (int parity = 0; at.row - at.group < a.n_rows; at.row += at.step, parity ^= 1) {
    const bool live = at.row < a.n_rows;
    float v[VEC], g[VEC], sum[4] = {}, r[3];
    if constexpr (NV > 0) feed.next(part);
    else
      part.open((const T *)a.X + at.row * a.X_row_stride, (const T *)a.dY + at.row * a.dY_row_stride, live);
#pragma unroll
    for (int k = 0; k < 3; k++) {
      r[k] = next_r[k];
      if (at.row + at.step < a.n_rows) next_r[k] = ((const float *)a.rstd)[3 * (at.row + at.step) + k];
    }
#pragma unroll NV> 0 ? NV : 1
    for (int i = 0; i < part.count(); i++)
      if (NV || part.owns(i)) {
        part.get(i, v, g);
#pragma unroll
        for (int j = 0; j < VEC; j++) {
          const float p = g[j] * v[j], q = p * v[j];
          sum[0] = fmaf(q, v[j], sum[0]);
          sum[1] += q;
          sum[2] += p;
          sum[3] += g[j];
        }
      }
    norm_row_sums(sum, threads_per_row, scratch[parity]);
    float k[6]; /* a1, a2, a3, a1 c1, a2 c2, a3 c3; rstd and W have the highest power first */
#pragma unroll
    for (int i = 0; i < 3; i++) {
      total[i] = fmaf(r[i], sum[i], total[i]);
      k[2 - i] = (float)(3 - i) * r[i] * w[i];
      k[5 - i] = k[2 - i] * r[i] * r[i] * (sum[i] * inv_n);
    }
    total[3] += sum[3];
    T *const dX = (T *)a.dX + at.row * a.n_cols;
#pragma unroll NV> 0 ? NV : 1
    for (int i = 0; i < part.count(); i++)
      if (live && part.owns(i)) {
        part.get(i, v, g);
#pragma unroll
        for (int j = 0; j < VEC; j++) {
          const float x2 = v[j] * v[j], slope = fmaf(v[j], fmaf(v[j], k[2], k[1]), k[0]);
          const float mean = fmaf(x2, fmaf(x2, k[5], k[4]), k[3]);
          v[j] = fmaf(g[j], slope, -(v[j] * mean));
        }
        store_vec<T, VEC>(dX + part.col(i), pack<T, VEC>(v));
      }
  }
  if (!a.workspace || at.lane != 0) return;
  const int64_t group = (int64_t)blockIdx.x * at.groups + at.group;
  float *const to = (float *)a.workspace;
#pragma unroll
  for (int i = 0; i < 3; i++) to[3 * group + i] = total[i];
  to[3 * a.n_blocks + group] = total[3];
}

/* ---- launching: a plan of the row's size, which does not ask for alignment ----------------------------- */
norm_plan poly_plan(int64_t n_cols, int elem_size) {
  const int64_t n_vecs = norm_vectors(n_cols, elem_size);
  if (n_vecs > 4 * NORM_MAX_THREADS) return {NORM_MAX_THREADS, NORM_MAX_THREADS, 0};
  norm_plan p = {GPU_MIN_LANES, 0, n_vecs < WIDE ? 2 : 4};
  while ((int64_t)p.threads_per_row * p.vectors < n_vecs) p.threads_per_row *= 2;
  p.threads = p.threads_per_row <= 32 ? 128 : p.threads_per_row;
  return p;
}
const norm_plan WHOLE_BLOCK = {NORM_MAX_THREADS, NORM_MAX_THREADS, 0}; /* for a row that is looped over */
int64_t poly_turns(const norm_plan &p, int64_t n_rows) {
  const int64_t rows = p.threads / p.threads_per_row, turns = (n_rows + rows - 1) / rows;
  return turns < 1 ? 1 : turns;
}
int64_t poly_bwd_grid(const norm_plan &p, int64_t n_rows) {
  const int64_t turns = poly_turns(p, n_rows),
                resident = (int64_t)gpu_multiprocessors() * (BWD_THREADS_PER_SM / p.threads);
  return turns < resident ? turns : resident;
}
int size_of(liger_dtype t) { return t == LIGER_F32 ? 4 : 2; }

template <class Args, class Kernel>
void start(Kernel kernel, const Args *a, const norm_plan &p, int64_t grid, gpu_stream stream) {
  kernel<<<(unsigned)grid, p.threads, 0, stream>>>(*a, p.threads_per_row);
}
/* false: the ring does not fit this device */
template <typename T, int NV, int VEC>
bool start_fed(const liger_poly_norm_bwd_args *a, const norm_plan &p, int64_t grid, gpu_stream stream) {
  const auto kernel = poly_norm_bwd_kernel<T, NV, VEC>;
  const size_t shared = row_feed<T, NV, VEC>::bytes(p.threads);
  if (!gpu_allow_shared(kernel, shared)) return false;
  kernel<<<(unsigned)grid, p.threads, shared, stream>>>(*a, p.threads_per_row);
  return true;
}
} // namespace

extern "C" liger_status liger_poly_norm_fwd_cuda(const liger_poly_norm_fwd_args *a, void *stream_) {
  const gpu_stream stream = (gpu_stream)stream_;
  if (a->n_rows == 0 || a->n_cols == 0) return LIGER_OK;
  const norm_plan p = poly_plan(a->n_cols, size_of(a->x_dtype)), loop = WHOLE_BLOCK;
  if (a->n_rows > GPU_MAX_GRID) return LIGER_ERR_SIZE;
  LIGER_DISPATCH_DTYPE(a->x_dtype, T, {
    constexpr int VEC = vec_width<T>::value;
    const bool aligned = rows_aligned(a->X, a->X_row_stride, a->n_cols, sizeof(T)) &&
                         rows_aligned(a->Y, a->n_cols, a->n_cols, sizeof(T));
    const int64_t grid = poly_turns(p, a->n_rows);
    if (!aligned) start(poly_norm_fwd_kernel<T, 0, 1>, a, loop, a->n_rows, stream);
    else if (p.vectors == 0) start(poly_norm_fwd_kernel<T, 0, VEC>, a, loop, a->n_rows, stream);
    else if (p.vectors == 2) start(poly_norm_fwd_kernel<T, 2, VEC>, a, p, grid, stream);
    else start(poly_norm_fwd_kernel<T, 4, VEC>, a, p, grid, stream);
  });
  return (liger_status)LIGER_RT(GetLastError)();
}

extern "C" int64_t liger_poly_norm_bwd_blocks_cuda(int64_t n_rows, int64_t n_cols, liger_dtype x_dtype) {
  const norm_plan p = poly_plan(n_cols, size_of(x_dtype));
  return poly_bwd_grid(p, n_rows) * (p.threads / p.threads_per_row);
}

extern "C" liger_status liger_poly_norm_bwd_cuda(const liger_poly_norm_bwd_args *a, void *stream_) {
  const gpu_stream stream = (gpu_stream)stream_;
  const norm_plan p = poly_plan(a->n_cols, size_of(a->x_dtype)), loop = WHOLE_BLOCK;
  const int64_t grid = a->n_blocks / (p.threads / p.threads_per_row);
  LIGER_DISPATCH_DTYPE(a->x_dtype, T, {
    constexpr int VEC = vec_width<T>::value;
    const bool aligned = rows_aligned(a->X, a->X_row_stride, a->n_cols, sizeof(T)) &&
                         rows_aligned(a->dY, a->dY_row_stride, a->n_cols, sizeof(T)) &&
                         rows_aligned(a->dX, a->n_cols, a->n_cols, sizeof(T));
    /* a looped row has a whole block, so there are as many blocks as partial sums */
    if (!aligned) start(poly_norm_bwd_kernel<T, 0, 1>, a, loop, a->n_blocks, stream);
    else if (p.vectors == 0) start(poly_norm_bwd_kernel<T, 0, VEC>, a, loop, a->n_blocks, stream);
    else if (!(p.vectors == 2 ? start_fed<T, 2, VEC>(a, p, grid, stream)
                              : start_fed<T, 4, VEC>(a, p, grid, stream)))
      start(poly_norm_bwd_kernel<T, 0, VEC>, a, loop, a->n_blocks, stream);
  });
  const liger_status status = (liger_status)LIGER_RT(GetLastError)();
  const float *const from = (const float *)a->workspace;
  column_sums sums;
  sums.add(a->dW, from, a->n_blocks, 3, a->w_dtype);
  sums.add(a->db, from + 3 * a->n_blocks, a->n_blocks, 1, a->b_dtype);
  return status == LIGER_OK ? launch_column_sums(sums, stream) : status;
}
