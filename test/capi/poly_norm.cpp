#include "capi.h"

static capi::Register registration([](py::module_ &m) {
  capi::def<liger_poly_norm_fwd_args>(m, "poly_norm_fwd", liger_poly_norm_fwd_cpu, [](auto &a, auto set) {
    FIELD(Y), FIELD(rstd), FIELD(X), FIELD(W), FIELD(b), FIELD(n_rows), FIELD(n_cols), FIELD(X_row_stride);
    FIELD(eps), FIELD(x_dtype), FIELD(w_dtype), FIELD(b_dtype);
  });
  const auto bwd = [](auto &a, auto set) {
    FIELD(dX), FIELD(dW), FIELD(db), FIELD(workspace), FIELD(dY), FIELD(X), FIELD(W), FIELD(rstd);
    FIELD(n_rows), FIELD(n_cols), FIELD(dY_row_stride), FIELD(X_row_stride), FIELD(n_blocks), FIELD(x_dtype);
    FIELD(w_dtype), FIELD(b_dtype);
  };
  capi::def<liger_poly_norm_bwd_args>(m, "poly_norm_bwd", liger_poly_norm_bwd_cpu, bwd);
  capi::def<liger_poly_norm_bwd_args>(m, "poly_norm_params", liger_poly_norm_params_cpu, bwd);
  m.def("poly_norm_bwd_blocks", &liger_poly_norm_bwd_blocks_cpu);
});
