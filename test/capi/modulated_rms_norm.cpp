#include "capi.h"

static capi::Register registration([](py::module_ &m) {
  const auto fwd = [](auto &a, auto set) {
    FIELD(Y), FIELD(rstd), FIELD(X), FIELD(W), FIELD(scale), FIELD(shift), FIELD(n_rows), FIELD(n_cols);
    FIELD(n_modulations), FIELD(X_row_stride), FIELD(scale_row_stride), FIELD(shift_row_stride), FIELD(eps);
    FIELD(offset), FIELD(casting), FIELD(x_dtype), FIELD(w_dtype), FIELD(scale_dtype), FIELD(shift_dtype);
  };
  const auto bwd = [](auto &a, auto set) {
    FIELD(dX), FIELD(dW), FIELD(dscale), FIELD(dshift), FIELD(workspace), FIELD(dY), FIELD(X), FIELD(W);
    FIELD(scale), FIELD(rstd), FIELD(n_rows), FIELD(n_cols), FIELD(n_modulations), FIELD(dY_row_stride);
    FIELD(X_row_stride), FIELD(scale_row_stride), FIELD(n_blocks), FIELD(offset), FIELD(x_dtype);
    FIELD(w_dtype), FIELD(scale_dtype), FIELD(shift_dtype);
  };
  capi::def<liger_modulated_rms_norm_fwd_args>(m, "modulated_rms_norm_fwd", liger_modulated_rms_norm_fwd_cpu,
                                               fwd);
  capi::def<liger_modulated_rms_norm_bwd_args>(m, "modulated_rms_norm_bwd", liger_modulated_rms_norm_bwd_cpu,
                                               bwd);
  capi::def<liger_modulated_rms_norm_bwd_args>(m, "modulated_rms_norm_params",
                                               liger_modulated_rms_norm_params_cpu, bwd);
});
