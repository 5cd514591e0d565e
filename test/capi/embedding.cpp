#include "capi.h"

static capi::Register registration([](py::module_ &m) {
  capi::def<liger_embedding_fwd_args>(m, "embedding_fwd", liger_embedding_fwd_cpu, [](auto &a, auto set) {
    FIELD(Y), FIELD(W), FIELD(ids), FIELD(n_rows), FIELD(n_cols), FIELD(n_embeddings), FIELD(W_row_stride);
    FIELD(x_dtype);
  });
  const auto bwd = [](auto &a, auto set) {
    FIELD(dW), FIELD(partial), FIELD(dY), FIELD(sorted_ids), FIELD(order), FIELD(n_rows), FIELD(n_cols);
    FIELD(n_embeddings), FIELD(dY_row_stride), FIELD(n_slices), FIELD(padding_idx), FIELD(x_dtype);
  };
  capi::def<liger_embedding_bwd_args>(m, "embedding_bwd", liger_embedding_bwd_cpu, bwd);
  capi::def<liger_embedding_bwd_args>(m, "embedding_join", liger_embedding_join_cpu, bwd);
  capi::def<liger_embedding_bwd_args>(m, "embedding_zero", liger_embedding_zero_cpu, bwd);
  m.def("embedding_slices", &liger_embedding_slices);
});
