// Glue of kl_div: schema, entry points; the work is in divergence_torch.h.
#include "divergence_torch.h"

using torch::stable::Tensor;

namespace {
std::tuple<Tensor, Tensor> kl_div(const Tensor &x, const Tensor &y, int64_t reduction, bool log_target,
                                  double eps, bool grad) {
  return liger::divergence_fwd("kl_div", LIGER_FN(kl_div), x, y, std::nullopt,
                               {eps, reduction, 0, log_target}, grad);
}
Tensor kl_div_bwd(const Tensor &dloss, const Tensor &x, const Tensor &y, int64_t reduction, bool log_target,
                  double eps) {
  return liger::divergence_bwd("kl_div_bwd", LIGER_FN(kl_div), dloss, x, y, std::nullopt,
                               {eps, reduction, 0, log_target});
}
} // namespace

#if !LIGER_GPU
STABLE_TORCH_LIBRARY_FRAGMENT(liger, m) {
  m.def("kl_div(Tensor x, Tensor y, int reduction, bool log_target, float eps, bool grad)"
        " -> (Tensor loss, Tensor dx)");
  m.def(
      "kl_div_bwd(Tensor dloss, Tensor x, Tensor y, int reduction, bool log_target, float eps) -> Tensor dx");
}
#endif
STABLE_TORCH_LIBRARY_IMPL(liger, LIGER_BACKEND, m) {
  m.impl("kl_div", TORCH_BOX(&kl_div));
  m.impl("kl_div_bwd", TORCH_BOX(&kl_div_bwd));
}
