// Glue of fused_linear_jsd: schema, checks, and the engine's loop with two heads in it, which share one budget:
// the teacher's has the student's blocks, and no gradients.
#include "distill_torch.h"

using liger::Arg;
using torch::stable::Tensor;

namespace {
// loss, dx, dweight, dbias; (0,) where not wanted. dloss: the incoming gradient, or none: that of the loss itself
std::tuple<Tensor, Tensor, Tensor, Tensor> fused_linear_jsd(
    const Tensor &x_, const Tensor &w_, const Tensor &teacher_x_, const Tensor &teacher_w_,
    const std::optional<Tensor> &bias, const std::optional<Tensor> &teacher_bias,
    const std::optional<Tensor> &shift_labels, const std::optional<Tensor> &dloss, double beta,
    int64_t ignore_index, double temperature, bool needs_dx, bool needs_dw, bool needs_dbias,
    int64_t compute_dtype, int64_t accum_dtype, int64_t memory_budget) {
  const char *op = "fused_linear_jsd";
  const Arg x(x_, "student_input");
  const liger::Head student(op, x, Arg(w_, "student_weight"), bias, "student_bias", x);
  const liger::Head teacher(op, Arg(teacher_x_, "teacher_input"), Arg(teacher_w_, "teacher_weight"),
                            teacher_bias, "teacher_bias", x);
  const int64_t n_rows = x.sizes[0], vocab_size = student.w.sizes[0];
  if (teacher.x.sizes[0] != n_rows)
    liger::fail(op, "teacher_input has shape ", teacher.x.shape(), ", expected ", n_rows,
                " rows, as student_input");
  if (teacher.w.sizes[0] != vocab_size)
    liger::fail(op, "teacher_weight has shape ", teacher.w.shape(), ", expected ", vocab_size,
                " rows, as student_weight");
  const std::optional<Arg> labels = liger::check_row_labels(op, shift_labels, x);
  if (!(beta >= 0 && beta <= 1)) liger::fail(op, "beta is ", beta, ", expected a value in [0, 1]");
  liger::check_linear_options(op, compute_dtype, accum_dtype, temperature, memory_budget);
  const auto compute = (liger_dtype)compute_dtype;
  const liger_dtype real = compute == LIGER_F64 ? LIGER_F64 : LIGER_F32;
  const std::optional<Arg> g = dloss ? std::optional<Arg>(liger::check_scalar_dloss(op, *dloss, real, x))
                                     : std::nullopt;

  const liger::Scope scope(x);
  const liger::DivergenceScale scale(op, LIGER_REDUCE_BATCHMEAN, labels, ignore_index, n_rows, vocab_size,
                                     real, scope);
  liger::LinearLoss head(op, student.x, student.w, student.bias, compute,
                         {needs_dx, needs_dw, needs_dbias && student.bias}, (int)accum_dtype,
                         memory_budget / 2, 1, scope);
  const int64_t same_blocks = head.plan.block_rows * vocab_size * liger::dtype_size(compute);
  liger::LinearLoss other(op, teacher.x, teacher.w, teacher.bias, compute, {false, false, false},
                          LIGER_ACCUM_AUTO, same_blocks, 1, scope);
  if (other.plan.block_rows != head.plan.block_rows)
    liger::fail(op, "the two heads are cut into blocks of ", head.plan.block_rows, " and ",
                other.plan.block_rows, " rows");
  const Tensor rows = liger::empty_1d(n_rows, liger::torch_dtype(real), x);
  const bool any_gradient = head.want.dx || head.want.dw || head.want.dbias;
  liger_divergence_args all{};
  all.loss = liger::ptr(rows);
  if (labels) all.labels = (const int64_t *)labels->ptr, all.label_stride = labels->strides[0];
  all.scale = scale.stats ? liger::ptr(*scale.stats) : nullptr;
  all.grad = g ? g->ptr : nullptr;
  all.n_cols = all.X_row_stride = all.Y_row_stride = all.dX_row_stride = vocab_size;
  all.ignore_index = ignore_index;
  all.factor = scale.factor;
  all.parameter = beta;
  all.temperature = temperature;
  all.x_dtype = all.y_dtype = compute;
  for (int64_t b = 0; b < head.plan.n_blocks; b++) {
    const liger::LogitsBlock target = other.logits(b), block = head.logits(b);
    liger_divergence_args a = liger::block_args(all, block, any_gradient);
    a.Y = target.ptr;
    liger::launch(op, LIGER_FN(fused_linear_jsd), a, scope, block.n_rows, vocab_size);
    head.gradients(block);
  }
  head.finish();
  return {liger::sum_rows(op, rows, n_rows, nullptr, real, x, scope), head.dx, head.dw, head.dbias};
}
} // namespace

#if !LIGER_GPU
STABLE_TORCH_LIBRARY_FRAGMENT(liger, m) {
  m.def(
      "fused_linear_jsd(Tensor student_input, Tensor student_weight, Tensor teacher_input, Tensor "
      "teacher_weight, Tensor? student_bias, Tensor? teacher_bias, Tensor? shift_labels, Tensor? dloss, "
      "float "
      "beta, int ignore_index, float temperature, bool needs_dx, bool needs_dw, bool needs_dbias, int "
      "compute_dtype, int accum_dtype, int memory_budget) -> (Tensor loss, Tensor dx, Tensor dweight, Tensor "
      "dbias)");
}
#endif
STABLE_TORCH_LIBRARY_IMPL(liger, LIGER_BACKEND, m) {
  m.impl("fused_linear_jsd", TORCH_BOX(&fused_linear_jsd));
}
