// Glue of sparsemax: schema, checks, allocation, launch. Rows of the last dimension;
// ops/sparsemax.py moves another there.
#include "liger_torch.h"

using liger::Arg;
using torch::stable::Tensor;

namespace {
Tensor sparsemax_fwd(const Tensor &x_) {
  const char *op = "sparsemax_fwd";
  const Arg x(x_, "x");
  const liger_dtype x_dtype = liger::check_float(op, x);
  if (x.dim < 1) liger::fail(op, "x has no dimension, expected at least one");
  const liger::Scope scope(x);
  const liger::Rows rx = liger::rows(x);
  Tensor y = liger::empty_like(x);

  liger_softmax_fwd_args a{};
  a.Y = liger::ptr(y);
  a.X = rx.ptr;
  a.n_rows = rx.n_rows;
  a.n_cols = rx.n_cols;
  a.n_inner = 1;
  a.X_row_stride = rx.row_stride;
  a.x_dtype = x_dtype;
  liger::launch(op, LIGER_FN(sparsemax_fwd), a, scope, rx.n_rows, rx.n_cols);
  return y;
}

Tensor sparsemax_bwd(const Tensor &dy_, const Tensor &y_) {
  const char *op = "sparsemax_bwd";
  const Arg y(y_, "y"), dy(dy_, "dy");
  const liger_dtype x_dtype = liger::check_float(op, y);
  liger::check_device(op, dy, y);
  liger::check_same_dtype(op, dy, y);
  if (y.dim < 1) liger::fail(op, "y has no dimension, expected at least one");
  liger::check_same_shape(op, dy, y);
  const liger::Scope scope(y);
  const liger::Rows ry = liger::rows(y), rdy = liger::rows(dy);
  Tensor dx = liger::empty_like(y);

  liger_softmax_bwd_args a{};
  a.dX = liger::ptr(dx);
  a.dY = rdy.ptr;
  a.Y = ry.ptr;
  a.n_rows = ry.n_rows;
  a.n_cols = ry.n_cols;
  a.n_inner = 1;
  a.dY_row_stride = rdy.row_stride;
  a.Y_row_stride = ry.row_stride;
  a.x_dtype = x_dtype;
  liger::launch(op, LIGER_FN(sparsemax_bwd), a, scope, ry.n_rows, ry.n_cols);
  return dx;
}
} // namespace

#if !LIGER_GPU
STABLE_TORCH_LIBRARY_FRAGMENT(liger, m) {
  m.def("sparsemax_fwd(Tensor x) -> Tensor");
  m.def("sparsemax_bwd(Tensor dy, Tensor y) -> Tensor");
}
#endif
STABLE_TORCH_LIBRARY_IMPL(liger, LIGER_BACKEND, m) {
  m.impl("sparsemax_fwd", TORCH_BOX(&sparsemax_fwd));
  m.impl("sparsemax_bwd", TORCH_BOX(&sparsemax_bwd));
}
