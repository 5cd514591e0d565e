#include "capi.h"

static capi::Register registration([](py::module_ &m) {
  capi::def<liger_dyt_fwd_args>(m, "dyt_fwd", liger_dyt_fwd_cpu, [](auto &a, auto set) {
    FIELD(Y), FIELD(X), FIELD(alpha), FIELD(gamma), FIELD(beta), FIELD(n_rows), FIELD(n_cols);
    FIELD(X_row_stride), FIELD(x_dtype), FIELD(alpha_dtype), FIELD(gamma_dtype), FIELD(beta_dtype);
  });
  const auto bwd = [](auto &a, auto set) {
    FIELD(dX), FIELD(dalpha), FIELD(dgamma), FIELD(dbeta), FIELD(workspace), FIELD(dY), FIELD(X);
    FIELD(alpha), FIELD(gamma), FIELD(n_rows), FIELD(n_cols), FIELD(dY_row_stride), FIELD(X_row_stride);
    FIELD(x_dtype), FIELD(alpha_dtype), FIELD(gamma_dtype), FIELD(beta_dtype);
  };
  capi::def<liger_dyt_bwd_args>(m, "dyt_bwd", liger_dyt_bwd_cpu, bwd);
  capi::def<liger_dyt_bwd_args>(m, "dyt_params", liger_dyt_params_cpu, bwd);
  m.def("dyt_bwd_blocks", &liger_dyt_bwd_blocks_cpu);
  m.def("dyt_bwd_workspace", [](int64_t n_rows, int64_t n_cols, int t) {
    return liger_dyt_bwd_workspace_cpu(n_rows, n_cols, (liger_dtype)t);
  });
});
