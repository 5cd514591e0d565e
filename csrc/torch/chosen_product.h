// Products whose tile we choose among those that cuBLAS proposes. In a loop over blocks of logits the card is at its
// power limit, and there its first choice is not the fastest: other tiles do the same work with less. Measured on an
// H200, each product repeated for .2 s, time by that of the first choice, 10 shapes of (512 to 16384 rows) x (1024 to
// 4096) x (8192 to 256000), in bf16:
//   logits X W^T       176x128   .89 to .95, 1.00 and 1.01 at two shapes
//   dW [+]= D^T X      128x160   .81 to .96; into fp32 .87 and .92
//   dX = D W           the first choice; no other is better by more than 2.5 %
// A choice takes the host about .1 ms.
// Through torch's handle, so that its stream is ours. The choice is a fixed rule, not a measurement: the same
// products in every process, nothing waits, and graphs can be captured. Found at run time and never linked.
#pragma once
#include <dlfcn.h>

#include "liger_torch.h"

// shim.h hides this behind USE_CUDA. Weak: a torch built for HIP may be without it, and our library must load
// there too.
extern "C" AOTI_TORCH_EXPORT __attribute__((weak)) AOTITorchError
torch_get_current_cuda_blas_handle(void **handle);

namespace liger {
namespace lt {
// the little of cublasLt.h that this file needs; a handle of cuBLAS is one of cublasLt too
typedef struct Opaque *Object;
struct Algorithm {
  uint64_t data[8];
};
struct Candidate {
  Algorithm algorithm;
  size_t workspace;
  int status;
  float waves;
  int reserved[4];
};
enum { R_32F = 0, R_16F = 2, R_16BF = 14, COMPUTE_32F = 68 };
enum {
  DESC_TRANSA = 3,
  DESC_TRANSB = 4,
  PREF_WORKSPACE = 1,
  PREF_ALIGN_A = 5,
  CONFIG_TILE = 1,
  CONFIG_SPLITK = 2
};
enum { TILE_128x160 = 29, TILE_176x128 = 201 };

struct Library {
  int (*desc_create)(Object *, int compute, int scale);
  int (*desc_set)(Object, int attribute, const void *, size_t);
  int (*desc_destroy)(Object);
  int (*layout_create)(Object *, int type, uint64_t rows, uint64_t cols, int64_t ld);
  int (*layout_destroy)(Object);
  int (*preference_create)(Object *);
  int (*preference_set)(Object, int attribute, const void *, size_t);
  int (*preference_destroy)(Object);
  int (*heuristic)(void *, Object, Object, Object, Object, Object, Object, int, Candidate *, int *);
  int (*config_get)(const Algorithm *, int attribute, void *, size_t, size_t *);
  int (*matmul)(void *, Object, const void *, const void *, Object, const void *, Object, const void *,
                const void *, Object, void *, Object, const Algorithm *, void *, size_t, void *);
  bool complete = true;

  template <typename F> void find(F &f, const char *name) {
    f = (F)dlsym(RTLD_DEFAULT, name);
    complete = complete && f;
  }
  Library() {
    find(desc_create, "cublasLtMatmulDescCreate");
    find(desc_set, "cublasLtMatmulDescSetAttribute");
    find(desc_destroy, "cublasLtMatmulDescDestroy");
    find(layout_create, "cublasLtMatrixLayoutCreate");
    find(layout_destroy, "cublasLtMatrixLayoutDestroy");
    find(preference_create, "cublasLtMatmulPreferenceCreate");
    find(preference_set, "cublasLtMatmulPreferenceSetAttribute");
    find(preference_destroy, "cublasLtMatmulPreferenceDestroy");
    find(heuristic, "cublasLtMatmulAlgoGetHeuristic");
    find(config_get, "cublasLtMatmulAlgoConfigGetAttribute");
    find(matmul, "cublasLtMatmul");
  }
};
inline const Library &library() {
  static const Library found;
  return found;
}

// Column-major D (m, n) = A (m, k) B (k, n) [+ D], A and B perhaps stored transposed
struct Product {
  const Library &lib = library();
  Object desc = nullptr, a = nullptr, b = nullptr, d = nullptr, preference = nullptr;
  bool ok;

  Product(int type, int d_type, int64_t m, int64_t n, int64_t k, bool trans_a, bool trans_b, int64_t lda,
          int64_t ldb, int64_t ldd) {
    const int op_a = trans_a, op_b = trans_b;
    ok = !lib.desc_create(&desc, COMPUTE_32F, R_32F) &&
         !lib.desc_set(desc, DESC_TRANSA, &op_a, sizeof op_a) &&
         !lib.desc_set(desc, DESC_TRANSB, &op_b, sizeof op_b) &&
         !lib.layout_create(&a, type, trans_a ? k : m, trans_a ? m : k, lda) &&
         !lib.layout_create(&b, type, trans_b ? n : k, trans_b ? k : n, ldb) &&
         !lib.layout_create(&d, d_type, m, n, ldd) && !lib.preference_create(&preference);
  }
  Product(const Product &) = delete;
  ~Product() {
    if (desc) lib.desc_destroy(desc);
    for (Object layout : {a, b, d})
      if (layout) lib.layout_destroy(layout);
    if (preference) lib.preference_destroy(preference);
  }

  // whether the handle's cuBLAS proposes `tile`, in one pass over k
  bool choose(void *handle, int tile, size_t most_workspace, const void *const ptrs[3], Algorithm *chosen) {
    ok = ok && !lib.preference_set(preference, PREF_WORKSPACE, &most_workspace, sizeof most_workspace);
    for (int i = 0; i < 4; i++) { // of A, B, C, D; C is D
      const uintptr_t p = (uintptr_t)ptrs[i < 2 ? i : 2];
      const uint32_t align = p % 256 ? (uint32_t)(p & -p) : 256;
      ok = ok && !lib.preference_set(preference, PREF_ALIGN_A + i, &align, sizeof align);
    }
    Candidate found[16];
    int n_found = 0;
    ok = ok && !lib.heuristic(handle, desc, a, b, d, d, preference, 16, found, &n_found);
    for (int i = 0; ok && i < n_found; i++) {
      const Algorithm *const algorithm = &found[i].algorithm;
      uint32_t its_tile = 0, split = 0;
      size_t written;
      if (!found[i].status && !lib.config_get(algorithm, CONFIG_TILE, &its_tile, sizeof its_tile, &written) &&
          !lib.config_get(algorithm, CONFIG_SPLITK, &split, sizeof split, &written) &&
          its_tile == (uint32_t)tile && split <= 1) {
        *chosen = *algorithm;
        return true;
      }
    }
    return false;
  }
};
} // namespace lt

// out (n, m) = [out +] left (n, k) right (k, m), 16-bit matrices into one of their dtype or fp32, where a tile
// of our choice is known to be better and is there. False: nothing was done.
inline bool chosen_product(const Tensor &out_, const Tensor &left_, const Tensor &right_, bool add) {
  const Arg out(out_, "out"), left(left_, "left"), right(right_, "right");
  const int64_t n = out.sizes[0], m = out.sizes[1], k = left.sizes[1];
  constexpr int64_t most = 0x7fffffff;
  constexpr double least = 1e11; // operations: a smaller product is soon over, whatever its tile
  if (2.0 * n * m * k < least || n > most || m > most || k > most) return false;
  const bool bf16 = left.raw_dtype == aoti_torch_dtype_bfloat16();
  if (!(bf16 || left.raw_dtype == aoti_torch_dtype_float16()) || right.raw_dtype != left.raw_dtype ||
      !(out.raw_dtype == left.raw_dtype || out.raw_dtype == aoti_torch_dtype_float32()) ||
      out.strides[1] != 1)
    return false;
  // rows apart, or columns apart where stored transposed
  const bool left_t = left.strides[1] != 1, right_t = right.strides[1] != 1;
  if (left_t == right_t || (left_t && left.strides[0] != 1) || (right_t && right.strides[0] != 1))
    return false;
  const int64_t ld_left = left.strides[left_t], ld_right = right.strides[right_t], ld_out = out.strides[0];
  const void *const ptrs[3] = {right.ptr, left.ptr, out.ptr};
  if (((uintptr_t)ptrs[0] | (uintptr_t)ptrs[1] | (uintptr_t)ptrs[2]) % 16 ||
      (ld_left | ld_right | ld_out) % 8)
    return false;
  if (!torch_get_current_cuda_blas_handle || !lt::library().complete || liger_cuda_arch() != 90) return false;

  void *handle, *stream;
  TORCH_ERROR_CODE_CHECK(torch_get_current_cuda_blas_handle(&handle));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(out.device_index, &stream));
  const int type = bf16 ? lt::R_16BF : lt::R_16F;
  // row-major out is column-major out^T = right^T left^T
  lt::Product product(type, out.raw_dtype == left.raw_dtype ? type : lt::R_32F, m, n, k, right_t, left_t,
                      ld_right, ld_left, ld_out);
  constexpr size_t workspace_bytes = 64 << 10; // these tiles want some bytes, to hand out their work
  lt::Algorithm algorithm;
  if (!product.choose(handle, left_t ? lt::TILE_128x160 : lt::TILE_176x128, workspace_bytes, ptrs,
                      &algorithm))
    return false;
  const Tensor workspace = empty_1d(workspace_bytes / 4, aoti_torch_dtype_float32(), out);
  const float one = 1.0f, beta = add ? 1.0f : 0.0f;
  return !product.lib.matmul(handle, product.desc, &one, right.ptr, product.a, left.ptr, product.b, &beta,
                             out.ptr, product.d, out.ptr, product.d, &algorithm, ptr(workspace),
                             workspace_bytes, stream);
}
} // namespace liger
