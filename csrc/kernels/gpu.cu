/* What the GPU library says of itself. */
#include "gpu.h"

extern "C" LIGER_API const char *liger_cuda_error_string(liger_status status) {
  switch (status) {
  case LIGER_ERR_DTYPE: return "no kernel for this dtype";
  case LIGER_ERR_SIZE: return "a size is negative or larger than a launch can hold";
  case LIGER_ERR_OPTION: return "an option is out of its range";
  default: return LIGER_RT(GetErrorString)((LIGER_RT(Error_t))status);
  }
}

extern "C" LIGER_API int liger_cuda_arch(void) { return gpu_arch(); }
