// fp32 += bf16 x bf16, which no shim of torch offers: cuBLAS itself, through the handle that torch made. The
// handle carries torch's stream, workspace and math mode, so graph capture and determinism settings hold.
// Found at run time and never linked: its SONAME differs between CUDA 12 and 13. Where the symbol is absent
// (HIP) the caller has a way without it.
#pragma once
#include "chosen_product.h"

namespace liger {
// C (n, hidden_size) fp32 = [C +] D X, or D^T X where `transpose`, with D (d_rows, d_cols) dense and X
// (D's other size, hidden_size), both `dtype`. False: not possible here, and nothing was done.
inline bool gemm_into_f32(const char *op, float *C, const void *D, const Arg &X, liger_dtype dtype,
                          int64_t d_rows, int64_t d_cols, int64_t hidden_size, bool transpose, bool add) {
  typedef int (*Gemm)(void *, int, int, int, int, int, const void *, const void *, int, int, const void *,
                      int, int, const void *, void *, int, int, int, int);
  static const Gemm gemm = (Gemm)dlsym(RTLD_DEFAULT, "cublasGemmEx");
  constexpr int64_t most = 0x7fffffff; // cuBLAS counts in int
  if (!gemm || !torch_get_current_cuda_blas_handle || d_rows < 1 || d_cols < 1 || hidden_size < 1 ||
      d_rows > most || d_cols > most || hidden_size > most)
    return false;
  const Arg x = X.strides[1] == 1 && X.strides[0] >= hidden_size && X.strides[0] <= most
                    ? X
                    : Arg(dense_copy(X.tensor), "x");
  const int64_t ld = x.sizes[0] > 1 ? x.strides[0] : hidden_size;
  void *handle;
  TORCH_ERROR_CODE_CHECK(torch_get_current_cuda_blas_handle(&handle));
  enum { OP_N = 0, OP_T = 1, R_32F = 0, R_16F = 2, R_16BF = 14, COMPUTE_32F = 68, ALGO_DEFAULT = -1 };
  const int type = dtype == LIGER_BF16 ? R_16BF : R_16F;
  const float one = 1.0f, beta = add ? 1.0f : 0.0f;
  // column-major: C^T (hidden, n) = X^T (hidden, k) times D^T or D (k, n), where D is stored as (d_cols, d_rows)
  const int64_t n = transpose ? d_cols : d_rows, k = transpose ? d_rows : d_cols;
  const int status = gemm(handle, OP_N, transpose ? OP_T : OP_N, (int)hidden_size, (int)n, (int)k, &one,
                          x.ptr, type, (int)ld, D, type, (int)d_cols, &beta, C, R_32F, (int)hidden_size,
                          COMPUTE_32F, ALGO_DEFAULT);
  if (status != 0) fail(op, "cublasGemmEx failed with status ", status);
  return true;
}
} // namespace liger
