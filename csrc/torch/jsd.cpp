// Glue of jsd: schema, the check of beta, entry points; the work is in divergence_torch.h.
#include "divergence_torch.h"

using torch::stable::Tensor;

namespace {
liger::DivergenceOptions options(const char *op, double beta, int64_t ignore_index) {
  if (!(beta >= 0 && beta <= 1)) liger::fail(op, "beta is ", beta, ", expected a value in [0, 1]");
  return {beta, LIGER_REDUCE_BATCHMEAN, ignore_index, false};
}
std::tuple<Tensor, Tensor> jsd(const Tensor &x, const Tensor &y, const std::optional<Tensor> &shift_labels,
                               double beta, int64_t ignore_index, bool grad) {
  return liger::divergence_fwd("jsd", LIGER_FN(jsd), x, y, shift_labels, options("jsd", beta, ignore_index),
                               grad);
}
Tensor jsd_bwd(const Tensor &dloss, const Tensor &x, const Tensor &y,
               const std::optional<Tensor> &shift_labels, double beta, int64_t ignore_index) {
  return liger::divergence_bwd("jsd_bwd", LIGER_FN(jsd), dloss, x, y, shift_labels,
                               options("jsd_bwd", beta, ignore_index));
}
} // namespace

#if !LIGER_GPU
STABLE_TORCH_LIBRARY_FRAGMENT(liger, m) {
  m.def("jsd(Tensor x, Tensor y, Tensor? shift_labels, float beta, int ignore_index, bool grad)"
        " -> (Tensor loss, Tensor dx)");
  m.def("jsd_bwd(Tensor dloss, Tensor x, Tensor y, Tensor? shift_labels, float beta, int ignore_index)"
        " -> Tensor dx");
}
#endif
STABLE_TORCH_LIBRARY_IMPL(liger, LIGER_BACKEND, m) {
  m.impl("jsd", TORCH_BOX(&jsd));
  m.impl("jsd_bwd", TORCH_BOX(&jsd_bwd));
}
