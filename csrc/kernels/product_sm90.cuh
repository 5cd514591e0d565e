/* What a product on Hopper is made of: barriers that count bytes, the copy engine, the tensor cores. Operands lie in
 * shared memory as slices of SLICE 16-bit elements a row, 128 bytes, in which the copy engine permutes 16-byte pieces
 * (its 128-byte swizzle) as the tensor cores expect it: no two rows of eight in one bank. For *_sm90.cu. */
#ifndef LIGER_PRODUCT_SM90_CUH
#define LIGER_PRODUCT_SM90_CUH
#include "cluster_sm90.cuh"

#if !LIGER_HIP
#include <cuda.h>

namespace {
constexpr int SLICE = 64;

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
/* a box of the matrix behind `map`, from column x and row y on, into shared memory: of this block, or of both */
__device__ __forceinline__ void fetch(void *to, const CUtensorMap *map, uint32_t bar, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
               "[%0], [%1, {%3, %4}], [%2];" ::"r"(shared_address(to)),
               "l"(map), "r"(bar), "r"(x), "r"(y)
               : "memory");
}
__device__ __forceinline__ void fetch_for_both(void *to, const CUtensorMap *map, uint32_t bar, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
               ".multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared_address(to)),
               "l"(map), "r"(bar), "r"(x), "r"(y), "h"((uint16_t)3)
               : "memory");
}

/* rows of 128 bytes, swizzled in groups of 8: what the copy engine writes and the tensor cores read */
__device__ __forceinline__ uint64_t operand(const void *p) {
  return (uint64_t)((shared_address(p) & 0x3ffff) >> 4) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 |
         (uint64_t)1 << 62;
}

#define R8(i) "%" #i "0,%" #i "1,%" #i "2,%" #i "3,%" #i "4,%" #i "5,%" #i "6,%" #i "7,%" #i "8,%" #i "9,"
#define ACCUMULATORS                                                                             \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9," R8(1) R8(2) R8(3) R8(4) R8(5) R8(6) R8(7) R8(8) R8(9) R8(10) \
      R8(11) "%120,%121,%122,%123,%124,%125,%126,%127}"
#define F4(i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define F16(i) F4(i), F4(i + 4), F4(i + 8), F4(i + 12)
#define MULTIPLY(type)                                                                       \
  asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type " " ACCUMULATORS \
               ", %128, %129, 1, 1, 1, 0, 0;"                                                \
               : F16(0), F16(16), F16(32), F16(48), F16(64), F16(80), F16(96), F16(112)      \
               : "l"(a), "l"(b))
/* c (64 x 256) += a (64 x 16) b^T (256 x 16) */
__device__ __forceinline__ void multiply(float (&c)[128], uint64_t a, uint64_t b, gpu_bf16) {
  MULTIPLY("bf16");
}
__device__ __forceinline__ void multiply(float (&c)[128], uint64_t a, uint64_t b, __half) { MULTIPLY("f16"); }
__device__ __forceinline__ void products_begin(void) {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void products_commit(void) {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/* after the last wait: the compiler may not read accumulators before it */
__device__ __forceinline__ void products_read(float (&c)[128]) {
#pragma unroll
  for (int j = 0; j < 128; j++) asm volatile("" : "+f"(c[j])::"memory");
}
template <int N> __device__ __forceinline__ void products_wait(void) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
#undef R8
#undef ACCUMULATORS
#undef F4
#undef F16
#undef MULTIPLY
#endif

typedef CUresult encode_tiled(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *,
                              const cuuint64_t *, const cuuint32_t *, const cuuint32_t *,
                              CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                              CUtensorMapFloatOOBfill);
/* the driver's function, asked for at run time: the library links no driver */
encode_tiled *encoder(void) {
  static encode_tiled *const found = [] {
    void *p = nullptr;
    cudaDriverEntryPointQueryResult result;
#if CUDART_VERSION >= 12050
    const cudaError_t e = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &p, 12000,
                                                           cudaEnableDefault, &result);
#else
    const cudaError_t e = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &p, cudaEnableDefault, &result);
#endif
    return e == cudaSuccess && result == cudaDriverEntryPointSuccess ? (encode_tiled *)p : nullptr;
  }();
  return found;
}
/* boxes of box_rows x SLICE of a matrix; what lies outside arrives as zeros */
bool describe(CUtensorMap *map, const void *p, liger_dtype dtype, int64_t n_rows, int64_t n_cols,
              int64_t row_stride, int box_rows) {
  const cuuint64_t sizes[2] = {(cuuint64_t)n_cols, (cuuint64_t)n_rows}, stride = (cuuint64_t)row_stride * 2;
  const cuuint32_t box[2] = {SLICE, (cuuint32_t)box_rows}, each[2] = {1, 1};
  return encoder()(
             map, dtype == LIGER_BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2,
             (void *)p, sizes, &stride, box, each, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}
} // namespace
#endif
#endif
