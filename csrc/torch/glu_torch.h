// Glue of the gated linear units, shared by swiglu and geglu: checks, allocation, launch.
#pragma once
#include "liger_torch.h"

namespace liger {
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

// The fields that both directions share. `flat`: all tensors are contiguous, so the whole is one row.
template <class Args>
void fill_glu(Args &args, const Rows &ra, const Rows &rb, bool flat, double gate_multiplier,
              double down_multiplier) {
  args.A = ra.ptr;
  args.B = rb.ptr;
  args.n_rows = flat && ra.n_rows ? 1 : ra.n_rows;
  args.n_cols = flat ? ra.n_rows * ra.n_cols : ra.n_cols;
  args.A_row_stride = ra.row_stride;
  args.B_row_stride = rb.row_stride;
  args.gate_multiplier = gate_multiplier;
  args.down_multiplier = down_multiplier;
}
inline bool is_flat(const Rows &r) { return r.row_stride == r.n_cols; }

template <class Args> int64_t glu_tiles(const Args &args) {
  return args.n_rows * ((args.n_cols + LIGER_GLU_TILE - 1) / LIGER_GLU_TILE);
}
template <class Args> int64_t glu_tile_elements(const Args &args) {
  constexpr int64_t tile = LIGER_GLU_TILE;
  return args.n_cols < tile ? args.n_cols : tile;
}

template <class Fn>
Tensor glu_fwd(const char *op, Fn fn, const Tensor &a_, const Tensor &b_, double gate_multiplier,
               double down_multiplier) {
  const Arg a(a_, "a"), b(b_, "b");
  check_glu(op, a, b);
  const Scope scope(a);
  const Rows ra = rows(a), rb = rows(b);
  const Tensor c = empty(a.sizes, a.dim, promoted(a, b), a);
  liger_glu_fwd_args args{};
  fill_glu(args, ra, rb, is_flat(ra) && is_flat(rb), gate_multiplier, down_multiplier);
  args.C = ptr(c);
  args.a_dtype = check_float(op, a);
  args.b_dtype = check_float(op, b);
  args.c_dtype = check_float(op, Arg(c, "c"));
  launch(op, fn, args, scope, glu_tiles(args), glu_tile_elements(args));
  return c;
}

template <class Fn>
std::tuple<Tensor, Tensor> glu_bwd(const char *op, Fn fn, const Tensor &dc_, const Tensor &a_,
                                   const Tensor &b_, double gate_multiplier, double down_multiplier) {
  const Arg a(a_, "a"), b(b_, "b"), dc(dc_, "dc");
  check_glu(op, a, b);
  check_device(op, dc, a);
  const liger_dtype c_dtype = check_float(op, dc);
  if (dc.raw_dtype != promoted(a, b))
    fail(op, "dc has dtype ", dtype_name(dc.raw_dtype), ", expected ", dtype_name(promoted(a, b)),
         ", as the forward's result");
  check_same_shape(op, dc, a);
  const Scope scope(a);
  const Rows ra = rows(a), rb = rows(b), rdc = rows(dc);
  const Tensor da = empty_like(a), db = empty_like(b);
  liger_glu_bwd_args args{};
  fill_glu(args, ra, rb, is_flat(ra) && is_flat(rb) && is_flat(rdc), gate_multiplier, down_multiplier);
  args.dA = ptr(da);
  args.dB = ptr(db);
  args.dC = rdc.ptr;
  args.dC_row_stride = rdc.row_stride;
  args.a_dtype = check_float(op, a);
  args.b_dtype = check_float(op, b);
  args.c_dtype = c_dtype;
  launch(op, fn, args, scope, glu_tiles(args), glu_tile_elements(args));
  return {da, db};
}
} // namespace liger
