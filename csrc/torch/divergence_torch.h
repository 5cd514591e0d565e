// Glue of the divergences of given (log-)probabilities, shared by jsd, kl_div and tvd: checks, allocation, launch.
#pragma once
#include "loss_torch.h"

namespace liger {
struct DivergenceOptions {
  double parameter; // beta or eps
  int64_t reduction;
  int64_t ignore_index;
  bool log_target;
};

// int64 labels, one per row of x; nothing is said of their values but which row is ignored
inline std::optional<Arg> check_row_labels(const char *op, const std::optional<Tensor> &labels_,
                                           const Arg &x) {
  if (!labels_) return std::nullopt;
  const Arg labels(*labels_, "shift_labels");
  check_device(op, labels, x);
  if (labels.raw_dtype != aoti_torch_dtype_int64())
    fail(op, "shift_labels has dtype ", dtype_name(labels.raw_dtype), ", expected int64");
  check_vector(op, labels, x.sizes[0], "one label per row");
  return labels;
}

// What a divergence's rows are multiplied by: `factor`, times `stats`' first value where labels choose the rows.
struct DivergenceScale {
  double factor = 1;
  std::optional<Tensor> stats;

  DivergenceScale(const char *op, int64_t reduction, const std::optional<Arg> &labels, int64_t ignore_index,
                  int64_t n_rows, int64_t n_cols, liger_dtype real, const Scope &scope) {
    if (reduction != LIGER_REDUCE_MEAN && reduction != LIGER_REDUCE_BATCHMEAN) return;
    if (labels) stats.emplace(count_labels(op, *labels, ignore_index, true, real, scope));
    else factor = n_rows ? 1.0 / (double)n_rows : 0;
    if (reduction == LIGER_REDUCE_MEAN) factor = n_cols ? factor / (double)n_cols : 0;
  }
};

struct Divergence {
  const char *op;
  Arg x, y;
  DivergenceOptions o;
  std::optional<Arg> labels;
  liger_dtype x_dtype, real;
  int64_t n_rows, n_cols;

  Divergence(const char *op, const Tensor &x_, const Tensor &y_, const std::optional<Tensor> &labels_,
             const DivergenceOptions &o)
      : op(op), x(x_, "x"), y(y_, "y"), o(o) {
    check_device(op, y, x);
    x_dtype = check_float(op, x);
    check_same_dtype(op, y, x);
    if (x.dim != 2) fail(op, "x has shape ", x.shape(), ", expected two dimensions: (n_rows, n_classes)");
    check_same_shape(op, y, x);
    labels = check_row_labels(op, labels_, x);
    if (o.reduction < LIGER_REDUCE_NONE || o.reduction > LIGER_REDUCE_BATCHMEAN)
      fail(op, "reduction is ", o.reduction, ", expected 0 (none), 1 (mean), 2 (sum) or 3 (batchmean)");
    real = x_dtype == LIGER_F64 ? LIGER_F64 : LIGER_F32;
    n_rows = x.sizes[0];
    n_cols = x.sizes[1];
  }

  bool elementwise() const { return o.reduction == LIGER_REDUCE_NONE; }

  // dloss: the incoming gradient, or null: that of the loss itself; loss, dx: memory, or null
  template <class Fn> void run(Fn fn, const Scope &scope, const Arg *dloss, void *loss, void *dx) const {
    const Rows rx = rows(x), ry = rows(y);
    std::optional<Rows> rg;
    const DivergenceScale scale(op, o.reduction, labels, o.ignore_index, n_rows, n_cols, real, scope);
    liger_divergence_args a{};
    a.loss = loss;
    a.dX = dx;
    a.X = rx.ptr;
    a.Y = ry.ptr;
    if (labels) a.labels = (const int64_t *)labels->ptr, a.label_stride = labels->strides[0];
    a.scale = scale.stats ? ptr(*scale.stats) : nullptr;
    if (dloss && elementwise()) {
      rg.emplace(rows(*dloss));
      a.grad = rg->ptr;
      a.grad_row_stride = rg->row_stride;
    } else if (dloss) {
      a.grad = dloss->ptr;
    }
    a.n_rows = n_rows;
    a.n_cols = n_cols;
    a.X_row_stride = rx.row_stride;
    a.Y_row_stride = ry.row_stride;
    a.dX_row_stride = n_cols;
    a.ignore_index = o.ignore_index;
    a.factor = scale.factor;
    a.parameter = o.parameter;
    a.temperature = 1;
    a.elementwise = elementwise();
    a.log_target = o.log_target;
    a.x_dtype = a.y_dtype = x_dtype;
    launch(op, fn, a, scope, n_rows, n_cols);
  }
};

// loss: (n_rows, n_cols) for reduction none, else (); dx: (0,) where not wanted
template <class Fn>
std::tuple<Tensor, Tensor> divergence_fwd(const char *op, Fn fn, const Tensor &x, const Tensor &y,
                                          const std::optional<Tensor> &labels, const DivergenceOptions &o,
                                          bool grad) {
  const Divergence d(op, x, y, labels, o);
  const Scope scope(d.x);
  const Tensor dx = grad ? empty_like(d.x) : empty_1d(0, d.x.raw_dtype, d.x);
  void *dx_ptr = grad ? ptr(dx) : nullptr;
  if (d.elementwise()) {
    const Tensor loss = empty(d.x.sizes, 2, accum_dtype(d.x), d.x);
    d.run(fn, scope, nullptr, ptr(loss), dx_ptr);
    return {loss, dx};
  }
  const Tensor rows = empty_1d(d.n_rows, accum_dtype(d.x), d.x);
  // a row of no columns has a loss too: an empty sum
  d.run(fn, scope, nullptr, ptr(rows), dx_ptr);
  return {sum_rows(op, rows, d.n_rows, nullptr, d.real, d.x, scope), dx};
}

template <class Fn>
Tensor divergence_bwd(const char *op, Fn fn, const Tensor &dloss_, const Tensor &x, const Tensor &y,
                      const std::optional<Tensor> &labels, const DivergenceOptions &o) {
  const Divergence d(op, x, y, labels, o);
  const Arg dloss(dloss_, "dloss");
  check_device(op, dloss, d.x);
  if (dloss.raw_dtype != accum_dtype(d.x))
    fail(op, "dloss has dtype ", dtype_name(dloss.raw_dtype), ", expected ", dtype_name(accum_dtype(d.x)));
  if (d.elementwise()) check_same_shape(op, dloss, d.x);
  else if (dloss.dim != 0)
    fail(op, "dloss has shape ", dloss.shape(), ", expected (): the loss is a sum or mean");
  const Scope scope(d.x);
  const Tensor dx = empty_like(d.x);
  d.run(fn, scope, &dloss, nullptr, ptr(dx));
  return dx;
}
} // namespace liger
