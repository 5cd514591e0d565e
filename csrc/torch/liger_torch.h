// What every op's glue needs; libtorch's stable ABI only. Each <op>.cpp is compiled once per backend:
// LIGER_GPU=0 or 1.
//
// The glue of an op reads its arguments once (liger::Arg), checks them in a fixed order (device, dtype,
// rank, sizes), makes rows of them, allocates with torch's allocator, fills the args struct of
// csrc/liger.h, and launches. It has no arithmetic.
#pragma once
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <atomic>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "../liger.h"

namespace liger {
using torch::stable::Tensor;

// ---- errors -----------------------------------------------------------------------------------------------
inline void append(std::string &s, const char *v) { s += v; }
inline void append(std::string &s, const std::string &v) { s += v; }
inline void append(std::string &s, int64_t v) { s += std::to_string(v); }
inline void append(std::string &s, int v) { s += std::to_string(v); }
inline void append(std::string &s, double v) { s += std::to_string(v); }

// Python sees RuntimeError("liger::<op>: ..."): name the argument, what came, what is allowed.
template <class... Parts> [[noreturn]] void fail(const char *op, const Parts &...parts) {
  std::string s = std::string("liger::") + op + ": ";
  (append(s, parts), ...);
  throw std::runtime_error(s);
}

inline const char *dtype_name(int32_t raw) {
  if (raw == aoti_torch_dtype_float32()) return "float32";
  if (raw == aoti_torch_dtype_float64()) return "float64";
  if (raw == aoti_torch_dtype_float16()) return "float16";
  if (raw == aoti_torch_dtype_bfloat16()) return "bfloat16";
  if (raw == aoti_torch_dtype_int64()) return "int64";
  if (raw == aoti_torch_dtype_int32()) return "int32";
  if (raw == aoti_torch_dtype_bool()) return "bool";
  return "another dtype";
}

// ---- arguments --------------------------------------------------------------------------------------------
// One tensor argument, read through the shims a single time.
struct Arg {
  Tensor tensor; // keeps the memory alive (a handle: copying it copies no data)
  const char *name;
  void *ptr;
  int64_t dim;
  const int64_t *sizes, *strides;
  int32_t raw_dtype, device_type, device_index;

  Arg(const Tensor &t, const char *name) : tensor(t), name(name) {
    AtenTensorHandle h = t.get();
    int64_t *sz, *st;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(h, &ptr));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(h, &dim));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(h, &sz));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(h, &st));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(h, &raw_dtype));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(h, &device_type));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(h, &device_index));
    sizes = sz;
    strides = st;
  }
  int64_t numel() const {
    int64_t n = 1;
    for (int64_t i = 0; i < dim; i++) n *= sizes[i];
    return n;
  }
  int64_t last() const { return dim ? sizes[dim - 1] : 1; }
  std::string shape() const {
    std::string s = "(";
    for (int64_t i = 0; i < dim; i++) s += (i ? ", " : "") + std::to_string(sizes[i]);
    return s + (dim == 1 ? ",)" : ")");
  }
  std::string device() const {
    if (device_type == aoti_torch_device_type_cpu()) return "cpu";
    return (device_type == aoti_torch_device_type_cuda() ? "cuda:" : "device ") +
           std::to_string(device_index);
  }
};

inline void check_device(const char *op, const Arg &a, const Arg &first) {
  if (a.device_type != first.device_type || a.device_index != first.device_index)
    fail(op, a.name, " is on ", a.device(), ", but ", first.name, " is on ", first.device(),
         ": move one of them");
}

inline bool as_liger_dtype(int32_t raw, liger_dtype *out) {
  static const int32_t f32 = aoti_torch_dtype_float32(), f16 = aoti_torch_dtype_float16(),
                       b16 = aoti_torch_dtype_bfloat16(), f64 = aoti_torch_dtype_float64();
  if (raw == b16) *out = LIGER_BF16;
  else if (raw == f32) *out = LIGER_F32;
  else if (raw == f16) *out = LIGER_F16;
  else if (raw == f64) *out = LIGER_F64;
  else return false;
  return true;
}

// The dtype code of a floating-point argument; float64 exists on the CPU alone.
inline liger_dtype check_float(const char *op, const Arg &a) {
  liger_dtype d;
  if (!as_liger_dtype(a.raw_dtype, &d))
    fail(op, a.name, " has dtype ", dtype_name(a.raw_dtype), ", expected float32, bfloat16 or float16",
         LIGER_GPU ? "" : " or float64");
  if (LIGER_GPU && d == LIGER_F64)
    fail(op, a.name, " has dtype float64, which runs on the CPU only; expected float32, bfloat16 or float16");
  return d;
}

inline void check_same_dtype(const char *op, const Arg &a, const Arg &like) {
  if (a.raw_dtype != like.raw_dtype)
    fail(op, a.name, " has dtype ", dtype_name(a.raw_dtype), ", expected ", dtype_name(like.raw_dtype),
         ", as ", like.name);
}

inline void check_same_shape(const char *op, const Arg &a, const Arg &like) {
  bool same = a.dim == like.dim;
  for (int64_t i = 0; same && i < a.dim; i++) same = a.sizes[i] == like.sizes[i];
  if (!same) fail(op, a.name, " has shape ", a.shape(), ", expected ", like.shape(), ", as ", like.name);
}

inline void check_vector(const char *op, const Arg &a, int64_t n, const char *what) {
  if (a.dim != 1 || a.sizes[0] != n)
    fail(op, a.name, " has shape ", a.shape(), ", expected (", n, ",): ", what);
}

// ---- memory -----------------------------------------------------------------------------------------------
// The dtype that statistics and partial sums are kept in.
inline int32_t accum_dtype(const Arg &a) {
  return a.raw_dtype == aoti_torch_dtype_float64() ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
}

// A dense uninitialised tensor from torch's allocator, on the device of `like`.
inline Tensor empty(const int64_t *sizes, int64_t dim, int32_t raw_dtype, const Arg &like) {
  int64_t strides[16] = {}, s = 1;
  if (dim > 16) fail("empty", "tensors of more than 16 dimensions are not supported");
  for (int64_t i = dim; i-- > 0;) {
    strides[i] = s;
    s *= sizes[i] > 1 ? sizes[i] : 1;
  }
  AtenTensorHandle h;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(dim, sizes, strides, raw_dtype, like.device_type, like.device_index, &h));
  return Tensor(h);
}
inline Tensor empty_like(const Arg &a) { return empty(a.sizes, a.dim, a.raw_dtype, a); }
inline Tensor empty_1d(int64_t n, int32_t raw_dtype, const Arg &like) {
  return empty(&n, 1, raw_dtype, like);
}
inline void *ptr(const Tensor &t) {
  void *p;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(t.get(), &p));
  return p;
}

// Around any call back into the dispatcher: the caller's autograd state is live in here.
struct NoGrad {
  const bool was = aoti_torch_grad_mode_is_enabled();
  NoGrad() { aoti_torch_grad_mode_set_enabled(false); }
  ~NoGrad() { aoti_torch_grad_mode_set_enabled(was); }
};

inline Tensor dense_copy(const Tensor &t) {
  NoGrad no_grad;
  return torch::stable::contiguous(t);
}

// A tensor as rows of its last dimension with one row stride. Copies only what no single stride can describe.
struct Rows {
  Tensor tensor;
  void *ptr;
  int64_t n_rows, n_cols, row_stride;
};
inline Rows rows(const Arg &a) {
  const int64_t n_cols = a.last(), n = a.numel();
  const int64_t n_rows = n_cols ? n / n_cols : 0;
  if (a.dim <= 1) {
    if (a.dim == 0 || a.strides[0] == 1 || n_cols <= 1) return {a.tensor, a.ptr, n_rows, n_cols, n_cols};
  } else if (a.strides[a.dim - 1] == 1 || n_cols <= 1) {
    // walk outwards: the rows are evenly spaced if each dimension's stride is the size times the stride
    // inside it
    int64_t stride = n_cols, span = 0;
    bool even = true, first = true;
    for (int64_t i = a.dim - 2; i >= 0 && even; i--) {
      if (a.sizes[i] == 1) continue;
      if (first) stride = a.strides[i], first = false;
      else even = a.strides[i] == span;
      span = a.strides[i] * a.sizes[i];
    }
    if (even) return {a.tensor, a.ptr, n_rows, n_cols, stride};
  }
  Tensor c = dense_copy(a.tensor);
  void *p = liger::ptr(c);
  return {std::move(c), p, n_rows, n_cols, n_cols};
}

inline bool is_dense(const Arg &a) {
  bool ok = true;
  int64_t s = 1;
  for (int64_t i = a.dim; i-- > 0;) {
    ok = ok && (a.sizes[i] == 1 || a.strides[i] == s);
    s *= a.sizes[i];
  }
  return ok || s == 0;
}
// A vector argument (a weight, a bias) with stride 1.
inline Arg dense(const Arg &a) { return is_dense(a) ? a : Arg(dense_copy(a.tensor), a.name); }

// ---- launching --------------------------------------------------------------------------------------------
#if LIGER_GPU
#define LIGER_BACKEND CUDA
#define LIGER_FN(name) liger_##name##_cuda
// shim.h hides this behind USE_CUDA; libtorch_cuda.so (libtorch_hip.so) exports it
extern "C" AOTI_TORCH_EXPORT AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index,
                                                                               void **ret_stream);

// torch's device and current stream for the length of one op
struct Scope {
  torch::stable::accelerator::DeviceGuard guard;
  void *stream = nullptr;
  explicit Scope(const Arg &a) : guard(a.device_index) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(a.device_index, &stream));
  }
};
template <class Args>
void launch(const char *op, liger_status (*fn)(const Args *, void *), const Args &a, const Scope &scope,
            int64_t, int64_t) {
  const liger_status s = fn(&a, scope.stream);
  if (s != LIGER_OK) fail(op, "the launch failed: ", liger_cuda_error_string(s));
}
// Work whose order is fixed, so that one call on the CPU takes all of it: sums over rows.
template <class Args>
void launch_whole(const char *op, liger_status (*fn)(const Args *, void *), const Args &a, const Scope &scope,
                  int64_t n) {
  launch(op, fn, a, scope, n, 1);
}
#else
#define LIGER_BACKEND CPU
#define LIGER_FN(name) liger_##name##_cpu
struct Scope {
  explicit Scope(const Arg &) {}
};
// fn(args, begin, end) over [0, n_items) on torch's own threads; small work stays on the calling thread
template <class Args>
void launch(const char *op, liger_status (*fn)(const Args *, int64_t, int64_t), const Args &a, const Scope &,
            int64_t n_items, int64_t elements_per_item) {
  constexpr int64_t elements_per_range = 16384; // below this, waking a thread costs more than the work
  const int64_t grain = elements_per_range / (elements_per_item > 0 ? elements_per_item : 1);
  std::atomic<int> status{LIGER_OK};
  torch::stable::parallel_for(0, n_items, grain > 0 ? grain : 1, [&](int64_t begin, int64_t end) {
    const int s = fn(&a, begin, end);
    if (s != LIGER_OK) status = s;
  });
  if (status != LIGER_OK) fail(op, liger_error_string(status));
}
template <class Args>
void launch_whole(const char *op, liger_status (*fn)(const Args *, int64_t, int64_t), const Args &a,
                  const Scope &, int64_t n) {
  const liger_status s = fn(&a, 0, n);
  if (s != LIGER_OK) fail(op, liger_error_string(s));
}
#endif
} // namespace liger
