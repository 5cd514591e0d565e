/* relu_squared   Y = max(X, 0)^2,   dX = dY * 2 max(X, 0)
 * Shapes         X Y dX dY (n_rows, n_cols), last dim contiguous; loop and plan in elementwise.cuh
 * Rounding       fp32 to the end, one rounding at the store
 * Floor          fwd 2*N*s bytes;  bwd 3*N*s    (N = n_rows*n_cols)
 * Source         arXiv:2109.08668; ReLUSquaredActivation in transformers */
#include "elementwise.cuh"

namespace {
/* a NaN stays one: x < 0 is false */
__device__ __forceinline__ float relu(float x) { return x < 0.0f ? 0.0f : x; }

struct relu_squared_fwd { /* Y from X */
  static constexpr int IN = 1, OUT = 1;
  template <bool EXACT> __device__ __forceinline__ void apply(const float (&x)[IN], float (&y)[OUT]) const {
    y[0] = relu(x[0]) * relu(x[0]);
  }
};
struct relu_squared_bwd { /* dX from X, dY */
  static constexpr int IN = 2, OUT = 1;
  template <bool EXACT> __device__ __forceinline__ void apply(const float (&x)[IN], float (&y)[OUT]) const {
    y[0] = x[1] * (2.0f * relu(x[0]));
  }
};
} // namespace

extern "C" liger_status liger_relu_squared_cuda(const liger_relu_squared_args *a, void *stream) {
  const liger_dtype t = a->x_dtype;
  if (a->dY) {
    const elementwise_args<2, 1> args = {{a->X, a->dY}, {a->Y},   {a->X_row_stride, a->dY_row_stride},
                                         {a->n_cols},   {t, t},   {t},
                                         a->n_rows,     a->n_cols};
    return launch_elementwise(args, relu_squared_bwd{}, stream);
  }
  const elementwise_args<1, 1> args = {{a->X}, {a->Y}, {a->X_row_stride}, {a->n_cols},
                                       {t},    {t},    a->n_rows,         a->n_cols};
  return launch_elementwise(args, relu_squared_fwd{}, stream);
}
