// What every glue that ends in the cross entropy row kernel shares: checks of labels and options, the
// statistics of the targets, the kernel's arguments, the outputs and their sums over rows.
#pragma once
#include "loss_torch.h"

namespace liger {
struct CrossEntropyOptions {
  int64_t ignore_index;
  double lse_square_scale, label_smoothing;
  int64_t reduction;
  double softcap;
};
struct CrossEntropyWanted {
  bool z_loss, accuracy, predicted;
};
struct CrossEntropyOutputs {
  Tensor loss, z_loss, accuracy, predicted; // per row; (0,) where not wanted
};

// `x`: whose rows have the labels, and whose device everything must be on. Checks come first: nothing is
// written by a call that raises. x_dtype: of the logits, n_cols: how many there are per row.
struct CrossEntropy {
  const char *op;
  Arg x, target;
  std::optional<Arg> weight;
  CrossEntropyOptions o;
  liger_dtype x_dtype;
  int64_t n_rows, n_cols;
  int32_t real;

  CrossEntropy(const char *op, const Arg &x, int64_t n_cols, liger_dtype x_dtype, const Tensor &target_,
               const std::optional<Tensor> &weight_, const char *weight_name, const CrossEntropyOptions &o)
      : op(op), x(x), target(target_, "target"), o(o), x_dtype(x_dtype), n_rows(x.sizes[0]), n_cols(n_cols),
        real(x_dtype == LIGER_F64 ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32()) {
    check_device(op, target, x);
    if (target.raw_dtype != aoti_torch_dtype_int64())
      fail(op, "target has dtype ", dtype_name(target.raw_dtype), ", expected int64 (class indices)");
    check_vector(op, target, n_rows, "one label per row of x");
    if (weight_) {
      const Arg w(*weight_, weight_name);
      check_device(op, w, x);
      if (w.raw_dtype != real)
        fail(op, weight_name, " has dtype ", dtype_name(w.raw_dtype), ", expected ", dtype_name(real));
      check_vector(op, w, n_cols, "one weight per class");
      weight.emplace(dense(w));
    }
    if (o.reduction < LIGER_REDUCE_NONE || o.reduction > LIGER_REDUCE_SUM)
      fail(op, "reduction is ", o.reduction, ", expected 0 (none), 1 (mean) or 2 (sum)");
    if (!(o.label_smoothing >= 0 && o.label_smoothing <= 1))
      fail(op, "label_smoothing is ", o.label_smoothing, ", expected a value in [0, 1]");
    if (!(o.softcap >= 0)) fail(op, "softcap is ", o.softcap, ", expected a positive value, or 0 for none");
#if !LIGER_GPU // a GPU would have to be waited for: its kernel answers with NaN
    const auto *y = (const int64_t *)target.ptr;
    const int64_t bad = liger_cross_entropy_bad_label_cpu(y, target.strides[0], n_rows, n_cols,
                                                          o.ignore_index);
    if (bad >= 0)
      fail(op, "target[", bad, "] is ", y[bad * target.strides[0]], ", expected a value in [0, ", n_cols,
           ") or ignore_index (", o.ignore_index, ")");
#endif
  }

  bool reduced() const { return o.reduction != LIGER_REDUCE_NONE; }
  Tensor scratch(int64_t bytes) const { return loss_scratch(bytes, x); }

  // The incoming gradient: one value, or one per row.
  Arg check_dloss(const Tensor &dloss_) const {
    const Arg dloss(dloss_, "dloss");
    check_device(op, dloss, x);
    if (dloss.raw_dtype != real)
      fail(op, "dloss has dtype ", dtype_name(dloss.raw_dtype), ", expected ", dtype_name(real));
    if (!reduced()) check_vector(op, dloss, n_rows, "one value per row of x");
    else if (dloss.dim != 0)
      fail(op, "dloss has shape ", dloss.shape(), ", expected (): reduction is mean or sum");
    return dloss;
  }
  void set_dloss(liger_cross_entropy_args &a, const Arg &dloss) const {
    a.row_grad = dloss.ptr;
    a.row_grad_stride = reduced() ? 0 : dloss.strides[0];
  }

  Tensor count(const Scope &scope) const {
    Tensor stats = empty_1d(LIGER_CE_STATS, real, x);
    liger_cross_entropy_count_args a{};
    a.stats = ptr(stats);
    a.target = (const int64_t *)target.ptr;
    a.weight = weight ? weight->ptr : nullptr;
    a.n_rows = n_rows;
    a.n_cols = n_cols;
    a.target_stride = target.strides[0];
    a.ignore_index = o.ignore_index;
    a.reduction = (int)o.reduction;
    a.x_dtype = x_dtype;
#if LIGER_GPU
    const Tensor workspace = scratch(liger_cross_entropy_count_workspace_cuda(n_rows, n_cols));
    a.workspace = ptr(workspace);
#endif
    launch_whole(op, LIGER_FN(cross_entropy_count), a, scope, n_rows);
    return stats;
  }

  CrossEntropyOutputs outputs(const CrossEntropyWanted &want) const {
    return {empty_1d(n_rows, real, x), empty_1d(want.z_loss ? n_rows : 0, real, x),
            empty_1d(want.accuracy ? n_rows : 0, real, x),
            empty_1d(want.predicted ? n_rows : 0, aoti_torch_dtype_int64(), x)};
  }

  // All rows, with no logits and no gradient yet.
  liger_cross_entropy_args rows_args(const Tensor &stats, const CrossEntropyOutputs &out,
                                     const CrossEntropyWanted &want) const {
    liger_cross_entropy_args a{};
    a.loss = ptr(out.loss);
    a.z_loss = want.z_loss ? ptr(out.z_loss) : nullptr;
    a.accuracy = want.accuracy ? ptr(out.accuracy) : nullptr;
    a.predicted = want.predicted ? (int64_t *)ptr(out.predicted) : nullptr;
    a.target = (const int64_t *)target.ptr;
    a.weight = weight ? weight->ptr : nullptr;
    a.stats = ptr(stats);
    a.n_rows = n_rows;
    a.n_cols = n_cols;
    a.X_row_stride = a.dX_row_stride = n_cols;
    a.target_stride = target.strides[0];
    a.ignore_index = o.ignore_index;
    a.lse_square_scale = o.lse_square_scale;
    a.label_smoothing = o.label_smoothing;
    a.softcap = o.softcap;
    a.x_dtype = x_dtype;
    return a;
  }

  // sum(v), or the mean over valid rows: `divisor` points into stats
  Tensor sum(const Tensor &v, const void *divisor, const Scope &scope) const {
    return sum_rows(op, v, n_rows, divisor, x_dtype == LIGER_F64 ? LIGER_F64 : LIGER_F32, x, scope);
  }

  // What the caller gets: the rows themselves for reduction none, else their sums (they are scaled already;
  // accuracy is a mean)
  CrossEntropyOutputs reduce(const CrossEntropyOutputs &out, const CrossEntropyWanted &want,
                             const Tensor &stats, const Scope &scope) const {
    if (!reduced()) return out;
    const char *n_valid = (const char *)ptr(stats) + LIGER_CE_N_VALID * (x_dtype == LIGER_F64 ? 8 : 4);
    return {sum(out.loss, nullptr, scope), want.z_loss ? sum(out.z_loss, nullptr, scope) : out.z_loss,
            want.accuracy ? sum(out.accuracy, n_valid, scope) : out.accuracy, out.predicted};
  }
};
} // namespace liger
