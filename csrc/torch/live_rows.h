// The rows of a loss whose label counts, where many do not: on the CPU the labels can be looked at, so products
// and row kernels run on those rows alone, gathered, and what comes out is put back between zeros.
#pragma once
#include "linear_loss.h"

#include <cstring>
#include <vector>

namespace liger {
class LiveRows {
  int64_t n_rows = 0;
  std::vector<int64_t> rows_;

  static int64_t element_size(const Arg &a) {
    liger_dtype t;
    return as_liger_dtype(a.raw_dtype, &t) ? dtype_size(t) : 8; // else int64: nothing else comes here
  }
  template <class F> void for_rows(int64_t row_bytes, F f) const {
    const int64_t grain = 65536 / (row_bytes + 1) + 1;
    torch::stable::parallel_for(0, (int64_t)rows_.size(), grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) f(i);
    });
  }

public:
  LiveRows(const Arg &labels, int64_t ignore_index) : n_rows(labels.sizes[0]) {
    const auto *y = (const int64_t *)labels.ptr;
    rows_.reserve((size_t)n_rows);
    for (int64_t row = 0; row < n_rows; row++)
      if (y[row * labels.strides[0]] != ignore_index) rows_.push_back(row);
  }

  // A copy of the live rows costs about as much as hidden_size / vocab_size of what their products cost.
  bool few() const { return n_rows > 0 && (int64_t)rows_.size() * 16 <= n_rows * 15; }

  // the live rows of a vector or matrix, dense
  Tensor gather(const Arg &a) const {
    const bool matrix = a.dim == 2;
    const Rows r = matrix ? rows(a) : Rows{a.tensor, a.ptr, a.sizes[0], 1, a.strides[0]};
    const int64_t size = element_size(a), sizes[2] = {(int64_t)rows_.size(), r.n_cols};
    const Tensor out = empty(sizes, matrix ? 2 : 1, a.raw_dtype, a);
    char *to = (char *)ptr(out);
    for_rows(r.n_cols * size, [&](int64_t i) {
      std::memcpy(to + i * r.n_cols * size, (const char *)r.ptr + rows_[(size_t)i] * r.row_stride * size,
                  (size_t)(r.n_cols * size));
    });
    return out;
  }

  std::optional<Tensor> gather(const std::optional<Tensor> &t) const {
    return t ? std::optional<Tensor>(gather(Arg(*t, "t"))) : std::nullopt;
  }

  // its inverse: `t` is what came of gathered rows, dense; the other rows get bytes of `fill` (0, or -1 for ids)
  Tensor scatter(const Tensor &t, int fill = 0) const {
    const Arg a(t, "t");
    const int64_t size = element_size(a), n_cols = a.dim == 2 ? a.sizes[1] : 1, sizes[2] = {n_rows, n_cols};
    const Tensor out = empty(sizes, a.dim, a.raw_dtype, a);
    char *to = (char *)ptr(out);
    std::memset(to, fill, (size_t)(n_rows * n_cols * size));
    for_rows(n_cols * size, [&](int64_t i) {
      std::memcpy(to + rows_[(size_t)i] * n_cols * size, (const char *)a.ptr + i * n_cols * size,
                  (size_t)(n_cols * size));
    });
    return out;
  }
};
} // namespace liger
