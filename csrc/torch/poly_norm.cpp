// Glue of poly_norm: schema, checks, allocation, launch.
#include "norm_torch.h"

using liger::Arg;
using torch::stable::Tensor;

namespace {
// weight (3) and bias (1) of any float dtype
Arg check_values(const char *op, const Tensor &t, const char *name, const Arg &x, int64_t n,
                 const char *what) {
  const Arg a(t, name);
  liger::check_device(op, a, x);
  liger::check_float(op, a);
  liger::check_vector(op, a, n, what);
  return liger::dense(a);
}

std::tuple<Tensor, Tensor> poly_norm_fwd(const Tensor &x_, const Tensor &weight, const Tensor &bias,
                                         double eps) {
  const char *op = "poly_norm_fwd";
  const Arg x(x_, "x");
  const liger_dtype x_dtype = liger::check_float(op, x);
  if (x.dim < 1) liger::fail(op, "x has no dimension, expected at least one");
  const Arg w = check_values(op, weight, "weight", x, 3, "of the third, second and first power");
  const Arg b = check_values(op, bias, "bias", x, 1, "one number");
  const liger::Scope scope(x);
  const liger::Rows rx = liger::rows(x);
  const Tensor y = liger::empty_like(x);
  const int64_t sizes[2] = {rx.n_rows, 3};
  const Tensor rstd = liger::empty(sizes, 2, liger::accum_dtype(x), x);

  liger_poly_norm_fwd_args a{};
  a.Y = liger::ptr(y);
  a.rstd = liger::ptr(rstd);
  a.X = rx.ptr;
  a.W = w.ptr;
  a.b = b.ptr;
  a.n_rows = rx.n_rows;
  a.n_cols = rx.n_cols;
  a.X_row_stride = rx.row_stride;
  a.eps = eps;
  a.x_dtype = x_dtype;
  a.w_dtype = liger::check_float(op, w);
  a.b_dtype = liger::check_float(op, b);
  liger::launch(op, LIGER_FN(poly_norm_fwd), a, scope, rx.n_rows, rx.n_cols);
  return {y, rstd};
}

std::tuple<Tensor, Tensor, Tensor> poly_norm_bwd(const Tensor &dy_, const Tensor &x_, const Tensor &weight,
                                                 const Tensor &bias, const Tensor &rstd_, bool needs_dw,
                                                 bool needs_db) {
  const char *op = "poly_norm_bwd";
  const Arg x(x_, "x"), dy(dy_, "dy"), rstd(rstd_, "rstd");
  const liger_dtype x_dtype = liger::check_float(op, x);
  liger::check_device(op, dy, x);
  liger::check_device(op, rstd, x);
  liger::check_same_dtype(op, dy, x);
  liger::check_same_shape(op, dy, x);
  const Arg w = check_values(op, weight, "weight", x, 3, "of the third, second and first power");
  const Arg b = check_values(op, bias, "bias", x, 1, "one number");
  const liger::Scope scope(x);
  const liger::Rows rx = liger::rows(x), rdy = liger::rows(dy);
  if (rstd.numel() != 3 * rx.n_rows || rstd.raw_dtype != liger::accum_dtype(x) || !liger::is_dense(rstd))
    liger::fail(op, "rstd has shape ", rstd.shape(), ", expected what the forward gave");
  const int64_t n_blocks = LIGER_BWD_BLOCKS(poly_norm, rx, x_dtype);
  const Tensor dx = liger::empty_like(x);
  const Tensor dw = liger::empty_1d(needs_dw ? 3 : 0, w.raw_dtype, x);
  const Tensor db = liger::empty_1d(needs_db ? 1 : 0, b.raw_dtype, x);
  const bool any = needs_dw || needs_db;
  const Tensor workspace = liger::empty_1d(any ? 4 * n_blocks : 0, liger::accum_dtype(x), x);

  liger_poly_norm_bwd_args a{};
  a.dX = liger::ptr(dx);
  a.dW = needs_dw ? liger::ptr(dw) : nullptr;
  a.db = needs_db ? liger::ptr(db) : nullptr;
  a.workspace = any ? liger::ptr(workspace) : nullptr;
  a.dY = rdy.ptr;
  a.X = rx.ptr;
  a.W = w.ptr;
  a.rstd = rstd.ptr;
  a.n_rows = rx.n_rows;
  a.n_cols = rx.n_cols;
  a.dY_row_stride = rdy.row_stride;
  a.X_row_stride = rx.row_stride;
  a.n_blocks = n_blocks;
  a.x_dtype = x_dtype;
  a.w_dtype = liger::check_float(op, w);
  a.b_dtype = liger::check_float(op, b);
  liger::launch(op, LIGER_FN(poly_norm_bwd), a, scope, n_blocks,
                (rx.n_rows + n_blocks - 1) / n_blocks * rx.n_cols);
#if !LIGER_GPU
  if (any) liger::launch_whole(op, LIGER_FN(poly_norm_params), a, scope, 1);
#endif
  return {dx, dw, db};
}
} // namespace

#if !LIGER_GPU
STABLE_TORCH_LIBRARY_FRAGMENT(liger, m) {
  m.def("poly_norm_fwd(Tensor x, Tensor weight, Tensor bias, float eps) -> (Tensor y, Tensor rstd)");
  m.def("poly_norm_bwd(Tensor dy, Tensor x, Tensor weight, Tensor bias, Tensor rstd, bool needs_dw, bool "
        "needs_db) -> (Tensor dx, Tensor dweight, Tensor dbias)");
}
#endif
STABLE_TORCH_LIBRARY_IMPL(liger, LIGER_BACKEND, m) {
  m.impl("poly_norm_fwd", TORCH_BOX(&poly_norm_fwd));
  m.impl("poly_norm_bwd", TORCH_BOX(&poly_norm_bwd));
}
