/* How a linear loss is cut into blocks: a pure function of sizes, dtypes and wishes.
 *
 * Token blocks   r rows of logits at a time, r as large as the budget allows, since a product loses to its
 *                short side: on an H200 64 MiB of logits cost 1.4 times what 2 GiB cost, 256 MiB 1.06
 *                times. The rows are dealt out evenly (a last block of one row would cost a whole pass
 *                over dW) and rounded up to what the products' tiles want, where the budget permits.
 * Vocabulary     blocks: c columns of all rows' logits at a time, twice: first for the statistics of the
 *                rows, then, computed again (the last block alone is still there), for the gradients. dW is
 *                one product per block, as exact as eager's; dX is added up in fp32.
 * Accumulator    adding n blocks in a 16-bit type costs n roundings where eager has one. dW may have three
 *                times eager's error: measured and simulated, 10 additions give 1.9 times, 80 give 4.7,
 *                300 give 14; with hidden_size >= 512 up to 20 keep the bound, below that 10. Beyond, dW
 *                is added up in fp32. A caller who asks for fp32 gets products that round nothing but the
 *                result: on the CPU, where no product takes bf16 and adds in fp32, from a widened copy of
 *                the block.
 *
 * Cost model     N rows, H, V, blocks of short side s, n of them; e_l, e_w, e_x bytes of a logit and of an element of
 *                dW's and dX's accumulator; rate(dtype), bandwidth, launch, ramp, reload, cache: the constants below.
 *   product      2 N H V / rate (1 + ramp / s)
 *   token        (1 + [dX] + [dW]) products; moved: [dW] (2n - 1) H V e_w, and reload n H V e_l by each product
 *   vocabulary   (2 - 1/n + [dX] + [dW]) products; moved: [dX] (2n - 1) N H e_x, and reload n N H e_l by each
 *   moved        over bandwidth, or over that of the cache where the matrix and its accumulator fit it
 *   loss pass    N V e_l / bandwidth times 1 forward only, 2 with gradients, 3 of vocabulary blocks with gradients
 *   and          an accumulator that is not the gradient: its bytes read and the gradient's written; launch per
 *                block; on the CPU a 16-bit product that is added up in fp32 is written and read once more
 * The cheapest order that the caller can use is taken, tokens at a tie. Blocks of vocabulary have MIN_COLS columns at
 * least: below, products and rows of logits are too narrow for the model. For the loss alone neither order computes
 * anything twice or adds anything up: the longer short side wins, or the smaller matrix. Predicted and measured of
 * 256 MiB on an H200, before products had tiles of our choice, ms:
 * 8192 x 4096 x 128256   tokens 13.7, 14.2   vocabulary 13.4, 13.7
 * 16384 x 2048 x 128256         14.4, 15.4              14.1, 14.3 */
#include "../liger.h"

/* Also compiled into the GPU library, by linear_loss.cu; in the CPU library once, not per ISA level. */
#if LIGER_BASE_UNIT || LIGER_GPU_UNIT
static int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }
static int64_t plan_dtype_size(liger_dtype t) { return t == LIGER_F64 ? 8 : t == LIGER_F32 ? 4 : 2; }

/* rows of a block that is about chunk_mem_const times as large as X, a power of two: what that option
 * means upstream */
static int64_t wished_rows(const liger_linear_loss_plan_args *a) {
  if (a->chunk_mem_const <= 1 || a->hidden_size < 1 || a->vocab_size < 1) return a->n_rows;
  const int64_t most = ceil_div(a->vocab_size,
                                a->hidden_size); /* beyond that everything is one block: no overflow below */
  const int64_t c = a->chunk_mem_const < most ? a->chunk_mem_const : most;
  const int64_t rows = ceil_div(a->n_rows, ceil_div(a->vocab_size, c * a->hidden_size));
  int64_t r = 1;
  while (r < rows) r *= 2;
  return r;
}

/* even blocks of at most `most` rows, each a multiple of what the products' tiles want, if that costs no
 * block more */
static int64_t even_rows(int64_t n_rows, int64_t most, int on_gpu) {
  if (most >= n_rows) return n_rows;
  const int64_t rows = ceil_div(n_rows, ceil_div(n_rows, most));
  for (int64_t unit = on_gpu ? 256 : 64; unit >= 32; unit /= 2) {
    const int64_t rounded = ceil_div(rows, unit) * unit;
    if (rounded <= most) return rounded;
  }
  return rows;
}

/* ---- the cost model -------------------------------------------------------------------------------------- */
typedef struct {
  double rate_16, rate_32, rate_64; /* operations of a product per second */
  double bandwidth;                 /* bytes per second */
  double launch;                    /* seconds a block */
  double ramp;                      /* rows or columns of a product that cost without counting */
  double reload;                    /* how often a block's product moves the matrix that all blocks share */
  double cache, cache_bandwidth;    /* bytes, and bytes per second */
} device_costs;

/* H200. Rates: bf16 products in a row, with the clock that the power limit leaves them (bench: 686-710 alone,
 * less in a loop); fp32 without TF32. Bandwidth: a copy. Launch: four launches with their gaps. Ramp: what is left of the
 * measured times of cutting 8192 x 4096 x 128256 and 16384 x 2048 x 128256 into blocks of 64 MiB to 2 GiB; products
 * hide what they load. */
static const device_costs GPU_COSTS = {675e12, 50e12, 25e12, 4.2e12, 20e-6, 24, 0, 0, 4.2e12};
/* 2 cores with AVX-512: their products at 1024 x 768 x 32000; the rest fitted to the 20 shapes of
 * benchmark/plan_costs.py, 8 % off in the mean. Only ratios matter here, and products and memory both grow with the
 * cores. */
static const device_costs CPU_COSTS = {400e9, 175e9, 85e9, 20e9, 20e-6, 0, 1, 9e6, 120e9};

enum { MIN_COLS = 256 };

static double rate_of(const device_costs *d, liger_dtype t) {
  return t == LIGER_F64 ? d->rate_64 : t == LIGER_F32 ? d->rate_32 : d->rate_16;
}

static double predicted_seconds(const liger_linear_loss_plan_args *a,
                                const liger_linear_loss_plan_result *plan) {
  const device_costs *const d = a->on_gpu ? &GPU_COSTS : &CPU_COSTS;
  const double N = (double)a->n_rows, H = (double)a->hidden_size, V = (double)a->vocab_size,
               n = (double)plan->n_blocks;
  if (plan->n_blocks == 0) return 0;
  const int by_vocab = plan->loop_order == LIGER_VOCAB_BLOCKS, gradients = a->needs_dx || a->needs_dw;
  const double shortest = (double)(by_vocab ? plan->block_cols : plan->block_rows);
  const double ops = 2 * N * H * V * (1 + d->ramp / shortest), product = ops / rate_of(d, a->compute_dtype);
  const double size = (double)plan_dtype_size(a->compute_dtype),
               accum = (double)plan_dtype_size(plan->accum_dtype);
  const double matrix = (by_vocab ? N : V) * H; /* what all blocks share: X, or W */
  const double products = (by_vocab && gradients ? 2 : 1) + (a->needs_dx != 0) + (a->needs_dw != 0);
  double t = n * d->launch + product * (by_vocab && gradients ? 2 - 1 / n : 1);
  double bytes = N * V * size *
                 (!gradients ? 1
                  : by_vocab ? 3
                             : 2),
         moved = products * d->reload * n * matrix * size;
  if (a->needs_dx) t += product;
  if (a->needs_dw) t += plan->widen_block ? ops / d->rate_32 : product;
  if (plan->widen_block) bytes += N * V * (size + 4);
  if (a->needs_dw && !by_vocab) {
    moved += (2 * n - 1) * matrix * accum;
    if (plan->accum_dtype != a->w_dtype) bytes += matrix * (accum + (double)plan_dtype_size(a->w_dtype));
    if (!a->on_gpu && accum > size && !plan->widen_block) moved += n * matrix * 2 * size;
  }
  const double of_x = size < 4 ? 4 : size;
  if (a->needs_dx && by_vocab) {
    moved += (2 * n - 1) * matrix * of_x;
    if (plan->accum_bytes) bytes += matrix * (of_x + size);
    if (!a->on_gpu && size < 4) moved += n * matrix * 2 * size;
  }
  const int cached = matrix * (size + (by_vocab ? of_x : accum)) <= d->cache;
  return t + bytes / d->bandwidth + moved / (cached ? d->cache_bandwidth : d->bandwidth);
}

/* ---- the two orders -------------------------------------------------------------------------------------- */
static void plan_tokens(const liger_linear_loss_plan_args *a, liger_linear_loss_plan_result *plan) {
  const int64_t size = plan_dtype_size(a->compute_dtype);
  const int narrow = size == 2, insists = narrow && a->accum == LIGER_F32;
  int64_t row_bytes = a->vocab_size * size, most = 0;
  plan->loop_order = LIGER_TOKEN_BLOCKS;
  plan->widen_block = 0;
  for (;;) {
    most = row_bytes ? a->memory_budget / row_bytes : a->n_rows;
    const int64_t wish = wished_rows(a);
    most = most < 1 ? 1 : most < wish ? most : wish;
    if (plan->widen_block || !insists || !a->needs_dw || a->on_gpu || most >= a->n_rows) break;
    plan->widen_block = 1; /* several blocks: the fp32 copy shares the budget */
    row_bytes += a->vocab_size * 4;
  }
  plan->block_rows = even_rows(a->n_rows, most, a->on_gpu);
  plan->block_cols = a->vocab_size;
  plan->n_blocks = a->n_rows ? ceil_div(a->n_rows, plan->block_rows) : 0;
  plan->block_bytes = plan->block_rows * row_bytes;

  const int64_t additions_allowed = a->hidden_size >= 512 ? 20 : 10;
  liger_dtype accum = a->compute_dtype;
  if (narrow && (insists || a->w_dtype == LIGER_F32 ||
                 (a->accum == LIGER_ACCUM_AUTO && plan->n_blocks > additions_allowed)))
    accum = LIGER_F32;
  if (narrow && plan->n_blocks <= 1 && a->w_dtype != LIGER_F32)
    accum = a->compute_dtype; /* one product is one rounding, whatever it is added up in */
  plan->accum_dtype = accum;
  plan->accum_bytes = a->needs_dw && accum != a->w_dtype
                          ? a->vocab_size * a->hidden_size * plan_dtype_size(accum)
                          : 0;
  plan->seconds = predicted_seconds(a, plan);
}

/* 0: not possible within the budget */
static int plan_vocabulary(const liger_linear_loss_plan_args *a, liger_linear_loss_plan_result *plan) {
  const int64_t size = plan_dtype_size(a->compute_dtype);
  if (a->n_rows < 1 || a->vocab_size < 1 || a->vocab_size > LIGER_CE_STATE_MAX_COLS ||
      a->n_rows > INT64_MAX / size)
    return 0;
  const int64_t col_bytes = a->n_rows * size;
  int64_t most = a->memory_budget / col_bytes;
  if (most >= a->vocab_size) most = a->vocab_size;
  else if (most < MIN_COLS) return 0;
  plan->loop_order = LIGER_VOCAB_BLOCKS;
  plan->widen_block = 0;
  plan->block_rows = a->n_rows;
  plan->block_cols = even_rows(a->vocab_size, most, a->on_gpu);
  plan->n_blocks = ceil_div(a->vocab_size, plan->block_cols);
  plan->block_bytes = plan->block_cols * col_bytes;
  plan->accum_dtype = a->w_dtype == LIGER_F32 && size == 2 ? LIGER_F32 : a->compute_dtype;
  const int64_t of_x = size < 4 ? 4 : size;
  const int apart = plan->n_blocks > 1 && of_x != plan_dtype_size(a->x_dtype);
  plan->accum_bytes = a->needs_dx && apart ? a->n_rows * a->hidden_size * of_x : 0;
  plan->seconds = predicted_seconds(a, plan);
  return 1;
}

liger_status liger_linear_loss_plan(const liger_linear_loss_plan_args *a,
                                    liger_linear_loss_plan_result *plan) {
  if (a->n_rows < 0 || a->hidden_size < 0 || a->vocab_size < 0 || a->memory_budget < 0) return LIGER_ERR_SIZE;
  if (a->accum != LIGER_ACCUM_AUTO && (a->accum < LIGER_F32 || a->accum > LIGER_F64)) return LIGER_ERR_DTYPE;
  plan_tokens(a, plan);
  const int may = a->loop_order == LIGER_VOCAB_BLOCKS ||
                  (a->loop_order == LIGER_ORDER_AUTO && plan->n_blocks > 1 && a->chunk_mem_const <= 1);
  liger_linear_loss_plan_result other;
  if (may && plan_vocabulary(a, &other) &&
      (a->loop_order == LIGER_VOCAB_BLOCKS || other.seconds < plan->seconds))
    *plan = other;
  return LIGER_OK;
}
#endif
