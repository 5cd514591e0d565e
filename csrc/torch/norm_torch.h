// What the glue of the norms over whole rows shares: checks of parameters, and the two launches.
#pragma once
#include "liger_torch.h"

namespace liger {
// A parameter of a value per column of x, or none.
inline std::optional<Arg> check_param(const char *op, const std::optional<Tensor> &param, const char *name,
                                      const Arg &x) {
  if (!param) return std::nullopt;
  const Arg p(*param, name);
  check_device(op, p, x);
  check_float(op, p);
  check_vector(op, p, x.last(), "the last size of x");
  return dense(p);
}
inline liger_dtype dtype_or(const char *op, const std::optional<Arg> &p, liger_dtype otherwise) {
  return p ? check_float(op, *p) : otherwise;
}
inline void check_casting(const char *op, int64_t casting) {
  if (casting < LIGER_CAST_NONE || casting > LIGER_CAST_GEMMA)
    fail(op, "casting is ", casting, ", expected 0 (none), 1 (llama) or 2 (gemma)");
}
// What forward saved: a value per row, in the dtype of statistics.
inline void check_statistic(const char *op, const Arg &s, const Arg &x, int64_t n_rows) {
  check_device(op, s, x);
  check_vector(op, s, n_rows, "a value per row of x");
  if (s.raw_dtype != accum_dtype(x))
    fail(op, s.name, " has dtype ", dtype_name(s.raw_dtype), ", expected the dtype the forward gave it");
}

// The gradient of a parameter and the partial sums of its blocks; empty tensors where it is not wanted.
struct ParamGrad {
  bool wanted;
  Tensor grad, partial;
  ParamGrad(bool needs, const std::optional<Arg> &p, int64_t n_blocks, int64_t n, const Arg &x)
      : wanted(needs && p), grad(empty_1d(wanted ? n : 0, p ? p->raw_dtype : x.raw_dtype, x)),
        partial(empty_1d(wanted ? n_blocks * n : 0, accum_dtype(x), x)) {}
  void *grad_ptr() const { return wanted ? ptr(grad) : nullptr; }
  void *partial_ptr() const { return wanted ? ptr(partial) : nullptr; }
};
} // namespace liger

// blocks of rows of an op's backward on this device
#if LIGER_GPU
#define LIGER_BWD_BLOCKS(op, rows, dtype) liger_##op##_bwd_blocks_cuda((rows).n_rows, (rows).n_cols, dtype)
#else
#define LIGER_BWD_BLOCKS(op, rows, dtype) liger_##op##_bwd_blocks_cpu((rows).n_rows, (rows).n_cols)
#endif
