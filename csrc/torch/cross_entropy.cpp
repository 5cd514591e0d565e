// Glue of cross_entropy: schemas, checks, allocation, launches. Forward: statistics of the targets, the loss of every row (with
// its gradient, if wanted), the sums over rows. Backward, where the gradient was not made in forward: the first two again.
#include "liger_torch.h"

#include <cmath>

using liger::Arg;
using torch::stable::Tensor;

namespace {
struct Options {
  int64_t ignore_index;
  double lse_square_scale, label_smoothing;
  int64_t reduction;
  double softcap;
};
struct Wanted {
  bool z_loss, accuracy, predicted;
};

// One row kernel launch and what must precede it. Checks come first: nothing is written by a call that raises.
struct Call {
  const char *op;
  Arg x, target;
  std::optional<Arg> weight;
  Options o;
  liger_dtype x_dtype;
  int64_t n_rows, n_cols;
  int32_t real;

  Call(const char *op, const Tensor &x_, const Tensor &target_, const std::optional<Tensor> &weight_, const Options &o)
      : op(op), x(x_, "x"), target(target_, "target"), o(o), x_dtype(liger::check_float(op, x)), real(liger::accum_dtype(x)) {
    liger::check_device(op, target, x);
    if (target.raw_dtype != aoti_torch_dtype_int64())
      liger::fail(op, "target has dtype ", liger::dtype_name(target.raw_dtype), ", expected int64 (class indices)");
    if (x.dim != 2) liger::fail(op, "x has shape ", x.shape(), ", expected two dimensions: (n_rows, n_classes)");
    n_rows = x.sizes[0];
    n_cols = x.sizes[1];
    liger::check_vector(op, target, n_rows, "one label per row of x");
    if (weight_) {
      const Arg w(*weight_, "weight");
      liger::check_device(op, w, x);
      if (w.raw_dtype != real)
        liger::fail(op, "weight has dtype ", liger::dtype_name(w.raw_dtype), ", expected ", liger::dtype_name(real));
      liger::check_vector(op, w, n_cols, "one weight per class, as many as x has columns");
      weight.emplace(liger::dense(w));
    }
    if (o.reduction < LIGER_REDUCE_NONE || o.reduction > LIGER_REDUCE_SUM)
      liger::fail(op, "reduction is ", o.reduction, ", expected 0 (none), 1 (mean) or 2 (sum)");
    if (!(o.label_smoothing >= 0 && o.label_smoothing <= 1))
      liger::fail(op, "label_smoothing is ", o.label_smoothing, ", expected a value in [0, 1]");
    if (!(o.softcap >= 0)) liger::fail(op, "softcap is ", o.softcap, ", expected a positive value, or 0 for none");
#if !LIGER_GPU // a GPU would have to be waited for: its kernel answers with NaN
    const auto *y = (const int64_t *)target.ptr;
    const int64_t bad = liger_cross_entropy_bad_label_cpu(y, target.strides[0], n_rows, n_cols, o.ignore_index);
    if (bad >= 0)
      liger::fail(op, "target[", bad, "] is ", y[bad * target.strides[0]], ", expected a value in [0, ", n_cols,
                  ") or ignore_index (", o.ignore_index, ")");
#endif
  }

  Tensor scratch(int64_t bytes) const { return liger::empty_1d((bytes + 3) / 4, aoti_torch_dtype_float32(), x); }

  Tensor count(const liger::Scope &scope) const {
    Tensor stats = liger::empty_1d(LIGER_CE_STATS, real, x);
    liger_cross_entropy_count_args a{};
    a.stats = liger::ptr(stats);
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
    a.workspace = liger::ptr(workspace);
#endif
    liger::launch_whole(op, LIGER_FN(cross_entropy_count), a, scope, n_rows);
    return stats;
  }

  // `rx` is x as rows; the outputs that are not wanted stay null
  liger_cross_entropy_args rows_args(const Tensor &stats, const Tensor &loss, const liger::Rows &rx) const {
    liger_cross_entropy_args a{};
    a.loss = liger::ptr(loss);
    a.X = rx.ptr;
    a.target = (const int64_t *)target.ptr;
    a.weight = weight ? weight->ptr : nullptr;
    a.stats = liger::ptr(stats);
    a.n_rows = n_rows;
    a.n_cols = n_cols;
    a.X_row_stride = rx.row_stride;
    a.dX_row_stride = n_cols;
    a.target_stride = target.strides[0];
    a.ignore_index = o.ignore_index;
    a.lse_square_scale = o.lse_square_scale;
    a.label_smoothing = o.label_smoothing;
    a.softcap = o.softcap;
    a.x_dtype = x_dtype;
    return a;
  }

  // sum(v), or the mean over valid rows: `divisor` points into stats
  Tensor sum(const Tensor &v, const void *divisor, const liger::Scope &scope) const {
    Tensor out = liger::empty(nullptr, 0, real, x);
    liger_row_sum_args a{};
    a.out = liger::ptr(out);
    a.x = liger::ptr(v);
    a.divisor = divisor;
    a.n = n_rows;
    a.dtype = x_dtype == LIGER_F64 ? LIGER_F64 : LIGER_F32;
#if LIGER_GPU
    const Tensor workspace = scratch(liger_row_sum_workspace_cuda(n_rows));
    a.workspace = liger::ptr(workspace);
#endif
    liger::launch_whole(op, LIGER_FN(row_sum), a, scope, n_rows);
    return out;
  }

  // loss, z_loss, accuracy, predicted; (0,) where not wanted. dx: the memory of the gradient, or null
  std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Wanted &want, void *dx, int64_t dx_row_stride,
                                                     const liger::Rows &rx) const {
    const liger::Scope scope(x);
    const Tensor stats = count(scope);
    Tensor loss = liger::empty_1d(n_rows, real, x);
    Tensor z_loss = liger::empty_1d(want.z_loss ? n_rows : 0, real, x);
    Tensor accuracy = liger::empty_1d(want.accuracy ? n_rows : 0, real, x);
    Tensor predicted = liger::empty_1d(want.predicted ? n_rows : 0, aoti_torch_dtype_int64(), x);
    liger_cross_entropy_args a = rows_args(stats, loss, rx);
    a.z_loss = want.z_loss ? liger::ptr(z_loss) : nullptr;
    a.accuracy = want.accuracy ? liger::ptr(accuracy) : nullptr;
    a.predicted = want.predicted ? (int64_t *)liger::ptr(predicted) : nullptr;
    a.dX = dx;
    a.dX_row_stride = dx_row_stride;
    liger::launch(op, LIGER_FN(cross_entropy), a, scope, n_rows, n_cols);
    if (o.reduction == LIGER_REDUCE_NONE) return {loss, z_loss, accuracy, predicted};
    const char *n_valid = (const char *)a.stats + LIGER_CE_N_VALID * (x_dtype == LIGER_F64 ? 8 : 4);
    return {sum(loss, nullptr, scope), want.z_loss ? sum(z_loss, nullptr, scope) : z_loss,
            want.accuracy ? sum(accuracy, n_valid, scope) : accuracy, predicted};
  }

  void backward(const Tensor &dloss_, void *dx, int64_t dx_row_stride, const liger::Rows &rx) const {
    const Arg dloss(dloss_, "dloss");
    liger::check_device(op, dloss, x);
    if (dloss.raw_dtype != real)
      liger::fail(op, "dloss has dtype ", liger::dtype_name(dloss.raw_dtype), ", expected ", liger::dtype_name(real));
    const bool none = o.reduction == LIGER_REDUCE_NONE;
    if (none) liger::check_vector(op, dloss, n_rows, "one value per row of x");
    else if (dloss.dim != 0) liger::fail(op, "dloss has shape ", dloss.shape(), ", expected (): reduction is mean or sum");
    const liger::Scope scope(x);
    const Tensor stats = count(scope), loss = liger::empty_1d(n_rows, real, x);
    liger_cross_entropy_args a = rows_args(stats, loss, rx);
    a.dX = dx;
    a.dX_row_stride = dx_row_stride;
    a.row_grad = dloss.ptr;
    a.row_grad_stride = none ? dloss.strides[0] : 0;
    liger::launch(op, LIGER_FN(cross_entropy), a, scope, n_rows, n_cols);
  }

  // x's own memory for the gradient; only where no two rows overlap and no copy stands in for x
  liger::Rows own_rows() const {
    if ((n_cols > 1 && x.strides[1] != 1) || (n_rows > 1 && x.strides[0] < n_cols))
      liger::fail(op, "x cannot be overwritten: its columns are not adjacent or its rows overlap");
    return {x.tensor, x.ptr, n_rows, n_cols, n_rows > 1 ? x.strides[0] : n_cols};
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> cross_entropy(const Tensor &x, const Tensor &target,
                                                                 const std::optional<Tensor> &weight, int64_t ignore_index,
                                                                 double lse_square_scale, double label_smoothing,
                                                                 int64_t reduction, double softcap, bool z_loss, bool accuracy,
                                                                 bool predicted, bool grad) {
  const Call c("cross_entropy", x, target, weight,
               {ignore_index, lse_square_scale, label_smoothing, reduction, softcap});
  Tensor dx = grad ? liger::empty_like(c.x) : liger::empty_1d(0, c.x.raw_dtype, c.x);
  auto [loss, z, acc, pred] =
      c.forward({z_loss, accuracy, predicted}, grad ? liger::ptr(dx) : nullptr, c.n_cols, liger::rows(c.x));
  return {loss, z, acc, pred, dx};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> cross_entropy_in_place(const Tensor &x, const Tensor &target,
                                                                  const std::optional<Tensor> &weight, int64_t ignore_index,
                                                                  double lse_square_scale, double label_smoothing,
                                                                  int64_t reduction, double softcap, bool z_loss,
                                                                  bool accuracy, bool predicted) {
  const Call c("cross_entropy_", x, target, weight,
               {ignore_index, lse_square_scale, label_smoothing, reduction, softcap});
  const liger::Rows rows = c.own_rows();
  return c.forward({z_loss, accuracy, predicted}, rows.ptr, rows.row_stride, rows);
}

Tensor cross_entropy_bwd(const Tensor &dloss, const Tensor &x, const Tensor &target, const std::optional<Tensor> &weight,
                         int64_t ignore_index, double lse_square_scale, double label_smoothing, int64_t reduction,
                         double softcap) {
  const Call c("cross_entropy_bwd", x, target, weight,
               {ignore_index, lse_square_scale, label_smoothing, reduction, softcap});
  Tensor dx = liger::empty_like(c.x);
  c.backward(dloss, liger::ptr(dx), c.n_cols, liger::rows(c.x));
  return dx;
}

void cross_entropy_bwd_in_place(const Tensor &x, const Tensor &dloss, const Tensor &target,
                                const std::optional<Tensor> &weight, int64_t ignore_index, double lse_square_scale,
                                double label_smoothing, int64_t reduction, double softcap) {
  const Call c("cross_entropy_bwd_", x, target, weight,
               {ignore_index, lse_square_scale, label_smoothing, reduction, softcap});
  const liger::Rows rows = c.own_rows();
  c.backward(dloss, rows.ptr, rows.row_stride, rows);
}
} // namespace

#if !LIGER_GPU
#define OPTIONS                                                                                                        \
  "Tensor target, Tensor? weight, int ignore_index, float lse_square_scale, float label_smoothing, int reduction, float softcap"
STABLE_TORCH_LIBRARY_FRAGMENT(liger, m) {
  m.def("cross_entropy(Tensor x, " OPTIONS ", bool z_loss, bool accuracy, bool predicted, bool grad)"
        " -> (Tensor loss, Tensor z_loss, Tensor accuracy, Tensor predicted, Tensor dx)");
  m.def("cross_entropy_(Tensor(a!) x, " OPTIONS ", bool z_loss, bool accuracy, bool predicted)"
        " -> (Tensor loss, Tensor z_loss, Tensor accuracy, Tensor predicted)");
  m.def("cross_entropy_bwd(Tensor dloss, Tensor x, " OPTIONS ") -> Tensor dx");
  m.def("cross_entropy_bwd_(Tensor(a!) x, Tensor dloss, " OPTIONS ") -> ()");
}
#endif
STABLE_TORCH_LIBRARY_IMPL(liger, LIGER_BACKEND, m) {
  m.impl("cross_entropy", TORCH_BOX(&cross_entropy));
  m.impl("cross_entropy_", TORCH_BOX(&cross_entropy_in_place));
  m.impl("cross_entropy_bwd", TORCH_BOX(&cross_entropy_bwd));
  m.impl("cross_entropy_bwd_", TORCH_BOX(&cross_entropy_bwd_in_place));
}
