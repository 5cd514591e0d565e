#include "capi.h"

static capi::Register registration([](py::module_ &m) {
  const auto fwd = [](auto &a, auto set) {
    FIELD(C), FIELD(A), FIELD(B), FIELD(n_rows), FIELD(n_cols), FIELD(A_row_stride), FIELD(B_row_stride);
    FIELD(gate_multiplier), FIELD(down_multiplier), FIELD(a_dtype), FIELD(b_dtype), FIELD(c_dtype),
        FIELD(gelu);
  };
  const auto bwd = [](auto &a, auto set) {
    FIELD(dA), FIELD(dB), FIELD(dC), FIELD(A), FIELD(B), FIELD(n_rows), FIELD(n_cols), FIELD(dA_row_stride);
    FIELD(dB_row_stride), FIELD(dC_row_stride), FIELD(gelu);
    FIELD(A_row_stride), FIELD(B_row_stride), FIELD(gate_multiplier), FIELD(down_multiplier), FIELD(a_dtype);
    FIELD(b_dtype), FIELD(c_dtype);
  };
  capi::def<liger_glu_fwd_args>(m, "swiglu_fwd", liger_swiglu_fwd_cpu, fwd);
  capi::def<liger_glu_fwd_args>(m, "geglu_fwd", liger_geglu_fwd_cpu, fwd);
  capi::def<liger_glu_bwd_args>(m, "swiglu_bwd", liger_swiglu_bwd_cpu, bwd);
  capi::def<liger_glu_bwd_args>(m, "geglu_bwd", liger_geglu_bwd_cpu, bwd);
});
