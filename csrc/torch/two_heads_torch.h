// What the losses between a student's and a teacher's linear head share: checks, and the engine's loop with two heads
// in it, which share one budget: a block of the student's logits meets the teacher's, which have no gradients, in one
// piece or in several, and the op's row kernel turns the student's in place into dlogits. The labels' cross entropy
// is an option of that kernel.
#pragma once
#include "distill_torch.h"

#include <algorithm>

namespace liger {
struct Split { // bytes
  int64_t student, teacher;
};
// Half of the budget each; or a quarter for the teacher's logits, where the model of the plan says that it pays: what
// the student's larger blocks save (three products' short side, passes over dW) against the teacher's one product.
// On an H200 4096 x 2048 and 4096 x 128256 in 256 MiB went from 8 blocks of 512 to 5 of 768 and one of 256, with the
// teacher's 256 at a time: 2.6 % of the time. A block has whole pieces, none of a few rows.
inline Split split_budget(const char *op, const Head &student, const Head &teacher, liger_dtype compute,
                          const LinearLossWanted &want, int accum, int64_t memory_budget) {
  const int64_t row_bytes = student.w.sizes[0] * dtype_size(compute), half = memory_budget / 2;
  const Split even = {half, half};
  if (row_bytes == 0) return even;
  const int64_t unit = LIGER_GPU ? 256 : 64, quarter = memory_budget / 4 / row_bytes / unit * unit;
  const int64_t rows = quarter < unit ? unit : quarter;
  if (rows >= half / row_bytes) return even;
  const Split uneven = {memory_budget - rows * row_bytes, rows * row_bytes};
  const auto plan = [&](const Head &h, const LinearLossWanted &w, int64_t bytes) {
    return plan_of(op, h.x, h.w, compute, w, accum, bytes, 1, LIGER_TOKEN_BLOCKS);
  };
  const auto large = plan(student, want, uneven.student), small = plan(student, want, even.student);
  const auto seconds = [&](const liger_linear_loss_plan_result &p, int64_t bytes) {
    return p.seconds +
           plan(teacher, {false, false, false}, std::min(bytes, p.block_rows * row_bytes)).seconds;
  };
  const bool whole = large.block_rows % rows == 0;
  return whole && seconds(large, uneven.teacher) < seconds(small, even.teacher) ? uneven : even;
}

struct TwoHeadsTensors {
  const Tensor &student_input, &student_weight, &teacher_input, &teacher_weight;
  const std::optional<Tensor> &student_bias, &teacher_bias, &shift_labels;
};
struct TwoHeadsOptions {
  double parameter, temperature;
  int64_t ignore_index;
  LinearLossWanted want;
  int64_t compute_dtype, accum_dtype, memory_budget;
};
struct HardLoss { // of the first n_classes classes; the weights stand before the gradients alone
  int64_t n_classes;
  double soft_weight, weight;
};
struct TwoHeadsLosses {
  Tensor soft, hard, dx, dw, dbias; // (0,) where not wanted
};

// The incoming gradients of the soft and the hard loss: (2,), dense.
inline Arg check_two_dlosses(const char *op, const Tensor &dlosses_, liger_dtype real, const Arg &first) {
  const Arg dlosses(dlosses_, "dlosses");
  check_device(op, dlosses, first);
  if (dlosses.raw_dtype != torch_dtype(real))
    fail(op, "dlosses has dtype ", dtype_name(dlosses.raw_dtype), ", expected ",
         dtype_name(torch_dtype(real)));
  check_vector(op, dlosses, 2, "that of the soft and of the hard loss");
  return dense(dlosses);
}

inline void check_classes(const char *op, const Arg &labels, int64_t n_classes, int64_t vocab_size,
                          int64_t ignore_index) {
  if (n_classes < 0 || n_classes > vocab_size)
    fail(op, "n_classes is ", n_classes, ", expected 0 to ", vocab_size, ", the rows of student_weight");
#if !LIGER_GPU // a GPU would have to be waited for: its kernel answers with NaN
  const auto *y = (const int64_t *)labels.ptr;
  const int64_t stride = labels.strides[0];
  const int64_t bad = liger_cross_entropy_bad_label_cpu(y, stride, labels.sizes[0], n_classes, ignore_index);
  if (bad >= 0)
    fail(op, labels.name, "[", bad, "] is ", y[bad * stride], ", expected a value in [0, ", n_classes,
         ") or ignore_index (", ignore_index, ")");
#else
  (void)labels, (void)ignore_index;
#endif
}

// dloss: the incoming gradient, or none: that of the loss itself; (2,) where there is a hard loss
template <class Fn>
TwoHeadsLosses two_heads(const char *op, Fn row_kernel, const TwoHeadsTensors &t, const HardLoss *hard,
                         const std::optional<Tensor> &dloss, const TwoHeadsOptions &o) {
  const Arg x(t.student_input, "student_input");
  const Head student(op, x, Arg(t.student_weight, "student_weight"), t.student_bias, "student_bias", x);
  const Head teacher(op, Arg(t.teacher_input, "teacher_input"), Arg(t.teacher_weight, "teacher_weight"),
                     t.teacher_bias, "teacher_bias", x);
  const int64_t n_rows = x.sizes[0], vocab_size = student.w.sizes[0];
  if (teacher.x.sizes[0] != n_rows)
    fail(op, "teacher_input has shape ", teacher.x.shape(), ", expected ", n_rows, " rows, as student_input");
  if (teacher.w.sizes[0] != vocab_size)
    fail(op, "teacher_weight has shape ", teacher.w.shape(), ", expected ", vocab_size,
         " rows, as student_weight");
  const std::optional<Arg> labels = check_row_labels(op, t.shift_labels, x);
  check_linear_options(op, o.compute_dtype, o.accum_dtype, o.temperature, o.memory_budget);
  const auto compute = (liger_dtype)o.compute_dtype;
  const liger_dtype real = compute == LIGER_F64 ? LIGER_F64 : LIGER_F32;
  const int64_t real_size = dtype_size(real), row_bytes = vocab_size * dtype_size(compute);
  if (hard) check_classes(op, *labels, hard->n_classes, vocab_size, o.ignore_index);
  std::optional<Arg> g;
  if (dloss)
    g.emplace(hard ? check_two_dlosses(op, *dloss, real, x) : check_scalar_dloss(op, *dloss, real, x));

  const Scope scope(x);
  const DivergenceScale scale(op, LIGER_REDUCE_BATCHMEAN, labels, o.ignore_index, n_rows, vocab_size, real,
                              scope);
  const LinearLossWanted want{o.want.dx, o.want.dw, o.want.dbias && student.bias};
  const int accum = (int)o.accum_dtype;
  const Split budget = split_budget(op, student, teacher, compute, want, accum, o.memory_budget);
  LinearLoss head(op, student.x, student.w, student.bias, compute, want, accum, budget.student, 1, scope);
  LinearLoss other(op, teacher.x, teacher.w, teacher.bias, compute, {false, false, false}, LIGER_ACCUM_AUTO,
                   std::min(budget.teacher, head.plan.block_rows * row_bytes), 1, scope);
  const Tensor rows = empty_1d(n_rows, torch_dtype(real), x),
               hard_rows = empty_1d(hard ? n_rows : 0, torch_dtype(real), x);
  const bool any_gradient = head.want.dx || head.want.dw || head.want.dbias;
  liger_divergence_args all{};
  all.loss = ptr(rows);
  if (labels) all.labels = (const int64_t *)labels->ptr, all.label_stride = labels->strides[0];
  all.scale = scale.stats ? ptr(*scale.stats) : nullptr;
  all.grad = g ? g->ptr : nullptr;
  all.n_cols = all.X_row_stride = all.Y_row_stride = all.dX_row_stride = vocab_size;
  all.ignore_index = o.ignore_index;
  all.factor = scale.factor;
  all.parameter = o.parameter;
  all.temperature = o.temperature;
  all.x_dtype = all.y_dtype = compute;
  if (hard)
    all.hard = {ptr(hard_rows), g ? (const char *)g->ptr + real_size : nullptr, hard->n_classes, hard->weight,
                hard->soft_weight};
  for (int64_t b = 0; b < head.plan.n_blocks; b++) {
    const LogitsBlock block = head.logits(b);
    for (int64_t done = 0, n; done < block.n_rows; done += n) {
      n = std::min(other.plan.block_rows, block.n_rows - done);
      LogitsBlock part = block;
      part.first += done;
      part.n_rows = n;
      part.ptr = (char *)block.ptr + done * row_bytes;
      liger_divergence_args a = block_args(all, part, any_gradient);
      a.Y = other.logits(part.first, n).ptr;
      launch(op, row_kernel, a, scope, n, vocab_size);
    }
    head.gradients(block);
  }
  head.finish();
  const Tensor soft = sum_rows(op, rows, n_rows, nullptr, real, x, scope);
  return {soft, hard ? sum_rows(op, hard_rows, n_rows, nullptr, real, x, scope) : hard_rows, head.dx, head.dw,
          head.dbias};
}
} // namespace liger
