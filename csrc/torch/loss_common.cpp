// Glue of what the losses share: scale_grad, the incoming gradient applied to a gradient that the forward
// saved.
#include "liger_torch.h"

using liger::Arg;
using torch::stable::Tensor;

namespace {
void scale(const char *op, const Arg &src, const Arg &scale, void *dst) {
  const liger_dtype x_dtype = liger::check_float(op, src), scale_dtype = liger::check_float(op, scale);
  liger::check_device(op, scale, src);
  if (scale_dtype != LIGER_F32 && scale_dtype != LIGER_F64)
    liger::fail(op, "scale has dtype ", liger::dtype_name(scale.raw_dtype), ", expected float32 or float64");
  const int64_t n = src.numel(), per_row = scale.dim == 1 && !(src.dim == 1 && scale.sizes[0] == 1);
  if (scale.dim > 1 || (per_row && (src.dim < 1 || scale.sizes[0] != src.sizes[0])))
    liger::fail(op, "scale has shape ", scale.shape(), ", expected one value or one per row of src ",
                src.shape());
  liger_scale_grad_args a{};
  a.dst = dst;
  a.src = src.ptr;
  a.scale = scale.ptr;
  // one scale for all: any even cut will do, so rows are as long as keeps every thread busy
  a.n_cols = per_row ? (src.sizes[0] ? n / src.sizes[0] : 0) : src.dim > 1 ? src.last() : 1;
  a.n_rows = a.n_cols ? n / a.n_cols : 0;
  a.dst_row_stride = a.src_row_stride = a.n_cols;
  a.scale_stride = per_row ? scale.strides[0] : 0;
  a.x_dtype = x_dtype;
  a.scale_dtype = scale_dtype;
  const liger::Scope scope(src);
  liger::launch(op, LIGER_FN(scale_grad), a, scope, a.n_rows, a.n_cols);
}

Tensor scale_grad(const Tensor &src_, const Tensor &scale_) {
  const Arg src = liger::dense(Arg(src_, "src"));
  Tensor dst = liger::empty_like(src);
  scale("scale_grad", src, Arg(scale_, "scale"), liger::ptr(dst));
  return dst;
}

void scale_grad_in_place(const Tensor &src_, const Tensor &scale_) {
  const Arg src(src_, "src");
  if (!liger::is_dense(src)) liger::fail("scale_grad_", "src is not contiguous, expected a dense tensor");
  scale("scale_grad_", src, Arg(scale_, "scale"), src.ptr);
}
} // namespace

#if !LIGER_GPU
STABLE_TORCH_LIBRARY_FRAGMENT(liger, m) {
  m.def("scale_grad(Tensor src, Tensor scale) -> Tensor");
  m.def("scale_grad_(Tensor(a!) src, Tensor scale) -> ()");
}
#endif
STABLE_TORCH_LIBRARY_IMPL(liger, LIGER_BACKEND, m) {
  m.impl("scale_grad", TORCH_BOX(&scale_grad));
  m.impl("scale_grad_", TORCH_BOX(&scale_grad_in_place));
}
