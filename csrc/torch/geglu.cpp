// Glue of geglu: schema and entry points; the work is in glu_torch.h.
#include "glu_torch.h"

using torch::stable::Tensor;

namespace {
Tensor geglu_fwd(const Tensor &a, const Tensor &b, int64_t gelu) {
  return liger::glu_fwd("geglu_fwd", LIGER_FN(geglu_fwd), a, b, {.gelu = gelu});
}
std::tuple<Tensor, Tensor> geglu_bwd(const Tensor &dc, const Tensor &a, const Tensor &b, int64_t gelu) {
  return liger::glu_bwd("geglu_bwd", LIGER_FN(geglu_bwd), dc, a, b, {.gelu = gelu});
}
void geglu_bwd_(const Tensor &dc, const Tensor &a, const Tensor &b, int64_t gelu) {
  liger::glu_bwd_over("geglu_bwd_", LIGER_FN(geglu_bwd), dc, a, b, {.gelu = gelu});
}
} // namespace

#if !LIGER_GPU
STABLE_TORCH_LIBRARY_FRAGMENT(liger, m) {
  m.def("geglu_fwd(Tensor a, Tensor b, int gelu) -> Tensor");
  m.def("geglu_bwd(Tensor dc, Tensor a, Tensor b, int gelu) -> (Tensor da, Tensor db)");
  m.def("geglu_bwd_(Tensor dc, Tensor(a!) a, Tensor(b!) b, int gelu) -> ()");
}
#endif
STABLE_TORCH_LIBRARY_IMPL(liger, LIGER_BACKEND, m) {
  m.impl("geglu_fwd", TORCH_BOX(&geglu_fwd));
  m.impl("geglu_bwd", TORCH_BOX(&geglu_bwd));
  m.impl("geglu_bwd_", TORCH_BOX(&geglu_bwd_));
}
