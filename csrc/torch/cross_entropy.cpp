// Glue of cross_entropy: schemas, checks, allocation, launches. Forward: statistics of the targets, the
// loss of every row (with its gradient, if wanted), the sums over rows. Backward, where the gradient was
// not made in forward: the first two again.
#include "cross_entropy_torch.h"

using liger::Arg;
using torch::stable::Tensor;

namespace {
typedef liger::CrossEntropyOptions Options;
typedef liger::CrossEntropyWanted Wanted;

Arg check_logits(const char *op, const Tensor &x_) {
  Arg x(x_, "x");
  liger::check_float(op, x);
  if (x.dim != 2)
    liger::fail(op, "x has shape ", x.shape(), ", expected two dimensions: (n_rows, n_classes)");
  return x;
}

// One row kernel launch over whole logits, and what must precede and follow it.
struct Call : liger::CrossEntropy {
  Call(const char *op, const Arg &x, const Tensor &target, const std::optional<Tensor> &weight,
       const Options &o)
      : CrossEntropy(op, x, x.sizes[1], liger::check_float(op, x), target, weight, "weight", o) {}
  Call(const char *op, const Tensor &x, const Tensor &target, const std::optional<Tensor> &weight,
       const Options &o)
      : Call(op, check_logits(op, x), target, weight, o) {}

  void run(liger_cross_entropy_args &a, const liger::Rows &rx, void *dx, int64_t dx_row_stride,
           const liger::Scope &scope) const {
    a.X = rx.ptr;
    a.X_row_stride = rx.row_stride;
    a.dX = dx;
    a.dX_row_stride = dx_row_stride;
    liger::launch(op, LIGER_FN(cross_entropy), a, scope, n_rows, n_cols);
  }

  // loss, z_loss, accuracy, predicted; (0,) where not wanted. dx: the memory of the gradient, or null
  std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Wanted &want, void *dx, int64_t dx_row_stride,
                                                     const liger::Rows &rx) const {
    const liger::Scope scope(x);
    const Tensor stats = count(scope);
    const liger::CrossEntropyOutputs rows = outputs(want);
    liger_cross_entropy_args a = rows_args(stats, rows, want);
    run(a, rx, dx, dx_row_stride, scope);
    auto [loss, z_loss, accuracy, predicted] = reduce(rows, want, stats, scope);
    return {loss, z_loss, accuracy, predicted};
  }

  void backward(const Tensor &dloss, void *dx, int64_t dx_row_stride, const liger::Rows &rx) const {
    const Arg g = check_dloss(dloss);
    const liger::Scope scope(x);
    const Tensor stats = count(scope);
    const liger::CrossEntropyOutputs rows = outputs({});
    liger_cross_entropy_args a = rows_args(stats, rows, {});
    set_dloss(a, g);
    run(a, rx, dx, dx_row_stride, scope);
  }

  // x's own memory for the gradient; only where no two rows overlap and no copy stands in for x
  liger::Rows own_rows() const {
    if ((n_cols > 1 && x.strides[1] != 1) || (n_rows > 1 && x.strides[0] < n_cols))
      liger::fail(op, "x cannot be overwritten: its columns are not adjacent or its rows overlap");
    return {x.tensor, x.ptr, n_rows, n_cols, n_rows > 1 ? x.strides[0] : n_cols};
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> cross_entropy(
    const Tensor &x, const Tensor &target, const std::optional<Tensor> &weight, int64_t ignore_index,
    double lse_square_scale, double label_smoothing, int64_t reduction, double softcap, bool z_loss,
    bool accuracy, bool predicted, bool grad) {
  const Call c("cross_entropy", x, target, weight,
               {ignore_index, lse_square_scale, label_smoothing, reduction, softcap});
  Tensor dx = grad ? liger::empty_like(c.x) : liger::empty_1d(0, c.x.raw_dtype, c.x);
  auto [loss, z, acc, pred] = c.forward({z_loss, accuracy, predicted}, grad ? liger::ptr(dx) : nullptr,
                                        c.n_cols, liger::rows(c.x));
  return {loss, z, acc, pred, dx};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> cross_entropy_in_place(
    const Tensor &x, const Tensor &target, const std::optional<Tensor> &weight, int64_t ignore_index,
    double lse_square_scale, double label_smoothing, int64_t reduction, double softcap, bool z_loss,
    bool accuracy, bool predicted) {
  const Call c("cross_entropy_", x, target, weight,
               {ignore_index, lse_square_scale, label_smoothing, reduction, softcap});
  const liger::Rows rows = c.own_rows();
  return c.forward({z_loss, accuracy, predicted}, rows.ptr, rows.row_stride, rows);
}

Tensor cross_entropy_bwd(const Tensor &dloss, const Tensor &x, const Tensor &target,
                         const std::optional<Tensor> &weight, int64_t ignore_index, double lse_square_scale,
                         double label_smoothing, int64_t reduction, double softcap) {
  const Call c("cross_entropy_bwd", x, target, weight,
               {ignore_index, lse_square_scale, label_smoothing, reduction, softcap});
  Tensor dx = liger::empty_like(c.x);
  c.backward(dloss, liger::ptr(dx), c.n_cols, liger::rows(c.x));
  return dx;
}

void cross_entropy_bwd_in_place(const Tensor &x, const Tensor &dloss, const Tensor &target,
                                const std::optional<Tensor> &weight, int64_t ignore_index,
                                double lse_square_scale, double label_smoothing, int64_t reduction,
                                double softcap) {
  const Call c("cross_entropy_bwd_", x, target, weight,
               {ignore_index, lse_square_scale, label_smoothing, reduction, softcap});
  const liger::Rows rows = c.own_rows();
  c.backward(dloss, rows.ptr, rows.row_stride, rows);
}
} // namespace

#if !LIGER_GPU
#define OPTIONS                                                                                          \
  "Tensor target, Tensor? weight, int ignore_index, float lse_square_scale, float label_smoothing, int " \
  "reduction, float softcap"
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
