/* cross_entropy   loss and dX of every row of logits; the equations stand at liger_cross_entropy_args and
 * in cross_entropy.c
 * Shapes          X dX (n_rows, n_cols), last dim contiguous; loss z_loss accuracy predicted target
 * (n_rows); weight (n_cols)
 * Rounding        fp32 to the end; p - 1 is formed before anything is rounded; dX is rounded once
 * Floor           forward N*s bytes, with gradient 2*N*s    (N = n_rows*n_cols)
 * Plan            a block per row: statistics with 4 vectors of 16 bytes per thread in flight, then the
 * row again, mostly from L2,
 *                 for the gradient. On Hopper a row stays in shared memory instead:
 *                 cross_entropy_sm90.cu. Rows whose start is not aligned (an odd vocabulary) begin and end
 *                 with single elements
 * Source          label smoothing arXiv:1512.00567; z-loss arXiv:2204.02311; softcap arXiv:2408.00118;
 * online softmax arXiv:1805.02867 */
#include "cross_entropy.cuh"
#include "row_pass.cuh"

namespace {
/* N 1: rows of X and dX that are not cut alike */
template <typename T, int N, bool FULL>
__global__ void __launch_bounds__(1024, 1) cross_entropy_block_kernel(const ce_params p) {
  typedef typename ce_state_of<FULL>::type state;
  constexpr int U = FULL ? 2 : 4; /* vectors in flight per thread */
  __shared__ state scratch[BLOCK_SCRATCH];
  const int64_t row = blockIdx.x, tid = threadIdx.x, step = blockDim.x;
  const T *const X = (const T *)p.X + row * p.X_row_stride;
  T *const dX = p.dX ? (T *)p.dX + row * p.dX_row_stride : nullptr;
  const ce_target t = ce_load_target<FULL, T>(p, row);
  const row_cut cut = cut_row<T, N>(X, p.n_cols);
  const int64_t tail_col = cut.head + cut.n_vecs * N;
  if (t.skip) {
    if (tid == 0) ce_fill_outputs(p, row, t.fill);
    if (dX) row_fill<T, N>(dX, cut, t.fill);
    return;
  }

  state s;
  ce_reset(s);
  row_read<U, N>(X, cut, [&](const auto &x, int64_t col, int64_t vec_step) {
    ce_push_vectors<FULL>(s, p, x, col, vec_step);
  });
  s = ce_block_merge(s, scratch);
  const ce_gradient g = ce_finish(p, row, s, t, tid == 0);
  if (!dX) return;

  /* backwards through the row: what was read last is the likeliest to be in cache still */
  const int64_t turns = (cut.n_vecs + step - 1) / step;
  for (int64_t turn = turns; turn > 0; turn -= U) {
    vec<T, N> x[U], dx[U];
    const int64_t first = (turn - U) * step + tid; /* vectors below 0 belong to nobody */
#pragma unroll
    for (int u = 0; u < U; u++) {
      const int64_t v = first + u * step;
      if (v >= 0 && v < cut.n_vecs) x[u] = load_vec<T, N>(X + cut.head + v * N);
    }
    ce_dx<FULL>(dx, p, g, x, cut.head + first * N, step * N);
#pragma unroll
    for (int u = 0; u < U; u++) {
      const int64_t v = first + u * step;
      if (v >= 0 && v < cut.n_vecs) store_vec<T, N>(dX + cut.head + v * N, dx[u]);
    }
  }
  const auto single = [&](int64_t col) {
    const vec<T, 1> x[1] = {load_vec<T, 1>(X + col)};
    vec<T, 1> dx[1];
    ce_dx<FULL>(dx, p, g, x, col, 0);
    dX[col] = dx[0].v[0];
  };
  if (tid < cut.head) single(tid);
  if (tid < cut.tail) single(tail_col + tid);
  __syncthreads();
  if (tid == 0) from_f32(dX[t.y], g.dz_y);
}

/* ---- statistics of the targets: slices of the rows (and classes), one per block, then the slices in order  */
constexpr int COUNT_THREADS = 1024;
constexpr int64_t COUNT_SLICE = 16384, COUNT_MAX_BLOCKS = 256;
int64_t count_blocks(int64_t n) {
  const int64_t b = (n + COUNT_SLICE - 1) / COUNT_SLICE;
  return b < 1 ? 1 : b < COUNT_MAX_BLOCKS ? b : COUNT_MAX_BLOCKS;
}

/* sums: weights of the valid targets, their number, weights of all classes. partial (3, blocks): where the
 * slices meet; in the second launch `merge` they are read instead of the targets. */
__global__ void __launch_bounds__(COUNT_THREADS)
    cross_entropy_count_kernel(float *stats, float *partial, const int64_t *target, const float *weight,
                               int64_t n_rows, int64_t n_cols, int64_t target_stride, int64_t ignore_index,
                               bool mean, int64_t n_slices, bool merge) {
  __shared__ float scratch[3][BLOCK_SCRATCH];
  float w_valid = 0.0f, n_valid = 0.0f, w_sum = 0.0f;
  if (merge) {
    for (int64_t i = threadIdx.x; i < n_slices; i += blockDim.x) {
      w_valid += partial[i];
      n_valid += partial[n_slices + i];
      w_sum += partial[2 * n_slices + i];
    }
  } else {
    const int64_t b = blockIdx.x, last = n_rows * (b + 1) / n_slices;
    for (int64_t row = n_rows * b / n_slices + threadIdx.x; row < last; row += blockDim.x) {
      const int64_t y = target[row * target_stride];
      if (y != ignore_index) {
        n_valid += 1.0f;
        w_valid += !weight ? 1.0f : y >= 0 && y < n_cols ? weight[y] : 0.0f;
      }
    }
    const int64_t last_col = n_cols * (b + 1) / n_slices;
    if (weight)
      for (int64_t i = n_cols * b / n_slices + threadIdx.x; i < last_col; i += blockDim.x) w_sum += weight[i];
  }
  w_valid = block_reduce<op_sum>(w_valid, scratch[0]);
  n_valid = block_reduce<op_sum>(n_valid, scratch[1]);
  w_sum = block_reduce<op_sum>(w_sum, scratch[2]);
  if (threadIdx.x != 0) return;
  if (!merge && n_slices > 1) {
    partial[blockIdx.x] = w_valid;
    partial[n_slices + blockIdx.x] = n_valid;
    partial[2 * n_slices + blockIdx.x] = w_sum;
    return;
  }
  stats[LIGER_CE_SCALE] = !mean ? 1.0f : w_valid == 0.0f ? 0.0f : 1.0f / w_valid;
  stats[LIGER_CE_Z_SCALE] = !mean ? 1.0f : n_valid == 0.0f ? 0.0f : 1.0f / n_valid;
  stats[LIGER_CE_W_SUM] = weight ? w_sum : (float)n_cols;
  stats[LIGER_CE_N_VALID] = n_valid;
}
} // namespace

extern "C" int64_t liger_cross_entropy_count_workspace_cuda(int64_t n_rows, int64_t n_cols) {
  return 3 * count_blocks(n_rows > n_cols ? n_rows : n_cols) * (int64_t)sizeof(float);
}

extern "C" liger_status liger_cross_entropy_count_cuda(const liger_cross_entropy_count_args *a,
                                                       void *stream_) {
  const gpu_stream stream = (gpu_stream)stream_;
  if (a->x_dtype == LIGER_F64) return LIGER_ERR_DTYPE;
  const int64_t n = count_blocks(a->weight && a->n_cols > a->n_rows ? a->n_cols : a->n_rows);
  for (int merge = 0; merge <= (n > 1); merge++)
    cross_entropy_count_kernel<<<merge ? 1 : (unsigned)n, COUNT_THREADS, 0, stream>>>(
        (float *)a->stats, (float *)a->workspace, a->target, (const float *)a->weight, a->n_rows, a->n_cols,
        a->target_stride, a->ignore_index, a->reduction == LIGER_REDUCE_MEAN, n, merge != 0);
  return (liger_status)LIGER_RT(GetLastError)();
}

extern "C" liger_status liger_cross_entropy_cuda(const liger_cross_entropy_args *a, void *stream_) {
  const gpu_stream stream = (gpu_stream)stream_;
  if (a->n_rows == 0) return LIGER_OK;
  if (a->n_rows > GPU_MAX_GRID) return LIGER_ERR_SIZE;
  const ce_params p = ce_params_of(a);
  liger_status status = LIGER_OK;
  if (liger_internal_cross_entropy_ring(p, a->x_dtype, stream, &status)) return status;
  const bool full = ce_is_full(p);
  LIGER_DISPATCH_DTYPE(a->x_dtype, T, {
    /* both start at the same distance from a 16-byte boundary, in every row */
    const bool alike = !a->dX || (((uintptr_t)a->X - (uintptr_t)a->dX) % 16 == 0 &&
                                  (a->X_row_stride - a->dX_row_stride) * (int64_t)sizeof(T) % 16 == 0);
    const int threads = row_threads(a->n_cols, sizeof(T));
#define BLOCK_KERNEL(N, FULL) \
  cross_entropy_block_kernel<T, N, FULL><<<(unsigned)a->n_rows, threads, 0, stream>>>(p)
    if (alike && full) BLOCK_KERNEL(vec_width<T>::value, true);
    else if (alike) BLOCK_KERNEL(vec_width<T>::value, false);
    else if (full) BLOCK_KERNEL(1, true);
    else BLOCK_KERNEL(1, false);
  });
  return (liger_status)LIGER_RT(GetLastError)();
}
