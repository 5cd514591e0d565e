// Glue of fused_linear_jsd: schema, checks, and the engine's loop with two heads in it, which share one budget:
// a block of the student's logits meets the teacher's, which have no gradients, in one piece or in several.
#include "distill_torch.h"

#include <algorithm>

using liger::Arg;
using torch::stable::Tensor;

namespace {
struct Split { // bytes
  int64_t student, teacher;
};
// Half of the budget each; or a quarter for the teacher's logits, where the model of the plan says that it pays: what
// the student's larger blocks save (three products' short side, passes over dW) against the teacher's one product.
// On an H200 4096 x 2048 and 4096 x 128256 in 256 MiB went from 8 blocks of 512 to 5 of 768 and one of 256, with the
// teacher's 256 at a time: 2.6 % of the time. A block has whole pieces, none of a few rows.
Split split_budget(const char *op, const liger::Head &student, const liger::Head &teacher,
                   liger_dtype compute, const liger::LinearLossWanted &want, int accum,
                   int64_t memory_budget) {
  const int64_t row_bytes = student.w.sizes[0] * liger::dtype_size(compute), half = memory_budget / 2;
  const Split even = {half, half};
  if (row_bytes == 0) return even;
  const int64_t unit = LIGER_GPU ? 256 : 64, quarter = memory_budget / 4 / row_bytes / unit * unit;
  const int64_t rows = quarter < unit ? unit : quarter;
  if (rows >= half / row_bytes) return even;
  const Split uneven = {memory_budget - rows * row_bytes, rows * row_bytes};
  const auto plan = [&](const liger::Head &h, const liger::LinearLossWanted &w, int64_t bytes) {
    return liger::plan_of(op, h.x, h.w, compute, w, accum, bytes, 1, LIGER_TOKEN_BLOCKS);
  };
  const auto large = plan(student, want, uneven.student), small = plan(student, want, even.student);
  const auto seconds = [&](const liger_linear_loss_plan_result &p, int64_t bytes) {
    return p.seconds +
           plan(teacher, {false, false, false}, std::min(bytes, p.block_rows * row_bytes)).seconds;
  };
  const bool whole = large.block_rows % rows == 0;
  return whole && seconds(large, uneven.teacher) < seconds(small, even.teacher) ? uneven : even;
}

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
  const liger::LinearLossWanted want{needs_dx, needs_dw, needs_dbias && student.bias};
  const Split budget = split_budget(op, student, teacher, compute, want, (int)accum_dtype, memory_budget);
  liger::LinearLoss head(op, student.x, student.w, student.bias, compute, want, (int)accum_dtype,
                         budget.student, 1, scope);
  const int64_t row_bytes = vocab_size * liger::dtype_size(compute);
  liger::LinearLoss other(op, teacher.x, teacher.w, teacher.bias, compute, {false, false, false},
                          LIGER_ACCUM_AUTO, std::min(budget.teacher, head.plan.block_rows * row_bytes), 1,
                          scope);
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
    const liger::LogitsBlock block = head.logits(b);
    for (int64_t done = 0, n; done < block.n_rows; done += n) {
      n = std::min(other.plan.block_rows, block.n_rows - done);
      liger::LogitsBlock part = block;
      part.first += done;
      part.n_rows = n;
      part.ptr = (char *)block.ptr + done * row_bytes;
      liger_divergence_args a = liger::block_args(all, part, any_gradient);
      a.Y = other.logits(part.first, n).ptr;
      liger::launch(op, LIGER_FN(fused_linear_jsd), a, scope, n, vocab_size);
    }
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
