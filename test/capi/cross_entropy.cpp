#include "capi.h"

static capi::Register registration([](py::module_ &m) {
  capi::def<liger_cross_entropy_count_args>(
      m, "cross_entropy_count", liger_cross_entropy_count_cpu, [](auto &a, auto set) {
        FIELD(stats), FIELD(target), FIELD(weight), FIELD(n_rows), FIELD(n_cols), FIELD(target_stride);
        FIELD(ignore_index), FIELD(reduction), FIELD(x_dtype);
      });
  capi::def<liger_cross_entropy_args>(m, "cross_entropy", liger_cross_entropy_cpu, [](auto &a, auto set) {
    FIELD(loss), FIELD(z_loss), FIELD(accuracy), FIELD(predicted), FIELD(dX), FIELD(X), FIELD(target);
    FIELD(weight), FIELD(stats), FIELD(row_grad), FIELD(n_rows), FIELD(n_cols), FIELD(X_row_stride);
    FIELD(dX_row_stride), FIELD(target_stride), FIELD(row_grad_stride), FIELD(ignore_index);
    FIELD(label_smoothing), FIELD(lse_square_scale), FIELD(softcap), FIELD(token_scaling), FIELD(x_dtype);
  });
});
