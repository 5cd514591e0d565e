// Test only: the C API on NumPy arrays. Every capi/<op>.cpp lists its structs' fields and functions; capi.cpp gathers them.
// A call is fn(begin, end, field=value, ...): arrays for pointers, None or nothing for NULL, tuples for strides.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <type_traits>
#include <vector>

#include "liger.h"

namespace py = pybind11;

namespace capi {
using Registration = void (*)(py::module_ &);
inline std::vector<Registration> &registrations() {
  static std::vector<Registration> all;
  return all;
}
struct Register {
  explicit Register(Registration r) { registrations().push_back(r); }
};

template <class T> void set(T &field, const py::handle &value) {
  if constexpr (std::is_pointer_v<T>) {
    if (value.is_none()) return;
    auto array = py::reinterpret_borrow<py::array>(value);
    using Element = std::remove_pointer_t<T>;
    if constexpr (std::is_const_v<Element>) field = static_cast<T>(array.data());
    else field = static_cast<T>(array.mutable_data());
  } else if constexpr (std::is_enum_v<T>) {
    field = static_cast<T>(value.cast<int>());
  } else if constexpr (std::is_arithmetic_v<T>) {
    field = value.cast<T>();
  } else { // a struct of int64_t: strides
    const auto numbers = value.cast<std::vector<int64_t>>();
    static_assert(sizeof(T) % sizeof(int64_t) == 0);
    if (numbers.size() * sizeof(int64_t) != sizeof(T)) throw py::value_error("wrong number of strides");
    std::copy(numbers.begin(), numbers.end(), reinterpret_cast<int64_t *>(&field));
  }
}

// Args of `fields(args, set_field)`; what is not a field raises.
template <class Args, class Fields> Args fill(const py::kwargs &values, Fields fields) {
  Args args{};
  size_t known = 0;
  fields(args, [&](const char *name, auto &field) {
    if (!values.contains(name)) return;
    known++;
    set(field, values[name]);
  });
  if (known != values.size()) throw py::type_error("an argument is not a field of the struct");
  return args;
}

template <class Args, class Fields>
void def(py::module_ &m, const char *name, liger_status (*fn)(const Args *, int64_t, int64_t),
         Fields fields) {
  m.def(name, [=](int64_t begin, int64_t end, const py::kwargs &values) {
    const Args args = fill<Args>(values, fields);
    return fn(&args, begin, end);
  });
}
} // namespace capi
#define FIELD(name) set(#name, a.name)
