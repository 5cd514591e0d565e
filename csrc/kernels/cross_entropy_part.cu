/* cross_entropy of rows whose logits exist one part of the columns at a time; see cross_entropy.c and
 * liger_cross_entropy_part_args
 * Floor   statistics N*s bytes, gradient 2*N*s    (N = n_rows*n_part)
 * Plan    a block per row, as cross_entropy.cu; what a row's parts have so far waits in `state`, merged in the
 *         parts' order by one thread. The columns of a part are the kernels' own: weights are moved to its first */
#include "cross_entropy.cuh"
#include "row_pass.cuh"

namespace {
enum { STATE_M, STATE_D, STATE_WZ, STATE_W, STATE_ARGMAX, STATE_Z_Y };

struct part_columns {
  float *state;
  int64_t first, n;
};

__device__ __forceinline__ void load_state(const float *from, ce_plain &s) {
  s.m = from[STATE_M];
  s.d = from[STATE_D];
}
__device__ __forceinline__ void load_state(const float *from, ce_full &s) {
  s.m = from[STATE_M];
  s.d = from[STATE_D];
  s.wz = from[STATE_WZ];
  s.w = from[STATE_W];
  s.argmax = from[STATE_ARGMAX] < 0.0f ? INT64_MAX : (int64_t)from[STATE_ARGMAX];
}
__device__ __forceinline__ void store_state(float *to, const ce_plain &s) {
  to[STATE_M] = s.m;
  to[STATE_D] = s.d;
}
__device__ __forceinline__ void store_state(float *to, const ce_full &s) {
  to[STATE_M] = s.m;
  to[STATE_D] = s.d;
  to[STATE_WZ] = s.wz;
  to[STATE_W] = s.w;
  to[STATE_ARGMAX] = s.argmax == INT64_MAX ? -1.0f : (float)s.argmax;
}
__device__ __forceinline__ void move_columns(ce_plain &, int64_t) {}
__device__ __forceinline__ void move_columns(ce_full &s, int64_t first) {
  if (s.argmax != INT64_MAX) s.argmax += first;
}
__device__ __forceinline__ ce_params of_part(const ce_params &p, const part_columns &part) {
  ce_params q = p;
  if (q.weight) q.weight += part.first;
  q.n_cols = part.n;
  return q;
}
/* the target of a row, its logit from the state */
__device__ __forceinline__ ce_target load_target(const ce_params &p, const part_columns &part, int64_t row) {
  ce_target t;
  t.y = p.target[row * p.target_stride];
  t.skip = t.y == p.ignore_index || t.y < 0 || t.y >= p.n_cols;
  t.fill = t.y == p.ignore_index ? 0.0f : NAN;
  t.z = t.skip ? 0.0f : part.state[row * LIGER_CE_STATE + STATE_Z_Y];
  t.w = p.weight && !t.skip ? p.weight[t.y] : 1.0f;
  return t;
}

template <typename T, bool FULL>
__global__ void __launch_bounds__(1024, 1)
    cross_entropy_part_stats_block_kernel(const ce_params p, const part_columns part) {
  typedef typename ce_state_of<FULL>::type state;
  constexpr int N = vec_width<T>::value, U = FULL ? 2 : 4;
  __shared__ state scratch[BLOCK_SCRATCH];
  const int64_t row = blockIdx.x, y = p.target[row * p.target_stride];
  if (y == p.ignore_index || y < 0 || y >= p.n_cols) return; /* the whole block */
  const T *const X = (const T *)p.X + row * p.X_row_stride;
  const ce_params q = of_part(p, part);
  state s;
  ce_reset(s);
  row_read<U, N>(X, cut_row<T, N>(X, part.n), [&](const auto &x, int64_t col, int64_t step) {
    ce_push_vectors<FULL>(s, q, x, col, step);
  });
  s = ce_block_merge(s, scratch);
  if (threadIdx.x != 0) return;
  float *const saved = part.state + row * LIGER_CE_STATE;
  move_columns(s, part.first);
  if (part.first > 0) {
    state before;
    load_state(saved, before);
    s = ce_merge(before, s);
  }
  store_state(saved, s);
  const int64_t here = y - part.first;
  if (here < 0 || here >= part.n) return;
  float z[1];
  ce_logits<FULL>(z, load_vec<T, 1>(X + here), p);
  saved[STATE_Z_Y] = z[0];
}

constexpr int FINISH_THREADS = 128;
template <bool FULL>
__global__ void __launch_bounds__(FINISH_THREADS)
    cross_entropy_part_finish_kernel(const ce_params p, const part_columns part) {
  const int64_t row = (int64_t)blockIdx.x * FINISH_THREADS + threadIdx.x;
  if (row >= p.n_rows) return;
  const ce_target t = load_target(p, part, row);
  if (t.skip) {
    ce_fill_outputs(p, row, t.fill);
    return;
  }
  typename ce_state_of<FULL>::type s;
  load_state(part.state + row * LIGER_CE_STATE, s);
  ce_finish(p, row, s, t, true);
}

template <typename T, bool FULL>
__global__ void __launch_bounds__(1024, 1)
    cross_entropy_part_grad_block_kernel(const ce_params p, const part_columns part) {
  constexpr int N = vec_width<T>::value;
  const int64_t row = blockIdx.x;
  const T *const X = (const T *)p.X + row * p.X_row_stride;
  T *const dX = (T *)p.dX + row * p.dX_row_stride; /* X itself: the launcher makes sure */
  const row_cut cut = cut_row<T, N>(X, part.n);
  const ce_target t = load_target(p, part, row);
  if (t.skip) {
    row_fill<T, N>(dX, cut, t.fill);
    return;
  }
  typename ce_state_of<FULL>::type s;
  load_state(part.state + row * LIGER_CE_STATE, s);
  const ce_gradient g = ce_finish(p, row, s, t, false);
  const ce_params q = of_part(p, part);
  row_map<4, N>(dX, X, cut, [&](const auto &x, int64_t col) {
    constexpr int M = sizeof(x.v) / sizeof(T);
    const vec<T, M> in[1] = {x};
    vec<T, M> out[1];
    ce_dx<FULL>(out, q, g, in, col, 0);
    return out[0];
  });
  const int64_t here = t.y - part.first;
  __syncthreads(); /* the target's column is written over */
  if (threadIdx.x == 0 && here >= 0 && here < part.n) from_f32(dX[here], g.dz_y);
}

liger_status check(const liger_cross_entropy_part_args *p) {
  const liger_cross_entropy_args *const a = &p->rows;
  if (a->n_rows < 0 || a->n_rows > GPU_MAX_GRID || p->n_part < 0 || p->first_col < 0 ||
      a->n_cols > LIGER_CE_STATE_MAX_COLS)
    return LIGER_ERR_SIZE;
  return a->x_dtype > LIGER_BF16 ? LIGER_ERR_DTYPE : LIGER_OK;
}
part_columns columns_of(const liger_cross_entropy_part_args *p) {
  return {(float *)p->state, p->first_col, p->n_part};
}
} // namespace

extern "C" liger_status liger_cross_entropy_part_stats_cuda(const liger_cross_entropy_part_args *args,
                                                            void *stream_) {
  const gpu_stream stream = (gpu_stream)stream_;
  const liger_status bad = check(args);
  if (bad != LIGER_OK || args->rows.n_rows == 0) return bad;
  const ce_params p = ce_params_of(&args->rows);
  LIGER_DISPATCH_DTYPE(args->rows.x_dtype, T, {
    const unsigned grid = (unsigned)p.n_rows;
    const int threads = row_threads(args->n_part, sizeof(T));
    if (ce_is_full(p))
      cross_entropy_part_stats_block_kernel<T, true><<<grid, threads, 0, stream>>>(p, columns_of(args));
    else cross_entropy_part_stats_block_kernel<T, false><<<grid, threads, 0, stream>>>(p, columns_of(args));
  });
  return (liger_status)LIGER_RT(GetLastError)();
}

extern "C" liger_status liger_cross_entropy_part_finish_cuda(const liger_cross_entropy_part_args *args,
                                                             void *stream_) {
  const gpu_stream stream = (gpu_stream)stream_;
  const liger_status bad = check(args);
  if (bad != LIGER_OK || args->rows.n_rows == 0) return bad;
  ce_params p = ce_params_of(&args->rows);
  p.dX = nullptr; /* outputs alone */
  const unsigned grid = (unsigned)((p.n_rows + FINISH_THREADS - 1) / FINISH_THREADS);
  if (ce_is_full(p))
    cross_entropy_part_finish_kernel<true><<<grid, FINISH_THREADS, 0, stream>>>(p, columns_of(args));
  else cross_entropy_part_finish_kernel<false><<<grid, FINISH_THREADS, 0, stream>>>(p, columns_of(args));
  return (liger_status)LIGER_RT(GetLastError)();
}

extern "C" liger_status liger_cross_entropy_part_grad_cuda(const liger_cross_entropy_part_args *args,
                                                           void *stream_) {
  const gpu_stream stream = (gpu_stream)stream_;
  const liger_status bad = check(args);
  if (bad != LIGER_OK || args->rows.n_rows == 0) return bad;
  const ce_params p = ce_params_of(&args->rows);
  if (p.dX != p.X || p.dX_row_stride != p.X_row_stride) return LIGER_ERR_SIZE; /* in place only */
  LIGER_DISPATCH_DTYPE(args->rows.x_dtype, T, {
    const unsigned grid = (unsigned)p.n_rows;
    const int threads = row_threads(args->n_part, sizeof(T));
    if (ce_is_full(p))
      cross_entropy_part_grad_block_kernel<T, true><<<grid, threads, 0, stream>>>(p, columns_of(args));
    else cross_entropy_part_grad_block_kernel<T, false><<<grid, threads, 0, stream>>>(p, columns_of(args));
  });
  return (liger_status)LIGER_RT(GetLastError)();
}
