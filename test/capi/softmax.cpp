#include "capi.h"

static capi::Register registration([](py::module_ &m) {
  const auto fwd = [](auto &a, auto set) {
    FIELD(Y), FIELD(X), FIELD(n_rows), FIELD(n_cols), FIELD(n_inner), FIELD(X_row_stride), FIELD(x_dtype);
  };
  const auto bwd = [](auto &a, auto set) {
    FIELD(dX), FIELD(dY), FIELD(Y), FIELD(n_rows), FIELD(n_cols), FIELD(n_inner), FIELD(dY_row_stride);
    FIELD(Y_row_stride), FIELD(x_dtype);
  };
  capi::def<liger_softmax_fwd_args>(m, "softmax_fwd", liger_softmax_fwd_cpu, fwd);
  capi::def<liger_softmax_bwd_args>(m, "softmax_bwd", liger_softmax_bwd_cpu, bwd);
  capi::def<liger_softmax_fwd_args>(m, "sparsemax_fwd", liger_sparsemax_fwd_cpu, fwd);
  capi::def<liger_softmax_bwd_args>(m, "sparsemax_bwd", liger_sparsemax_bwd_cpu, bwd);
});
