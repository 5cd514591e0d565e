// Glue of fused_linear_kl_div: schema, checks, and the engine's loop with the KL row kernel in it.
#include "distill_torch.h"

using liger::Arg;
using torch::stable::Tensor;

namespace {
// loss, dx, dweight; (0,) where not wanted. dloss: the incoming gradient, or none: that of the loss itself
std::tuple<Tensor, Tensor, Tensor> fused_linear_kl_div(const Tensor &x_, const Tensor &w_,
                                                       const Tensor &target_,
                                                       const std::optional<Tensor> &shift_labels,
                                                       const std::optional<Tensor> &dloss, int64_t reduction,
                                                       int64_t ignore_index, double temperature, double eps,
                                                       bool needs_dx, bool needs_dw, int64_t compute_dtype,
                                                       int64_t accum_dtype, int64_t memory_budget) {
  const char *op = "fused_linear_kl_div";
  const Arg x(x_, "student_input"), target(target_, "target");
  const liger::Head student(op, x, Arg(w_, "student_weight"), std::nullopt, "", x);
  const int64_t n_rows = x.sizes[0], vocab_size = student.w.sizes[0];
  liger::check_device(op, target, x);
  liger::check_float(op, target);
  if (target.dim != 2 || target.sizes[0] != n_rows || target.sizes[1] != vocab_size)
    liger::fail(op, "target has shape ", target.shape(), ", expected (", n_rows, ", ", vocab_size,
                "): a probability per row of student_input and of student_weight");
  const std::optional<Arg> labels = liger::check_row_labels(op, shift_labels, x);
  if (reduction < LIGER_REDUCE_MEAN || reduction > LIGER_REDUCE_BATCHMEAN)
    liger::fail(op, "reduction is ", reduction, ", expected 1 (mean), 2 (sum) or 3 (batchmean)");
  liger::check_linear_options(op, compute_dtype, accum_dtype, temperature, memory_budget);
  const auto compute = (liger_dtype)compute_dtype;
  const liger_dtype real = compute == LIGER_F64 ? LIGER_F64 : LIGER_F32;
  const std::optional<Arg> g = dloss ? std::optional<Arg>(liger::check_scalar_dloss(op, *dloss, real, x))
                                     : std::nullopt;

  const liger::Scope scope(x);
  const liger::DivergenceScale scale(op, reduction, labels, ignore_index, n_rows, vocab_size, real, scope);
  liger::LinearLoss head(op, student.x, student.w, std::nullopt, compute, {needs_dx, needs_dw, false},
                         (int)accum_dtype, memory_budget, 1, scope);
  const liger::Rows ry = liger::rows(target);
  const int64_t y_size = liger::dtype_size(liger::check_float(op, target));
  const Tensor rows = liger::empty_1d(n_rows, liger::torch_dtype(real), x);
  liger_divergence_args all{};
  all.loss = liger::ptr(rows);
  if (labels) all.labels = (const int64_t *)labels->ptr, all.label_stride = labels->strides[0];
  all.scale = scale.stats ? liger::ptr(*scale.stats) : nullptr;
  all.grad = g ? g->ptr : nullptr;
  all.n_cols = all.X_row_stride = all.dX_row_stride = vocab_size;
  all.Y_row_stride = ry.row_stride;
  all.ignore_index = ignore_index;
  all.factor = scale.factor;
  all.parameter = eps;
  all.temperature = temperature;
  all.x_dtype = compute;
  all.y_dtype = liger::check_float(op, target);
  for (int64_t b = 0; b < head.plan.n_blocks; b++) {
    const liger::LogitsBlock block = head.logits(b);
    liger_divergence_args a = liger::block_args(all, block, needs_dx || needs_dw);
    a.Y = (const char *)ry.ptr + block.first * ry.row_stride * y_size;
    liger::launch(op, LIGER_FN(fused_linear_kl_div), a, scope, block.n_rows, vocab_size);
    head.gradients(block);
  }
  head.finish();
  return {liger::sum_rows(op, rows, n_rows, nullptr, real, x, scope), head.dx, head.dw};
}
} // namespace

#if !LIGER_GPU
STABLE_TORCH_LIBRARY_FRAGMENT(liger, m) {
  m.def(
      "fused_linear_kl_div(Tensor student_input, Tensor student_weight, Tensor target, Tensor? shift_labels, "
      "Tensor? dloss, int reduction, int ignore_index, float temperature, float eps, bool needs_dx, bool "
      "needs_dw, int compute_dtype, int accum_dtype, int memory_budget) -> (Tensor loss, Tensor dx, Tensor "
      "dweight)");
}
#endif
STABLE_TORCH_LIBRARY_IMPL(liger, LIGER_BACKEND, m) {
  m.impl("fused_linear_kl_div", TORCH_BOX(&fused_linear_kl_div));
}
