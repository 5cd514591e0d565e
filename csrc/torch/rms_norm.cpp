// Glue of rms_norm: schema, checks, allocation, launch.
#include "liger_torch.h"

using liger::Arg;
using torch::stable::Tensor;

namespace {
std::optional<Arg> check_weight(const char *op, const std::optional<Tensor> &weight, const Arg &x) {
  if (!weight) return std::nullopt;
  const Arg w(*weight, "weight");
  liger::check_device(op, w, x);
  liger::check_float(op, w);
  liger::check_vector(op, w, x.last(), "the last size of x");
  return liger::dense(w);
}

liger_dtype dtype_or(const char *op, const std::optional<Arg> &w, liger_dtype otherwise) {
  return w ? liger::check_float(op, *w) : otherwise;
}

std::tuple<Tensor, Tensor> rms_norm_fwd(const Tensor &x_, const std::optional<Tensor> &weight, double eps,
                                        double offset, int64_t casting) {
  const char *op = "rms_norm_fwd";
  const Arg x(x_, "x");
  const liger_dtype x_dtype = liger::check_float(op, x);
  if (x.dim < 1) liger::fail(op, "x has no dimension, expected at least one");
  if (casting < LIGER_CAST_NONE || casting > LIGER_CAST_GEMMA)
    liger::fail(op, "casting is ", casting, ", expected 0 (none), 1 (llama) or 2 (gemma)");
  const std::optional<Arg> w = check_weight(op, weight, x);
  const liger::Scope scope(x);
  const liger::Rows rx = liger::rows(x);
  Tensor y = liger::empty_like(x), rstd = liger::empty_1d(rx.n_rows, liger::accum_dtype(x), x);

  liger_rms_norm_fwd_args a{};
  a.Y = liger::ptr(y);
  a.rstd = liger::ptr(rstd);
  a.X = rx.ptr;
  a.W = w ? w->ptr : nullptr;
  a.n_rows = rx.n_rows;
  a.n_cols = rx.n_cols;
  a.X_row_stride = rx.row_stride;
  a.Y_row_stride = rx.n_cols;
  a.eps = eps;
  a.offset = offset;
  a.casting = (int)casting;
  a.x_dtype = x_dtype;
  a.w_dtype = dtype_or(op, w, x_dtype);
  liger::launch(op, LIGER_FN(rms_norm_fwd), a, scope, rx.n_rows, rx.n_cols);
  return {y, rstd};
}

std::tuple<Tensor, Tensor> rms_norm_bwd(const Tensor &dy_, const Tensor &x_,
                                        const std::optional<Tensor> &weight, const Tensor &rstd_,
                                        double offset, bool needs_dw) {
  const char *op = "rms_norm_bwd";
  const Arg x(x_, "x"), dy(dy_, "dy"), rstd(rstd_, "rstd");
  const liger_dtype x_dtype = liger::check_float(op, x);
  liger::check_device(op, dy, x);
  liger::check_device(op, rstd, x);
  liger::check_same_dtype(op, dy, x);
  liger::check_same_shape(op, dy, x);
  const std::optional<Arg> w = check_weight(op, weight, x);
  const liger::Scope scope(x);
  const liger::Rows rx = liger::rows(x), rdy = liger::rows(dy);
  liger::check_vector(op, rstd, rx.n_rows, "a value per row of x");
  if (rstd.raw_dtype != liger::accum_dtype(x))
    liger::fail(op, "rstd has dtype ", liger::dtype_name(rstd.raw_dtype),
                ", expected the dtype the forward gave it");

  needs_dw = needs_dw && w;
#if LIGER_GPU
  const int64_t n_blocks = liger_rms_norm_bwd_blocks_cuda(rx.n_rows, rx.n_cols, x_dtype);
#else
  const int64_t n_blocks = liger_rms_norm_bwd_blocks_cpu(rx.n_rows, rx.n_cols);
#endif
  Tensor dx = liger::empty_like(x);
  Tensor dw = liger::empty_1d(needs_dw ? rx.n_cols : 0, w ? w->raw_dtype : x.raw_dtype, x);
  Tensor partial = liger::empty_1d(needs_dw ? n_blocks * rx.n_cols : 0, liger::accum_dtype(x), x);

  liger_rms_norm_bwd_args a{};
  a.dX = liger::ptr(dx);
  a.dW = needs_dw ? liger::ptr(dw) : nullptr;
  a.dW_partial = needs_dw ? liger::ptr(partial) : nullptr;
  a.dY = rdy.ptr;
  a.X = rx.ptr;
  a.W = w ? w->ptr : nullptr;
  a.rstd = rstd.ptr;
  a.n_rows = rx.n_rows;
  a.n_cols = rx.n_cols;
  a.dY_row_stride = rdy.row_stride;
  a.X_row_stride = rx.row_stride;
  a.n_blocks = n_blocks;
  a.offset = offset;
  a.x_dtype = x_dtype;
  a.w_dtype = dtype_or(op, w, x_dtype);
  const int64_t rows_per_block = (rx.n_rows + n_blocks - 1) / n_blocks;
  liger::launch(op, LIGER_FN(rms_norm_bwd), a, scope, n_blocks, rows_per_block * rx.n_cols);
#if !LIGER_GPU
  if (needs_dw) liger::launch(op, LIGER_FN(rms_norm_dw), a, scope, rx.n_cols, n_blocks);
#endif
  return {dx, dw};
}
} // namespace

#if !LIGER_GPU
STABLE_TORCH_LIBRARY_FRAGMENT(liger, m) {
  m.def("rms_norm_fwd(Tensor x, Tensor? weight, float eps, float offset, int casting) -> (Tensor y, Tensor "
        "rstd)");
  m.def("rms_norm_bwd(Tensor dy, Tensor x, Tensor? weight, Tensor rstd, float offset, bool needs_dw)"
        " -> (Tensor dx, Tensor dweight)");
}
#endif
STABLE_TORCH_LIBRARY_IMPL(liger, LIGER_BACKEND, m) {
  m.impl("rms_norm_fwd", TORCH_BOX(&rms_norm_fwd));
  m.impl("rms_norm_bwd", TORCH_BOX(&rms_norm_bwd));
}
