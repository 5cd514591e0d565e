#include "capi.h"

static capi::Register registration([](py::module_ &m) {
  capi::def<liger_relu_squared_args>(m, "relu_squared", liger_relu_squared_cpu, [](auto &a, auto set) {
    FIELD(Y), FIELD(dY), FIELD(X), FIELD(n_rows), FIELD(n_cols), FIELD(dY_row_stride), FIELD(X_row_stride);
    FIELD(x_dtype);
  });
});
