/* How a linear loss is cut into blocks: a pure function of sizes, dtypes and wishes.
 *
 * Token blocks   r rows of logits at a time, r as large as the budget allows, since a product loses to its
 *                short side: on an H200 64 MiB of logits cost 1.4 times what 2 GiB cost, 256 MiB 1.06
 *                times. The rows are dealt out evenly (a last block of one row would cost a whole pass
 *                over dW) and rounded up to what the products' tiles want, where the budget permits.
 * Accumulator    adding n blocks in a 16-bit type costs n roundings where eager has one. dW may have three
 *                times eager's error: measured and simulated, 10 additions give 1.9 times, 80 give 4.7,
 *                300 give 14; with hidden_size >= 512 up to 20 keep the bound, below that 10. Beyond, dW
 *                is added up in fp32. A caller who asks for fp32 gets products that round nothing but the
 *                result: on the CPU, where no product takes bf16 and adds in fp32, from a widened copy of
 *                the block.
 * Vocabulary     blocks (statistics first, then recompute) have their place in the result and are not
 *                chosen yet. */
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

liger_status liger_linear_loss_plan(const liger_linear_loss_plan_args *a,
                                    liger_linear_loss_plan_result *plan) {
  if (a->n_rows < 0 || a->hidden_size < 0 || a->vocab_size < 0 || a->memory_budget < 0) return LIGER_ERR_SIZE;
  if (a->accum != LIGER_ACCUM_AUTO && (a->accum < LIGER_F32 || a->accum > LIGER_F64)) return LIGER_ERR_DTYPE;
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
  return LIGER_OK;
}
#endif
