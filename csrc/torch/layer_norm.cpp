// Glue of layer_norm: schema, checks, allocation, launch.
#include "norm_torch.h"

using liger::Arg;
using torch::stable::Tensor;

namespace {
std::tuple<Tensor, Tensor, Tensor> layer_norm_fwd(const Tensor &x_, const std::optional<Tensor> &weight,
                                                  const std::optional<Tensor> &bias, double eps) {
  const char *op = "layer_norm_fwd";
  const Arg x(x_, "x");
  const liger_dtype x_dtype = liger::check_float(op, x);
  if (x.dim < 1) liger::fail(op, "x has no dimension, expected at least one");
  const std::optional<Arg> w = liger::check_param(op, weight, "weight", x);
  const std::optional<Arg> b = liger::check_param(op, bias, "bias", x);
  const liger::Scope scope(x);
  const liger::Rows rx = liger::rows(x);
  Tensor y = liger::empty_like(x), mean = liger::empty_1d(rx.n_rows, liger::accum_dtype(x), x),
         rstd = liger::empty_1d(rx.n_rows, liger::accum_dtype(x), x);

  liger_norm_fwd_args a{};
  a.Y = liger::ptr(y);
  a.mean = liger::ptr(mean);
  a.rstd = liger::ptr(rstd);
  a.X = rx.ptr;
  a.W = w ? w->ptr : nullptr;
  a.bias = b ? b->ptr : nullptr;
  a.n_rows = rx.n_rows;
  a.n_cols = rx.n_cols;
  a.X_row_stride = rx.row_stride;
  a.Y_row_stride = rx.n_cols;
  a.eps = eps;
  a.x_dtype = x_dtype;
  a.w_dtype = liger::dtype_or(op, w, x_dtype);
  a.bias_dtype = liger::dtype_or(op, b, x_dtype);
  liger::launch(op, LIGER_FN(layer_norm_fwd), a, scope, rx.n_rows, rx.n_cols);
  return {y, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_bwd(const Tensor &dy_, const Tensor &x_,
                                                  const std::optional<Tensor> &weight,
                                                  const std::optional<Tensor> &bias, const Tensor &mean_,
                                                  const Tensor &rstd_, bool needs_dw, bool needs_db) {
  const char *op = "layer_norm_bwd";
  const Arg x(x_, "x"), dy(dy_, "dy"), mean(mean_, "mean"), rstd(rstd_, "rstd");
  const liger_dtype x_dtype = liger::check_float(op, x);
  liger::check_device(op, dy, x);
  liger::check_same_dtype(op, dy, x);
  liger::check_same_shape(op, dy, x);
  const std::optional<Arg> w = liger::check_param(op, weight, "weight", x);
  const std::optional<Arg> b = liger::check_param(op, bias, "bias", x);
  const liger::Scope scope(x);
  const liger::Rows rx = liger::rows(x), rdy = liger::rows(dy);
  liger::check_statistic(op, mean, x, rx.n_rows);
  liger::check_statistic(op, rstd, x, rx.n_rows);

  const int64_t n_blocks = LIGER_BWD_BLOCKS(layer_norm, rx, x_dtype);
  Tensor dx = liger::empty_like(x);
  const liger::ParamGrad dw(needs_dw, w, n_blocks, rx.n_cols, x), db(needs_db, b, n_blocks, rx.n_cols, x);

  liger_norm_bwd_args a{};
  a.dX = liger::ptr(dx);
  a.dW = dw.grad_ptr();
  a.dbias = db.grad_ptr();
  a.dW_partial = dw.partial_ptr();
  a.dbias_partial = db.partial_ptr();
  a.dY = rdy.ptr;
  a.X = rx.ptr;
  a.W = w ? w->ptr : nullptr;
  a.mean = mean.ptr;
  a.rstd = rstd.ptr;
  a.n_rows = rx.n_rows;
  a.n_cols = rx.n_cols;
  a.dY_row_stride = rdy.row_stride;
  a.X_row_stride = rx.row_stride;
  a.n_blocks = n_blocks;
  a.x_dtype = x_dtype;
  a.w_dtype = liger::dtype_or(op, w, x_dtype);
  a.bias_dtype = liger::dtype_or(op, b, x_dtype);
  const int64_t rows_per_block = (rx.n_rows + n_blocks - 1) / n_blocks;
  liger::launch(op, LIGER_FN(layer_norm_bwd), a, scope, n_blocks, rows_per_block * rx.n_cols);
#if !LIGER_GPU
  if (dw.wanted || db.wanted)
    liger::launch(op, LIGER_FN(layer_norm_params), a, scope, rx.n_cols, 2 * n_blocks);
#endif
  return {dx, dw.grad, db.grad};
}
} // namespace

#if !LIGER_GPU
STABLE_TORCH_LIBRARY_FRAGMENT(liger, m) {
  m.def("layer_norm_fwd(Tensor x, Tensor? weight, Tensor? bias, float eps)"
        " -> (Tensor y, Tensor mean, Tensor rstd)");
  m.def("layer_norm_bwd(Tensor dy, Tensor x, Tensor? weight, Tensor? bias, Tensor mean, Tensor rstd,"
        " bool needs_dw, bool needs_db) -> (Tensor dx, Tensor dweight, Tensor dbias)");
}
#endif
STABLE_TORCH_LIBRARY_IMPL(liger, LIGER_BACKEND, m) {
  m.impl("layer_norm_fwd", TORCH_BOX(&layer_norm_fwd));
  m.impl("layer_norm_bwd", TORCH_BOX(&layer_norm_bwd));
}
