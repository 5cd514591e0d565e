// Glue of dyt: schema, checks, allocation, launch.
#include "liger_torch.h"

using liger::Arg;
using torch::stable::Tensor;

namespace {
// alpha, gamma and beta, each dense, on the device of x.
struct Params {
  Arg alpha, gamma;
  std::optional<Arg> beta;
};
Arg vector(const char *op, const Tensor &t, const char *name, const Arg &x, int64_t n, const char *what) {
  const Arg a(t, name);
  liger::check_device(op, a, x);
  liger::check_float(op, a);
  liger::check_vector(op, a, n, what);
  return liger::dense(a);
}
Params check_params(const char *op, const Arg &x, const Tensor &alpha, const Tensor &gamma,
                    const std::optional<Tensor> &beta) {
  Params p{vector(op, alpha, "alpha", x, 1, "one number"),
           vector(op, gamma, "gamma", x, x.last(), "the last size of x"), std::nullopt};
  if (beta) p.beta.emplace(vector(op, *beta, "beta", x, x.last(), "the last size of x"));
  return p;
}
liger_dtype check_x(const char *op, const Arg &x) {
  const liger_dtype x_dtype = liger::check_float(op, x);
  if (x.dim < 1) liger::fail(op, "x has no dimension, expected at least one");
  return x_dtype;
}
// The fields that both directions share.
template <class Args>
void fill(const char *op, Args &a, const liger::Rows &rx, liger_dtype x_dtype, const Params &p) {
  a.X = rx.ptr;
  a.alpha = p.alpha.ptr;
  a.gamma = p.gamma.ptr;
  a.n_rows = rx.n_rows;
  a.n_cols = rx.n_cols;
  a.X_row_stride = rx.row_stride;
  a.x_dtype = x_dtype;
  a.alpha_dtype = liger::check_float(op, p.alpha);
  a.gamma_dtype = liger::check_float(op, p.gamma);
  a.beta_dtype = p.beta ? liger::check_float(op, *p.beta) : x_dtype;
}

Tensor dyt_fwd(const Tensor &x_, const Tensor &alpha, const Tensor &gamma,
               const std::optional<Tensor> &beta) {
  const char *op = "dyt_fwd";
  const Arg x(x_, "x");
  const liger_dtype x_dtype = check_x(op, x);
  const Params p = check_params(op, x, alpha, gamma, beta);
  const liger::Scope scope(x);
  const liger::Rows rx = liger::rows(x);
  const Tensor y = liger::empty_like(x);
  liger_dyt_fwd_args a{};
  fill(op, a, rx, x_dtype, p);
  a.Y = liger::ptr(y);
  a.beta = p.beta ? p.beta->ptr : nullptr;
  liger::launch(op, LIGER_FN(dyt_fwd), a, scope, rx.n_rows, rx.n_cols);
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> dyt_bwd(const Tensor &dy_, const Tensor &x_, const Tensor &alpha,
                                                   const Tensor &gamma, const std::optional<Tensor> &beta,
                                                   bool needs_dalpha, bool needs_dgamma, bool needs_dbeta) {
  const char *op = "dyt_bwd";
  const Arg x(x_, "x"), dy(dy_, "dy");
  const liger_dtype x_dtype = check_x(op, x);
  liger::check_device(op, dy, x);
  liger::check_same_dtype(op, dy, x);
  liger::check_same_shape(op, dy, x);
  const Params p = check_params(op, x, alpha, gamma, beta);
  needs_dbeta = needs_dbeta && p.beta;
  const liger::Scope scope(x);
  const liger::Rows rx = liger::rows(x), rdy = liger::rows(dy);
  const Tensor dx = liger::empty_like(x);
  const Tensor dalpha = liger::empty_1d(needs_dalpha, p.alpha.raw_dtype, x);
  const Tensor dgamma = liger::empty_1d(needs_dgamma ? rx.n_cols : 0, p.gamma.raw_dtype, x);
  const Tensor dbeta = liger::empty_1d(needs_dbeta ? rx.n_cols : 0, p.beta ? p.beta->raw_dtype : x.raw_dtype,
                                       x);
  const bool any = needs_dalpha || needs_dgamma || needs_dbeta;
  const Tensor workspace = liger::empty_1d(
      any ? LIGER_FN(dyt_bwd_workspace)(rx.n_rows, rx.n_cols, x_dtype) : 0, liger::accum_dtype(x), x);

  liger_dyt_bwd_args a{};
  fill(op, a, rx, x_dtype, p);
  a.dX = liger::ptr(dx);
  a.dalpha = needs_dalpha ? liger::ptr(dalpha) : nullptr;
  a.dgamma = needs_dgamma ? liger::ptr(dgamma) : nullptr;
  a.dbeta = needs_dbeta ? liger::ptr(dbeta) : nullptr;
  a.workspace = any ? liger::ptr(workspace) : nullptr;
  a.dY = rdy.ptr;
  a.dY_row_stride = rdy.row_stride;
#if LIGER_GPU
  liger::launch(op, LIGER_FN(dyt_bwd), a, scope, 0, 0);
#else
  const int64_t n_blocks = liger_dyt_bwd_blocks_cpu(rx.n_rows);
  liger::launch(op, LIGER_FN(dyt_bwd), a, scope, n_blocks, (rx.n_rows + n_blocks - 1) / n_blocks * rx.n_cols);
  if (any) liger::launch(op, LIGER_FN(dyt_params), a, scope, rx.n_cols ? rx.n_cols : 1, n_blocks);
#endif
  return {dx, dalpha, dgamma, dbeta};
}
} // namespace

#if !LIGER_GPU
STABLE_TORCH_LIBRARY_FRAGMENT(liger, m) {
  m.def("dyt_fwd(Tensor x, Tensor alpha, Tensor gamma, Tensor? beta) -> Tensor");
  m.def("dyt_bwd(Tensor dy, Tensor x, Tensor alpha, Tensor gamma, Tensor? beta, bool needs_dalpha, bool "
        "needs_dgamma, bool needs_dbeta) -> (Tensor dx, Tensor dalpha, Tensor dgamma, Tensor dbeta)");
}
#endif
STABLE_TORCH_LIBRARY_IMPL(liger, LIGER_BACKEND, m) {
  m.impl("dyt_fwd", TORCH_BOX(&dyt_fwd));
  m.impl("dyt_bwd", TORCH_BOX(&dyt_bwd));
}
