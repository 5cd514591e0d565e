// Glue of tvd: schema, entry points; the work is in divergence_torch.h.
#include "divergence_torch.h"

using torch::stable::Tensor;

namespace {
std::tuple<Tensor, Tensor> tvd(const Tensor &x, const Tensor &y, const std::optional<Tensor> &shift_labels,
                               int64_t reduction, int64_t ignore_index, bool grad) {
  return liger::divergence_fwd("tvd", LIGER_FN(tvd), x, y, shift_labels, {0, reduction, ignore_index, false},
                               grad);
}
Tensor tvd_bwd(const Tensor &dloss, const Tensor &x, const Tensor &y,
               const std::optional<Tensor> &shift_labels, int64_t reduction, int64_t ignore_index) {
  return liger::divergence_bwd("tvd_bwd", LIGER_FN(tvd), dloss, x, y, shift_labels,
                               {0, reduction, ignore_index, false});
}
} // namespace

#if !LIGER_GPU
STABLE_TORCH_LIBRARY_FRAGMENT(liger, m) {
  m.def("tvd(Tensor x, Tensor y, Tensor? shift_labels, int reduction, int ignore_index, bool grad)"
        " -> (Tensor loss, Tensor dx)");
  m.def("tvd_bwd(Tensor dloss, Tensor x, Tensor y, Tensor? shift_labels, int reduction, int ignore_index)"
        " -> Tensor dx");
}
#endif
STABLE_TORCH_LIBRARY_IMPL(liger, LIGER_BACKEND, m) {
  m.impl("tvd", TORCH_BOX(&tvd));
  m.impl("tvd_bwd", TORCH_BOX(&tvd_bwd));
}
