// What the fused linear divergences share: the checks of a head, and a block's part of the row kernel's arguments.
#pragma once
#include "divergence_torch.h"
#include "linear_loss.h"

namespace liger {
// One head's hidden states (n_rows, hidden_size), weight (vocab_size, hidden_size) and bias, checked.
struct Head {
  Arg x, w;
  std::optional<Arg> bias;

  Head(const char *op, const Arg &x, const Arg &w, const std::optional<Tensor> &bias_, const char *bias_name,
       const Arg &first)
      : x(x), w(w) {
    check_device(op, x, first);
    check_device(op, w, first);
    check_float(op, x);
    check_float(op, w);
    if (x.dim != 2)
      fail(op, x.name, " has shape ", x.shape(), ", expected two dimensions: (n_rows, hidden_size)");
    if (w.dim != 2 || w.sizes[1] != x.sizes[1])
      fail(op, w.name, " has shape ", w.shape(), ", expected (vocab_size, ", x.sizes[1],
           "): the last size of ", x.name);
    if (!bias_) return;
    const Arg b(*bias_, bias_name);
    check_device(op, b, first);
    check_float(op, b);
    check_vector(op, b, w.sizes[0], "one value per row of the weight");
    bias.emplace(dense(b));
  }
};

inline void check_linear_options(const char *op, int64_t compute_dtype, int64_t accum_dtype,
                                 double temperature, int64_t memory_budget) {
  if (compute_dtype < LIGER_F32 || compute_dtype > (LIGER_GPU ? LIGER_BF16 : LIGER_F64))
    fail(op, "compute_dtype is ", compute_dtype, ", expected a dtype code of liger.h that this device has");
  if (accum_dtype < LIGER_ACCUM_AUTO || accum_dtype > LIGER_F64)
    fail(op, "accum_dtype is ", accum_dtype, ", expected -1 or a dtype code of liger.h");
  if (!(temperature > 0)) fail(op, "temperature is ", temperature, ", expected a positive value");
  if (memory_budget < 0)
    fail(op, "memory_budget is ", memory_budget, ", expected a number of bytes, not negative");
}

// The incoming gradient of a scalar loss.
inline Arg check_scalar_dloss(const char *op, const Tensor &dloss_, liger_dtype real, const Arg &first) {
  const Arg dloss(dloss_, "dloss");
  check_device(op, dloss, first);
  if (dloss.raw_dtype != torch_dtype(real))
    fail(op, "dloss has dtype ", dtype_name(dloss.raw_dtype), ", expected ", dtype_name(torch_dtype(real)));
  if (dloss.dim != 0) fail(op, "dloss has shape ", dloss.shape(), ", expected ()");
  return dloss;
}

// `all`, the arguments for every row, cut down to a block; Y is cut by the caller
inline liger_divergence_args block_args(const liger_divergence_args &all, const LogitsBlock &block,
                                        bool grad) {
  liger_divergence_args a = all;
  const int64_t real_size = all.x_dtype == LIGER_F64 ? 8 : 4;
  a.loss = (char *)all.loss + block.first * real_size;
  if (all.hard.loss) a.hard.loss = (char *)all.hard.loss + block.first * real_size;
  if (all.labels) a.labels = all.labels + block.first * all.label_stride;
  a.n_rows = block.n_rows;
  a.X = block.ptr;
  a.dX = grad ? block.ptr : nullptr;
  return a;
}
} // namespace liger
