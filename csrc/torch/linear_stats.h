// The statistics of a head's logits without the logits, where this device has a kernel for them
// (liger_linear_stats_args): a loss without gradient takes no memory for its vocabulary and saves the pass over it.
#pragma once
#include "linear_loss.h"

namespace liger {
// A cluster multiplies 256 rows at once. Measured on an H200 beside force_loop_order("token"), V 128256, H 4096: rows
// that fill all but an eighth of the last tile are no slower than with logits (256: .97 of the time, 512: 1.00, 2048:
// .94; 16384 of H 2048: .90), 384, which leave half of it idle, 1.23 times as slow.
constexpr int64_t LINEAR_STATS_ROWS = 256;
inline bool linear_stats_fill(int64_t n_rows) {
  const int64_t tiles = (n_rows + LINEAR_STATS_ROWS - 1) / LINEAR_STATS_ROWS;
  return 8 * tiles * LINEAR_STATS_ROWS <= 9 * n_rows;
}

struct LinearStatsOutputs {
  float *m, *d, *z_y; // of the first row, others `stride` elements apart
  int64_t stride;
  float *logprob = nullptr, *lse = nullptr;
};

// For rows [0, n_rows) of x, some at a time where the budget asks for it; false: not here, and nothing was done.
inline bool linear_stats(const char *op, const Arg &x, const Arg &w, const std::optional<Arg> &bias,
                         const Arg &ids, int64_t n_rows, liger_dtype compute, double scale,
                         int64_t ignore_index, int64_t memory_budget, const LinearStatsOutputs &out,
                         const Scope &scope) {
#if LIGER_GPU
  const int32_t dtype = torch_dtype(compute);
  /* a bias of another dtype is rounded to the products' where logits are stored: left to that path */
  if (n_rows == 0 || !linear_stats_fill(n_rows) || x.raw_dtype != dtype || w.raw_dtype != dtype ||
      (bias && bias->raw_dtype != dtype) || x.strides[1] != 1 || w.strides[1] != 1)
    return false;
  liger_linear_stats_args a{};
  a.X = x.ptr;
  a.W = w.ptr;
  a.n_rows = n_rows;
  a.hidden_size = x.sizes[1];
  a.vocab_size = w.sizes[0];
  a.X_row_stride = x.strides[0];
  a.W_row_stride = w.strides[0];
  a.ids_stride = ids.strides[0];
  a.stride = out.stride;
  a.ignore_index = ignore_index;
  a.scale = scale;
  a.dtype = compute;
  if (bias) {
    a.bias = bias->ptr;
    a.bias_dtype = check_float(op, *bias);
  }
  if (!liger_linear_stats_fits_cuda(&a)) return false;
  a.n_rows = 1;
  const int64_t fit = memory_budget / liger_linear_stats_workspace_cuda(&a) / LINEAR_STATS_ROWS;
  const int64_t step = (fit > 1 ? fit : 1) * LINEAR_STATS_ROWS;
  a.n_rows = step < n_rows ? step : n_rows;
  const Tensor workspace = empty_1d(liger_linear_stats_workspace_cuda(&a) / 4, aoti_torch_dtype_float32(), x);
  a.workspace = ptr(workspace);
  for (int64_t first = 0; first < n_rows; first += step) {
    const auto at = [&](float *p, int64_t stride) { return p ? p + first * stride : nullptr; };
    a.n_rows = first + step < n_rows ? step : n_rows - first;
    a.X = (const char *)x.ptr + first * x.strides[0] * 2;
    a.ids = (const int64_t *)ids.ptr + first * ids.strides[0];
    a.m = at(out.m, out.stride);
    a.d = at(out.d, out.stride);
    a.z_y = at(out.z_y, out.stride);
    a.logprob = at(out.logprob, 1);
    a.lse = at(out.lse, 1);
    launch(op, LIGER_FN(linear_stats), a, scope, a.n_rows, a.vocab_size);
  }
  return true;
#else
  (void)op, (void)x, (void)w, (void)bias, (void)ids, (void)n_rows, (void)compute, (void)scale,
      (void)ignore_index, (void)memory_budget, (void)out, (void)scope;
  return false;
#endif
}
} // namespace liger
