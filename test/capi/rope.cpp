#include "capi.h"

static capi::Register registration([](py::module_ &m) {
  capi::def<liger_rope_args>(m, "rope", liger_rope_cpu, [](auto &a, auto set) {
    FIELD(Q_out), FIELD(K_out), FIELD(Q), FIELD(K), FIELD(cos), FIELD(sin), FIELD(position_ids);
    FIELD(Q_out_strides), FIELD(K_out_strides), FIELD(Q_strides), FIELD(K_strides), FIELD(cos_batch_stride);
    FIELD(cos_row_stride), FIELD(sin_batch_stride), FIELD(sin_row_stride), FIELD(position_batch_stride);
    FIELD(position_token_stride), FIELD(batch), FIELD(n_q_heads), FIELD(n_kv_heads), FIELD(seq_len);
    FIELD(head_dim), FIELD(rotary_dim), FIELD(n_positions), FIELD(backward), FIELD(q_dtype), FIELD(k_dtype);
    FIELD(table_dtype), FIELD(table_col_stride), FIELD(cos_section_stride), FIELD(sin_section_stride);
    FIELD(section_2), FIELD(section_3), FIELD(interleaved);
  });
});
