/* linear_stats on Hopper: what a loss without gradient needs of its logits, taken while they are in registers. No
 *         logit is written; see liger_linear_stats_args
 * Floor   2*n_rows*vocab_size*hidden_size operations
 * Plan    persistent clusters of two blocks. A cluster takes tiles of 256 rows by 256 columns, a block 128 of the
 *         rows; the two share the tile's rows of W, of which each fetches half for both. One warp fetches slices of
 *         64 of the hidden size by the copy engine into a ring of four, two warpgroups multiply 64 x 256 each. The
 *         second one begins two slices later, so that each takes its statistics while the other multiplies.
 *         Neighbouring clusters walk down GROUP_BYTES of X before they move on along W: that part of X stays in L2.
 *         Logits are rounded to X's dtype first, as where they are stored: a loss is the same with its gradient
 *         and without */
#include "cross_entropy.cuh"
#include "product_sm90.cuh"

#if LIGER_HIP
extern "C" int liger_linear_stats_fits_cuda(const liger_linear_stats_args *) { return 0; }
extern "C" int64_t liger_linear_stats_workspace_cuda(const liger_linear_stats_args *) { return 0; }
extern "C" liger_status liger_linear_stats_cuda(const liger_linear_stats_args *, void *) {
  return LIGER_ERR_DTYPE;
}
#else

namespace {
constexpr int ROWS = 128, COLS = 256; /* of a block's tile */
constexpr int STAGES = 4, WARPGROUP = 128, THREADS = 3 * WARPGROUP;
constexpr int X_BYTES = ROWS * SLICE * 2, W_BYTES = COLS * SLICE * 2, STAGE_BYTES = X_BYTES + W_BYTES;
constexpr size_t SHARED = (size_t)STAGES * STAGE_BYTES + 1024; /* the ring begins at a multiple of 1024 */
constexpr int64_t GROUP_BYTES = 20 << 20;

struct stats_params {
  float2 *parts; /* (n_tiles, n_rows): the largest logit of a row in a tile, and the sum of exponentials */
  float *sums;   /* (n_tiles, n_rows): the sum of a row's logits in a tile; or null */
  float *m, *d, *z_y, *logprob, *lse, *mean_logit;
  const void *bias;
  const int64_t *ids;
  int64_t n_rows, vocab_size, ids_stride, stride, ignore_index;
  int n_slices, n_row_tiles, n_col_tiles, group; /* tiles of a cluster; group: row tiles that stay in L2 */
  float scale;
  liger_dtype bias_dtype;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
constexpr int LAG = 2; /* slices by which the second warpgroup begins later than the first */

/* Where a slice of the ring stands: its place, and how often the ring has been round. */
struct ring_place {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void advance() {
    if (++stage < STAGES) return;
    stage = 0;
    parity ^= 1;
  }
};

/* The cluster's tile number t: where it stands, in tiles. */
struct tile_at {
  int down, along;
  __device__ __forceinline__ tile_at(const stats_params &p, int t) {
    const int of_group = p.group * p.n_col_tiles, first = t / of_group * p.group;
    const int rows = min(p.group, p.n_row_tiles - first), rest = t % of_group;
    down = first + rest % rows;
    along = rest / rows;
  }
};

/* Two neighbouring logits as a buffer of T would hold them, and the larger ones of two such pairs; a NaN loses there,
 * the exponentials find it. */
template <typename T> struct pair_of;
template <> struct pair_of<gpu_bf16> {
  typedef __nv_bfloat162 type;
  static __device__ __forceinline__ type round(float a, float b) { return __floats2bfloat162_rn(a, b); }
};
template <> struct pair_of<__half> {
  typedef __half2 type;
  static __device__ __forceinline__ type round(float a, float b) { return __floats2half2_rn(a, b); }
};
template <class Pair> __device__ __forceinline__ void floats_of(const Pair &pair, float &a, float &b) {
  a = __low2float(pair);
  b = __high2float(pair);
}

/* e^z of 32 pairs, z = scale times a pair's logits, in units of m: their sum */
template <bool SCALED, class Pair>
__device__ __forceinline__ float sum_of_exp(const Pair (&pairs)[32], float scale, float m) {
  const bool base2 = gpu_warp_all(ce_base2(m)), mine = ce_base2(m); /* one path where the warp's rows agree */
  const float unit = ce_unit(m);
  float d[4] = {0.0f, 0.0f, 0.0f, 0.0f}; /* chains of additions that do not wait for one another */
#pragma unroll
  for (int j = 0; j < 32; j++) {
    float z[2];
    floats_of(pairs[j], z[0], z[1]);
#pragma unroll
    for (int i = 0; i < 2; i++) {
      if (SCALED) z[i] *= scale;
      const float x = base2 || mine ? fmaf(z[i], LOG2E, -unit) : (z[i] - m) * LOG2E;
      d[j % 2 * 2 + i] += gpu_exp2(x);
    }
  }
  return (d[0] + d[1]) + (d[2] + d[3]);
}

/* The columns of a tile in two rows, of a thread and its three neighbours. c: elements 4j, 4j + 1 are neighbours of
 * the first row, from column 8 j on, 4j + 2 and 4j + 3 of the second. y: the rows' ids, -1 without one. */
template <typename T>
__device__ __forceinline__ void take_stats(float (&c)[128], const stats_params &p, int64_t row0, int col0,
                                           int tile, const int (&y)[2]) {
  typedef pair_of<T> pair;
  const int lane = threadIdx.x % GPU_LANES, vocab_size = (int)p.vocab_size;
  col0 += 2 * (lane % 4);
  if (p.bias) {
#pragma unroll
    for (int j = 0; j < 64; j++) {
      const int col = col0 + 8 * (j / 2) + j % 2;
      float b[1] = {0.0f};
      if (col < vocab_size) load_as_f32(b, p.bias, col, p.bias_dtype);
      c[4 * (j / 2) + j % 2] += b[0];
      c[4 * (j / 2) + 2 + j % 2] += b[0];
    }
  }
  float total[2][4] = {}; /* before the columns beyond the vocabulary, which are zeros here */
  if (p.sums) {
#pragma unroll
    for (int j = 0; j < 128; j++) total[j / 2 % 2][j / 4 % 2 * 2 + j % 2] += c[j];
  }
  if (col0 + COLS > vocab_size) {
#pragma unroll
    for (int j = 0; j < 128; j++)
      if (col0 + 8 * (j / 4) + j % 2 >= vocab_size) c[j] = -INFINITY;
  }
#pragma unroll
  for (int half = 0; half < 2; half++) {
    typename pair::type pairs[32], most[4];
#pragma unroll
    for (int j = 0; j < 32; j++) {
      pairs[j] = pair::round(c[4 * j + 2 * half], c[4 * j + 2 * half + 1]);
      most[j % 4] = j < 4 ? pairs[j] : __hmax2(most[j % 4], pairs[j]);
    }
    float m, other;
    floats_of(__hmax2(__hmax2(most[0], most[1]), __hmax2(most[2], most[3])), m, other);
    m = fmaxf(m, other);
    m = fmaxf(m, gpu_shfl_xor(m, 1));
    m = fmaxf(CE_LOWEST, fmaxf(m, gpu_shfl_xor(m, 2)) * p.scale); /* scale > 0 */
    float d = p.scale == 1.0f ? sum_of_exp<false>(pairs, 1.0f, m) : sum_of_exp<true>(pairs, p.scale, m);
    d += gpu_shfl_xor(d, 1);
    d += gpu_shfl_xor(d, 2);
    const int64_t row = row0 + 8 * half;
    if (lane % 4 == 0 && row < p.n_rows) p.parts[tile * p.n_rows + row] = make_float2(m, d);
    if (p.sums) {
      float sum = (total[half][0] + total[half][1]) + (total[half][2] + total[half][3]);
      sum += gpu_shfl_xor(sum, 1);
      sum += gpu_shfl_xor(sum, 2);
      if (lane % 4 == 0 && row < p.n_rows) p.sums[tile * p.n_rows + row] = sum;
    }
    const int here = y[half] - col0;
    if (here < 0 || here >= COLS || here % 8 > 1) continue; /* another tile has it, or another lane */
    float z = 0.0f;
#pragma unroll
    for (int j = 0; j < 32; j++) {
      float of[2];
      floats_of(pairs[j], of[0], of[1]);
      z = here == 8 * j ? of[0] : here == 8 * j + 1 ? of[1] : z;
    }
    p.z_y[row * p.stride] = z * p.scale;
  }
}
#endif

template <typename T>
__global__ void __launch_bounds__(THREADS, 1)
    linear_stats_kernel(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap w_map,
                        const stats_params p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ uint8_t dynamic_shared[];
  __shared__ uint64_t barriers[2 * STAGES];
  const uint32_t full = shared_address(barriers), empty = full + 8 * STAGES; /* of a stage, 8 bytes each */
  uint8_t *const ring = dynamic_shared + (1024 - shared_address(dynamic_shared) % 1024) % 1024;
  cg::cluster_group cluster = cg::this_cluster();
  /* of the warp, told to the compiler: the tensor cores want whole warpgroups on one path */
  const int rank = (int)cluster.block_rank(), group = gpu_warp_first((int)threadIdx.x / WARPGROUP);
  const int n_tiles = p.n_row_tiles * p.n_col_tiles, first = blockIdx.x / 2, step = gridDim.x / 2;
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; s++) {
      barrier_init(full + 8 * s, 1);
      barrier_init(empty + 8 * s, 4); /* the multiplying warpgroups of both blocks */
    }
    barrier_init_fence();
  }
  cluster.sync();
  ring_place at;
  if (group == 0) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == 0) {
#pragma unroll 1
      for (int t = first; t < n_tiles; t += step) {
        const tile_at tile(p, t);
        const int x_at = (2 * tile.down + rank) * ROWS, w_at = tile.along * COLS + rank * (COLS / 2);
        for (int k = 0; k < p.n_slices; k++, at.advance()) {
          uint8_t *const x = ring + at.stage * STAGE_BYTES, *const w = x + X_BYTES;
          barrier_wait(empty + 8 * at.stage, at.parity ^ 1);
          barrier_expect(full + 8 * at.stage, STAGE_BYTES);
          fetch(x, &x_map, full + 8 * at.stage, k * SLICE, x_at);
          fetch_for_both(w + rank * (W_BYTES / 2), &w_map, full + 8 * at.stage, k * SLICE, w_at);
        }
      }
    }
    gpu_warp_sync();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    const int lane = threadIdx.x % GPU_LANES, warp = threadIdx.x % WARPGROUP / GPU_LANES;
    float c[128];
    const int lead = min(LAG, p.n_slices) - 1;
    const auto release = [&](int stage) {
      if (threadIdx.x % WARPGROUP < 2) barrier_arrive_in(empty + 8 * stage, (int)threadIdx.x % WARPGROUP);
    };
    if (group == 2 && first < n_tiles) asm volatile("bar.sync 1, 256;" ::: "memory");
    for (int t = first; t < n_tiles; t += step) {
      const tile_at tile(p, t);
      const int64_t row = (int64_t)(2 * tile.down + rank) * ROWS + (group - 1) * 64 + warp * 16 + lane / 4;
      int y[2]; /* asked for now: they arrive while the tile is multiplied */
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int64_t id = row + 8 * i < p.n_rows ? p.ids[(row + 8 * i) * p.ids_stride] : -1;
        y[i] = id < 0 || id >= p.vocab_size ? -1 : (int)id;
      }
      int before = 0;
#pragma unroll
      for (int j = 0; j < 128; j++) c[j] = 0.0f;
#pragma unroll 1
      for (int k = 0; k < p.n_slices; k++, at.advance()) {
        const uint8_t *const x = ring + at.stage * STAGE_BYTES, *const w = x + X_BYTES;
        barrier_wait(full + 8 * at.stage, at.parity);
        products_begin();
        const uint64_t a = operand(x + (group - 1) * (X_BYTES / 2)), b = operand(w);
#pragma unroll
        for (int i = 0; i < SLICE / 16; i++) multiply(c, a + 2 * i, b + 2 * i, T());
        products_commit();
        if (t == first && k == lead && group == 1) asm volatile("bar.arrive 1, 256;" ::: "memory");
        if (k > 0) {
          products_wait<1>();
          release(before);
        }
        before = at.stage;
      }
      products_wait<0>();
      products_read(c);
      release(before);
      take_stats<T>(c, p, row, tile.along * COLS, tile.along, y);
    }
  }
  cluster.sync(); /* no block leaves while the other may still send to it */
#else
  (void)x_map, (void)w_map, (void)p;
#endif
}

/* A row's tiles merged in their order, by MERGE_LANES threads that take turns */
constexpr int MERGE_ROWS = 32, MERGE_LANES = 16;
__global__ void __launch_bounds__(MERGE_ROWS *MERGE_LANES) linear_stats_merge_kernel(const stats_params p) {
  __shared__ ce_plain states[MERGE_LANES][MERGE_ROWS];
  __shared__ float sums[MERGE_LANES][MERGE_ROWS];
  const int r = threadIdx.x % MERGE_ROWS, part = threadIdx.x / MERGE_ROWS;
  const int64_t row = (int64_t)blockIdx.x * MERGE_ROWS + r;
  ce_plain s;
  float sum = 0.0f;
  ce_reset(s);
  if (row < p.n_rows)
    for (int tile = part; tile < p.n_col_tiles; tile += MERGE_LANES) {
      const float2 of_tile = p.parts[tile * p.n_rows + row];
      s = ce_merge(s, ce_plain{of_tile.x, of_tile.y});
      if (p.sums) sum += p.sums[tile * p.n_rows + row];
    }
  states[part][r] = s;
  sums[part][r] = sum;
  __syncthreads();
  if (part > 0 || row >= p.n_rows) return;
  for (int i = 1; i < MERGE_LANES; i++) {
    s = ce_merge(s, states[i][r]);
    sum += sums[i][r];
  }
  float *const m = p.m + row * p.stride, *const d = p.d + row * p.stride, *const z_y = p.z_y + row * p.stride;
  const int64_t id = p.ids[row * p.ids_stride];
  const bool ignored = id == p.ignore_index, valid = !ignored && id >= 0 && id < p.vocab_size;
  *m = valid ? s.m : 0.0f;
  *d = valid ? s.d : 0.0f;
  if (!p.logprob) return;
  const bool dead = s.d == 0.0f; /* nothing but -inf */
  const float fill = ignored ? 0.0f : NAN, log_d = dead ? -INFINITY : ce_log_sum(s.m, s.d, p.vocab_size);
  const bool never = valid && (dead || *z_y == -INFINITY);
  p.logprob[row] = !valid ? fill : never ? -INFINITY : (*z_y - s.m) - log_d;
  if (p.lse) p.lse[row] = valid ? s.m + log_d : fill;
  if (p.mean_logit) p.mean_logit[row] = valid ? sum * p.scale / (float)p.vocab_size : fill;
  *z_y = 0.0f;
}

int64_t tiles(int64_t n, int64_t of) { return (n + of - 1) / of; }
} // namespace

extern "C" int liger_linear_stats_fits_cuda(const liger_linear_stats_args *a) {
  const bool half = a->dtype == LIGER_F16 || a->dtype == LIGER_BF16;
  const auto walks = [&](int64_t stride) { /* what a tensor map takes; not a row expanded to many */
                                           return a->hidden_size <= stride && stride < (int64_t)1 << 39;
  };
  const bool aligned = ((uintptr_t)a->X | (uintptr_t)a->W) % 16 == 0 &&
                       (a->X_row_stride | a->W_row_stride) % 8 == 0;
  return half && aligned && walks(a->X_row_stride) && walks(a->W_row_stride) && a->scale > 0 &&
         a->hidden_size > 0 && a->vocab_size > 0 && a->n_rows > 0 && a->n_rows < 1 << 30 &&
         a->vocab_size < 1 << 30 && a->hidden_size < 1 << 30 &&
         tiles(a->n_rows, 2 * ROWS) * tiles(a->vocab_size, COLS) < 1 << 30 && cluster_device() && encoder();
}

extern "C" int64_t liger_linear_stats_workspace_cuda(const liger_linear_stats_args *a) {
  const int64_t each = sizeof(float2) + (a->mean_logit ? sizeof(float) : 0);
  return a->n_rows * tiles(a->vocab_size, COLS) * each;
}

extern "C" liger_status liger_linear_stats_cuda(const liger_linear_stats_args *a, void *stream_) {
  const gpu_stream stream = (gpu_stream)stream_;
  if (!liger_linear_stats_fits_cuda(a)) return LIGER_ERR_SIZE;
  stats_params p{};
  p.parts = (float2 *)a->workspace;
  p.m = (float *)a->m;
  p.d = (float *)a->d;
  p.z_y = (float *)a->z_y;
  p.logprob = (float *)a->logprob;
  p.lse = (float *)a->lse;
  p.mean_logit = (float *)a->mean_logit;
  p.sums = a->mean_logit ? (float *)(p.parts + a->n_rows * tiles(a->vocab_size, COLS)) : nullptr;
  p.bias = a->bias;
  p.ids = a->ids;
  p.n_rows = a->n_rows;
  p.vocab_size = a->vocab_size;
  p.ids_stride = a->ids_stride;
  p.stride = a->stride;
  p.ignore_index = a->ignore_index;
  p.n_slices = (int)tiles(a->hidden_size, SLICE);
  p.n_row_tiles = (int)tiles(a->n_rows, 2 * ROWS);
  p.n_col_tiles = (int)tiles(a->vocab_size, COLS);
  const int64_t fits = GROUP_BYTES / (2 * ROWS * 2 * a->hidden_size);
  const int64_t n_groups = tiles(p.n_row_tiles, fits < 1 ? 1 : fits);
  p.group = (int)tiles(p.n_row_tiles, n_groups); /* groups of one size */
  p.scale = (float)a->scale;
  p.bias_dtype = a->bias_dtype;
  const auto kernel = a->dtype == LIGER_BF16 ? linear_stats_kernel<gpu_bf16> : linear_stats_kernel<__half>;
  /* first, since it binds the device's context to a new thread, which the driver's function below wants */
  const cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                             (int)SHARED);
  if (e != cudaSuccess) return (liger_status)e;
  CUtensorMap x_map, w_map;
  if (!describe(&x_map, a->X, a->dtype, a->n_rows, a->hidden_size, a->X_row_stride, ROWS) ||
      !describe(&w_map, a->W, a->dtype, a->vocab_size, a->hidden_size, a->W_row_stride, COLS / 2))
    return LIGER_ERR_SIZE;
  const liger_status status = cluster_launch(kernel, (int64_t)p.n_row_tiles * p.n_col_tiles, 2, THREADS,
                                             SHARED, stream, CLUSTERS_RESIDENT, x_map, w_map, p);
  if (status != LIGER_OK) return status;
  linear_stats_merge_kernel<<<(unsigned)tiles(a->n_rows, MERGE_ROWS), MERGE_ROWS * MERGE_LANES, 0, stream>>>(
      p);
  return (liger_status)cudaGetLastError();
}
#endif
