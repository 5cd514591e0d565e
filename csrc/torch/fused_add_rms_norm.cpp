// Glue of fused_add_rms_norm: schema, checks, allocation, launch.
#include "norm_torch.h"

using liger::Arg;
using torch::stable::Tensor;

namespace {
std::tuple<Tensor, Tensor, Tensor> fused_add_rms_norm_fwd(const Tensor &x_, const Tensor &residual,
                                                          const std::optional<Tensor> &weight, double eps,
                                                          double offset, int64_t casting) {
  const char *op = "fused_add_rms_norm_fwd";
  const Arg x(x_, "x"), r(residual, "residual");
  liger::check_device(op, r, x);
  const liger_dtype x_dtype = liger::check_float(op, x);
  liger::check_same_dtype(op, r, x);
  if (x.dim < 1) liger::fail(op, "x has no dimension, expected at least one");
  liger::check_same_shape(op, r, x);
  liger::check_casting(op, casting);
  const std::optional<Arg> w = liger::check_param(op, weight, "weight", x);
  const liger::Scope scope(x);
  const liger::Rows rx = liger::rows(x), rr = liger::rows(r);
  Tensor y = liger::empty_like(x), s = liger::empty_like(x),
         rstd = liger::empty_1d(rx.n_rows, liger::accum_dtype(x), x);

  liger_norm_fwd_args a{};
  a.Y = liger::ptr(y);
  a.S = liger::ptr(s);
  a.rstd = liger::ptr(rstd);
  a.X = rx.ptr;
  a.R = rr.ptr;
  a.W = w ? w->ptr : nullptr;
  a.n_rows = rx.n_rows;
  a.n_cols = rx.n_cols;
  a.X_row_stride = rx.row_stride;
  a.R_row_stride = rr.row_stride;
  a.Y_row_stride = rx.n_cols;
  a.eps = eps;
  a.offset = offset;
  a.casting = (int)casting;
  a.x_dtype = a.bias_dtype = x_dtype;
  a.w_dtype = liger::dtype_or(op, w, x_dtype);
  liger::launch(op, LIGER_FN(fused_add_rms_norm_fwd), a, scope, rx.n_rows, rx.n_cols);
  return {y, s, rstd};
}

std::tuple<Tensor, Tensor> fused_add_rms_norm_bwd(const Tensor &dy_, const std::optional<Tensor> &ds_,
                                                  const Tensor &s_, const std::optional<Tensor> &weight,
                                                  const Tensor &rstd_, double offset, bool needs_dw) {
  const char *op = "fused_add_rms_norm_bwd";
  const Arg s(s_, "s"), dy(dy_, "dy"), rstd(rstd_, "rstd"), ds(ds_ ? *ds_ : s_, "ds");
  const liger_dtype x_dtype = liger::check_float(op, s);
  for (const Arg *g : {&dy, &ds}) {
    liger::check_device(op, *g, s);
    liger::check_same_dtype(op, *g, s);
    liger::check_same_shape(op, *g, s);
  }
  const std::optional<Arg> w = liger::check_param(op, weight, "weight", s);
  const liger::Scope scope(s);
  const liger::Rows rs = liger::rows(s), rdy = liger::rows(dy), rds = liger::rows(ds);
  liger::check_statistic(op, rstd, s, rs.n_rows);

  const int64_t n_blocks = LIGER_BWD_BLOCKS(fused_add_rms_norm, rs, x_dtype);
  Tensor dx = liger::empty_like(s);
  const liger::ParamGrad dw(needs_dw, w, n_blocks, rs.n_cols, s);

  liger_norm_bwd_args a{};
  a.dX = liger::ptr(dx);
  a.dW = dw.grad_ptr();
  a.dW_partial = dw.partial_ptr();
  a.dY = rdy.ptr;
  a.dS = ds_ ? rds.ptr : nullptr;
  a.X = rs.ptr;
  a.W = w ? w->ptr : nullptr;
  a.rstd = rstd.ptr;
  a.n_rows = rs.n_rows;
  a.n_cols = rs.n_cols;
  a.dY_row_stride = rdy.row_stride;
  a.dS_row_stride = rds.row_stride;
  a.X_row_stride = rs.row_stride;
  a.n_blocks = n_blocks;
  a.offset = offset;
  a.x_dtype = a.bias_dtype = x_dtype;
  a.w_dtype = liger::dtype_or(op, w, x_dtype);
  const int64_t rows_per_block = (rs.n_rows + n_blocks - 1) / n_blocks;
  liger::launch(op, LIGER_FN(fused_add_rms_norm_bwd), a, scope, n_blocks, rows_per_block * rs.n_cols);
#if !LIGER_GPU
  if (dw.wanted) liger::launch(op, LIGER_FN(fused_add_rms_norm_params), a, scope, rs.n_cols, n_blocks);
#endif
  return {dx, dw.grad};
}
} // namespace

#if !LIGER_GPU
STABLE_TORCH_LIBRARY_FRAGMENT(liger, m) {
  m.def("fused_add_rms_norm_fwd(Tensor x, Tensor residual, Tensor? weight, float eps, float offset,"
        " int casting) -> (Tensor y, Tensor s, Tensor rstd)");
  m.def("fused_add_rms_norm_bwd(Tensor dy, Tensor? ds, Tensor s, Tensor? weight, Tensor rstd, float offset,"
        " bool needs_dw) -> (Tensor dx, Tensor dweight)");
}
#endif
STABLE_TORCH_LIBRARY_IMPL(liger, LIGER_BACKEND, m) {
  m.impl("fused_add_rms_norm_fwd", TORCH_BOX(&fused_add_rms_norm_fwd));
  m.impl("fused_add_rms_norm_bwd", TORCH_BOX(&fused_add_rms_norm_bwd));
}
