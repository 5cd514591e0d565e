// Glue of group_norm: schema, checks, allocation, launch.
#include "norm_torch.h"

using liger::Arg;
using torch::stable::Tensor;

namespace {
// x as (n_batch, n_channels, n_inner), checked.
struct Groups {
  Arg x;
  int64_t n_batch, n_channels, n_inner, n_groups;
  Groups(const char *op, const Arg &x_, int64_t n_groups) : x(x_), n_groups(n_groups) {
    if (x.dim < 3)
      liger::fail(op, "x has shape ", x.shape(),
                  ", expected at least three dimensions: (batch, channels, ...)");
    n_batch = x.sizes[0];
    n_channels = x.sizes[1];
    n_inner = 1;
    for (int64_t i = 2; i < x.dim; i++) n_inner *= x.sizes[i];
    if (n_groups < 1 || n_channels % n_groups != 0)
      liger::fail(op, "num_groups is ", n_groups, ", expected a divisor of the ", n_channels, " channels");
  }
  std::optional<Arg> param(const char *op, const std::optional<Tensor> &param, const char *name) const {
    if (!param) return std::nullopt;
    const Arg p(*param, name);
    liger::check_device(op, p, x);
    liger::check_float(op, p);
    liger::check_vector(op, p, n_channels, "a value per channel of x");
    return liger::dense(p);
  }
};

std::tuple<Tensor, Tensor, Tensor> group_norm_fwd(const Tensor &x_, const std::optional<Tensor> &weight,
                                                  const std::optional<Tensor> &bias, int64_t num_groups,
                                                  double eps) {
  const char *op = "group_norm_fwd";
  const Arg x(x_, "x");
  const liger_dtype x_dtype = liger::check_float(op, x);
  const Groups g(op, x, num_groups);
  const std::optional<Arg> w = g.param(op, weight, "weight"), b = g.param(op, bias, "bias");
  const liger::Scope scope(x);
  const Arg dense_x = liger::dense(x);
  const int64_t n_stats = g.n_batch * g.n_groups, group_size = g.n_channels / g.n_groups * g.n_inner;
#if LIGER_GPU
  const int64_t n_slices = liger_group_norm_fwd_slices_cuda(group_size);
#else
  const int64_t n_slices = 1;
#endif
  const int64_t stats_sizes[] = {g.n_batch, g.n_groups};
  Tensor y = liger::empty_like(x), mean = liger::empty(stats_sizes, 2, liger::accum_dtype(x), x),
         rstd = liger::empty(stats_sizes, 2, liger::accum_dtype(x), x);
  const Tensor slice_stats = liger::empty_1d(n_slices > 1 ? 3 * n_stats * n_slices : 0, liger::accum_dtype(x),
                                             x);

  liger_group_norm_fwd_args a{};
  a.Y = liger::ptr(y);
  a.mean = liger::ptr(mean);
  a.rstd = liger::ptr(rstd);
  a.slice_stats = liger::ptr(slice_stats);
  a.X = dense_x.ptr;
  a.W = w ? w->ptr : nullptr;
  a.bias = b ? b->ptr : nullptr;
  a.n_batch = g.n_batch;
  a.n_channels = g.n_channels;
  a.n_inner = g.n_inner;
  a.n_groups = g.n_groups;
  a.n_slices = n_slices;
  a.eps = eps;
  a.x_dtype = x_dtype;
  a.w_dtype = liger::dtype_or(op, w, x_dtype);
  a.bias_dtype = liger::dtype_or(op, b, x_dtype);
  liger::launch(op, LIGER_FN(group_norm_fwd), a, scope, n_stats, group_size);
  return {y, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> group_norm_bwd(const Tensor &dy_, const Tensor &x_,
                                                  const std::optional<Tensor> &weight,
                                                  const std::optional<Tensor> &bias, const Tensor &mean_,
                                                  const Tensor &rstd_, int64_t num_groups, bool needs_dw,
                                                  bool needs_db) {
  const char *op = "group_norm_bwd";
  const Arg x(x_, "x"), dy(dy_, "dy"), mean_given(mean_, "mean"), rstd_given(rstd_, "rstd");
  const liger_dtype x_dtype = liger::check_float(op, x);
  liger::check_device(op, dy, x);
  liger::check_same_dtype(op, dy, x);
  liger::check_same_shape(op, dy, x);
  const Groups g(op, x, num_groups);
  const std::optional<Arg> w = g.param(op, weight, "weight"), b = g.param(op, bias, "bias");
  for (const Arg *s : {&mean_given, &rstd_given}) {
    liger::check_device(op, *s, x);
    if (s->dim != 2 || s->sizes[0] != g.n_batch || s->sizes[1] != g.n_groups)
      liger::fail(op, s->name, " has shape ", s->shape(), ", expected (", g.n_batch, ", ", g.n_groups,
                  "): a value per group");
    if (s->raw_dtype != liger::accum_dtype(x))
      liger::fail(op, s->name, " has dtype ", liger::dtype_name(s->raw_dtype),
                  ", expected the dtype the forward gave it");
  }
  const liger::Scope scope(x);
  const Arg dense_x = liger::dense(x), dense_dy = liger::dense(dy), mean = liger::dense(mean_given),
            rstd = liger::dense(rstd_given);
#if LIGER_GPU
  const int64_t n_slices = liger_group_norm_bwd_slices_cuda(g.n_inner);
#else
  const int64_t n_slices = 1;
#endif
  Tensor dx = liger::empty_like(x);
  Tensor dw = liger::empty_1d(needs_dw && w ? g.n_channels : 0, w ? w->raw_dtype : x.raw_dtype, x);
  Tensor db = liger::empty_1d(needs_db && b ? g.n_channels : 0, b ? b->raw_dtype : x.raw_dtype, x);
  const int64_t n_partial = n_slices * g.n_batch * g.n_channels;
  const Tensor dw_partial = liger::empty_1d(n_partial, liger::accum_dtype(x), x),
               db_partial = liger::empty_1d(n_partial, liger::accum_dtype(x), x);

  liger_group_norm_bwd_args a{};
  a.dX = liger::ptr(dx);
  a.dW = needs_dw && w ? liger::ptr(dw) : nullptr;
  a.dbias = needs_db && b ? liger::ptr(db) : nullptr;
  a.dW_partial = liger::ptr(dw_partial);
  a.dbias_partial = liger::ptr(db_partial);
  a.dY = dense_dy.ptr;
  a.X = dense_x.ptr;
  a.W = w ? w->ptr : nullptr;
  a.mean = mean.ptr;
  a.rstd = rstd.ptr;
  a.n_batch = g.n_batch;
  a.n_channels = g.n_channels;
  a.n_inner = g.n_inner;
  a.n_groups = g.n_groups;
  a.n_slices = n_slices;
  a.x_dtype = x_dtype;
  a.w_dtype = liger::dtype_or(op, w, x_dtype);
  a.bias_dtype = liger::dtype_or(op, b, x_dtype);
  const int64_t group_size = g.n_channels / g.n_groups * g.n_inner;
  liger::launch(op, LIGER_FN(group_norm_bwd), a, scope, g.n_batch * g.n_groups, group_size);
#if !LIGER_GPU
  if (a.dW || a.dbias) liger::launch(op, LIGER_FN(group_norm_params), a, scope, g.n_channels, 2 * g.n_batch);
#endif
  return {dx, dw, db};
}
} // namespace

#if !LIGER_GPU
STABLE_TORCH_LIBRARY_FRAGMENT(liger, m) {
  m.def("group_norm_fwd(Tensor x, Tensor? weight, Tensor? bias, int num_groups, float eps)"
        " -> (Tensor y, Tensor mean, Tensor rstd)");
  m.def("group_norm_bwd(Tensor dy, Tensor x, Tensor? weight, Tensor? bias, Tensor mean, Tensor rstd,"
        " int num_groups, bool needs_dw, bool needs_db) -> (Tensor dx, Tensor dweight, Tensor dbias)");
}
#endif
STABLE_TORCH_LIBRARY_IMPL(liger, LIGER_BACKEND, m) {
  m.impl("group_norm_fwd", TORCH_BOX(&group_norm_fwd));
  m.impl("group_norm_bwd", TORCH_BOX(&group_norm_bwd));
}
