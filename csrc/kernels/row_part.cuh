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
} // namespace
#endif
