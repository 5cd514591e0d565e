/* A thread's part of a row for kernels that reduce a row and then go over it again: in registers where the row
 * fits, else read twice, by one body of code. */
#ifndef LIGER_ROW_PART_CUH
#define LIGER_ROW_PART_CUH
#include "norm.cuh"

namespace {
/* What a thread has of a row: NV vectors in registers, or (NV 0) a walk over memory. `each` calls f(k, x, dy)
 * with fp32 vectors; `put` stores what f returns in their place. */
template <typename T, int NV, int VEC> struct row_part {
  const T *X, *dY;
  int64_t n_cols;
  row_walk<(NV ? NV : 1), 32> at;
  vec<T, VEC> x[NV ? NV : 1], dy[NV ? NV : 1];

  __device__ __forceinline__ explicit row_part(int threads_per_row, int64_t n_cols)
      : X(nullptr), dY(nullptr), n_cols(n_cols), at(threads_per_row, n_cols, VEC) {}
  __device__ __forceinline__ int64_t col(int i) const {
    return NV ? (int64_t)(at.first_vec + i * 32) * VEC : ((int64_t)i * blockDim.x + threadIdx.x) * VEC;
  }
  /* how many vectors `each` visits */
  __device__ __forceinline__ int count() const {
    return NV ? NV : (int)((n_cols + (int64_t)blockDim.x * VEC - 1) / ((int64_t)blockDim.x * VEC));
  }
  __device__ __forceinline__ bool owns(int i) const { return NV ? at.owns(i) : col(i) < n_cols; }
  __device__ __forceinline__ void open(const T *x_row, const T *dy_row, bool live) {
    X = x_row;
    dY = dy_row;
    if constexpr (NV > 0) {
#pragma unroll
      for (int i = 0; i < NV; i++) {
        const bool mine = live && owns(i);
        float zeros[VEC] = {};
        x[i] = mine ? load_vec<T, VEC>(X + col(i)) : pack<T, VEC>(zeros);
        if (dY) dy[i] = mine ? load_vec<T, VEC>(dY + col(i)) : pack<T, VEC>(zeros);
      }
    }
  }
  __device__ __forceinline__ void get(int i, float (&v)[VEC], float (&g)[VEC]) const {
    if constexpr (NV > 0) {
      unpack(v, x[i]);
      if (dY) unpack(g, dy[i]);
    } else {
      unpack(v, load_vec<T, VEC>(X + col(i)));
      if (dY) unpack(g, load_vec<T, VEC>(dY + col(i)));
    }
  }
};

/* The rows of a persistent block on their way to its registers: X and dY of `left` rows from `row` on, every `step`th,
 * fetched ahead through a ring in shared memory, which has row_feed::bytes(threads). NV > 0. */
template <typename T, int NV, int VEC, int STAGES = 3> struct row_feed {
  typedef row_ring<NV, 32, STAGES, 2> ring_t;
  ring_t ring;
  const T *X, *dY;
  int64_t X_step, dY_step, left;
  int stage;
  static constexpr size_t bytes(int threads) { return ring_t::bytes(threads); }
  template <class Args>
  __device__ __forceinline__ row_feed(uint4 *shared, const row_part<T, NV, VEC> &part, const Args &a,
                                      int64_t row, int64_t step, int64_t left)
      : ring(shared), X((const T *)a.X + row * a.X_row_stride + part.col(0)),
        dY((const T *)a.dY + row * a.dY_row_stride + part.col(0)), X_step(step * a.X_row_stride),
        dY_step(step * a.dY_row_stride), left(left), stage(0) {
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) fetch(s, part);
  }
  __device__ __forceinline__ void fetch(int to, const row_part<T, NV, VEC> &part) {
    ring.fetch(to, 0, X, left > 0, part.at);
    ring.fetch(to, 1, dY, left > 0, part.at);
    gpu_copy_commit();
    X += X_step;
    dY += dY_step;
    left--;
  }
  /* the next row, or zeros where there is none, becomes what `part` has */
  __device__ __forceinline__ void next(row_part<T, NV, VEC> &part) {
    fetch(stage == 0 ? STAGES - 1 : stage - 1, part);
    gpu_copy_wait<STAGES - 1>();
    part.dY = dY; /* there is one */
#pragma unroll
    for (int i = 0; i < NV; i++) {
      part.x[i] = ring.template read<T>(stage, 0, i);
      part.dy[i] = ring.template read<T>(stage, 1, i);
    }
    stage = stage == STAGES - 1 ? 0 : stage + 1;
  }
};
/* a kernel that walks over memory has none */
template <typename T, int VEC, int STAGES> struct row_feed<T, 0, VEC, STAGES> {
  static constexpr size_t bytes(int) { return 0; }
  template <class Args>
  __device__ __forceinline__ row_feed(uint4 *, const row_part<T, 0, VEC> &, const Args &, int64_t, int64_t,
                                      int64_t) {}
  __device__ __forceinline__ void next(row_part<T, 0, VEC> &) {}
};
} // namespace
#endif
