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

/* Threads that run in step. 64 on CDNA, 32 elsewhere; the host never needs it: launch plans count in
 * GPU_MIN_LANES, and shared arrays are sized for the narrowest warp. */
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
static __device__ __forceinline__ void from_f32(gpu_bf16 &d,
                                                float v) { /* to nearest even; a NaN stays a quiet NaN */
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

/* Two neighbours at once. A conversion of a pair is one instruction where one of a single value is a slow
 * one. */
template <typename T> static __device__ __forceinline__ void from_f32_pair(T *d, float a, float b) {
  from_f32(d[0], a);
  from_f32(d[1], b);
}
static __device__ __forceinline__ void from_f32_pair(__half *d, float a, float b) {
  const __half2 p = __floats2half2_rn(a, b);
  __builtin_memcpy(d, &p, sizeof p);
}
template <typename T> static __device__ __forceinline__ void to_f32_pair(const T *p, float &a, float &b) {
  a = to_f32(p[0]);
  b = to_f32(p[1]);
}
static __device__ __forceinline__ void to_f32_pair(const gpu_bf16 *p, float &a,
                                                   float &b) { /* a bf16 is the upper half of an fp32 */
  uint32_t bits;
  __builtin_memcpy(&bits, p, sizeof bits);
  a = __uint_as_float(bits << 16);
  b = __uint_as_float(bits & 0xffff0000u);
}
#if !LIGER_HIP
static __device__ __forceinline__ void from_f32_pair(gpu_bf16 *d, float a, float b) {
  const __nv_bfloat162 p = __floats2bfloat162_rn(a, b);
  __builtin_memcpy(d, &p, sizeof p);
}
#endif

/* The value of the lane whose number differs in the bits of `mask`. Every lane of the warp takes part. */
template <typename T> static __device__ __forceinline__ T gpu_shfl_xor(T v, int mask) {
#if LIGER_HIP
  return __shfl_xor(v, mask, GPU_LANES);
#else
  return __shfl_xor_sync(0xffffffffu, v, mask);
#endif
}

/* Whether `v` holds in every lane; the first lane's value, which the compiler then knows to be the whole warp's */
static __device__ __forceinline__ bool gpu_warp_all(bool v) {
#if LIGER_HIP
  return __all(v);
#else
  return __all_sync(0xffffffffu, v);
#endif
}
static __device__ __forceinline__ int gpu_warp_first(int v) {
#if LIGER_HIP
  return __shfl(v, 0, GPU_LANES);
#else
  return __shfl_sync(0xffffffffu, v, 0);
#endif
}

/* Every lane of the warp has come here, and sees what the others have written. */
static __device__ __forceinline__ void gpu_warp_sync(void) {
#if LIGER_HIP
  __builtin_amdgcn_wave_barrier();
#else
  __syncwarp();
#endif
}

/* A barrier of one group of `threads` neighbouring threads of the block, whole warps; `group`, of 0 to 14, is
 * another number for every group. Where there are no such barriers, the whole block's: all groups call equally
 * often. */
static __device__ __forceinline__ void gpu_group_sync(int group, int threads) {
#if LIGER_HIP
  (void)group, (void)threads;
  __syncthreads();
#else
  asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "r"(threads) : "memory");
#endif
}

/* What the compiler has derived from `v` (its elements in fp32, say) is forgotten, and made again where it is
 * needed: an instruction more in place of registers held meanwhile. Grids have one dimension, so this adds a zero that
 * no compiler knows; an empty asm stops the first of two compilers only. */
static __device__ __forceinline__ void gpu_forget(uint4 &v) {
#if LIGER_HIP
  (void)v;
#else
  const unsigned zero = gridDim.y - 1;
  v.x += zero, v.y += zero, v.z += zero, v.w += zero;
#endif
}

/* 2^x by the special-function unit, within 2 ulp; results below 2^-126 are 0 */
static __device__ __forceinline__ float gpu_exp2(float x) {
#if LIGER_HIP
  return exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

/* the larger of two numbers, a NaN of either */
static __device__ __forceinline__ float gpu_max(float a, float b) {
#if !LIGER_HIP && __CUDA_ARCH__ >= 800
  float y;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
#else
  return a > b || a != a ? a : b;
#endif
}

/* 1 / x by the special-function unit, within 1 ulp; of a denormal infinity, of 2^126 or more 0 */
static __device__ __forceinline__ float gpu_reciprocal(float x) {
#if LIGER_HIP
  return 1.0f / x;
#else
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

/* One access of 16 bytes. As an integer of 128 bits, since nvcc stores some uint4 as four numbers. */
static __device__ __forceinline__ void gpu_store(uint4 *p, uint4 v) {
#if LIGER_HIP
  *p = v;
#else
  *reinterpret_cast<unsigned __int128 *>(p) = (unsigned __int128)((uint64_t)v.w << 32 | v.z) << 64 |
                                              ((uint64_t)v.y << 32 | v.x);
#endif
}

/* log2 of a normal x > 0 by the special-function unit, within 2^-22 */
static __device__ __forceinline__ float gpu_log2(float x) {
#if LIGER_HIP
  return log2f(x);
#else
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

/* A 16-byte copy from global to shared memory that does not wait and takes no register; zeros where
 * `valid` is false (`from` is then not read). The thread that issued it may read the bytes after
 * gpu_copy_wait<N>(), when at most its N newest committed groups are still on the way. Synchronous before
 * sm_80 and on HIP. */
static __device__ __forceinline__ void gpu_copy_now(uint4 *to, const void *from, bool valid) {
  *to = valid ? *(const uint4 *)from : make_uint4(0, 0, 0, 0);
}
#if LIGER_HIP
static __device__ __forceinline__ void gpu_copy_async(uint4 *to, const void *from, bool valid) {
  gpu_copy_now(to, from, valid);
}
static __device__ __forceinline__ void gpu_copy_commit(void) {}
template <int N> static __device__ __forceinline__ void gpu_copy_wait(void) {}
#else
static __device__ __forceinline__ void gpu_copy_async(uint4 *to, const void *from, bool valid) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((unsigned)__cvta_generic_to_shared(to)),
               "l"(from), "r"(valid ? 16 : 0)
               : "memory");
#else
  gpu_copy_now(to, from, valid);
#endif
}
static __device__ __forceinline__ void gpu_copy_commit(void) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int N> static __device__ __forceinline__ void gpu_copy_wait(void) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}
#endif

/* Whether `kernel` can be launched with `bytes` of dynamic shared memory on the current device; allows it
 * if so. Host. */
template <typename Kernel> static inline bool gpu_allow_shared(Kernel kernel, size_t bytes) {
  if (bytes <= 47 * 1024) /* 48 KB without leave, and up to 1 KB of it static */
    return true;
#if LIGER_HIP
  (void)kernel;
  return false;
#else
  if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes) == cudaSuccess)
    return true;
  (void)cudaGetLastError(); /* a smaller chip: the caller has another plan */
  return false;
#endif
}

/* Multiprocessors of the current device: how wide a persistent grid is. Cheap, and never waits. */
static inline int gpu_multiprocessors(void) {
  int device = 0, n = 0;
  if (LIGER_RT(GetDevice)(&device) != LIGER_RT(Success)) return 1;
#if LIGER_HIP
  if (hipDeviceGetAttribute(&n, hipDeviceAttributeMultiprocessorCount, device) != hipSuccess) return 1;
#else
  if (cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) return 1;
#endif
  return n > 0 ? n : 1;
}

/* 10 x the compute capability of the current device; 0: unknown, or HIP. */
static inline int gpu_arch(void) {
#if LIGER_HIP
  return 0;
#else
  int device = 0, major = 0, minor = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess)
    return 0;
  return 10 * major + minor;
#endif
}
#endif
