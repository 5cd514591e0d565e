// Glue of the gated linear units, shared by swiglu and geglu: checks, allocation, launch.
#pragma once
#include "elementwise_torch.h"

namespace liger {
// The options of a gated linear unit; an op names those it has.
struct GluOptions {
  double gate_multiplier = 1.0, down_multiplier = 1.0;
  int64_t gelu = LIGER_GELU_TANH;
};

// As torch promotes: two different dtypes of which none is float64 meet in float32.
inline int32_t promoted(const Arg &a, const Arg &b) {
  if (a.raw_dtype == b.raw_dtype) return a.raw_dtype;
  const int32_t f64 = aoti_torch_dtype_float64();
  return a.raw_dtype == f64 || b.raw_dtype == f64 ? f64 : aoti_torch_dtype_float32();
}

inline void check_glu(const char *op, const Arg &a, const Arg &b) {
  check_device(op, b, a);
  check_float(op, a);
  check_float(op, b);
  check_same_shape(op, b, a);
}
inline void check_dc(const char *op, const Arg &dc, int32_t expected) {
  check_float(op, dc);
  if (dc.raw_dtype != expected)
    fail(op, "dc has dtype ", dtype_name(dc.raw_dtype), ", expected ", dtype_name(expected),
         ", as the forward's result");
}

// The fields that both directions share.
template <class Args>
void fill_glu(const char *op, Args &args, const Rows &ra, const Rows &rb, bool flat, liger_dtype a_dtype,
              liger_dtype b_dtype, const GluOptions &o) {
  if (o.gelu < LIGER_GELU_TANH || o.gelu > LIGER_GELU_QUICK)
    fail(op, "gelu is ", o.gelu, ", expected 0 (tanh), 1 (exact) or 2 (quick)");
  set_sizes(args, ra, flat);
  args.A = ra.ptr;
  args.B = rb.ptr;
  args.A_row_stride = ra.row_stride;
  args.B_row_stride = rb.row_stride;
  args.a_dtype = a_dtype;
  args.b_dtype = b_dtype;
  args.gate_multiplier = o.gate_multiplier;
  args.down_multiplier = o.down_multiplier;
  args.gelu = (int)o.gelu;
}

template <class Fn>
Tensor glu_fwd(const char *op, Fn fn, const Tensor &a_, const Tensor &b_, const GluOptions &options) {
  const Arg a(a_, "a"), b(b_, "b");
  check_glu(op, a, b);
  const Scope scope(a);
  const Rows ra = rows(a), rb = rows(b);
  const Tensor c = empty(a.sizes, a.dim, promoted(a, b), a);
  liger_glu_fwd_args args{};
  fill_glu(op, args, ra, rb, is_flat(ra) && is_flat(rb), check_float(op, a), check_float(op, b), options);
  args.C = ptr(c);
  args.c_dtype = check_float(op, Arg(c, "c"));
  launch_tiles(op, fn, args, scope);
  return c;
}

// The gradients into memory of a's and b's sizes, dense: new, or that of a and b themselves.
template <class Fn>
void glu_bwd_into(const char *op, Fn fn, void *da, void *db, const Tensor &dc_, const Arg &a, const Arg &b,
                  const GluOptions &options) {
  const Arg dc(dc_, "dc");
  check_device(op, dc, a);
  check_dc(op, dc, promoted(a, b));
  check_same_shape(op, dc, a);
  const Scope scope(a);
  const Rows ra = rows(a), rb = rows(b), rdc = rows(dc);
  liger_glu_bwd_args args{};
  fill_glu(op, args, ra, rb, is_flat(ra) && is_flat(rb) && is_flat(rdc), check_float(op, a),
           check_float(op, b), options);
  args.dA = da;
  args.dB = db;
  args.dC = rdc.ptr;
  args.dA_row_stride = args.dB_row_stride = args.n_cols;
  args.dC_row_stride = rdc.row_stride;
  args.c_dtype = check_float(op, dc);
  launch_tiles(op, fn, args, scope);
}

template <class Fn>
std::tuple<Tensor, Tensor> glu_bwd(const char *op, Fn fn, const Tensor &dc, const Tensor &a_,
                                   const Tensor &b_, const GluOptions &options) {
  const Arg a(a_, "a"), b(b_, "b");
  check_glu(op, a, b);
  const Tensor da = empty_like(a), db = empty_like(b);
  glu_bwd_into(op, fn, ptr(da), ptr(db), dc, a, b, options);
  return {da, db};
}

// What is written over must be dense: rows() would hand the kernel a copy.
inline void check_overwritten(const char *op, const Arg &a) {
  if (!is_dense(a)) fail(op, a.name, " is not contiguous, expected a dense tensor: it is written over");
}

// The same, over a and b, which must not overlap.
template <class Fn>
void glu_bwd_over(const char *op, Fn fn, const Tensor &dc, const Tensor &a_, const Tensor &b_,
                  const GluOptions &options) {
  const Arg a(a_, "a"), b(b_, "b");
  check_glu(op, a, b);
  check_overwritten(op, a);
  check_overwritten(op, b);
  glu_bwd_into(op, fn, a.ptr, b.ptr, dc, a, b, options);
}

// ---- gate and up as the halves of one tensor --------------------------------------------------------------
// The halves of the rows of y: two views that share its row stride.
inline std::pair<Rows, Rows> halves(const Rows &y, int32_t raw_dtype) {
  const int64_t n = y.n_cols / 2;
  const int64_t size = raw_dtype == aoti_torch_dtype_float64()   ? 8
                       : raw_dtype == aoti_torch_dtype_float32() ? 4
                                                                 : 2;
  return {{y.tensor, y.ptr, y.n_rows, n, y.row_stride},
          {y.tensor, (char *)y.ptr + n * size, y.n_rows, n, y.row_stride}};
}
inline liger_dtype check_gate_up(const char *op, const Arg &y) {
  const liger_dtype dtype = check_float(op, y);
  if (y.dim < 1 || y.last() % 2)
    fail(op, "y has shape ", y.shape(), ", expected an even last size: gate and up side by side");
  return dtype;
}

template <class Fn>
Tensor glu_gate_up_fwd(const char *op, Fn fn, const Tensor &y_, const GluOptions &options) {
  const Arg y(y_, "y");
  const liger_dtype dtype = check_gate_up(op, y);
  const Scope scope(y);
  const auto [gate, up] = halves(rows(y), y.raw_dtype);
  int64_t sizes[16];
  for (int64_t i = 0; i < y.dim && i < 16; i++) sizes[i] = i == y.dim - 1 ? y.sizes[i] / 2 : y.sizes[i];
  const Tensor c = empty(sizes, y.dim, y.raw_dtype, y);
  liger_glu_fwd_args args{};
  fill_glu(op, args, gate, up, false, dtype, dtype, options);
  args.C = ptr(c);
  args.c_dtype = dtype;
  launch_tiles(op, fn, args, scope);
  return c;
}

// The gradient into dense memory of y's size: new, or y's own.
template <class Fn>
void glu_gate_up_bwd_into(const char *op, Fn fn, void *dy, const Tensor &dc_, const Arg &y,
                          const GluOptions &options) {
  const Arg dc(dc_, "dc");
  check_device(op, dc, y);
  const liger_dtype dtype = check_gate_up(op, y);
  check_dc(op, dc, y.raw_dtype);
  bool fits = dc.dim == y.dim && dc.last() == y.last() / 2;
  for (int64_t i = 0; fits && i < y.dim - 1; i++) fits = dc.sizes[i] == y.sizes[i];
  if (!fits)
    fail(op, "dc has shape ", dc.shape(), ", expected that of y, ", y.shape(), ", with half the last size");
  const Scope scope(y);
  const Rows ry = rows(y), rdc = rows(dc);
  const auto [gate, up] = halves(ry, y.raw_dtype);
  const auto [dgate, dup] = halves({y.tensor, dy, ry.n_rows, ry.n_cols, ry.n_cols}, y.raw_dtype);
  liger_glu_bwd_args args{};
  fill_glu(op, args, gate, up, false, dtype, dtype, options);
  args.dA = dgate.ptr;
  args.dB = dup.ptr;
  args.dC = rdc.ptr;
  args.dA_row_stride = args.dB_row_stride = y.last();
  args.dC_row_stride = rdc.row_stride;
  args.c_dtype = dtype;
  launch_tiles(op, fn, args, scope);
}

template <class Fn>
Tensor glu_gate_up_bwd(const char *op, Fn fn, const Tensor &dc, const Tensor &y_, const GluOptions &options) {
  const Arg y(y_, "y");
  const Tensor dy = empty_like(y);
  glu_gate_up_bwd_into(op, fn, ptr(dy), dc, y, options);
  return dy;
}
template <class Fn>
void glu_gate_up_bwd_over(const char *op, Fn fn, const Tensor &dc, const Tensor &y_,
                          const GluOptions &options) {
  const Arg y(y_, "y");
  check_overwritten(op, y);
  glu_gate_up_bwd_into(op, fn, y.ptr, dc, y, options);
}
} // namespace liger
