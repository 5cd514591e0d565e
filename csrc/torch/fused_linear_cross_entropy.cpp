// Glue of fused_linear_cross_entropy: schema, checks, and the engine's loop with the cross entropy row kernel
// in it.
#include "cross_entropy_torch.h"
#include "linear_stats.h"
#include "live_rows.h"

using liger::Arg;
using torch::stable::Tensor;

namespace {
// The loss of every row from statistics that its logits never left registers for; false: not here.
bool without_logits(const char *op, const Arg &x, const Arg &w, const std::optional<Arg> &bias,
                    const liger::CrossEntropy &ce, const liger_cross_entropy_args &all, int64_t memory_budget,
                    const liger::Scope &scope) {
  enum { M = 0, D = 1, Z_Y = LIGER_CE_STATE - 1 }; // of a plain state
  if (!LIGER_GPU || !liger::linear_stats_fill(x.sizes[0]) || all.n_cols > LIGER_CE_STATE_MAX_COLS ||
      all.label_smoothing != 0 || all.softcap != 0 || all.accuracy || all.predicted)
    return false;
  const int64_t sizes[2] = {x.sizes[0], LIGER_CE_STATE};
  const Tensor state = liger::empty(sizes, 2, ce.real, x);
  auto *const p = (float *)liger::ptr(state);
  if (!liger::linear_stats(op, x, w, bias, ce.target, x.sizes[0], ce.x_dtype, 1.0, all.ignore_index,
                           memory_budget, {p + M, p + D, p + Z_Y, LIGER_CE_STATE}, scope))
    return false;
  liger_cross_entropy_part_args a{};
  a.rows = all;
  a.state = p;
  liger::launch(op, LIGER_FN(cross_entropy_part_finish), a, scope, x.sizes[0], 64);
  return true;
}

// Statistics part by part of the vocabulary, then the outputs, then the gradients from the last part to the first.
void by_vocabulary(const char *op, liger::LinearLoss &head, const liger::CrossEntropy &ce,
                   const liger_cross_entropy_args &all, bool any_gradient, const liger::Scope &scope) {
  const int64_t sizes[2] = {head.n_rows, LIGER_CE_STATE};
  const Tensor state = liger::empty(sizes, 2, ce.real, ce.x);
  liger_cross_entropy_part_args p{};
  p.rows = all;
  p.state = liger::ptr(state);
  const auto set = [&](const liger::LogitsPart &part) {
    p.first_col = part.first;
    p.n_part = p.rows.X_row_stride = p.rows.dX_row_stride = part.n_cols;
    p.rows.X = part.ptr;
    p.rows.dX = any_gradient ? part.ptr : nullptr;
  };
  for (int64_t b = 0; b < head.plan.n_blocks; b++) {
    set(head.part_logits(b));
    liger::launch(op, LIGER_FN(cross_entropy_part_stats), p, scope, head.n_rows, p.n_part);
  }
  liger::launch(op, LIGER_FN(cross_entropy_part_finish), p, scope, head.n_rows, 64);
  for (int64_t b = head.plan.n_blocks; any_gradient && b-- > 0;) {
    const liger::LogitsPart part = head.part_logits(b, b == head.plan.n_blocks - 1);
    set(part);
    liger::launch(op, LIGER_FN(cross_entropy_part_grad), p, scope, head.n_rows, p.n_part);
    head.part_gradients(part);
  }
}

// loss, z_loss, accuracy, predicted, dx, dweight, dbias; (0,) where not wanted. dloss: the incoming gradient,
// () or, for reduction none, (n_rows,); without it the gradients are those of the loss itself.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> fused_linear_cross_entropy(
    const Tensor &x_, const Tensor &weight_, const Tensor &target, const std::optional<Tensor> &bias_,
    const std::optional<Tensor> &ce_weight, const std::optional<Tensor> &dloss, int64_t ignore_index,
    double lse_square_scale, double label_smoothing, int64_t reduction, double softcap, bool token_scaling,
    bool z_loss, bool accuracy, bool predicted, bool needs_dx, bool needs_dw, bool needs_dbias,
    int64_t compute_dtype, int64_t accum_dtype, int64_t chunk_mem_const, int64_t loop_order,
    int64_t memory_budget) {
  const char *op = "fused_linear_cross_entropy";
  const Arg x(x_, "x"), w(weight_, "weight");
  liger::check_device(op, w, x);
  liger::check_float(op, x);
  liger::check_float(op, w);
  if (x.dim != 2)
    liger::fail(op, "x has shape ", x.shape(), ", expected two dimensions: (n_rows, hidden_size)");
  if (w.dim != 2 || w.sizes[1] != x.sizes[1])
    liger::fail(op, "weight has shape ", w.shape(), ", expected (vocab_size, ", x.sizes[1],
                "): the last size of x");
  std::optional<Arg> bias;
  if (bias_) {
    const Arg b(*bias_, "bias");
    liger::check_device(op, b, x);
    liger::check_float(op, b);
    liger::check_vector(op, b, w.sizes[0], "one value per row of weight");
    bias.emplace(liger::dense(b));
  }
  if (compute_dtype < LIGER_F32 || compute_dtype > (LIGER_GPU ? LIGER_BF16 : LIGER_F64))
    liger::fail(op, "compute_dtype is ", compute_dtype,
                ", expected a dtype code of liger.h that this device has");
  if (accum_dtype < LIGER_ACCUM_AUTO || accum_dtype > LIGER_F64)
    liger::fail(op, "accum_dtype is ", accum_dtype, ", expected -1 or a dtype code of liger.h");
  if (loop_order < LIGER_ORDER_AUTO || loop_order > LIGER_VOCAB_BLOCKS)
    liger::fail(op, "loop_order is ", loop_order,
                ", expected -1 (the cheaper), 0 (tokens) or 1 (vocabulary)");
  if (memory_budget < 0)
    liger::fail(op, "memory_budget is ", memory_budget, ", expected a number of bytes, not negative");
  const auto compute = (liger_dtype)compute_dtype;
  const liger::CrossEntropyWanted want{z_loss, accuracy, predicted};
  const liger::CrossEntropy ce(op, x, w.sizes[0], compute, target, ce_weight, "ce_weight",
                               {ignore_index, lse_square_scale, label_smoothing, reduction, softcap});
  const std::optional<Arg> g = dloss ? std::optional<Arg>(ce.check_dloss(*dloss)) : std::nullopt;

#if !LIGER_GPU
  const liger::LiveRows live(ce.target, ignore_index);
  if (live.few()) { /* all of them valid now, so this ends here */
    const std::optional<Tensor> live_dloss = !dloss         ? std::nullopt
                                             : ce.reduced() ? dloss
                                                            : std::optional<Tensor>(live.gather(*g));
    auto [loss, z, acc, pred, dx, dw, db] = fused_linear_cross_entropy(
        live.gather(x), weight_, live.gather(ce.target), bias_, ce_weight, live_dloss, ignore_index,
        lse_square_scale, label_smoothing, reduction, softcap, token_scaling, z_loss, accuracy, predicted,
        needs_dx, needs_dw, needs_dbias, compute_dtype, accum_dtype, chunk_mem_const, loop_order,
        memory_budget);
    const auto put_back = [&](const Tensor &t, bool wanted, int fill = 0) {
      return wanted ? live.scatter(t, fill) : t;
    };
    const bool rows = !ce.reduced();
    return {put_back(loss, rows),
            put_back(z, rows && z_loss),
            put_back(acc, rows && accuracy),
            put_back(pred, predicted, -1),
            put_back(dx, needs_dx),
            dw,
            db};
  }
#endif
  const liger::Scope scope(x);
  const Tensor stats = ce.count(scope);
  const liger::CrossEntropyOutputs rows = ce.outputs(want);
  const liger_cross_entropy_args all = [&] {
    liger_cross_entropy_args a = ce.rows_args(stats, rows, want);
    if (g) ce.set_dloss(a, *g);
    a.token_scaling = token_scaling;
    return a;
  }();
  if (!needs_dx && !needs_dw && !(needs_dbias && bias) && loop_order == LIGER_ORDER_AUTO &&
      without_logits(op, x, w, bias, ce, all, memory_budget, scope)) {
    const Tensor none = liger::empty_1d(0, x.raw_dtype, x);
    auto [loss, z, acc, pred] = ce.reduce(rows, want, stats, scope);
    return {loss, z, acc, pred, none, none, none};
  }
  liger::LinearLoss head(op, x, w, bias, compute, {needs_dx, needs_dw, needs_dbias && bias}, (int)accum_dtype,
                         memory_budget, chunk_mem_const, scope, std::nullopt, (int)loop_order);
  const bool any_gradient = head.want.dx || head.want.dw || head.want.dbias;
  const int64_t real_size = compute == LIGER_F64 ? 8 : 4;
  auto row = [](void *p, int64_t first, int64_t size) { return p ? (char *)p + first * size : nullptr; };
  if (head.by_vocabulary()) by_vocabulary(op, head, ce, all, any_gradient, scope);
  for (int64_t b = 0; b < head.plan.n_blocks && !head.by_vocabulary(); b++) {
    const liger::LogitsBlock block = head.logits(b);
    liger_cross_entropy_args a = all;
    a.loss = row(all.loss, block.first, real_size);
    a.z_loss = row(all.z_loss, block.first, real_size);
    a.accuracy = row(all.accuracy, block.first, real_size);
    a.predicted = all.predicted ? all.predicted + block.first : nullptr;
    a.target = all.target + block.first * all.target_stride;
    a.row_grad = row((void *)all.row_grad, block.first * all.row_grad_stride, real_size);
    a.n_rows = block.n_rows;
    a.X = block.ptr;
    a.dX = any_gradient ? block.ptr : nullptr;
    liger::launch(op, LIGER_FN(cross_entropy), a, scope, block.n_rows, head.vocab_size);
    head.gradients(block);
  }
  head.finish();
  auto [loss, z, acc, pred] = ce.reduce(rows, want, stats, scope);
  return {loss, z, acc, pred, head.dx, head.dw, head.dbias};
}
} // namespace

#if !LIGER_GPU
STABLE_TORCH_LIBRARY_FRAGMENT(liger, m) {
  m.def("fused_linear_cross_entropy(Tensor x, Tensor weight, Tensor target, Tensor? bias, Tensor? ce_weight, "
        "Tensor? dloss, "
        "int ignore_index, float lse_square_scale, float label_smoothing, int reduction, float softcap, bool "
        "token_scaling, "
        "bool z_loss, bool accuracy, bool predicted, bool needs_dx, bool needs_dw, bool needs_dbias, int "
        "compute_dtype, "
        "int accum_dtype, int chunk_mem_const, int loop_order, int memory_budget) -> (Tensor loss, Tensor "
        "z_loss, Tensor "
        "accuracy, "
        "Tensor predicted, Tensor dx, Tensor dweight, Tensor dbias)");
}
#endif
STABLE_TORCH_LIBRARY_IMPL(liger, LIGER_BACKEND, m) {
  m.impl("fused_linear_cross_entropy", TORCH_BOX(&fused_linear_cross_entropy));
}
