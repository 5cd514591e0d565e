// What every glue of a loss over rows shares: the statistics of its labels, and the sum of its rows.
#pragma once
#include "liger_torch.h"

namespace liger {
inline Tensor loss_scratch(int64_t bytes, const Arg &like) {
  return empty_1d((bytes + 3) / 4, aoti_torch_dtype_float32(), like);
}

// real[LIGER_CE_STATS] of int64 labels (n_rows,) alone: with `mean`, 1 / n_valid stands at LIGER_CE_SCALE, else 1
inline Tensor count_labels(const char *op, const Arg &labels, int64_t ignore_index, bool mean,
                           liger_dtype real, const Scope &scope) {
  const int64_t n_rows = labels.sizes[0];
  Tensor stats = empty_1d(
      LIGER_CE_STATS, real == LIGER_F64 ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32(), labels);
  liger_cross_entropy_count_args a{};
  a.stats = ptr(stats);
  a.target = (const int64_t *)labels.ptr;
  a.n_rows = n_rows;
  a.n_cols = 1;
  a.target_stride = labels.strides[0];
  a.ignore_index = ignore_index;
  a.reduction = mean ? LIGER_REDUCE_MEAN : LIGER_REDUCE_SUM;
  a.x_dtype = real;
#if LIGER_GPU
  const Tensor workspace = loss_scratch(liger_cross_entropy_count_workspace_cuda(n_rows, 1), labels);
  a.workspace = ptr(workspace);
#endif
  launch_whole(op, LIGER_FN(cross_entropy_count), a, scope, n_rows);
  return stats;
}

// sum(v) / *divisor (a `real` on v's device, or null: 1), as a tensor of no dimension; v: (n,) real, on the
// device of `like`
inline Tensor sum_rows(const char *op, const Tensor &v, int64_t n, const void *divisor, liger_dtype real,
                       const Arg &like, const Scope &scope) {
  Tensor out = empty(nullptr, 0, real == LIGER_F64 ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32(),
                     like);
  liger_row_sum_args a{};
  a.out = ptr(out);
  a.x = ptr(v);
  a.divisor = divisor;
  a.n = n;
  a.dtype = real;
#if LIGER_GPU
  const Tensor workspace = loss_scratch(liger_row_sum_workspace_cuda(n), like);
  a.workspace = ptr(workspace);
#endif
  launch_whole(op, LIGER_FN(row_sum), a, scope, n);
  return out;
}
} // namespace liger
