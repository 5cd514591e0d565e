// Glue of fused_linear_jsd: schemas, and the loop of two heads.
#include "two_heads_torch.h"

using torch::stable::Tensor;

namespace {
void check_beta(const char *op, double beta) {
  if (!(beta >= 0 && beta <= 1)) liger::fail(op, "beta is ", beta, ", expected a value in [0, 1]");
}

// loss, dx, dweight, dbias; (0,) where not wanted. dloss: the incoming gradient, or none: that of the loss itself
std::tuple<Tensor, Tensor, Tensor, Tensor> fused_linear_jsd(
    const Tensor &student_input, const Tensor &student_weight, const Tensor &teacher_input,
    const Tensor &teacher_weight, const std::optional<Tensor> &student_bias,
    const std::optional<Tensor> &teacher_bias, const std::optional<Tensor> &shift_labels,
    const std::optional<Tensor> &dloss, double beta, int64_t ignore_index, double temperature, bool needs_dx,
    bool needs_dw, bool needs_dbias, int64_t compute_dtype, int64_t accum_dtype, int64_t memory_budget) {
  check_beta("fused_linear_jsd", beta);
  const auto r = liger::two_heads("fused_linear_jsd", LIGER_FN(fused_linear_jsd),
                                  {student_input, student_weight, teacher_input, teacher_weight, student_bias,
                                   teacher_bias, shift_labels},
                                  nullptr, dloss,
                                  {beta,
                                   temperature,
                                   ignore_index,
                                   {needs_dx, needs_dw, needs_dbias},
                                   compute_dtype,
                                   accum_dtype,
                                   memory_budget});
  return {r.soft, r.dx, r.dw, r.dbias};
}

// soft, hard, dx, dweight, dbias: those of soft_weight * soft + hard_weight * hard. dlosses: (2,), their incoming
// gradients, which stand before the weights; n_classes: the student's own, where it was padded to the teacher's
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> fused_linear_jsd_ce(
    const Tensor &student_input, const Tensor &student_weight, const Tensor &teacher_input,
    const Tensor &teacher_weight, const std::optional<Tensor> &student_bias,
    const std::optional<Tensor> &teacher_bias, const Tensor &shift_labels,
    const std::optional<Tensor> &dlosses, int64_t n_classes, double soft_weight, double hard_weight,
    double beta, int64_t ignore_index, double temperature, bool needs_dx, bool needs_dw, bool needs_dbias,
    int64_t compute_dtype, int64_t accum_dtype, int64_t memory_budget) {
  check_beta("fused_linear_jsd_ce", beta);
  const liger::HardLoss hard{n_classes, soft_weight, hard_weight};
  const std::optional<Tensor> labels = shift_labels;
  const auto r = liger::two_heads(
      "fused_linear_jsd_ce", LIGER_FN(fused_linear_jsd),
      {student_input, student_weight, teacher_input, teacher_weight, student_bias, teacher_bias, labels},
      &hard, dlosses,
      {beta,
       temperature,
       ignore_index,
       {needs_dx, needs_dw, needs_dbias},
       compute_dtype,
       accum_dtype,
       memory_budget});
  return {r.soft, r.hard, r.dx, r.dw, r.dbias};
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
  m.def(
      "fused_linear_jsd_ce(Tensor student_input, Tensor student_weight, Tensor teacher_input, Tensor "
      "teacher_weight, Tensor? student_bias, Tensor? teacher_bias, Tensor shift_labels, Tensor? dlosses, int "
      "n_classes, float soft_weight, float hard_weight, float beta, int ignore_index, float temperature, "
      "bool needs_dx, bool needs_dw, bool needs_dbias, int compute_dtype, int accum_dtype, int "
      "memory_budget) -> (Tensor soft, Tensor hard, Tensor dx, Tensor dweight, Tensor dbias)");
}
#endif
STABLE_TORCH_LIBRARY_IMPL(liger, LIGER_BACKEND, m) {
  m.impl("fused_linear_jsd", TORCH_BOX(&fused_linear_jsd));
  m.impl("fused_linear_jsd_ce", TORCH_BOX(&fused_linear_jsd_ce));
}
