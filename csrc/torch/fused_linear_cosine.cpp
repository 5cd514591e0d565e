// Glue of fused_linear_cosine: schema, and the loop of two heads.
#include "two_heads_torch.h"

using torch::stable::Tensor;

namespace {
// soft, hard, dx, dweight, dbias; (0,) where not wanted. n_classes: those of the labels' cross entropy, the student's own
// where it was padded to the teacher's, or none: no such loss, and dlosses is one gradient, else two. See
// fused_linear_jsd_ce
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> fused_linear_cosine(
    const Tensor &student_input, const Tensor &student_weight, const Tensor &teacher_input,
    const Tensor &teacher_weight, const std::optional<Tensor> &student_bias,
    const std::optional<Tensor> &teacher_bias, const std::optional<Tensor> &shift_labels,
    const std::optional<Tensor> &dlosses, std::optional<int64_t> n_classes, double soft_weight,
    double hard_weight, double beta, int64_t ignore_index, double temperature, bool needs_dx, bool needs_dw,
    bool needs_dbias, int64_t compute_dtype, int64_t accum_dtype, int64_t memory_budget) {
  const char *op = "fused_linear_cosine";
  if (n_classes && !shift_labels)
    liger::fail(op, "n_classes is ", *n_classes, ", but there are no shift_labels");
  const liger::HardLoss hard{n_classes ? *n_classes : 0, soft_weight, hard_weight};
  const auto r = liger::two_heads(op, LIGER_FN(fused_linear_cosine),
                                  {student_input, student_weight, teacher_input, teacher_weight, student_bias,
                                   teacher_bias, shift_labels},
                                  n_classes ? &hard : nullptr, dlosses,
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
  m.def("fused_linear_cosine(Tensor student_input, Tensor student_weight, Tensor teacher_input, Tensor "
        "teacher_weight, Tensor? student_bias, Tensor? teacher_bias, Tensor? shift_labels, Tensor? dlosses, "
        "int? n_classes, float soft_weight, float hard_weight, float beta, int ignore_index, float "
        "temperature, "
        "bool needs_dx, bool needs_dw, bool needs_dbias, int compute_dtype, int accum_dtype, int "
        "memory_budget) -> (Tensor soft, Tensor hard, Tensor dx, Tensor dweight, Tensor dbias)");
}
#endif
STABLE_TORCH_LIBRARY_IMPL(liger, LIGER_BACKEND, m) {
  m.impl("fused_linear_cosine", TORCH_BOX(&fused_linear_cosine));
}
