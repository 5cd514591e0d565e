// Glue of fused_ce_tvd: schema, checks, allocation, launch.
#include "loss_torch.h"

using liger::Arg;
using torch::stable::Tensor;

namespace {
struct Call {
  const char *op;
  Arg x, y, target;
  liger_dtype x_dtype;
  int64_t n_rows, ignore_index;

  Call(const char *op, const Tensor &x_, const Tensor &y_, const Tensor &target_, int64_t ignore_index)
      : op(op), x(x_, "student_logits"), y(y_, "teacher_logits"), target(target_, "target"),
        ignore_index(ignore_index) {
    liger::check_device(op, y, x);
    liger::check_device(op, target, x);
    x_dtype = liger::check_float(op, x);
    liger::check_same_dtype(op, y, x);
    if (target.raw_dtype != aoti_torch_dtype_int64())
      liger::fail(op, "target has dtype ", liger::dtype_name(target.raw_dtype),
                  ", expected int64 (class indices)");
    if (x.dim != 2)
      liger::fail(op, "student_logits has shape ", x.shape(),
                  ", expected two dimensions: (n_rows, n_classes)");
    liger::check_same_shape(op, y, x);
    n_rows = x.sizes[0];
    liger::check_vector(op, target, n_rows, "one label per row");
#if !LIGER_GPU // a GPU would have to be waited for: its kernel answers with NaN
    const auto *labels = (const int64_t *)target.ptr;
    const int64_t bad = liger_cross_entropy_bad_label_cpu(labels, target.strides[0], n_rows, x.sizes[1],
                                                          ignore_index);
    if (bad >= 0)
      liger::fail(op, "target[", bad, "] is ", labels[bad * target.strides[0]], ", expected a value in [0, ",
                  x.sizes[1], ") or ignore_index (", ignore_index, ")");
#endif
  }

  int32_t real() const { return liger::accum_dtype(x); }

  Arg check_rows(const Tensor &t, const char *name) const {
    const Arg a(t, name);
    liger::check_device(op, a, x);
    if (a.raw_dtype != real())
      liger::fail(op, name, " has dtype ", liger::dtype_name(a.raw_dtype), ", expected ",
                  liger::dtype_name(real()));
    liger::check_vector(op, a, n_rows, "one value per row");
    return a;
  }

  void run(liger_fused_ce_tvd_args &a, const liger::Scope &scope) const {
    const liger::Rows rx = liger::rows(x), ry = liger::rows(y);
    a.X = rx.ptr;
    a.Y = ry.ptr;
    a.target = (const int64_t *)target.ptr;
    a.n_rows = n_rows;
    a.n_cols = a.dX_row_stride = x.sizes[1];
    a.X_row_stride = rx.row_stride;
    a.Y_row_stride = ry.row_stride;
    a.target_stride = target.strides[0];
    a.ignore_index = ignore_index;
    a.x_dtype = x_dtype;
    liger::launch(op, LIGER_FN(fused_ce_tvd), a, scope, n_rows, x.sizes[1]);
  }
};

std::tuple<Tensor, Tensor, Tensor> fused_ce_tvd(const Tensor &student_logits, const Tensor &teacher_logits,
                                                const Tensor &target, int64_t ignore_index) {
  const Call c("fused_ce_tvd", student_logits, teacher_logits, target, ignore_index);
  const liger::Scope scope(c.x);
  const int64_t sizes[2] = {LIGER_CE_TVD_STATS, c.n_rows};
  const Tensor ce = liger::empty_1d(c.n_rows, c.real(), c.x), tvd = liger::empty_1d(c.n_rows, c.real(), c.x),
               stats = liger::empty(sizes, 2, c.real(), c.x);
  liger_fused_ce_tvd_args a{};
  a.ce = liger::ptr(ce);
  a.tvd = liger::ptr(tvd);
  a.stats = liger::ptr(stats);
  c.run(a, scope);
  return {ce, tvd, stats};
}

Tensor fused_ce_tvd_bwd(const Tensor &grad_ce, const Tensor &grad_tvd, const Tensor &student_logits,
                        const Tensor &teacher_logits, const Tensor &target, const Tensor &stats_,
                        int64_t ignore_index) {
  const Call c("fused_ce_tvd_bwd", student_logits, teacher_logits, target, ignore_index);
  const Arg g_ce = c.check_rows(grad_ce, "grad_ce"), g_tvd = c.check_rows(grad_tvd, "grad_tvd");
  const Arg given(stats_, "stats");
  liger::check_device(c.op, given, c.x);
  if (given.raw_dtype != c.real() || given.dim != 2 || given.sizes[0] != LIGER_CE_TVD_STATS ||
      given.sizes[1] != c.n_rows)
    liger::fail(c.op, "stats has dtype ", liger::dtype_name(given.raw_dtype), " and shape ", given.shape(),
                ", expected those of the forward");
  const liger::Scope scope(c.x);
  const Arg stats = liger::dense(given);
  const Tensor dx = liger::empty_like(c.x);
  liger_fused_ce_tvd_args a{};
  a.stats = stats.ptr;
  a.dX = liger::ptr(dx);
  a.grad_ce = g_ce.ptr;
  a.grad_tvd = g_tvd.ptr;
  a.grad_ce_stride = g_ce.strides[0];
  a.grad_tvd_stride = g_tvd.strides[0];
  c.run(a, scope);
  return dx;
}
} // namespace

#if !LIGER_GPU
STABLE_TORCH_LIBRARY_FRAGMENT(liger, m) {
  m.def("fused_ce_tvd(Tensor student_logits, Tensor teacher_logits, Tensor target, int ignore_index)"
        " -> (Tensor ce, Tensor tvd, Tensor stats)");
  m.def("fused_ce_tvd_bwd(Tensor grad_ce, Tensor grad_tvd, Tensor student_logits, Tensor teacher_logits, "
        "Tensor "
        "target, Tensor stats, int ignore_index) -> Tensor dx");
}
#endif
STABLE_TORCH_LIBRARY_IMPL(liger, LIGER_BACKEND, m) {
  m.impl("fused_ce_tvd", TORCH_BOX(&fused_ce_tvd));
  m.impl("fused_ce_tvd_bwd", TORCH_BOX(&fused_ce_tvd_bwd));
}
