// Glue of softmax: schema, checks, allocation, launch. The dimension is not moved: its elements are strided.
#include "softmax_torch.h"

using liger::Arg;
using torch::stable::Tensor;

namespace {
Tensor softmax_fwd(const Tensor &x_, int64_t dim) {
  const char *op = "softmax_fwd";
  const Arg x(x_, "x");
  const liger_dtype x_dtype = liger::check_float(op, x);
  dim = liger::check_dim(op, x, dim);
  const liger::Scope scope(x);
  const liger::DimRows rx = liger::rows_along(x, dim);
  Tensor y = liger::empty_like(x);

  liger_softmax_fwd_args a{};
  a.Y = liger::ptr(y);
  a.X = rx.ptr;
  a.n_rows = rx.n_rows;
  a.n_cols = rx.n_cols;
  a.n_inner = rx.n_inner;
  a.X_row_stride = rx.row_stride;
  a.x_dtype = x_dtype;
  liger::launch(op, LIGER_FN(softmax_fwd), a, scope, rx.tiles(), rx.tile_elements());
  return y;
}

Tensor softmax_bwd(const Tensor &dy_, const Tensor &y_, int64_t dim) {
  const char *op = "softmax_bwd";
  const Arg y(y_, "y"), dy(dy_, "dy");
  const liger_dtype x_dtype = liger::check_float(op, y);
  liger::check_device(op, dy, y);
  liger::check_same_dtype(op, dy, y);
  liger::check_same_shape(op, dy, y);
  dim = liger::check_dim(op, y, dim);
  const liger::Scope scope(y);
  const liger::DimRows ry = liger::rows_along(y, dim), rdy = liger::rows_along(dy, dim);
  Tensor dx = liger::empty_like(y);

  liger_softmax_bwd_args a{};
  a.dX = liger::ptr(dx);
  a.dY = rdy.ptr;
  a.Y = ry.ptr;
  a.n_rows = ry.n_rows;
  a.n_cols = ry.n_cols;
  a.n_inner = ry.n_inner;
  a.dY_row_stride = rdy.row_stride;
  a.Y_row_stride = ry.row_stride;
  a.x_dtype = x_dtype;
  liger::launch(op, LIGER_FN(softmax_bwd), a, scope, ry.tiles(), ry.tile_elements());
  return dx;
}
} // namespace

#if !LIGER_GPU
STABLE_TORCH_LIBRARY_FRAGMENT(liger, m) {
  m.def("softmax_fwd(Tensor x, int dim) -> Tensor");
  m.def("softmax_bwd(Tensor dy, Tensor y, int dim) -> Tensor");
}
#endif
STABLE_TORCH_LIBRARY_IMPL(liger, LIGER_BACKEND, m) {
  m.impl("softmax_fwd", TORCH_BOX(&softmax_fwd));
  m.impl("softmax_bwd", TORCH_BOX(&softmax_bwd));
}
