// Glue of relu_squared: schema, checks, allocation, launch.
#include "elementwise_torch.h"

using liger::Arg;
using torch::stable::Tensor;

namespace {
Tensor run(const char *op, const Tensor *dy_, const Tensor &x_) {
  const Arg x(x_, "x"), dy(dy_ ? *dy_ : x_, dy_ ? "dy" : "x");
  liger::check_device(op, dy, x);
  const liger_dtype x_dtype = liger::check_float(op, x);
  liger::check_same_dtype(op, dy, x);
  liger::check_same_shape(op, dy, x);
  const liger::Scope scope(x);
  const liger::Rows rx = liger::rows(x), rdy = dy_ ? liger::rows(dy) : rx;
  const Tensor y = liger::empty_like(x);

  liger_relu_squared_args a{};
  liger::set_sizes(a, rx, liger::is_flat(rx) && liger::is_flat(rdy));
  a.Y = liger::ptr(y);
  a.dY = dy_ ? rdy.ptr : nullptr;
  a.X = rx.ptr;
  a.dY_row_stride = rdy.row_stride;
  a.X_row_stride = rx.row_stride;
  a.x_dtype = x_dtype;
  liger::launch_tiles(op, LIGER_FN(relu_squared), a, scope);
  return y;
}
Tensor relu_squared_fwd(const Tensor &x) { return run("relu_squared_fwd", nullptr, x); }
Tensor relu_squared_bwd(const Tensor &dy, const Tensor &x) { return run("relu_squared_bwd", &dy, x); }
} // namespace

#if !LIGER_GPU
STABLE_TORCH_LIBRARY_FRAGMENT(liger, m) {
  m.def("relu_squared_fwd(Tensor x) -> Tensor");
  m.def("relu_squared_bwd(Tensor dy, Tensor x) -> Tensor");
}
#endif
STABLE_TORCH_LIBRARY_IMPL(liger, LIGER_BACKEND, m) {
  m.impl("relu_squared_fwd", TORCH_BOX(&relu_squared_fwd));
  m.impl("relu_squared_bwd", TORCH_BOX(&relu_squared_bwd));
}
