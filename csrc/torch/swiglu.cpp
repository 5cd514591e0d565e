// Glue of swiglu: schema and entry points; the work is in glu_torch.h.
#include "glu_torch.h"

using torch::stable::Tensor;

namespace {
Tensor swiglu_fwd(const Tensor &a, const Tensor &b, double gate_multiplier, double down_multiplier) {
  return liger::glu_fwd("swiglu_fwd", LIGER_FN(swiglu_fwd), a, b, {gate_multiplier, down_multiplier});
}
std::tuple<Tensor, Tensor> swiglu_bwd(const Tensor &dc, const Tensor &a, const Tensor &b,
                                      double gate_multiplier, double down_multiplier) {
  return liger::glu_bwd("swiglu_bwd", LIGER_FN(swiglu_bwd), dc, a, b, {gate_multiplier, down_multiplier});
}
void swiglu_bwd_(const Tensor &dc, const Tensor &a, const Tensor &b, double gate_multiplier,
                 double down_multiplier) {
  liger::glu_bwd_over("swiglu_bwd_", LIGER_FN(swiglu_bwd), dc, a, b, {gate_multiplier, down_multiplier});
}
Tensor swiglu_gate_up_fwd(const Tensor &y) {
  return liger::glu_gate_up_fwd("swiglu_gate_up_fwd", LIGER_FN(swiglu_fwd), y, {});
}
Tensor swiglu_gate_up_bwd(const Tensor &dc, const Tensor &y) {
  return liger::glu_gate_up_bwd("swiglu_gate_up_bwd", LIGER_FN(swiglu_bwd), dc, y, {});
}
void swiglu_gate_up_bwd_(const Tensor &dc, const Tensor &y) {
  liger::glu_gate_up_bwd_over("swiglu_gate_up_bwd_", LIGER_FN(swiglu_bwd), dc, y, {});
}
} // namespace

#if !LIGER_GPU
STABLE_TORCH_LIBRARY_FRAGMENT(liger, m) {
  m.def("swiglu_fwd(Tensor a, Tensor b, float gate_multiplier, float down_multiplier) -> Tensor");
  m.def("swiglu_bwd(Tensor dc, Tensor a, Tensor b, float gate_multiplier, float down_multiplier) -> (Tensor "
        "da, Tensor db)");
  m.def("swiglu_bwd_(Tensor dc, Tensor(a!) a, Tensor(b!) b, float gate_multiplier, float down_multiplier) -> "
        "()");
  m.def("swiglu_gate_up_fwd(Tensor y) -> Tensor");
  m.def("swiglu_gate_up_bwd(Tensor dc, Tensor y) -> Tensor");
  m.def("swiglu_gate_up_bwd_(Tensor dc, Tensor(a!) y) -> ()");
}
#endif
STABLE_TORCH_LIBRARY_IMPL(liger, LIGER_BACKEND, m) {
  m.impl("swiglu_fwd", TORCH_BOX(&swiglu_fwd));
  m.impl("swiglu_bwd", TORCH_BOX(&swiglu_bwd));
  m.impl("swiglu_bwd_", TORCH_BOX(&swiglu_bwd_));
  m.impl("swiglu_gate_up_fwd", TORCH_BOX(&swiglu_gate_up_fwd));
  m.impl("swiglu_gate_up_bwd", TORCH_BOX(&swiglu_gate_up_bwd));
  m.impl("swiglu_gate_up_bwd_", TORCH_BOX(&swiglu_gate_up_bwd_));
}
