/* The only file that knows CUDA from HIP: run-time names, the warp width, masks, the 16-bit types. */
#ifndef LIGER_GPU_H
#define LIGER_GPU_H
#include "../liger.h"
#if defined(__HIPCC__) || defined(__HIP__)
#define LIGER_HIP 1
#include <hip/hip_fp16.h>
#include <hip/hip_runtime.h>
#define LIGER_RT(x) hip##x
#else
#define LIGER_HIP 0
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define LIGER_RT(x) cuda##x
#endif

/* Threads that run in step. 64 on CDNA, 32 elsewhere; the host never needs it: launch plans count in GPU_MIN_LANES, and
 * shared arrays are sized for the narrowest warp.                                                                     */
#if LIGER_HIP && defined(__GFX9__)
#define GPU_LANES 64
#else
#define GPU_LANES 32
#endif
#define GPU_MIN_LANES 32

typedef LIGER_RT(Stream_t) gpu_stream;

#if LIGER_HIP
/* hip_bf16.h came with ROCm 6.1: keep the bits and convert by hand */
struct gpu_bf16 {
  uint16_t bits;
};
static __device__ __forceinline__ float to_f32(gpu_bf16 v) { return __uint_as_float((uint32_t)v.bits << 16); }
static __device__ __forceinline__ void from_f32(gpu_bf16 &d, float v) { /* to nearest even; a NaN stays a quiet NaN */
  const uint32_t u = __float_as_uint(v);
  d.bits = v != v ? (uint16_t)0x7fc0 : (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
#else
typedef __nv_bfloat16 gpu_bf16;
static __device__ __forceinline__ float to_f32(gpu_bf16 v) { return __bfloat162float(v); }
static __device__ __forceinline__ void from_f32(gpu_bf16 &d, float v) { d = __float2bfloat16_rn(v); }
#endif
static __device__ __forceinline__ float to_f32(float v) { return v; }
static __device__ __forceinline__ float to_f32(__half v) { return __half2float(v); }
static __device__ __forceinline__ void from_f32(float &d, float v) { d = v; }
static __device__ __forceinline__ void from_f32(__half &d, float v) { d = __float2half_rn(v); }

/* The value of the lane whose number differs in the bits of `mask`. Every lane of the warp takes part. */
template <typename T> static __device__ __forceinline__ T gpu_shfl_xor(T v, int mask) {
#if LIGER_HIP
  return __shfl_xor(v, mask, GPU_LANES);
#else
  return __shfl_xor_sync(0xffffffffu, v, mask);
#endif
}

/* 16-byte accesses that do not stay in the caches: for data that nobody reads again soon */
static __device__ __forceinline__ uint4 gpu_load_stream(const uint4 *p) {
#if LIGER_HIP
  return *p;
#else
  return __ldcs(p);
#endif
}
static __device__ __forceinline__ void gpu_store_stream(uint4 *p, uint4 v) {
#if LIGER_HIP
  *p = v;
#else
  __stcs(p, v);
#endif
}

/* Multiprocessors of the current device: how wide a persistent grid is. Cheap, and never waits. */
static inline int gpu_multiprocessors(void) {
  int device = 0, n = 0;
  if (LIGER_RT(GetDevice)(&device) != LIGER_RT(Success))
    return 1;
#if LIGER_HIP
  if (hipDeviceGetAttribute(&n, hipDeviceAttributeMultiprocessorCount, device) != hipSuccess)
    return 1;
#else
  if (cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, device) != cudaSuccess)
    return 1;
#endif
  return n > 0 ? n : 1;
}
#endif
