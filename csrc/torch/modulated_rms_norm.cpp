// Glue of modulated_rms_norm: schema, checks, allocation, launch.
#include "norm_torch.h"

using liger::Arg;
using torch::stable::Tensor;

namespace {
// scale, or shift, as rows whose number divides that of x
liger::Rows modulation(const char *op, const Arg &m, const Arg &x, int64_t n_rows) {
  liger::check_device(op, m, x);
  liger::check_float(op, m);
  if (m.dim < 1 || m.last() != x.last())
    liger::fail(op, m.name, " has shape ", m.shape(), ", expected a last size of ", x.last(), ", as x");
  const liger::Rows r = liger::rows(m);
  if (n_rows && (r.n_rows < 1 || n_rows % r.n_rows))
    liger::fail(op, m.name, " has shape ", m.shape(), ", which is ", r.n_rows,
                " rows, expected a divisor of the ", n_rows, " rows of x");
  return r;
}
template <class Args>
void fill(const char *op, Args &a, const liger::Rows &rx, const liger::Rows &scale, const Arg &scale_arg,
          const std::optional<Arg> &w, double offset, liger_dtype x_dtype) {
  a.X = rx.ptr;
  a.W = w ? w->ptr : nullptr;
  a.scale = scale.ptr;
  a.n_rows = rx.n_rows;
  a.n_cols = rx.n_cols;
  a.n_modulations = scale.n_rows;
  a.X_row_stride = rx.row_stride;
  a.scale_row_stride = scale.row_stride;
  a.offset = offset;
  a.x_dtype = x_dtype;
  a.w_dtype = liger::dtype_or(op, w, x_dtype);
  a.scale_dtype = liger::check_float(op, scale_arg);
}

std::tuple<Tensor, Tensor> modulated_rms_norm_fwd(const Tensor &x_, const std::optional<Tensor> &weight,
                                                  const Tensor &scale_, const std::optional<Tensor> &shift_,
                                                  double eps, double offset, int64_t casting) {
  const char *op = "modulated_rms_norm_fwd";
  const Arg x(x_, "x"), scale(scale_, "scale"), shift(shift_ ? *shift_ : scale_, shift_ ? "shift" : "scale");
  const liger_dtype x_dtype = liger::check_float(op, x);
  if (x.dim < 1) liger::fail(op, "x has no dimension, expected at least one");
  liger::check_casting(op, casting);
  const std::optional<Arg> w = liger::check_param(op, weight, "weight", x);
  const liger::Scope scope(x);
  const liger::Rows rx = liger::rows(x), rscale = modulation(op, scale, x, rx.n_rows),
                    rshift = modulation(op, shift, x, rx.n_rows);
  liger::check_same_shape(op, shift, scale);
  const Tensor y = liger::empty_like(x), rstd = liger::empty_1d(rx.n_rows, liger::accum_dtype(x), x);

  liger_modulated_rms_norm_fwd_args a{};
  fill(op, a, rx, rscale, scale, w, offset, x_dtype);
  a.Y = liger::ptr(y);
  a.rstd = liger::ptr(rstd);
  a.shift = shift_ ? rshift.ptr : nullptr;
  a.shift_row_stride = rshift.row_stride;
  a.shift_dtype = liger::check_float(op, shift);
  a.eps = eps;
  a.casting = (int)casting;
  liger::launch(op, LIGER_FN(modulated_rms_norm_fwd), a, scope, rx.n_rows, rx.n_cols);
  return {y, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> modulated_rms_norm_bwd(
    const Tensor &dy_, const Tensor &x_, const std::optional<Tensor> &weight, const Tensor &scale_,
    const std::optional<Tensor> &shift_, const Tensor &rstd_, double offset, bool needs_dw, bool needs_dscale,
    bool needs_dshift) {
  const char *op = "modulated_rms_norm_bwd";
  const Arg x(x_, "x"), dy(dy_, "dy"), rstd(rstd_, "rstd"), scale(scale_, "scale"),
      shift(shift_ ? *shift_ : scale_, shift_ ? "shift" : "scale");
  const liger_dtype x_dtype = liger::check_float(op, x);
  liger::check_device(op, dy, x);
  liger::check_same_dtype(op, dy, x);
  liger::check_same_shape(op, dy, x);
  const std::optional<Arg> w = liger::check_param(op, weight, "weight", x);
  needs_dw = needs_dw && w;
  needs_dshift = needs_dshift && shift_;
  const liger::Scope scope(x);
  const liger::Rows rx = liger::rows(x), rdy = liger::rows(dy), rscale = modulation(op, scale, x, rx.n_rows);
  liger::check_statistic(op, rstd, x, rx.n_rows);
  const int64_t n_blocks = LIGER_FN(modulated_rms_norm_bwd_blocks)(rx.n_rows, rx.n_cols, rscale.n_rows,
                                                                   x_dtype);
  const Tensor dx = liger::empty_like(x), nothing = liger::empty_1d(0, scale.raw_dtype, x);
  const Tensor dw = liger::empty_1d(needs_dw ? rx.n_cols : 0, w ? w->raw_dtype : x.raw_dtype, x);
  const Tensor dscale = needs_dscale ? liger::empty_like(scale) : nothing;
  const Tensor dshift = needs_dshift ? liger::empty_like(shift) : liger::empty_1d(0, shift.raw_dtype, x);
  const Tensor workspace = liger::empty_1d(3 * n_blocks * rx.n_cols, liger::accum_dtype(x), x);

  liger_modulated_rms_norm_bwd_args a{};
  fill(op, a, rx, rscale, scale, w, offset, x_dtype);
  a.dX = liger::ptr(dx);
  a.dW = needs_dw ? liger::ptr(dw) : nullptr;
  a.dscale = needs_dscale ? liger::ptr(dscale) : nullptr;
  a.dshift = needs_dshift ? liger::ptr(dshift) : nullptr;
  a.workspace = liger::ptr(workspace);
  a.dY = rdy.ptr;
  a.rstd = rstd.ptr;
  a.dY_row_stride = rdy.row_stride;
  a.n_blocks = n_blocks;
  a.shift_dtype = liger::check_float(op, shift);
  liger::launch(op, LIGER_FN(modulated_rms_norm_bwd), a, scope, n_blocks,
                (rx.n_rows + n_blocks - 1) / n_blocks * rx.n_cols);
#if !LIGER_GPU
  liger::launch(op, LIGER_FN(modulated_rms_norm_params), a, scope, rx.n_cols, n_blocks);
#endif
  return {dx, dw, dscale, dshift};
}
} // namespace

#if !LIGER_GPU
STABLE_TORCH_LIBRARY_FRAGMENT(liger, m) {
  m.def(
      "modulated_rms_norm_fwd(Tensor x, Tensor? weight, Tensor scale, Tensor? shift, float eps, float offset,"
      " int casting) -> (Tensor y, Tensor rstd)");
  m.def(
      "modulated_rms_norm_bwd(Tensor dy, Tensor x, Tensor? weight, Tensor scale, Tensor? shift, Tensor rstd,"
      " float offset, bool needs_dw, bool needs_dscale, bool needs_dshift)"
      " -> (Tensor dx, Tensor dweight, Tensor dscale, Tensor dshift)");
}
#endif
STABLE_TORCH_LIBRARY_IMPL(liger, LIGER_BACKEND, m) {
  m.impl("modulated_rms_norm_fwd", TORCH_BOX(&modulated_rms_norm_fwd));
  m.impl("modulated_rms_norm_bwd", TORCH_BOX(&modulated_rms_norm_bwd));
}
