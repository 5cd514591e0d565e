#include "capi.h"

static capi::Register registration([](py::module_ &m) {
  capi::def<liger_norm_fwd_args>(m, "rms_norm_fwd", liger_rms_norm_fwd_cpu, [](auto &a, auto set) {
    FIELD(Y), FIELD(rstd), FIELD(X), FIELD(W), FIELD(n_rows), FIELD(n_cols), FIELD(X_row_stride);
    FIELD(Y_row_stride), FIELD(eps), FIELD(offset), FIELD(casting), FIELD(x_dtype), FIELD(w_dtype);
  });
  const auto bwd = [](auto &a, auto set) {
    FIELD(dX), FIELD(dW), FIELD(dW_partial), FIELD(dY), FIELD(X), FIELD(W), FIELD(rstd), FIELD(n_rows);
    FIELD(n_cols), FIELD(dY_row_stride), FIELD(X_row_stride), FIELD(n_blocks), FIELD(offset), FIELD(x_dtype);
    FIELD(w_dtype);
  };
  capi::def<liger_norm_bwd_args>(m, "rms_norm_bwd", liger_rms_norm_bwd_cpu, bwd);
  capi::def<liger_norm_bwd_args>(m, "rms_norm_params", liger_rms_norm_params_cpu, bwd);
  m.def("rms_norm_bwd_blocks", &liger_rms_norm_bwd_blocks_cpu);
});
