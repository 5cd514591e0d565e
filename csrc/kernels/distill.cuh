/* What the rows of two logits share on a GPU: softmax statistics of a row, and walks over two rows at once.
 *
 * Plan    a block per row; every pass reads both rows with 4 vectors of 16 bytes in flight a thread, and turns round
 *         at the row's end, so that what was read last, and is likeliest in cache, is read first. Rows whose start is not
 *         aligned (an odd vocabulary) begin and end with single elements */
#ifndef LIGER_DISTILL_CUH
#define LIGER_DISTILL_CUH
#include "divergence.cuh"

namespace {
constexpr int DISTILL_THREADS =
    1024; /* one block a multiprocessor: the fewer rows at work, the more stay in L2 */
constexpr float DISTILL_LOG2E = 1.4426950408889634f;

/* m: the largest z = logit / temperature, finite, so that no difference is inf - inf; d: sum of e^(z - m) */
struct row_softmax {
  float m, d;
};
__device__ __forceinline__ row_softmax softmax_nothing() { return {-3.402823466e38f, 0.0f}; }
__device__ __forceinline__ float softmax_exp(float z, float m) { return gpu_exp2((z - m) * DISTILL_LOG2E); }
/* the same bits whichever is a */
__device__ __forceinline__ row_softmax softmax_merge(const row_softmax &a, const row_softmax &b) {
  const float m = fmaxf(a.m, b.m);
  return {m, __fadd_rn(__fmul_rn(a.d, softmax_exp(a.m, m)), __fmul_rn(b.d, softmax_exp(b.m, m)))};
}
template <int N> __device__ __forceinline__ void softmax_push(row_softmax &s, const float (&z)[N]) {
  float c = z[0], d = 0.0f;
#pragma unroll
  for (int j = 1; j < N; j++) c = fmaxf(c, z[j]); /* a NaN loses here and is found by the sum */
  if (c > s.m) {
    s.d *= softmax_exp(s.m, c);
    s.m = c;
  }
#pragma unroll
  for (int j = 0; j < N; j++) d += softmax_exp(z[j], s.m);
  s.d += d;
}
/* Over `width` lanes (a power of two). All lanes call and hold the result. */
__device__ __forceinline__ row_softmax softmax_warp_merge(row_softmax s, int width) {
  for (int mask = width / 2; mask > 0; mask /= 2)
    s = softmax_merge(s, {gpu_shfl_xor(s.m, mask), gpu_shfl_xor(s.d, mask)});
  return s;
}
/* Over a block whose number of warps is a power of two. All threads call and hold the result. scratch: shared,
 * BLOCK_SCRATCH states, an array of its own for every call. */
__device__ __forceinline__ row_softmax softmax_block_merge(row_softmax s, row_softmax *scratch) {
  s = softmax_warp_merge(s, GPU_LANES);
  const int n_warps = ((int)blockDim.x + GPU_LANES - 1) / GPU_LANES;
  if (threadIdx.x % GPU_LANES == 0) scratch[threadIdx.x / GPU_LANES] = s;
  __syncthreads();
  return softmax_warp_merge(scratch[threadIdx.x & (n_warps - 1)], n_warps);
}
/* log of d; a row of nothing but -inf has none */
__device__ __forceinline__ float softmax_log_d(const row_softmax &s) {
  return s.d == 0.0f ? 0.0f : logf(s.d);
}

/* The second row of a walk: logits of the first's dtype, or a target whose dtype is known at run time. `aligned`: its
 * elements from cut.head on are whole vectors of 16 bytes. */
template <typename T> struct typed_row {
  const T *p;
  template <int M> __device__ __forceinline__ void load(float (&y)[M], int64_t col) const {
    unpack(y, load_vec<T, M>(p + col));
  }
};
struct any_row {
  const void *p;
  int64_t first;
  liger_dtype t;
  bool aligned;
  template <int M> __device__ __forceinline__ void load(float (&y)[M], int64_t col) const {
    load_as_f32<M>(y, p, first + col, t, aligned && M > 1);
  }
};

template <int M> __device__ __forceinline__ void divide(float (&z)[M], float temperature) {
  if (temperature != 1.0f) {
#pragma unroll
    for (int j = 0; j < M; j++) z[j] = z[j] / temperature;
  }
}

/* f(x, y, col) for all of the row's vectors and single elements, x and y arrays of fp32, in any order; back: from the
 * row's end. */
template <typename T, int N, class Y, class F>
__device__ __forceinline__ void walk_pair(const T *X, const Y &Yrow, const row_cut &cut, bool back,
                                          const F &f) {
  constexpr int U = 2;
  const int64_t tid = threadIdx.x, step = blockDim.x, tail_col = cut.head + cut.n_vecs * N;
  const auto one = [&](int64_t col) {
    float x[1], y[1];
    unpack(x, load_vec<T, 1>(X + col));
    Yrow.load(y, col);
    f(x, y, col);
  };
  if (tid < cut.head) one(tid);
  if (tid < cut.tail) one(tail_col + tid);
  const int64_t turns = cut.n_vecs / (U * step);
  const auto rest = [&]() { /* less than a turn; in the turns themselves nothing is asked between the loads */
                            for (int64_t i = turns * (U * step) + tid; i < cut.n_vecs; i += step) {
                              float x[N], y[N];
                              const int64_t col = cut.head + i * N;
                              unpack(x, load_vec<T, N>(X + col));
                              Yrow.load(y, col);
                              f(x, y, col);
                            }
  };
  if (back) rest();
  for (int64_t turn = 0; turn < turns; turn++) {
    const int64_t first = cut.head + ((back ? turns - 1 - turn : turn) * (U * step) + tid) * N;
    float x[U][N], y[U][N];
#pragma unroll
    for (int u = 0; u < U; u++) {
      unpack(x[u], load_vec<T, N>(X + first + u * step * N));
      Yrow.load(y[u], first + u * step * N);
    }
#pragma unroll
    for (int u = 0; u < U; u++) f(x[u], y[u], first + u * step * N);
  }
  if (!back) rest();
}

/* x, y: the log-probabilities of logits */
struct log_softmax_pair {
  row_softmax sx, sy;
  float x_log_d, y_log_d, temperature;
  template <int M> __device__ __forceinline__ void operator()(float (&x)[M], float (&y)[M]) const {
    divide(x, temperature);
    divide(y, temperature);
#pragma unroll
    for (int j = 0; j < M; j++) {
      x[j] = (x[j] - sx.m) - x_log_d;
      y[j] = (y[j] - sy.m) - y_log_d;
    }
  }
};

struct nothing_else {
  template <int M> __device__ __forceinline__ void operator()(const float (&)[M], int64_t) const {}
};
/* The statistics of both rows of logits. The whole block calls; scratch: two arrays of BLOCK_SCRATCH; also: sees X's
 * logits as they are, and their column. */
template <typename T, int N, class F = nothing_else>
__device__ __forceinline__ log_softmax_pair softmax_of_pair(const T *X, const T *Y, const row_cut &cut,
                                                            float temperature,
                                                            row_softmax (*scratch)[BLOCK_SCRATCH],
                                                            const F &also = F()) {
  log_softmax_pair r = {softmax_nothing(), softmax_nothing(), 0.0f, 0.0f, temperature};
  walk_pair<T, N>(X, typed_row<T>{Y}, cut, false, [&](auto &x, auto &y, int64_t col) {
    also(x, col);
    divide(x, temperature);
    divide(y, temperature);
    softmax_push(r.sx, x);
    softmax_push(r.sy, y);
  });
  r.sx = softmax_block_merge(r.sx, scratch[0]);
  r.sy = softmax_block_merge(r.sy, scratch[1]);
  r.x_log_d = softmax_log_d(r.sx);
  r.y_log_d = softmax_log_d(r.sy);
  return r;
}

/* the column's vector of dX */
template <typename T, int M>
__device__ __forceinline__ void store_gradient(T *dX, int64_t col, const float (&d)[M]) {
  store_vec<T, M>(dX + col, pack<T, M>(d));
}
} // namespace
#endif
