#include "capi.h"

PYBIND11_MODULE(liger_capi, m) {
  m.def("isa", &liger_cpu_isa);
  m.def("error_string", &liger_error_string);
  for (auto r : capi::registrations()) r(m);
}
