/* What the paths of softmax share: the running statistics of a row, and a row (or a cluster's slice of
 * one) held in registers and shared memory between its two uses. The equations stand at
 * liger_softmax_fwd_args. */
#ifndef LIGER_SOFTMAX_CUH
#define LIGER_SOFTMAX_CUH
#include "cross_entropy.cuh"

/* The path that holds a row in the registers of a cluster. False: this device, build, width or alignment
 * is not its; nothing was launched. */
bool liger_internal_softmax_fwd_cluster(const liger_softmax_fwd_args *a, gpu_stream stream,
                                        liger_status *status);
bool liger_internal_softmax_bwd_cluster(const liger_softmax_bwd_args *a, gpu_stream stream,
                                        liger_status *status);

namespace {
constexpr int SOFTMAX_NV = 8; /* vectors of a row that a thread holds */
constexpr int SOFTMAX_MAX_THREADS = 1024;

/* m: the largest element, d: sum of e^(z - m). Exponents are differences to m first, so that the largest
 * element counts exactly 1 and a one-hot row is exact. Merged by cross_entropy.cuh's trees, which find
 * these by their names. */
struct softmax_state {
  float m, d;
};
__device__ __forceinline__ softmax_state softmax_nothing() { return {CE_LOWEST, 0.0f}; }
__device__ __forceinline__ float softmax_exp(float z, float m) { return gpu_exp2((z - m) * LOG2E); }
/* the same bits whichever is a */
__device__ __forceinline__ softmax_state ce_merge(const softmax_state &a, const softmax_state &b) {
  const float m = fmaxf(a.m, b.m);
  return {m, __fadd_rn(__fmul_rn(a.d, softmax_exp(a.m, m)), __fmul_rn(b.d, softmax_exp(b.m, m)))};
}
__device__ __forceinline__ softmax_state ce_shuffle(const softmax_state &s, int mask) {
  return {gpu_shfl_xor(s.m, mask), gpu_shfl_xor(s.d, mask)};
}
template <int U, int N>
__device__ __forceinline__ void softmax_push(softmax_state &s, const float (&z)[U][N]) {
  float c = z[0][0], d = 0.0f;
#pragma unroll
  for (int u = 0; u < U; u++)
#pragma unroll
    for (int j = 0; j < N; j++) c = fmaxf(c, z[u][j]); /* a NaN loses here and is found by the sum */
  if (c > s.m) {
    s.d *= softmax_exp(s.m, c);
    s.m = c;
  }
#pragma unroll
  for (int u = 0; u < U; u++)
#pragma unroll
    for (int j = 0; j < N; j++) d += softmax_exp(z[u][j], s.m);
  s.d += d;
}
template <typename T, int N>
__device__ __forceinline__ vec<T, N> softmax_of(const vec<T, N> &x, float m, float scale) {
  float z[N];
  unpack(z, x);
#pragma unroll
  for (int j = 0; j < N; j++) z[j] = softmax_exp(z[j], m) * scale;
  return pack<T, N>(z);
}
template <typename T, int N>
__device__ __forceinline__ float softmax_dot(float s, const vec<T, N> &dy, const vec<T, N> &y) {
  float g[N], p[N];
  unpack(g, dy);
  unpack(p, y);
#pragma unroll
  for (int j = 0; j < N; j++) s = fmaf(g[j], p[j], s);
  return s;
}
template <typename T, int N>
__device__ __forceinline__ vec<T, N> softmax_dx(const vec<T, N> &dy, const vec<T, N> &y, float sum) {
  float g[N], p[N];
  unpack(g, dy);
  unpack(p, y);
#pragma unroll
  for (int j = 0; j < N; j++) g[j] = p[j] * (g[j] - sum);
  return pack<T, N>(g);
}

/* ---- a row, or a slice of it, of n_vecs vectors, held by its threads ---------------------------------------
 * A thread owns NV vectors, CHUNK apart, as in row_walk; the number of threads is a multiple of CHUNK. X, Y
 * and the others point to the row's first element. All threads call, with n_vecs 0 where they have no row. */
template <int NV> struct softmax_chunk {
  static constexpr int value = NV == SOFTMAX_NV ? 16 : 8;
};
template <int NV> __device__ __forceinline__ int softmax_first(int lane) {
  constexpr int CHUNK = softmax_chunk<NV>::value;
  return lane / CHUNK * (CHUNK * NV) + lane % CHUNK;
}

/* Between the two uses of a vector it stays packed: nvcc would keep its fp32 values, which take twice the
 * registers, so to it the words have changed. */
template <typename T, int N>
__device__ __forceinline__ void softmax_keep_packed([[maybe_unused]] vec<T, N> &x) {
#if !LIGER_HIP
  if constexpr (N * sizeof(T) == 16 && sizeof(T) == 2) {
    uint32_t words[4];
    __builtin_memcpy(words, &x, 16);
#pragma unroll
    for (int i = 0; i < 4; i++) asm("" : "+r"(words[i]));
    __builtin_memcpy(&x, words, 16);
  }
#endif
}

/* merge(state): the state of all threads that share the row */
template <typename T, int N, int NV, class Merge>
__device__ __forceinline__ void softmax_fwd_part(T *Y, const T *X, int lane, int n_vecs, Merge merge) {
  constexpr int CHUNK = softmax_chunk<NV>::value, NEXT = CHUNK * N;
  constexpr int HELD = N * NV <= 16 ? NV : 16 / N; /* vectors unpacked at once: 16 registers */
  const int first = softmax_first<NV>(lane), left = n_vecs - first;
  X += (int64_t)first * N;
  Y += (int64_t)first * N;
  vec<T, N> x[NV];
#pragma unroll
  for (int i = 0; i < NV; i++) {
    if (i * CHUNK < left) {
      x[i] = load_vec<T, N>(X + i * NEXT);
    } else {
#pragma unroll
      for (int j = 0; j < N; j++) from_f32(x[i].v[j], -INFINITY);
    }
  }
  softmax_state s = softmax_nothing();
#pragma unroll
  for (int i = 0; i < NV; i += HELD) {
    float z[HELD][N];
#pragma unroll
    for (int u = 0; u < HELD; u++) unpack(z[u], x[i + u]);
    softmax_push(s, z);
  }
  s = merge(s);
  const float scale = 1.0f / s.d; /* nothing but -inf: inf times 0, the NaN that torch gives */
#pragma unroll
  for (int i = 0; i < NV; i++) {
    softmax_keep_packed(x[i]);
    if (i * CHUNK < left) store_vec<T, N>(Y + i * NEXT, softmax_of(x[i], s.m, scale));
  }
}

/* dY stays in registers. Y, if vectors have 16 bytes, waits in the thread's own `slots` of shared memory,
 * `threads` apart: both in registers would leave room for half the rows. sum(v): over all threads that
 * share the row. */
template <typename T, int N, int NV, class Sum>
__device__ __forceinline__ void softmax_bwd_part(T *dX, const T *dY, const T *Y, int lane, int n_vecs,
                                                 uint4 *slots, Sum sum) {
  constexpr int CHUNK = softmax_chunk<NV>::value, NEXT = CHUNK * N;
  constexpr bool SHARED = N * sizeof(T) == 16;
  const int first = softmax_first<NV>(lane), left = n_vecs - first;
  Y += (int64_t)first * N;
  dY += (int64_t)first * N;
  dX += (int64_t)first * N;
  vec<T, N> dy[NV], held[SHARED ? 1 : NV];
#pragma unroll
  for (int i = 0; i < NV; i++) {
    if constexpr (SHARED) gpu_copy_async(slots + i * CHUNK, Y + i * NEXT, i * CHUNK < left);
    else if (i * CHUNK < left) held[i] = load_vec<T, N>(Y + i * NEXT);
  }
  gpu_copy_commit();
#pragma unroll
  for (int i = 0; i < NV; i++)
    if (i * CHUNK < left) dy[i] = load_vec<T, N>(dY + i * NEXT);
  gpu_copy_wait<0>();
  const auto y = [&](int i) {
    if constexpr (SHARED) {
      vec<T, N> v;
      __builtin_memcpy(&v, slots + i * CHUNK, 16);
      return v;
    } else {
      return held[i];
    }
  };
  float s = 0.0f;
#pragma unroll
  for (int i = 0; i < NV; i++)
    if (i * CHUNK < left) s = softmax_dot(s, dy[i], y(i));
  s = sum(s);
#pragma unroll
  for (int i = 0; i < NV; i++)
    if (i * CHUNK < left) store_vec<T, N>(dX + i * NEXT, softmax_dx(dy[i], y(i), s));
}

/* the fewest threads, a power of two and at least `least`, that hold n_vecs vectors at nv each */
inline int softmax_threads(int64_t n_vecs, int nv, int least) {
  int threads = least;
  while ((int64_t)threads * nv < n_vecs) threads *= 2;
  return threads;
}
} // namespace
#endif
