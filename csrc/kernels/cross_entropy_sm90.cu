/* cross_entropy on Hopper: a row stays on the chip between its two uses, so it is read from memory once
 * and written once.
 *
 * Plan     shared memory is a ring of pieces of rows. One thread keeps the bulk copy engine busy; the other
 *          warps push each piece into the statistics as it lands, then turn it into dX. As many pieces of a row
 *          as the ring has stay in between; the first ones of a wider row come once more, from L2. Wide rows:
 *          one persistent block to a multiprocessor. What has become registers makes room at once, so the next
 *          row lands while this one is written, and one loop takes a piece of either in turn. Rows that fit a
 *          third of the shared memory: a block each, three at a time, which hide each other's ends.
 * Bound    two exponentials an element, at 16 a clock and multiprocessor, are .57 of the time of the bytes
 * Applies  on compute capability 9.0, to rows of aligned 16-byte vectors of at least MIN_ROW_BYTES; else
 *          cross_entropy.cu */
#include "barrier_sm90.cuh"
#include "cross_entropy.cuh"

#if LIGER_HIP
bool liger_internal_cross_entropy_ring(const ce_params &, liger_dtype, gpu_stream, liger_status *) {
  return false;
}
#else

namespace {
constexpr int64_t MIN_ROW_BYTES = 8 * 1024; /* below, a block of the portable path has the row in L1 */

/* Threads that compute (one more warp feeds the ring), vectors of 16 bytes that each takes of a piece, pieces
 * of the ring, blocks to a multiprocessor. */
template <int THREADS_, int HELD_, int SLOTS_, int BLOCKS_> struct ring_shape {
  static constexpr int THREADS = THREADS_, HELD = HELD_, SLOTS = SLOTS_, BLOCKS = BLOCKS_;
  enum { WARPS = THREADS / 32 }; /* no constant: nvcc warns where code below sm_90 leaves it unused */
  static constexpr int PIECE_VECS = THREADS * HELD, BYTES = SLOTS * PIECE_VECS * 16;
};
struct always {
  enum : bool { value = true };
};
struct sometimes {
  enum : bool { value = false };
};

typedef ring_shape<256, 2, 9, 3> short_rows; /* 72 KB */
typedef ring_shape<512, 2, 14, 1> long_rows; /* 224 KB; 3 KB more is all that a block may have */

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define CE_RING_CODE 1
#else
#define CE_RING_CODE 0
#endif

#if CE_RING_CODE
/* dst (shared) = bytes of src (global), announced on bar; one thread, all multiples of 16. `again`: L2 keeps
 * the bytes for a second load, which then gives them up. */
enum bulk_use { USE_ONCE, USE_AGAIN, USE_LAST };
__device__ __forceinline__ void bulk_load(uint32_t dst, const void *src, uint32_t bytes, uint32_t bar,
                                          bulk_use use) {
  barrier_expect(bar, (int)bytes);
  if (use == USE_ONCE) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(dst),
        "l"(__cvta_generic_to_global(src)), "r"(bytes), "r"(bar)
        : "memory");
    return;
  }
  uint64_t policy;
  if (use == USE_AGAIN) asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  else asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], "
               "%2, [%3], %4;" ::"r"(dst),
               "l"(__cvta_generic_to_global(src)), "r"(bytes), "r"(bar), "l"(policy)
               : "memory");
}
template <typename T, int N> __device__ __forceinline__ vec<T, N> load_shared(uint32_t from) {
  uint4 raw;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(raw.x), "=r"(raw.y), "=r"(raw.z), "=r"(raw.w)
               : "r"(from));
  vec<T, N> v;
  __builtin_memcpy(&v, &raw, 16);
  return v;
}
/* What the warp has read of a slot is in its registers, and the slot free. A barrier alone orders its loads, still
 * on their way, with ordinary writes but not with the copy engine's: about one launch in a thousand read the next
 * piece's bytes. */
__device__ __forceinline__ void slot_taken(uint32_t bar, int lane) {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  gpu_warp_sync();
  if (lane == 0) barrier_arrive(bar);
}
/* the warps that compute, without the one that feeds */
template <int THREADS> __device__ __forceinline__ void consumers_sync() {
  asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory");
}
#endif

/* Where the next piece stands in the ring, without a division: its slot, and the parity of the slot's turn. */
template <int SLOTS> struct ring_place {
  int slot;
  uint32_t parity;
  __device__ __forceinline__ void next() {
    if (++slot == SLOTS) {
      slot = 0;
      parity ^= 1;
    }
  }
};

/* A row passes the ring as pieces 0 .. n_pieces - 1, for the statistics; where a gradient is wanted the last
 * `n_kept` of them stay, and the others come again. While one row becomes dX, piece by piece in that order, the
 * next is read `lag` pieces behind: its loads began when dX freed their slots, n_pieces - SLOTS pieces ago at
 * least, and take some time. */
template <typename T, bool FULL, class S>
__global__ void __launch_bounds__(S::THREADS + 32, S::BLOCKS)
    cross_entropy_ring_kernel(const ce_params p, int n_vecs, int n_pieces, int n_kept, int lag) {
#if CE_RING_CODE
  typedef typename ce_state_of<FULL>::type state;
  constexpr int N = vec_width<T>::value, THREADS = S::THREADS, HELD = S::HELD, PIECE_VECS = S::PIECE_VECS;
  constexpr int PUSHED = FULL ? 1 : HELD; /* vectors pushed at once: as many as registers hold */
  extern __shared__ __align__(128) unsigned char ring_raw[];
  __shared__ __align__(8) uint64_t barriers[2 * S::SLOTS];
  __shared__ state scratch[2][S::WARPS];
  const uint32_t ring = shared_address(ring_raw), landed = shared_address(barriers),
                 taken = landed + S::SLOTS * 8;
  const int tid = (int)threadIdx.x, lane = tid % 32;
  const int64_t step = gridDim.x;
  if (tid == 0) {
    for (int i = 0; i < S::SLOTS; i++) {
      barrier_init(landed + i * 8, 1);
      barrier_init(taken + i * 8, S::WARPS);
    }
    barrier_init_fence();
  }
  __syncthreads();

  if (tid >= THREADS) { /* ---- the warp that feeds ---- */
    if (lane != 0) return;
    const int n_loads = n_pieces + (p.dX ? n_pieces - n_kept : 0);
    ring_place<S::SLOTS> at = {0, 1}; /* parity 1: the first turn finds every slot free */
    int64_t y = p.target[(int64_t)blockIdx.x * p.target_stride];
    for (int64_t row = blockIdx.x; row < p.n_rows; row += step) {
      const bool skip = y == p.ignore_index || y < 0 || y >= p.n_cols;
      if (row + step < p.n_rows) y = p.target[(row + step) * p.target_stride];
      if (skip) continue;
      const T *const X = (const T *)p.X + row * p.X_row_stride;
      for (int i = 0; i < n_loads; i++, at.next()) {
        const int first = (i < n_pieces ? i : i - n_pieces) * PIECE_VECS,
                  count = n_vecs - first < PIECE_VECS ? n_vecs - first : PIECE_VECS;
        barrier_wait(taken + at.slot * 8, at.parity);
        bulk_load(ring + at.slot * (PIECE_VECS * 16), X + (int64_t)first * N, (uint32_t)count * 16,
                  landed + at.slot * 8,
                  !p.dX || (i >= n_pieces - n_kept && i < n_pieces) ? USE_ONCE
                  : i < n_pieces                                    ? USE_AGAIN
                                                                    : USE_LAST);
      }
    }
    return;
  }

  const uint32_t mine = ring + tid * 16;
  ring_place<S::SLOTS> read_at = {0, 0}, kept_at = read_at, write_at = read_at;
  state s; /* of the row that is read */
  const auto read_piece = [&](int i) {
    const int v = i * PIECE_VECS + tid;
    const uint32_t from = mine + read_at.slot * (PIECE_VECS * 16);
    if (i == n_pieces - n_kept) kept_at = read_at;
    barrier_wait(landed + read_at.slot * 8, read_at.parity);
    if ((i + 1) * PIECE_VECS <= n_vecs) {
#pragma unroll
      for (int h = 0; h < HELD; h += PUSHED) {
        float z[PUSHED][N];
#pragma unroll
        for (int u = 0; u < PUSHED; u++)
          ce_logits<FULL>(z[u], load_shared<T, N>(from + (h + u) * (THREADS * 16)), p);
        ce_push(s, p, z, (int64_t)(v + h * THREADS) * N, (int64_t)THREADS * N);
      }
    } else {
#pragma unroll 1
      for (int u = 0; v + u * THREADS < n_vecs; u++) {
        float z[1][N];
        ce_logits<FULL>(z[0], load_shared<T, N>(from + u * (THREADS * 16)), p);
        ce_push(s, p, z, (int64_t)(v + u * THREADS) * N, 0);
      }
    }
    if (i < n_pieces - n_kept) slot_taken(taken + read_at.slot * 8, lane);
    read_at.next();
  };

  ce_target next = ce_load_target<FULL, T>(p, blockIdx.x), t = next;
  ce_gradient g = {};
  T *dX = nullptr; /* of the row that is written, whose target is t and whose gradient's factors are g */
  const auto write_piece = [&](int i) {
    const int piece = i < n_kept ? i + n_pieces - n_kept : i - n_kept, v = piece * PIECE_VECS + tid;
    const uint32_t from = mine + write_at.slot * (PIECE_VECS * 16);
    T *const to = dX + (int64_t)v * N;
    barrier_wait(landed + write_at.slot * 8, write_at.parity);
    const auto take = [&](auto whole) { /* whole: no vector of the piece is missing */
                                        vec<T, N> x[HELD], dx[HELD];
#pragma unroll
                                        for (int u = 0; u < HELD; u++)
                                          x[u] = load_shared<T, N>(from + u * (THREADS * 16));
                                        ce_dx<FULL>(dx, p, g, x, (int64_t)v * N, (int64_t)THREADS * N);
                                        slot_taken(taken + write_at.slot * 8, lane);
#pragma unroll
                                        for (int u = 0; u < HELD; u++)
                                          if (decltype(whole)::value || v + u * THREADS < n_vecs)
                                            store_vec<T, N>(to + u * (THREADS * N), dx[u]);
    };
    if ((piece + 1) * PIECE_VECS <= n_vecs) take(always());
    else take(sometimes());
    write_at.next();
  };

  int odd = 0;
  for (int64_t row = blockIdx.x; row < p.n_rows || dX; row += step) {
    const bool reads = row < p.n_rows;
    const ce_target of_row = next;
    /* a row ahead: two dependent loads that nothing should wait for */
    if (row + step < p.n_rows) next = ce_load_target<FULL, T>(p, row + step);
    T *const dX_row = p.dX ? (T *)p.dX + row * p.dX_row_stride : nullptr;
    if (reads && of_row.skip) {
      if (tid == 0) ce_fill_outputs(p, row, of_row.fill);
      vec<T, N> v;
#pragma unroll
      for (int j = 0; j < N; j++) from_f32(v.v[j], of_row.fill);
      if (dX_row)
        for (int i = tid; i < n_vecs; i += THREADS) store_vec<T, N>(dX_row + (int64_t)i * N, v);
      continue;
    }
    ce_reset(s);
    int r = 0;
    if (dX) {
      for (int w = 0; w < n_pieces; w++) {
        write_piece(w);
        if (reads && w >= lag) read_piece(r++);
      }
      /* by the thread that has stored the target's vector, after it */
      if (tid == (int)(t.y / N % THREADS)) from_f32(dX[t.y], g.dz_y);
      dX = nullptr;
    }
    if (!reads) break;
    while (r < n_pieces) read_piece(r++);
    s = ce_warp_merge(s, 32);
    if (lane == 0) scratch[odd][tid / 32] = s;
    consumers_sync<THREADS>(); /* two scratch arrays in turn: no second barrier */
    ce_reset(s);
    if (lane < S::WARPS) s = scratch[odd][lane];
    s = ce_warp_merge(s, 32);
    odd ^= 1;
    t = of_row;
    g = ce_finish(p, row, s, t, tid == 0);
    if (dX_row) {
      dX = dX_row;
      write_at = kept_at;
      for (int i = 0; i < n_pieces - n_kept; i++) read_at.next(); /* those that come again */
    }
  }
#endif
}

/* sm_90 code is in this build: without it, the kernels above are empty */
constexpr bool built_for_hopper() {
#ifdef __CUDA_ARCH_LIST__
  constexpr int archs[] = {__CUDA_ARCH_LIST__};
  for (int arch : archs)
    if (arch == 900) return true;
#endif
  return false;
}

template <typename T, bool FULL, class S> liger_status launch(const ce_params &p, gpu_stream stream) {
  constexpr int LATENCY = 8; /* pieces that are written while a load is on the way */
  const int n_vecs = (int)(p.n_cols / vec_width<T>::value),
            n_pieces = (n_vecs + S::PIECE_VECS - 1) / S::PIECE_VECS,
            n_kept = !p.dX                 ? 0
                     : n_pieces < S::SLOTS ? n_pieces
                                           : S::SLOTS,
            behind = n_pieces - S::SLOTS + LATENCY;
  const auto kernel = cross_entropy_ring_kernel<T, FULL, S>;
  const cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::BYTES);
  if (e != cudaSuccess) return (liger_status)e;
  const int64_t resident = S::BLOCKS > 1 ? p.n_rows : gpu_multiprocessors();
  kernel<<<(unsigned)(p.n_rows < resident ? p.n_rows : resident), S::THREADS + 32, S::BYTES, stream>>>(
      p, n_vecs, n_pieces, n_kept, behind > 0 ? behind : 0);
  return (liger_status)cudaGetLastError();
}
template <typename T, bool FULL> liger_status launch(const ce_params &p, gpu_stream stream) {
  return p.n_cols * (int64_t)sizeof(T) <= short_rows::BYTES ? launch<T, FULL, short_rows>(p, stream)
                                                            : launch<T, FULL, long_rows>(p, stream);
}
} // namespace

bool liger_internal_cross_entropy_ring(const ce_params &p, liger_dtype x_dtype, gpu_stream stream,
                                       liger_status *status) {
  const int elem_size = x_dtype == LIGER_F32 ? 4 : 2;
  const int64_t row_bytes = p.n_cols * elem_size;
  if (!built_for_hopper() || x_dtype == LIGER_F64 || row_bytes < MIN_ROW_BYTES || row_bytes > INT32_MAX)
    return false;
  if (!rows_aligned(p.X, p.X_row_stride, p.n_cols, elem_size) ||
      (p.dX && !rows_aligned(p.dX, p.dX_row_stride, p.n_cols, elem_size)))
    return false;
  int device = 0, major = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess || major != 9)
    return false;
  const auto run = [&]() -> liger_status {
    LIGER_DISPATCH_DTYPE(
        x_dtype, T, { return ce_is_full(p) ? launch<T, true>(p, stream) : launch<T, false>(p, stream); });
    return LIGER_OK;
  };
  *status = run();
  return true;
}
#endif
