/* The labels' cross entropy beside a distillation's soft loss, on a GPU, see distill_hard.h. A row kernel has it as a
 * template parameter: with no_hard_loss nothing of it is compiled. In this order:
 *   begin    before dX is written, which may lie over X; false: the row's label is no class
 *   push     takes every vector of raw logits in the walk for the statistics
 *   finish   of the whole block, then: the row's loss
 *   add      to every element d of dX: z its raw logit, q its probability in the soft loss' softmax; hit finds the label
 * Plan     the softmax is the soft loss' own where there is no temperature and no column too many: nothing but the
 *          label's column is added then. Else it has statistics and exponentials of its own, from the same reads */
#ifndef LIGER_DISTILL_HARD_CUH
#define LIGER_DISTILL_HARD_CUH
#include "distill.cuh"

struct hard_loss_params {
  float *loss;
  const float *grad;
  int64_t n_cols;
  float weight, soft_weight;
  bool apart; /* the softmax is not the soft loss' own */
};
static inline hard_loss_params hard_loss_params_of(const liger_divergence_args *a) {
  return {
      (float *)a->hard.loss, (const float *)a->hard.grad, a->hard.n_cols,
      (float)a->hard.weight, (float)a->hard.soft_weight,  a->temperature != 1 || a->hard.n_cols != a->n_cols};
}

namespace {
struct no_hard_loss {
  struct params {};
  __device__ __forceinline__ no_hard_loss(params) {}
  template <typename T> __device__ __forceinline__ bool begin(const divergence_params &, int64_t, const T *) {
    return true;
  }
  __device__ __forceinline__ void write(int64_t, float) const {}
  __device__ __forceinline__ float soft_weight() const { return 1.0f; }
  template <int M> __device__ __forceinline__ void push(const float (&)[M], int64_t) {}
  __device__ __forceinline__ void finish(int64_t, const row_softmax &) {}
  template <int M> __device__ __forceinline__ int hit(int64_t) const { return -1; }
  template <bool FAST> __device__ __forceinline__ float add(float d, float, float, int64_t, bool) const {
    return d;
  }
};

struct hard_loss {
  typedef hard_loss_params params;
  params h;
  row_softmax s;
  float of_loss, of_grad, z_label, log_d;
  int64_t label;
  bool soft; /* the soft loss has a part in dX */

  __device__ __forceinline__ hard_loss(const params &h) : h(h), s(softmax_nothing()) {}
  /* of a row that is not ignored */
  template <typename T>
  __device__ __forceinline__ bool begin(const divergence_params &p, int64_t row, const T *X) {
    label = p.labels[row * p.label_stride];
    if (label < 0 || label >= h.n_cols) return false;
    of_loss = loss_scale(p);
    of_grad = of_loss * h.weight * (h.grad ? *h.grad : 1.0f);
    soft = grad_scale(p) * h.soft_weight != 0.0f;
    z_label = to_f32(X[label]);
    return true;
  }
  __device__ __forceinline__ void write(int64_t row, float value) const {
    if (threadIdx.x == 0) h.loss[row] = value;
  }
  __device__ __forceinline__ float soft_weight() const { return h.soft_weight; }
  template <int M> __device__ __forceinline__ void push(const float (&z)[M], int64_t col) {
    if (!h.apart) return;
    float own[M];
#pragma unroll
    for (int j = 0; j < M; j++) own[j] = col + j < h.n_cols ? z[j] : -INFINITY;
    softmax_push(s, own);
  }
  /* soft_stats: of the soft loss */
  __device__ __forceinline__ void finish(int64_t row, const row_softmax &soft_stats) {
    __shared__ row_softmax scratch[BLOCK_SCRATCH];
    s = h.apart ? softmax_block_merge(s, scratch) : soft_stats;
    log_d = softmax_log_d(s);
    if (s.d == 0.0f) of_grad = 0.0f; /* nothing but -inf: no probabilities, no gradient */
    write(row, of_loss == 0.0f ? 0.0f : of_loss * -((z_label - s.m) - log_d));
  }
  /* the label's place in the vector that begins at col, or -1 */
  template <int M> __device__ __forceinline__ int hit(int64_t col) const {
    const int64_t away = label - col;
    return away >= 0 && away < M ? (int)away : -1;
  }
  /* FAST: 16-bit logits */
  template <bool FAST>
  __device__ __forceinline__ float add(float d, float q, float z, int64_t col, bool is_label) const {
    if (h.apart || !soft) { /* q may be the NaN of a teacher that has no part here */
      q = FAST ? gpu_exp2((z - s.m) * DISTILL_LOG2E - log_d * DISTILL_LOG2E) : expf((z - s.m) - log_d);
      if (col >= h.n_cols) q = 0.0f;
    }
    const float part = of_grad == 0.0f ? 0.0f : of_grad * (q - (is_label ? 1.0f : 0.0f)); /* q - 1 first */
    return soft ? d + part : part;
  }
};

/* Whether the row is ignored, or its label no class: then its losses and dX are written. Of the whole block. */
template <typename T, int N, class Hard>
__device__ __forceinline__ bool nothing_of_row(const divergence_params &p, Hard &hard, int64_t row,
                                               const T *X, T *dX, const row_cut &cut) {
  const bool ignored = ignored_row(p, row);
  if (!ignored && hard.begin(p, row, X)) return false;
  const float value = ignored ? 0.0f : NAN;
  hard.write(row, value);
  if (p.loss && threadIdx.x == 0) p.loss[row] = value;
  if (dX) row_fill<T, N>(dX, cut, value);
  return true;
}
} // namespace
#endif
