// What softmax and sparsemax share in the glue: a tensor as rows along any of its dimensions.
#pragma once
#include "liger_torch.h"

namespace liger {
inline int64_t check_dim(const char *op, const Arg &x, int64_t dim) {
  if (x.dim < 1) fail(op, x.name, " has no dimension, expected at least one");
  if (dim < -x.dim || dim >= x.dim)
    fail(op, "dim is ", dim, ", expected ", -x.dim, " to ", x.dim - 1, " for ", x.name, " of shape ",
         x.shape());
  return dim < 0 ? dim + x.dim : dim;
}

// (n_rows, n_cols, n_inner), element c of row (r, i) at r * row_stride + c * n_inner + i. Copies only what
// these strides cannot describe: with the last dimension as columns, what liger::rows copies; else anything
// that is not dense.
struct DimRows {
  Tensor tensor;
  void *ptr;
  int64_t n_rows, n_cols, n_inner, row_stride;
  int64_t inner_tiles() const { return (n_inner + LIGER_SOFTMAX_TILE - 1) / LIGER_SOFTMAX_TILE; }
  int64_t tiles() const { return n_cols ? n_rows * inner_tiles() : 0; }
  int64_t tile_elements() const { return inner_tiles() ? n_cols * n_inner / inner_tiles() : 0; }
};
inline DimRows rows_along(const Arg &x, int64_t dim) {
  int64_t n_rows = 1, n_inner = 1;
  for (int64_t i = 0; i < dim; i++) n_rows *= x.sizes[i];
  for (int64_t i = dim + 1; i < x.dim; i++) n_inner *= x.sizes[i];
  if (dim == x.dim - 1) {
    const Rows r = rows(x);
    return {r.tensor, r.ptr, r.n_rows, r.n_cols, 1, r.row_stride};
  }
  const Arg d = dense(x);
  return {d.tensor, d.ptr, n_rows, x.sizes[dim], n_inner, x.sizes[dim] * n_inner};
}
} // namespace liger
