// Glue of linear_logprob: schema, checks, and the engine's loop, once without gradients and once with them.
#include "linear_stats.h"
#include "live_rows.h"

using liger::Arg;
using torch::stable::Tensor;

namespace {
struct Options {
  double logit_scale, softcap, temperature;
  int64_t ignore_index, compute_dtype, memory_budget;
};

// The arguments that both passes take, read and checked in the order device, dtype, rank, sizes.
struct Call {
  const char *op;
  Arg x, w, ids;
  std::optional<Arg> bias;
  std::optional<liger::Rows> extra;
  Options o;
  liger_dtype compute;
  int64_t n_rows, vocab_size, n_extra = 0;
  int32_t real;

  Call(const char *op, const Tensor &x_, const Tensor &w_, const Tensor &ids_,
       const std::optional<Tensor> &bias_, const std::optional<Tensor> &extra_, const Options &o)
      : op(op), x(x_, "hidden"), w(w_, "weight"), ids(ids_, "ids"), o(o),
        compute((liger_dtype)o.compute_dtype) {
    liger::check_device(op, w, x);
    liger::check_device(op, ids, x);
    liger::check_float(op, x);
    liger::check_float(op, w);
    if (x.dim != 2)
      liger::fail(op, "hidden has shape ", x.shape(), ", expected two dimensions: (n_rows, hidden_size)");
    if (w.dim != 2 || w.sizes[1] != x.sizes[1])
      liger::fail(op, "weight has shape ", w.shape(), ", expected (vocab_size, ", x.sizes[1],
                  "): the last size of hidden");
    n_rows = x.sizes[0];
    vocab_size = w.sizes[0];
    check_int64(ids);
    liger::check_vector(op, ids, n_rows, "one id per row of hidden");
    if (bias_) {
      const Arg b(*bias_, "bias");
      liger::check_device(op, b, x);
      liger::check_float(op, b);
      liger::check_vector(op, b, vocab_size, "one value per row of weight");
      bias.emplace(liger::dense(b));
    }
    if (extra_) {
      const Arg e(*extra_, "extra_ids");
      liger::check_device(op, e, x);
      check_int64(e);
      if (e.dim != 2 || e.sizes[0] != n_rows)
        liger::fail(op, "extra_ids has shape ", e.shape(), ", expected (", n_rows, ", K)");
      extra.emplace(liger::rows(e));
      n_extra = e.sizes[1];
    }
    if (o.compute_dtype < LIGER_F32 || o.compute_dtype > (LIGER_GPU ? LIGER_BF16 : LIGER_F64))
      liger::fail(op, "compute_dtype is ", o.compute_dtype,
                  ", expected a dtype code of liger.h that this device has");
    if (!(o.temperature > 0))
      liger::fail(op, "temperature is ", o.temperature, ", expected a positive value");
    if (!(o.softcap >= 0))
      liger::fail(op, "softcap is ", o.softcap, ", expected a positive value, or 0 for none");
    real = compute == LIGER_F64 ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
#if !LIGER_GPU // a GPU would have to be waited for: its kernel answers with NaN
    check_labels("ids", (const int64_t *)ids.ptr, n_rows, ids.strides[0], 0);
    // ids that all rows share are looked at once
    const int64_t n = n_extra && n_rows ? (extra->row_stride ? n_rows : 1) : 0;
    for (int64_t row = 0; row < n; row++)
      check_labels("extra_ids", (const int64_t *)extra->ptr + row * extra->row_stride, n_extra, 1, row);
#endif
  }

  void check_int64(const Arg &a) const {
    if (a.raw_dtype != aoti_torch_dtype_int64())
      liger::fail(op, a.name, " has dtype ", liger::dtype_name(a.raw_dtype), ", expected int64 (token ids)");
  }
  void check_labels(const char *name, const int64_t *p, int64_t n, int64_t stride, int64_t row) const {
    const int64_t bad = liger_cross_entropy_bad_label_cpu(p, stride, n, vocab_size, o.ignore_index);
    if (bad < 0) return;
    const std::string at = std::string(name) == "ids" ? std::to_string(bad)
                                                      : std::to_string(row) + ", " + std::to_string(bad);
    liger::fail(op, name, "[", at, "] is ", p[bad * stride], ", expected a value in [0, ", vocab_size,
                ") or ignore_index (", o.ignore_index, ")");
  }
  int64_t real_size() const { return compute == LIGER_F64 ? 8 : 4; }
  Tensor vector(bool wanted) const { return liger::empty_1d(wanted ? n_rows : 0, real, x); }
  Tensor matrix(int64_t n_rows, int64_t n_cols, int32_t dtype) const {
    const int64_t sizes[2] = {n_rows, n_cols};
    return liger::empty(sizes, 2, dtype, x);
  }
  liger::LinearLoss head(const liger::LinearLossWanted &want, int64_t budget, const liger::Scope &scope,
                         const std::optional<Tensor> &buffer = std::nullopt) const {
    return {op, x, w, bias, compute, want, LIGER_ACCUM_AUTO, budget, 1, scope, buffer};
  }
  // what a block's row kernel is told alike in both passes
  template <class Args> void set_rows(Args &a, const liger::LogitsBlock &block) const {
    a.X = block.source;
    a.ids = (const int64_t *)ids.ptr + block.first * ids.strides[0];
    a.n_rows = block.n_rows;
    a.n_cols = a.X_row_stride = vocab_size;
    a.ids_stride = ids.strides[0];
    a.ignore_index = o.ignore_index;
    a.logit_scale = o.logit_scale;
    a.softcap = o.softcap;
    a.temperature = o.temperature;
    a.x_dtype = compute;
    if (!n_extra) return;
    a.n_extra = n_extra;
    a.extra_ids = (const int64_t *)extra->ptr + block.first * extra->row_stride;
    a.extra_ids_row_stride = extra->row_stride;
  }
};

// Row `first` of a tensor with `width` elements of `size` bytes a row; null where it holds nothing.
void *at_row(const Tensor &t, int64_t first, int64_t width, int64_t size) {
  return (char *)liger::ptr(t) + first * width * size;
}

#if !LIGER_GPU
// Whether all logits are one block of the budget
bool all_fit(const Call &c, int64_t budget) {
  return liger::plan_of(c.op, c.x, c.w, c.compute, {false, false, false}, LIGER_ACCUM_AUTO, budget, 1,
                        LIGER_TOKEN_BLOCKS)
             .n_blocks <= 1;
}
#endif

// logprob, lse, entropy, mean_logit, argmax, extra, stats, logits; (0,) where not wanted. stats: for the
// backward pass; logits: those of the last block where `keep`, in a buffer of the plan's block_rows.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> linear_logprob_fwd(
    const Tensor &hidden, const Tensor &weight, const Tensor &ids, const std::optional<Tensor> &bias,
    const std::optional<Tensor> &extra_ids, double logit_scale, double softcap, double temperature,
    int64_t ignore_index, bool lse, bool entropy, bool mean_logit, bool argmax, bool stats, bool keep,
    int64_t compute_dtype, int64_t memory_budget) {
  const Call c("linear_logprob_fwd", hidden, weight, ids, bias, extra_ids,
               {logit_scale, softcap, temperature, ignore_index, compute_dtype, memory_budget});
#if !LIGER_GPU
  const liger::LiveRows live(c.ids, ignore_index);
  if (live.few() && !(keep && all_fit(c, memory_budget))) { /* all of them valid now, so this ends here */
    auto [live_logprob, live_lse, live_entropy, live_mean, live_argmax, live_extra, live_stats,
          none] = linear_logprob_fwd(live.gather(c.x), weight, live.gather(c.ids), bias,
                                     live.gather(extra_ids), logit_scale, softcap, temperature, ignore_index,
                                     lse, entropy, mean_logit, argmax, stats, false, compute_dtype,
                                     memory_budget);
    const auto put_back = [&](const Tensor &t, bool wanted) { return wanted ? live.scatter(t) : t; };
    return {put_back(live_logprob, true),    put_back(live_lse, lse),
            put_back(live_entropy, entropy), put_back(live_mean, mean_logit),
            put_back(live_argmax, argmax),   put_back(live_extra, true),
            put_back(live_stats, stats),     none};
  }
#endif
  const liger::Scope scope(c.x);
  const Tensor out_logprob = c.vector(true), out_lse = c.vector(lse), out_entropy = c.vector(entropy),
               out_mean = c.vector(mean_logit), out_extra = c.matrix(c.n_rows, c.n_extra, c.real),
               out_stats = c.matrix(stats ? c.n_rows : 0, LIGER_LOGPROB_STATS, c.real),
               out_argmax = liger::empty_1d(argmax ? c.n_rows : 0, aoti_torch_dtype_int64(), c.x);
  const auto plan = liger::plan_of(c.op, c.x, c.w, c.compute, {false, false, false}, LIGER_ACCUM_AUTO,
                                   memory_budget, 1, LIGER_TOKEN_BLOCKS);
  int64_t b = 0; // blocks before this one are done
  // mean_logit, which liger_linear_stats_args offers too, goes with the loop: not yet held to truth on a GPU
  if (LIGER_GPU && !(softcap != 0 || entropy || mean_logit || argmax || c.n_extra)) {
    const int64_t n_blocks = keep ? plan.n_blocks - 1 : plan.n_blocks; // the last block's logits are wanted
    const int64_t rows = keep ? n_blocks * plan.block_rows : c.n_rows;
    const Tensor state = c.matrix(stats ? 0 : rows, LIGER_LOGPROB_STATS, c.real);
    auto *const p = (float *)liger::ptr(stats ? out_stats : state);
    if (liger::linear_stats(c.op, c.x, c.w, c.bias, c.ids, rows, c.compute, logit_scale / temperature,
                            ignore_index, memory_budget,
                            {p, p + 1, p + 2, LIGER_LOGPROB_STATS, (float *)liger::ptr(out_logprob),
                             lse ? (float *)liger::ptr(out_lse) : nullptr},
                            scope))
      b = n_blocks;
  }
  Tensor kept = liger::empty_1d(0, c.x.raw_dtype, c.x);
  if (b < plan.n_blocks || keep) {
    liger::LinearLoss head = c.head({false, false, false}, memory_budget, scope);
    for (; b < plan.n_blocks; b++) {
      const liger::LogitsBlock block = head.logits(b);
      const int64_t size = c.real_size();
      liger_linear_logprob_fwd_args a{};
      c.set_rows(a, block);
      a.logprob = at_row(out_logprob, block.first, 1, size);
      a.lse = lse ? at_row(out_lse, block.first, 1, size) : nullptr;
      a.entropy = entropy ? at_row(out_entropy, block.first, 1, size) : nullptr;
      a.mean_logit = mean_logit ? at_row(out_mean, block.first, 1, size) : nullptr;
      a.argmax = argmax ? (int64_t *)at_row(out_argmax, block.first, 1, 8) : nullptr;
      a.extra = at_row(out_extra, block.first, c.n_extra, size);
      a.stats = stats ? at_row(out_stats, block.first, LIGER_LOGPROB_STATS, size) : nullptr;
      liger::launch(c.op, LIGER_FN(linear_logprob_fwd), a, scope, block.n_rows, head.vocab_size);
    }
    if (keep) kept = head.kept();
  }
  return {out_logprob, out_lse, out_entropy, out_mean, out_argmax, out_extra, out_stats, kept};
}

// An incoming gradient of one output: `width` values a row, any row stride
struct Incoming {
  std::optional<liger::Rows> rows;
  int64_t stride = 0;
  Incoming(const Call &c, const std::optional<Tensor> &g_, const char *name) {
    if (!g_) return;
    const Arg g = check(c, *g_, name);
    liger::check_vector(c.op, g, c.n_rows, "one value per row of hidden");
    rows.emplace(liger::Rows{g.tensor, g.ptr, c.n_rows, 1, g.strides[0]});
    stride = g.strides[0];
  }
  static Arg check(const Call &c, const Tensor &g_, const char *name) {
    const Arg g(g_, name);
    liger::check_device(c.op, g, c.x);
    if (g.raw_dtype != c.real)
      liger::fail(c.op, name, " has dtype ", liger::dtype_name(g.raw_dtype), ", expected ",
                  liger::dtype_name(c.real));
    return g;
  }
  const void *at(int64_t first, int64_t size) const {
    return rows ? (const char *)rows->ptr + first * stride * size : nullptr;
  }
};

// What backward does with the logits that the forward pass kept
enum Kept {
  BESIDE,   // dlogits have a buffer of their own, and the logits, which are all, stay
  OVER,     // dlogits are written over them
  OVERDONE, // an earlier backward has done so: they are computed again, in the same memory
};

// dhidden, dweight, dbias; (0,) where not wanted. stats, logits: of the forward pass; those that it did not keep
// are computed again, block by block.
std::tuple<Tensor, Tensor, Tensor> backward(
    const Tensor &hidden, const Tensor &weight, const Tensor &ids, const std::optional<Tensor> &bias,
    const std::optional<Tensor> &extra_ids, const Tensor &stats_, const std::optional<Tensor> &logits,
    Kept kept_, const std::optional<Tensor> &dlogprob, const std::optional<Tensor> &dlse,
    const std::optional<Tensor> &dentropy, const std::optional<Tensor> &dmean_logit,
    const std::optional<Tensor> &dextra_, double logit_scale, double softcap, double temperature,
    int64_t ignore_index, bool needs_dx, bool needs_dw, bool needs_dbias, int64_t compute_dtype,
    int64_t memory_budget) {
  const Call c("linear_logprob_bwd", hidden, weight, ids, bias, dextra_ ? extra_ids : std::nullopt,
               {logit_scale, softcap, temperature, ignore_index, compute_dtype, memory_budget});
  const Incoming g_logprob(c, dlogprob, "dlogprob"), g_lse(c, dlse, "dlse"),
      g_entropy(c, dentropy, "dentropy"), g_mean(c, dmean_logit, "dmean_logit");
  std::optional<liger::Rows> dextra;
  if (c.n_extra) {
    const Arg g = Incoming::check(c, *dextra_, "dextra");
    if (g.dim != 2 || g.sizes[0] != c.n_rows || g.sizes[1] != c.n_extra)
      liger::fail(c.op, "dextra has shape ", g.shape(), ", expected that of extra_ids: (", c.n_rows, ", ",
                  c.n_extra, ")");
    dextra.emplace(liger::rows(g));
  }
  const Arg stats = Incoming::check(c, stats_, "stats");
  if (stats.dim != 2 || stats.sizes[0] != c.n_rows || stats.sizes[1] != LIGER_LOGPROB_STATS ||
      !liger::is_dense(stats))
    liger::fail(c.op, "stats has shape ", stats.shape(), ", expected what the forward pass left: (", c.n_rows,
                ", ", LIGER_LOGPROB_STATS, ")");
#if !LIGER_GPU
  const liger::LiveRows live(c.ids, ignore_index);
  if (!logits && live.few()) { /* as in the forward pass */
    auto [dx, dw, db] = backward(live.gather(c.x), weight, live.gather(c.ids), bias, live.gather(extra_ids),
                                 live.gather(stats), logits, kept_, live.gather(dlogprob), live.gather(dlse),
                                 live.gather(dentropy), live.gather(dmean_logit), live.gather(dextra_),
                                 logit_scale, softcap, temperature, ignore_index, needs_dx, needs_dw,
                                 needs_dbias, compute_dtype, memory_budget);
    return {needs_dx ? live.scatter(dx) : dx, dw, db};
  }
#endif
  const liger::Scope scope(c.x);
  liger::LinearLoss head = c.head({needs_dx, needs_dw, needs_dbias && bias}, memory_budget, scope,
                                  kept_ == BESIDE ? std::nullopt : logits);
  if (logits) {
    const Arg kept(*logits, "logits");
    if (kept.raw_dtype != liger::torch_dtype(c.compute) || !liger::is_dense(kept) ||
        kept.numel() != head.plan.block_rows * c.vocab_size || (kept_ == BESIDE && head.plan.n_blocks > 1))
      liger::fail(c.op, "logits has shape ", kept.shape(), ", expected what the forward pass kept: (",
                  head.plan.block_rows, ", ", c.vocab_size, ")");
    if (kept_ != OVERDONE) head.adopt(*logits);
  }
  const int64_t size = c.real_size();
  for (int64_t b = head.plan.n_blocks; b-- > 0;) { // backwards: the last block's logits may be there still
    const liger::LogitsBlock block = head.logits(b);
    liger_linear_logprob_bwd_args a{};
    c.set_rows(a, block);
    a.dX = block.ptr;
    a.stats = (const char *)stats.ptr + block.first * LIGER_LOGPROB_STATS * size;
    a.dlogprob = g_logprob.at(block.first, size);
    a.dlse = g_lse.at(block.first, size);
    a.dentropy = g_entropy.at(block.first, size);
    a.dmean_logit = g_mean.at(block.first, size);
    a.dlogprob_stride = g_logprob.stride;
    a.dlse_stride = g_lse.stride;
    a.dentropy_stride = g_entropy.stride;
    a.dmean_logit_stride = g_mean.stride;
    if (dextra) {
      a.dextra = (const char *)dextra->ptr + block.first * dextra->row_stride * size;
      a.dextra_row_stride = dextra->row_stride;
    }
#if LIGER_GPU
    const Tensor scratch = c.matrix(c.n_extra ? block.n_rows : 0, c.n_extra, c.real);
    a.scratch = liger::ptr(scratch);
#endif
    liger::launch(c.op, LIGER_FN(linear_logprob_bwd), a, scope, block.n_rows, head.vocab_size);
    head.gradients(block);
  }
  head.finish();
  return {head.dx, head.dw, head.dbias};
}

std::tuple<Tensor, Tensor, Tensor> linear_logprob_bwd(
    const Tensor &hidden, const Tensor &weight, const Tensor &ids, const std::optional<Tensor> &bias,
    const std::optional<Tensor> &extra_ids, const Tensor &stats, const std::optional<Tensor> &logits,
    const std::optional<Tensor> &dlogprob, const std::optional<Tensor> &dlse,
    const std::optional<Tensor> &dentropy, const std::optional<Tensor> &dmean_logit,
    const std::optional<Tensor> &dextra, double logit_scale, double softcap, double temperature,
    int64_t ignore_index, bool needs_dx, bool needs_dw, bool needs_dbias, int64_t compute_dtype,
    int64_t memory_budget) {
  return backward(hidden, weight, ids, bias, extra_ids, stats, logits, BESIDE, dlogprob, dlse, dentropy,
                  dmean_logit, dextra, logit_scale, softcap, temperature, ignore_index, needs_dx, needs_dw,
                  needs_dbias, compute_dtype, memory_budget);
}

// The same, with dlogits written over the logits. spent: an earlier call has done so already.
std::tuple<Tensor, Tensor, Tensor> linear_logprob_bwd_(
    const Tensor &hidden, const Tensor &weight, const Tensor &ids, const std::optional<Tensor> &bias,
    const std::optional<Tensor> &extra_ids, const Tensor &stats, const Tensor &logits, bool spent,
    const std::optional<Tensor> &dlogprob, const std::optional<Tensor> &dlse,
    const std::optional<Tensor> &dentropy, const std::optional<Tensor> &dmean_logit,
    const std::optional<Tensor> &dextra, double logit_scale, double softcap, double temperature,
    int64_t ignore_index, bool needs_dx, bool needs_dw, bool needs_dbias, int64_t compute_dtype,
    int64_t memory_budget) {
  return backward(hidden, weight, ids, bias, extra_ids, stats, logits, spent ? OVERDONE : OVER, dlogprob,
                  dlse, dentropy, dmean_logit, dextra, logit_scale, softcap, temperature, ignore_index,
                  needs_dx, needs_dw, needs_dbias, compute_dtype, memory_budget);
}
} // namespace

#if !LIGER_GPU
STABLE_TORCH_LIBRARY_FRAGMENT(liger, m) {
  m.def("linear_logprob_fwd(Tensor hidden, Tensor weight, Tensor ids, Tensor? bias, Tensor? extra_ids, "
        "float logit_scale, float softcap, float temperature, int ignore_index, bool lse, bool entropy, "
        "bool mean_logit, bool argmax, bool stats, bool keep, int compute_dtype, int memory_budget) -> "
        "(Tensor logprob, Tensor lse, Tensor entropy, Tensor mean_logit, Tensor argmax, Tensor extra, "
        "Tensor stats, Tensor logits)");
  m.def(
      "linear_logprob_bwd(Tensor hidden, Tensor weight, Tensor ids, Tensor? bias, Tensor? extra_ids, "
      "Tensor stats, Tensor? logits, Tensor? dlogprob, Tensor? dlse, Tensor? dentropy, Tensor? dmean_logit, "
      "Tensor? dextra, float logit_scale, float softcap, float temperature, int ignore_index, bool needs_dx, "
      "bool needs_dw, bool needs_dbias, int compute_dtype, int memory_budget) -> "
      "(Tensor dhidden, Tensor dweight, Tensor dbias)");
  m.def("linear_logprob_bwd_(Tensor hidden, Tensor weight, Tensor ids, Tensor? bias, Tensor? extra_ids, "
        "Tensor stats, Tensor(a!) logits, bool spent, Tensor? dlogprob, Tensor? dlse, Tensor? dentropy, "
        "Tensor? dmean_logit, Tensor? dextra, float logit_scale, float softcap, float temperature, "
        "int ignore_index, bool needs_dx, bool needs_dw, bool needs_dbias, int compute_dtype, "
        "int memory_budget) -> (Tensor dhidden, Tensor dweight, Tensor dbias)");
}
#endif
STABLE_TORCH_LIBRARY_IMPL(liger, LIGER_BACKEND, m) {
  m.impl("linear_logprob_fwd", TORCH_BOX(&linear_logprob_fwd));
  m.impl("linear_logprob_bwd", TORCH_BOX(&linear_logprob_bwd));
  m.impl("linear_logprob_bwd_", TORCH_BOX(&linear_logprob_bwd_));
}
