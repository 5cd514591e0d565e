/* The C API of liger-kernel-c: dtype codes, status codes, and one pair of functions per op and direction.
 *
 *   liger_<op>_<dir>_cpu(args, begin, end)   rows or blocks [begin, end), on the calling thread; C11, no
 *   torch liger_<op>_<dir>_cuda(args, stream)      the whole op, on the caller's stream; nothing
 *   allocated, nothing waits
 *
 * Both take the same args struct, so a caller fills it once. Pointers are to the first element, strides
 * and sizes count elements, the last dimension is contiguous. Scratch comes from the caller. Zero rows is
 * success. A function returns LIGER_OK, a negative LIGER_ERR_*, or a positive code of the GPU run time. */
#ifndef LIGER_H
#define LIGER_H
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif
#define LIGER_API __attribute__((visibility("default")))

typedef enum { LIGER_F32 = 0, LIGER_F16 = 1, LIGER_BF16 = 2, LIGER_F64 = 3 } liger_dtype;

typedef int liger_status;
enum {
  LIGER_OK = 0,
  LIGER_ERR_DTYPE = -1,  /* a dtype code this function has no kernel for */
  LIGER_ERR_SIZE = -2,   /* a negative size, or more rows than a launch can hold */
  LIGER_ERR_OPTION = -3, /* an option outside its range */
};

/* "x86-64-v4", "x86-64-v3", "x86-64-v2" or "baseline": what the CPU kernels were dispatched to
 * (LIGER_ISA_MAX caps it) */
LIGER_API const char *liger_cpu_isa(void);
LIGER_API const char *liger_error_string(liger_status status);      /* negative codes */
LIGER_API const char *liger_cuda_error_string(liger_status status); /* any code; in the GPU library */
LIGER_API int liger_cuda_arch(void); /* 10 x compute capability of the current device; 0: unknown, or HIP */

/* ---- rms_norm, layer_norm, fused_add_rms_norm, group_norm, modulated_rms_norm ------------------------------ */
#include "liger_norms.h"

/* ---- elementwise ------------------------------------------------------------------------------------------
 * The CPU functions of elementwise operators take a range of tiles: tile t is LIGER_ELEMENT_TILE columns (or
 * what is left) of row t / tiles per row. Contiguous tensors are one row of all their elements. */
enum { LIGER_ELEMENT_TILE = 1024 };

/* ---- swiglu, geglu ----------------------------------------------------------------------------------------
 *   C  = act(g A) * B * d                        act: silu, or a form of gelu; g, d: gate and down multipliers
 *   dA = dC * B * act'(g A) * g * d,   dB = dC * act(g A) * d */
typedef enum {
  LIGER_GELU_TANH = 0,  /* x (1 + tanh(sqrt(2/pi) (x + .044715 x^3))) / 2 */
  LIGER_GELU_EXACT = 1, /* x (1 + erf(x / sqrt 2)) / 2 */
  LIGER_GELU_QUICK = 2, /* x / (1 + e^(-1.702 x)) */
} liger_gelu;

typedef struct {
  void *C; /* (n_rows, n_cols), contiguous, c_dtype */
  const void *A, *B;
  int64_t n_rows, n_cols, A_row_stride, B_row_stride;
  double gate_multiplier, down_multiplier;
  liger_dtype a_dtype, b_dtype, c_dtype;
  int gelu; /* liger_gelu; geglu alone reads it */
} liger_glu_fwd_args;

typedef struct {
  void *dA, *dB; /* (n_rows, n_cols), a_dtype and b_dtype, rows apart; either may be NULL: not wanted */
  const void *dC, *A, *B;
  int64_t n_rows, n_cols, dA_row_stride, dB_row_stride, dC_row_stride, A_row_stride, B_row_stride;
  double gate_multiplier, down_multiplier;
  liger_dtype a_dtype, b_dtype, c_dtype; /* c_dtype: dC's */
  int gelu;
} liger_glu_bwd_args;

LIGER_API liger_status liger_swiglu_fwd_cpu(const liger_glu_fwd_args *a, int64_t tile_begin,
                                            int64_t tile_end);
LIGER_API liger_status liger_swiglu_bwd_cpu(const liger_glu_bwd_args *a, int64_t tile_begin,
                                            int64_t tile_end);
LIGER_API liger_status liger_swiglu_fwd_cuda(const liger_glu_fwd_args *a, void *stream);
LIGER_API liger_status liger_swiglu_bwd_cuda(const liger_glu_bwd_args *a, void *stream);
LIGER_API liger_status liger_geglu_fwd_cpu(const liger_glu_fwd_args *a, int64_t tile_begin, int64_t tile_end);
LIGER_API liger_status liger_geglu_bwd_cpu(const liger_glu_bwd_args *a, int64_t tile_begin, int64_t tile_end);
LIGER_API liger_status liger_geglu_fwd_cuda(const liger_glu_fwd_args *a, void *stream);
LIGER_API liger_status liger_geglu_bwd_cuda(const liger_glu_bwd_args *a, void *stream);

/* ---- relu_squared, dyt, poly_norm -------------------------------------------------------------------------- */
#include "liger_acts.h"

/* ---- rope -------------------------------------------------------------------------------------------------
 * Of every head's vector x, with h = rotary_dim / 2 and the angle's cosine c_i and sine s_i of the token's
 * position:
 *   y_p = x_p c_i - x_r s_i,   y_r = x_r c_i + x_p s_i   (i < h),   y_j = x_j   (j >= rotary_dim)
 * (p, r) = (i, i + h), or (2i, 2i + 1) when interleaved. Backward is the same map with s negated. Only the
 * first h columns of the tables are read.
 * M-RoPE has three tables of each kind, for a token's time, height and width: columns [0, section_2) of h are
 * of the first, [section_2, section_3) of the second, the rest of the third. One table: all of these 0. */
typedef struct {
  int64_t batch, head, token; /* in elements; the last dimension is contiguous */
} liger_rope_strides;

typedef struct {
  void *Q_out, *K_out; /* as Q, K, with strides of their own */
  const void *Q, *K;   /* (batch, n_heads, seq_len, head_dim) in any order of the first three */
  const void *cos, *sin;
  const int64_t
      *position_ids; /* (batch, seq_len): rows of the tables; NULL: row = token, batch by the batch stride */
  liger_rope_strides Q_out_strides, K_out_strides, Q_strides, K_strides;
  int64_t cos_batch_stride, cos_row_stride, sin_batch_stride, sin_row_stride;
  int64_t table_col_stride; /* 1, or 2: complex angles (sin = cos + 1 element), or each angle twice */
  int64_t cos_section_stride, sin_section_stride, section_2, section_3;
  int64_t position_batch_stride, position_token_stride;
  int64_t batch, n_q_heads, n_kv_heads, seq_len, head_dim, rotary_dim;
  int64_t
      n_positions; /* rows of the tables. A position outside [0, n_positions): nothing is read, the token's output is NaN */
  int interleaved, backward;
  liger_dtype q_dtype, k_dtype, table_dtype;
} liger_rope_args;

/* tokens [begin, end) of batch * seq_len */
LIGER_API liger_status liger_rope_cpu(const liger_rope_args *a, int64_t token_begin, int64_t token_end);
LIGER_API liger_status liger_rope_cuda(const liger_rope_args *a, void *stream);

/* ---- cross_entropy ----------------------------------------------------------------------------------------
 * Per row, with z = softcap * tanh(X / softcap) (or X), p = softmax(z), y = target, V = n_cols, a =
 * label_smoothing:
 *   ce   = (1 - a) w_y (lse - z_y) + a/V sum_i w_i (lse - z_i)          w: class weights, or 1
 *   loss = t (ce_scale ce + z_scale lse_square_scale lse^2)              t: detached p_y with
 *   token_scaling, else 1 dX_i = g t [ce_scale ((1 - a) w_y (p_i - [i = y]) + a/V (w_sum p_i - w_i)) +
 *   z_scale 2 lse_square_scale lse p_i] (1 - (z_i/softcap)^2)
 * "real" below is fp32, or fp64 when X is fp64. A row whose target is ignore_index has loss, z_loss,
 * accuracy and dX 0, predicted -1. A target outside [0, V): no access out of bounds, loss and dX of that
 * row NaN (the CPU glue refuses it before any work). */
typedef enum { LIGER_REDUCE_NONE = 0, LIGER_REDUCE_MEAN = 1, LIGER_REDUCE_SUM = 2 } liger_reduction;
enum {
  LIGER_CE_SCALE = 0,
  LIGER_CE_Z_SCALE = 1,
  LIGER_CE_W_SUM = 2,
  LIGER_CE_N_VALID = 3,
  LIGER_CE_STATS = 4
};

typedef struct {
  void *
      stats; /* real[LIGER_CE_STATS], device memory: ce_scale, z_scale, w_sum, n_valid. mean: ce_scale = 1 / sum of the valid
                            targets' weights, z_scale = 1 / n_valid, both 0 when nothing is valid. sum, none: 1 */
  void *workspace; /* liger_cross_entropy_count_workspace_cuda(n_rows, n_cols) bytes; unused on the CPU */
  const int64_t *target; /* (n_rows), stride target_stride */
  const void *weight;    /* (n_cols) real, or NULL */
  int64_t n_rows, n_cols, target_stride, ignore_index;
  int reduction; /* liger_reduction */
  liger_dtype x_dtype;
} liger_cross_entropy_count_args;

typedef struct {
  void *loss;         /* (n_rows) real, scaled by stats as above */
  void *z_loss;       /* (n_rows) real, z_scale lse_square_scale lse^2 t; NULL: not wanted */
  void *accuracy;     /* (n_rows) real, 1 where argmax z = y; NULL: not wanted */
  int64_t *predicted; /* (n_rows) argmax z, the smallest index at a tie; NULL: not wanted */
  void *dX;           /* (n_rows, n_cols) x_dtype, may be X itself; NULL: forward only */
  const void *X;      /* (n_rows, n_cols), x_dtype */
  const int64_t *target;
  const void *weight; /* (n_cols) real, or NULL */
  const void *stats;  /* from liger_cross_entropy_count, on the same device */
  const void *
      row_grad; /* g: (n_rows) real with stride row_grad_stride (0: one value for all); NULL: 1. Scales dX alone */
  int64_t n_rows, n_cols, X_row_stride, dX_row_stride, target_stride, row_grad_stride, ignore_index;
  double label_smoothing, lse_square_scale, softcap; /* softcap 0: none */
  int token_scaling;
  liger_dtype x_dtype;
} liger_cross_entropy_args;

/* The sums over the targets have a fixed order, so one call takes all rows (begin 0, end n_rows on the
 * CPU). */
LIGER_API liger_status liger_cross_entropy_count_cpu(const liger_cross_entropy_count_args *a, int64_t begin,
                                                     int64_t end);
LIGER_API int64_t liger_cross_entropy_count_workspace_cuda(int64_t n_rows, int64_t n_cols);
LIGER_API liger_status liger_cross_entropy_count_cuda(const liger_cross_entropy_count_args *a, void *stream);
LIGER_API liger_status liger_cross_entropy_cpu(const liger_cross_entropy_args *a, int64_t row_begin,
                                               int64_t row_end);
LIGER_API liger_status liger_cross_entropy_cuda(const liger_cross_entropy_args *a, void *stream);

/* The same where a row's logits exist one part of n_part columns at a time: the statistics of every part in turn,
 * then the outputs, then the gradient of any part. */
enum { LIGER_CE_STATE = 6, LIGER_CE_STATE_MAX_COLS = 1 << 24 }; /* the state holds an index in fp32 */
typedef struct {
  liger_cross_entropy_args rows; /* X, dX: (n_rows, n_part) of the part; n_cols: of whole rows */
  void *state;                   /* (n_rows, LIGER_CE_STATE) real; the part with first_col 0 begins it */
  int64_t first_col, n_part;
} liger_cross_entropy_part_args;
LIGER_API liger_status liger_cross_entropy_part_stats_cpu(const liger_cross_entropy_part_args *p,
                                                          int64_t row_begin, int64_t row_end);
LIGER_API liger_status liger_cross_entropy_part_finish_cpu(const liger_cross_entropy_part_args *p,
                                                           int64_t row_begin, int64_t row_end);
LIGER_API liger_status liger_cross_entropy_part_grad_cpu(const liger_cross_entropy_part_args *p,
                                                         int64_t row_begin, int64_t row_end);
LIGER_API liger_status liger_cross_entropy_part_stats_cuda(const liger_cross_entropy_part_args *p,
                                                           void *stream);
LIGER_API liger_status liger_cross_entropy_part_finish_cuda(const liger_cross_entropy_part_args *p,
                                                            void *stream);
LIGER_API liger_status liger_cross_entropy_part_grad_cuda(const liger_cross_entropy_part_args *p,
                                                          void *stream);
/* the first row whose target is neither ignore_index nor in [0, n_cols), or -1 */
LIGER_API int64_t liger_cross_entropy_bad_label_cpu(const int64_t *target, int64_t target_stride,
                                                    int64_t n_rows, int64_t n_cols, int64_t ignore_index);

/* ---- reductions and scales of losses ------------------------------------------------------------------- */
typedef struct {
  void *out;           /* real[1]: sum(x) / divisor, the terms in a fixed order; 0 where the divisor is 0 */
  const void *x;       /* (n) real */
  const void *divisor; /* real[1], on the same device; NULL: 1 */
  void *workspace;     /* liger_row_sum_workspace_cuda(n) bytes; unused on the CPU */
  int64_t n;
  liger_dtype dtype; /* of "real": fp32 or fp64 */
} liger_row_sum_args;

/* dst = src * scale, the incoming gradient times a gradient that the forward saved. With dst == src, rows
 * whose scale is exactly 1 are not touched: the usual loss.backward() costs one launch that returns at
 * once, and nothing waits for the value. */
typedef struct {
  void *dst;         /* (n_rows, n_cols) x_dtype */
  const void *src;   /* (n_rows, n_cols) x_dtype; may be dst */
  const void *scale; /* (n_rows) scale_dtype with stride scale_stride (0: one value for all) */
  int64_t n_rows, n_cols, dst_row_stride, src_row_stride, scale_stride;
  liger_dtype x_dtype, scale_dtype; /* scale_dtype: fp32 or fp64 */
} liger_scale_grad_args;

LIGER_API liger_status liger_row_sum_cpu(const liger_row_sum_args *a, int64_t begin,
                                         int64_t end); /* begin 0, end n */
LIGER_API int64_t liger_row_sum_workspace_cuda(int64_t n);
LIGER_API liger_status liger_row_sum_cuda(const liger_row_sum_args *a, void *stream);
LIGER_API liger_status liger_scale_grad_cpu(const liger_scale_grad_args *a, int64_t row_begin,
                                            int64_t row_end);
LIGER_API liger_status liger_scale_grad_cuda(const liger_scale_grad_args *a, void *stream);

/* ---- linear losses ----------------------------------------------------------------------------------------
 * Everything that ends in a vocabulary: logits = X W^T + bias, block by block, each block turned in place
 * into dlogits. The plan says how the work is cut. It depends on its arguments alone, so it can be tested,
 * printed and predicted. */
typedef enum { LIGER_TOKEN_BLOCKS = 0, LIGER_VOCAB_BLOCKS = 1 } liger_loop_order;
enum { LIGER_ACCUM_AUTO = -1, LIGER_ORDER_AUTO = -1 };

typedef struct {
  int64_t n_rows, hidden_size, vocab_size; /* X (n_rows, hidden_size), W (vocab_size, hidden_size) */
  int64_t memory_budget;                   /* bytes that a block may take */
  int64_t chunk_mem_const; /* above 1: blocks of about that many times X's size, within the budget */
  int needs_dx, needs_dw, on_gpu;
  int accum; /* a liger_dtype that the caller insists on for dW, or LIGER_ACCUM_AUTO */
  liger_dtype compute_dtype, w_dtype;
  int loop_order; /* what the caller can do: a liger_loop_order, or LIGER_ORDER_AUTO: the cheaper */
  liger_dtype x_dtype;
} liger_linear_loss_plan_args;

typedef struct {
  int loop_order; /* liger_loop_order */
  int64_t block_rows, n_blocks;
  int64_t block_bytes; /* the block's logits, and their fp32 copy where widen_block */
  int64_t accum_bytes; /* the accumulator of dW (of dX: vocabulary blocks), where it is not the gradient */
  liger_dtype accum_dtype; /* what dW is added up in */
  int widen_block;         /* dlogits are copied to fp32 for the dW product, which then rounds nothing */
  int64_t block_cols;      /* vocab_size for blocks of tokens */
  double seconds;          /* what the cost model says of the whole loop */
} liger_linear_loss_plan_result;

LIGER_API liger_status liger_linear_loss_plan(const liger_linear_loss_plan_args *a,
                                              liger_linear_loss_plan_result *plan);

/* What a loss without gradient needs of the logits z = scale (X W^T + bias) of a row, which are rounded to `dtype`
 * before the scale and never stored: m = max z, d = sum e^(z - m) in the units of cross_entropy.cuh, z_y = z[ids];
 * or what follows from them, as linear_logprob has it. Hopper alone, 16-bit X and W whose rows begin at multiples of
 * 16 bytes, a positive scale: ask liger_linear_stats_fits_cuda() first. */
typedef struct {
  void *m, *d;        /* fp32, of each row a value every `stride` elements */
  void *z_y;          /* likewise, where ids name a column; 0 with logprob */
  void *logprob;      /* (n_rows) fp32 z_y - lse: 0 where ignored, NaN for an id out of range; or NULL */
  void *lse;          /* (n_rows) fp32 log sum e^z, with logprob; or NULL */
  void *mean_logit;   /* (n_rows) fp32 mean of z before the rounding, with logprob; or NULL */
  const void *X, *W;  /* (n_rows, hidden_size), (vocab_size, hidden_size) dtype */
  const void *bias;   /* (vocab_size) bias_dtype, or NULL */
  const int64_t *ids; /* (n_rows) */
  void *workspace;    /* liger_linear_stats_workspace_cuda() bytes: for each row and 256 columns 8, with
                         mean_logit 12 */
  int64_t n_rows, hidden_size, vocab_size, X_row_stride, W_row_stride, ids_stride, stride, ignore_index;
  double scale;
  liger_dtype dtype, bias_dtype;
} liger_linear_stats_args;
LIGER_API int liger_linear_stats_fits_cuda(const liger_linear_stats_args *a);
LIGER_API int64_t liger_linear_stats_workspace_cuda(const liger_linear_stats_args *a);
LIGER_API liger_status liger_linear_stats_cuda(const liger_linear_stats_args *a, void *stream);

/* dst = src, or dst + src, rounded once */
typedef struct {
  void *dst;       /* (n_rows, n_cols) dst_dtype */
  const void *src; /* (n_rows, n_cols) src_dtype */
  int64_t n_rows, n_cols, dst_row_stride, src_row_stride;
  int add;
  liger_dtype dst_dtype, src_dtype, real_dtype; /* real_dtype: fp64 where either is fp64, else fp32 */
} liger_convert_args;

/* sum = column sums of X, or sum + them: a bias gradient over one block of dlogits */
typedef struct {
  void *sum;       /* (n_cols) real */
  const void *X;   /* (n_rows, n_cols) x_dtype */
  void *workspace; /* liger_bias_grad_workspace_cuda(n_rows, n_cols) bytes; unused on the CPU */
  int64_t n_rows, n_cols, X_row_stride;
  int add;
  liger_dtype x_dtype;
} liger_bias_grad_args;

LIGER_API liger_status liger_convert_cpu(const liger_convert_args *a, int64_t row_begin, int64_t row_end);
LIGER_API liger_status liger_convert_cuda(const liger_convert_args *a, void *stream);
LIGER_API liger_status liger_bias_grad_cpu(const liger_bias_grad_args *a, int64_t col_begin, int64_t col_end);
LIGER_API int64_t liger_bias_grad_workspace_cuda(int64_t n_rows, int64_t n_cols);
LIGER_API liger_status liger_bias_grad_cuda(const liger_bias_grad_args *a, void *stream);

/* ---- linear_logprob ---------------------------------------------------------------------------------------
 * Of every row of logits X, with z = logit_scale X, softcapped where softcap != 0, over temperature, and
 * p = e^(z - lse), V = n_cols:
 *   logprob = z_y - lse,  lse = log sum_j e^z_j,  entropy = -sum_j p_j log p_j,  mean_logit = sum_j z_j / V,
 *   extra_k = z_{e_k} - lse
 *   dz_j = dlogprob ([j = y] - p_j) + dlse p_j - dentropy p_j (log p_j + entropy) + dmean_logit / V
 *          + sum_k dextra_k ([j = e_k] - p_j),     dX_j = dz_j dz_j/dX_j
 * A row whose id is ignore_index: every output and dX 0. An id outside [0, V): no access out of bounds, the
 * row's outputs NaN (argmax -1), its dX 0. An extra id that is ignore_index: 0 and no gradient; outside
 * [0, V): NaN and no gradient (the CPU glue refuses both before any work). Nothing but -inf: lse and logprob
 * -inf, entropy 0, dX 0. "real": fp32, or fp64 when X is fp64. */
enum { LIGER_LOGPROB_STATS = 3 };

typedef struct {
  void *logprob, *lse, *entropy, *mean_logit; /* (n_rows) real; all but logprob may be NULL: not wanted */
  int64_t *argmax;                            /* (n_rows) argmax z, the smallest index at a tie, or NULL */
  void *extra;                                /* (n_rows, n_extra) real */
  void *stats;                                /* (n_rows, LIGER_LOGPROB_STATS) real, for bwd, or NULL */
  const void *X;                              /* (n_rows, n_cols) x_dtype */
  const int64_t *ids, *extra_ids;             /* (n_rows); (n_rows, n_extra), NULL where n_extra is 0 */
  int64_t n_rows, n_cols, n_extra, X_row_stride, ids_stride, extra_ids_row_stride, ignore_index;
  double logit_scale, softcap, temperature;
  liger_dtype x_dtype;
} liger_linear_logprob_fwd_args;

typedef struct {
  void *dX;                       /* (n_rows, n_cols) x_dtype, row stride X_row_stride; may be X itself */
  void *scratch;                  /* (n_rows, n_extra) real on a GPU; unused on the CPU */
  const void *X, *stats;          /* as fwd saw and left them */
  const int64_t *ids, *extra_ids; /* as in fwd */
  const void *dlogprob, *dlse, *dentropy,
      *dmean_logit;   /* (n_rows) real with strides (0: one value); NULL: 0 */
  const void *dextra; /* (n_rows, n_extra) real */
  int64_t n_rows, n_cols, n_extra, X_row_stride, ids_stride, extra_ids_row_stride, ignore_index;
  int64_t dlogprob_stride, dlse_stride, dentropy_stride, dmean_logit_stride, dextra_row_stride;
  double logit_scale, softcap, temperature;
  liger_dtype x_dtype;
} liger_linear_logprob_bwd_args;

LIGER_API liger_status liger_linear_logprob_fwd_cpu(const liger_linear_logprob_fwd_args *a, int64_t row_begin,
                                                    int64_t row_end);
LIGER_API liger_status liger_linear_logprob_bwd_cpu(const liger_linear_logprob_bwd_args *a, int64_t row_begin,
                                                    int64_t row_end);
LIGER_API liger_status liger_linear_logprob_fwd_cuda(const liger_linear_logprob_fwd_args *a, void *stream);
LIGER_API liger_status liger_linear_logprob_bwd_cuda(const liger_linear_logprob_bwd_args *a, void *stream);

#include "liger_divergence.h"

#ifdef __cplusplus
}
#endif

#include "liger_rows.h" /* softmax, sparsemax, embedding */
#endif
