// The linear-loss engine: the block loop that every loss ending in a vocabulary shares.
//
//   for (int64_t b = 0; b < head.plan.n_blocks; b++) {
//     const liger::LogitsBlock block = head.logits(b);   X_b W^T + bias, in the one reused buffer
//     ... a row kernel turns block.ptr in place into dlogits ...
//     head.gradients(block);                            dX_b = D W;  dW += D^T X_b;  dbias += sums of D
//   }
//   head.finish();
//
// A plan by vocabulary goes twice over the columns instead, the second time backwards, so that the last part is
// still there; see fused_linear_cross_entropy.cpp:
//
//   for (b = 0; b < n_blocks; b++)  head.part_logits(b)       X W_b^T + bias_b; a row kernel takes its statistics
//   for (b = n_blocks; b-- > 0;)    head.part_logits(b), a row kernel makes dlogits, head.part_gradients(part)
//
// A pass without gradients wants none of the three, and calls neither gradients() nor finish(). The last block's
// logits that it kept are adopted by the pass with gradients, which goes backwards: logits() makes no product for
// that block, and the row kernel reads block.source instead. Or they are given as the blocks' buffer: dlogits are
// written over them.
//
// Products are torch's own, called below the dispatcher, or cuBLAS' with a tile of our choice (chosen_product.h).
// Nothing that nobody asked for is computed or allocated. The block that comes first writes dW, later ones add to it
// in the plan's accumulator type: no buffer is filled with zeros first.
#pragma once
#include "liger_torch.h"

#if LIGER_GPU
#include "linear_loss_cublas.h"
#define LIGER_MM(name) aoti_torch_cuda_##name
#else
#define LIGER_MM(name) aoti_torch_cpu_##name
#endif
// declared here, since the generated shim headers bring hundreds more; both are exported by torch since 2.10
extern "C" AOTI_TORCH_EXPORT AOTITorchError LIGER_MM(mm_out)(AtenTensorHandle out, AtenTensorHandle a,
                                                             AtenTensorHandle b);
extern "C" AOTI_TORCH_EXPORT AOTITorchError LIGER_MM(addmm_out)(AtenTensorHandle out, AtenTensorHandle self,
                                                                AtenTensorHandle a, AtenTensorHandle b,
                                                                double beta, double alpha);

namespace liger {
inline int32_t torch_dtype(liger_dtype t) {
  switch (t) {
  case LIGER_F64: return aoti_torch_dtype_float64();
  case LIGER_F16: return aoti_torch_dtype_float16();
  case LIGER_BF16: return aoti_torch_dtype_bfloat16();
  default: return aoti_torch_dtype_float32();
  }
}
inline int64_t dtype_size(liger_dtype t) { return t == LIGER_F64 ? 8 : t == LIGER_F32 ? 4 : 2; }

// n_rows x n_cols of the memory of t from element `offset` on
inline Tensor view(const Tensor &t, int64_t n_rows, int64_t n_cols, int64_t row_stride, int64_t col_stride,
                   int64_t offset) {
  const int64_t sizes[2] = {n_rows, n_cols}, strides[2] = {row_stride, col_stride};
  AtenTensorHandle h;
  TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(t.get(), 2, sizes, strides, offset, &h));
  return Tensor(h);
}
inline void mm(const Tensor &out, const Tensor &a, const Tensor &b) {
#if LIGER_GPU
  if (chosen_product(out, a, b, false)) return;
#endif
  TORCH_ERROR_CODE_CHECK(LIGER_MM(mm_out)(out.get(), a.get(), b.get()));
}
inline void addmm(const Tensor &out, const Tensor &self, const Tensor &a, const Tensor &b) {
#if LIGER_GPU
  if (self.get() == out.get() && chosen_product(out, a, b, true)) return;
#endif
  TORCH_ERROR_CODE_CHECK(LIGER_MM(addmm_out)(out.get(), self.get(), a.get(), b.get(), 1.0, 1.0));
}

struct LogitsBlock {
  int64_t first, n_rows;
  Tensor logits; // (n_rows, vocab_size), dense
  void *ptr;
  const void *source; // what the row kernel reads: ptr itself, or the adopted logits
};

struct LogitsPart {
  int64_t first, n_cols;
  Tensor logits; // (all rows, n_cols), dense
  void *ptr;
};

struct LinearLossWanted {
  bool dx, dw, dbias;
};

// How a head would be cut; x (n_rows, hidden_size), w (vocab_size, hidden_size)
inline liger_linear_loss_plan_result plan_of(const char *op, const Arg &x, const Arg &w, liger_dtype compute,
                                             const LinearLossWanted &want, int accum, int64_t memory_budget,
                                             int64_t chunk_mem_const, int loop_order) {
  liger_linear_loss_plan_args a{};
  a.n_rows = x.sizes[0];
  a.hidden_size = x.sizes[1];
  a.vocab_size = w.sizes[0];
  a.memory_budget = memory_budget;
  a.chunk_mem_const = chunk_mem_const;
  a.needs_dx = want.dx;
  a.needs_dw = want.dw;
  a.on_gpu = LIGER_GPU;
  a.accum = accum;
  a.compute_dtype = compute;
  a.w_dtype = check_float(op, w);
  a.x_dtype = check_float(op, x);
  // by vocabulary a gradient of the bias alone takes the logits twice too; the model knows but dX and dW
  const bool dbias_alone = want.dbias && !want.dx && !want.dw;
  a.loop_order = dbias_alone && loop_order == LIGER_ORDER_AUTO ? LIGER_TOKEN_BLOCKS : loop_order;
  liger_linear_loss_plan_result p{};
  if (liger_linear_loss_plan(&a, &p) != LIGER_OK)
    fail(op, "memory_budget is ", memory_budget, ", expected bytes, not negative");
  return p;
}

// One head: hidden states, weight, bias, and the loop over its logits.
struct LinearLoss {
  const char *op;
  const Arg x, w; // X (n_rows, hidden_size), W (vocab_size, hidden_size): any strides
  const liger_dtype compute, x_dtype, w_dtype;
  const LinearLossWanted want;
  const Scope &scope;
  const NoGrad no_grad; // torch's products look at the caller's autograd state
  const int64_t n_rows, hidden_size, vocab_size;
  liger_linear_loss_plan_result plan;
  Tensor dx, dw, dbias; // (0,) where not wanted

  LinearLoss(const char *op, const Arg &x, const Arg &w, const std::optional<Arg> &bias, liger_dtype compute,
             const LinearLossWanted &want, int accum, int64_t memory_budget, int64_t chunk_mem_const,
             const Scope &scope, const std::optional<Tensor> &given = std::nullopt,
             int loop_order = LIGER_TOKEN_BLOCKS)
      : op(op), x(x), w(w), compute(compute), x_dtype(check_float(op, x)), w_dtype(check_float(op, w)),
        want(want), scope(scope), n_rows(x.sizes[0]), hidden_size(x.sizes[1]), vocab_size(w.sizes[0]),
        plan(plan_of(op, x, w, compute, want, accum, memory_budget, chunk_mem_const, loop_order)),
        dx(matrix(want.dx, n_rows, hidden_size, x_dtype)),
        dw(matrix(want.dw, vocab_size, hidden_size, w_dtype)),
        dbias(empty_1d(want.dbias ? vocab_size : 0, bias ? bias->raw_dtype : x.raw_dtype, x)),
        buffer(given ? *given : matrix(true, plan.block_rows, plan.block_cols, compute)),
        weight(in_compute_dtype(w, w_dtype)) {
    const bool same = w_dtype == compute;
    w_row = same ? w.strides[0] : hidden_size;
    w_col = same ? w.strides[1] : 1;
    weight_t = view(weight, hidden_size, vocab_size, w_col, w_row, 0);
    if (bias) bias_in = in_compute_dtype(*bias, bias_dtype = check_float(op, *bias));
    if (by_vocabulary()) x_block = left_operand(x.tensor);
    if (by_vocabulary() && want.dx)
      dx_sum = plan.accum_bytes ? matrix(true, n_rows, hidden_size, real()) : dx;
    if (want.dw && !by_vocabulary() && plan.accum_dtype != w_dtype && plan.n_blocks)
      accumulator = matrix(true, vocab_size, hidden_size, plan.accum_dtype);
    else if (want.dw) accumulator = dw;
    if (want.dbias) bias_sum = empty_1d(vocab_size, torch_dtype(real()), x);
  }

  bool by_vocabulary() const { return plan.loop_order == LIGER_VOCAB_BLOCKS; }

  // the buffer, in which the logits of the last block are still, for a later pass to adopt
  Tensor kept() const { return buffer; }
  int64_t last_block() const { return (plan.n_blocks - 1) * plan.block_rows; } // its first row
  void adopt(const Tensor &logits) { adopted = logits; } // may be the given buffer itself

  LogitsBlock logits(int64_t b) {
    const int64_t first = b * plan.block_rows, left = n_rows - first;
    return logits(first, left < plan.block_rows ? left : plan.block_rows);
  }
  // of any rows, at most plan.block_rows
  LogitsBlock logits(int64_t first, int64_t n) {
    LogitsBlock block{first, n, view(buffer, n, vocab_size, vocab_size, 1, 0), nullptr, nullptr};
    block.ptr = ptr(block.logits);
    const bool is_there = adopted && first == last_block();
    block.source = is_there ? ptr(*adopted) : block.ptr;
    x_block = left_operand(
        view(x.tensor, block.n_rows, hidden_size, x.strides[0], x.strides[1], first * x.strides[0]));
    if (is_there) return block;
    if (bias_in) addmm(block.logits, *bias_in, x_block, weight_t);
    else mm(block.logits, x_block, weight_t);
    return block;
  }

  // `block.logits` now holds dlogits
  void gradients(const LogitsBlock &block) {
    if (want.dx) {
      const Tensor rows = view(dx, block.n_rows, hidden_size, hidden_size, 1, block.first * hidden_size);
      if (x_dtype == compute) {
        mm(rows, block.logits, weight);
      } else {
        const Tensor product = matrix(true, block.n_rows, hidden_size, compute);
        mm(product, block.logits, weight);
        convert(ptr(rows), x_dtype, ptr(product), compute, block.n_rows, hidden_size, hidden_size, false);
      }
    }
    if (want.dw) add_weight_gradient(block);
    if (want.dbias) add_bias_gradient(block.ptr, block.n_rows, 0, vocab_size, begun);
    begun = true;
  }

  void finish() {
    if (by_vocabulary()) {
      if (want.dx && plan.accum_bytes)
        convert(ptr(dx), x_dtype, ptr(dx_sum), real(), n_rows, hidden_size, hidden_size, false);
    } else if (want.dw && !plan.n_blocks) torch::stable::zero_(dw);
    else if (want.dw && plan.accum_dtype != w_dtype)
      convert(ptr(dw), w_dtype, ptr(accumulator), plan.accum_dtype, vocab_size, hidden_size, hidden_size,
              false);
    if (want.dbias && !plan.n_blocks) torch::stable::zero_(dbias);
    else if (want.dbias)
      convert(ptr(dbias), bias_dtype, ptr(bias_sum), real(), 1, vocab_size, vocab_size, false);
  }

  // made: whether they are in the buffer still
  LogitsPart part_logits(int64_t b, bool made = false) {
    const int64_t first = b * plan.block_cols, left = vocab_size - first,
                  n = left < plan.block_cols ? left : plan.block_cols;
    LogitsPart part{first, n, view(buffer, n_rows, n, n, 1, 0), nullptr};
    part.ptr = ptr(part.logits);
    if (made) return part;
    const Tensor w_t = view(weight, hidden_size, n, w_col, w_row, first * w_row);
    if (bias_in) addmm(part.logits, view(*bias_in, 1, n, n, 1, first), x_block, w_t);
    else mm(part.logits, x_block, w_t);
    return part;
  }

  // `part.logits` now holds dlogits; the last part comes first
  void part_gradients(const LogitsPart &part) {
    const bool first_come = part.first + part.n_cols == vocab_size;
    if (want.dw) {
      const Tensor rows = view(dw, part.n_cols, hidden_size, hidden_size, 1, part.first * hidden_size),
                   d_t = view(part.logits, part.n_cols, n_rows, 1, part.n_cols, 0);
      if (w_dtype == compute) {
        mm(rows, d_t, x_block);
      } else if (!(w_dtype == LIGER_F32 && into_f32(rows, d_t, x_block, n_rows, part.n_cols, true, false))) {
        const Tensor product = matrix(true, part.n_cols, hidden_size, compute);
        mm(product, d_t, x_block);
        convert(ptr(rows), w_dtype, ptr(product), compute, part.n_cols, hidden_size, hidden_size, false);
      }
    }
    if (want.dbias) add_bias_gradient(part.ptr, n_rows, part.first, part.n_cols, false);
    if (!want.dx) return;
    const Tensor w_part = view(weight, part.n_cols, hidden_size, w_row, w_col, part.first * w_row);
    const liger_dtype sum_dtype = plan.accum_bytes ? real() : x_dtype;
    if (sum_dtype == compute) {
      if (first_come) mm(dx_sum, part.logits, w_part);
      else addmm(dx_sum, dx_sum, part.logits, w_part);
    } else if (!(sum_dtype == LIGER_F32 &&
                 into_f32(dx_sum, part.logits, w_part, n_rows, part.n_cols, false, !first_come))) {
      // some rows at a time, rounded once, then added: a small scratch instead of one of dX's size
      const int64_t slice = slice_of(n_rows);
      const Tensor scratch = matrix(true, slice, hidden_size, compute);
      for (int64_t r = 0; r < n_rows; r += slice) {
        const int64_t n = r + slice < n_rows ? slice : n_rows - r;
        const Tensor product = view(scratch, n, hidden_size, hidden_size, 1, 0);
        mm(product, view(part.logits, n, part.n_cols, part.n_cols, 1, r * part.n_cols), w_part);
        convert((char *)ptr(dx_sum) + r * hidden_size * dtype_size(sum_dtype), sum_dtype, ptr(product),
                compute, n, hidden_size, hidden_size, !first_come);
      }
    }
  }

private:
  Tensor buffer;           // (block_rows, block_cols), the only memory for logits
  Tensor weight, weight_t; // W and its transpose, in the products' dtype
  std::optional<Tensor> bias_in, adopted;
  liger_dtype bias_dtype = LIGER_F32;
  Tensor x_block, accumulator, dx_sum, bias_sum;
  int64_t w_row = 0, w_col = 0; // the strides of `weight`
  bool begun = false;           // gradients have those of a block already

  liger_dtype real() const { return compute == LIGER_F64 ? LIGER_F64 : LIGER_F32; }

  Tensor matrix(bool wanted, int64_t n_rows, int64_t n_cols, liger_dtype t) const {
    const int64_t sizes[2] = {n_rows, n_cols};
    return wanted ? empty(sizes, 2, torch_dtype(t), x) : empty_1d(0, torch_dtype(t), x);
  }

  void convert(void *dst, liger_dtype dst_dtype, const void *src, liger_dtype src_dtype, int64_t n_rows,
               int64_t n_cols, int64_t src_row_stride, bool add) const {
    liger_convert_args a{};
    a.dst = dst;
    a.src = src;
    a.n_rows = n_rows;
    a.n_cols = n_cols;
    a.dst_row_stride = n_cols;
    a.src_row_stride = src_row_stride;
    a.add = add;
    a.dst_dtype = dst_dtype;
    a.src_dtype = src_dtype;
    a.real_dtype = dst_dtype == LIGER_F64 || src_dtype == LIGER_F64 ? LIGER_F64 : LIGER_F32;
    launch(op, LIGER_FN(convert), a, scope, n_rows, n_cols);
  }

  // Rows of X as a product takes them. A dense copy too where oneDNN would read what lies between rows: its bf16
  // products for AMX fill up k with it, and 0 times a NaN there is a NaN (torch 2.13).
  Tensor left_operand(const Tensor &rows) const {
    const Arg part(rows, "x");
    if (x_dtype != compute) return in_compute_dtype(part, x_dtype);
    return !LIGER_GPU && compute == LIGER_BF16 && hidden_size % 64 ? dense(part).tensor : rows;
  }

  // t itself where it has the products' dtype, else a dense copy
  Tensor in_compute_dtype(const Arg &t, liger_dtype t_dtype) const {
    if (t_dtype == compute) return t.tensor;
    const Rows r = rows(t);
    Tensor copy = empty(t.sizes, t.dim, torch_dtype(compute), t);
    convert(liger::ptr(copy), compute, r.ptr, t_dtype, r.n_rows, r.n_cols, r.row_stride, false);
    return copy;
  }

  // C (fp32) = [C +] left right; left is D (d_rows, d_cols), dense, or D^T; false: not possible here, nothing
  // was done
  bool into_f32(const Tensor &C, const Tensor &left, const Tensor &right, int64_t d_rows, int64_t d_cols,
                bool transpose, bool add) const {
#if LIGER_GPU
    if (dtype_size(compute) == 2)
      return chosen_product(C, left, right, add) ||
             gemm_into_f32(op, (float *)ptr(C), ptr(left), Arg(right, "operand"), compute, d_rows, d_cols,
                           hidden_size, transpose, add);
#endif
    (void)C, (void)left, (void)right, (void)d_rows, (void)d_cols, (void)transpose, (void)add;
    return false;
  }

  // rows of hidden_size that a scratch of 16 MiB holds, at least 1024
  int64_t slice_of(int64_t n) const {
    const int64_t fit = (16 << 20) / (hidden_size * dtype_size(compute) + 1), slice = fit < 1024 ? 1024 : fit;
    return slice < n ? slice : n;
  }

  void add_weight_gradient(const LogitsBlock &block) {
    const Tensor d_t = view(block.logits, vocab_size, block.n_rows, 1, vocab_size, 0);
    const bool first = !begun;
    if (plan.accum_dtype == compute) {
      if (first) mm(accumulator, d_t, x_block);
      else addmm(accumulator, accumulator, d_t, x_block);
      return;
    }
    if (into_f32(accumulator, d_t, x_block, block.n_rows, vocab_size, true, !first)) return;
    if (plan.widen_block) {
      const Tensor d = matrix(true, block.n_rows, vocab_size, LIGER_F32),
                   xs = matrix(true, block.n_rows, hidden_size, LIGER_F32);
      const Rows rx = rows(Arg(x_block, "x"));
      convert(ptr(d), LIGER_F32, block.ptr, compute, block.n_rows, vocab_size, vocab_size, false);
      convert(ptr(xs), LIGER_F32, rx.ptr, compute, block.n_rows, hidden_size, rx.row_stride, false);
      const Tensor wide_t = view(d, vocab_size, block.n_rows, 1, vocab_size, 0);
      if (first) mm(accumulator, wide_t, xs);
      else addmm(accumulator, accumulator, wide_t, xs);
      return;
    }
    // the product of a slice of the vocabulary, rounded once, then added in fp32: a small scratch instead of
    // one of dW's size
    const int64_t slice = slice_of(vocab_size);
    const Tensor scratch = matrix(true, slice, hidden_size, compute);
    for (int64_t v = 0; v < vocab_size; v += slice) {
      const int64_t n = v + slice < vocab_size ? slice : vocab_size - v;
      const Tensor product = view(scratch, n, hidden_size, hidden_size, 1, 0);
      mm(product, view(block.logits, n, block.n_rows, 1, vocab_size, v), x_block);
      convert((float *)ptr(accumulator) + v * hidden_size, LIGER_F32, ptr(product), compute, n, hidden_size,
              hidden_size, !first);
    }
  }

  // of columns [first, first + n_cols), whose dlogits D holds
  void add_bias_gradient(const void *D, int64_t n_rows, int64_t first, int64_t n_cols, bool add) {
    liger_bias_grad_args a{};
    a.sum = (char *)ptr(bias_sum) + first * dtype_size(real());
    a.X = D;
    a.n_rows = n_rows;
    a.n_cols = a.X_row_stride = n_cols;
    a.add = add;
    a.x_dtype = compute;
#if LIGER_GPU
    const Tensor workspace = empty_1d(liger_bias_grad_workspace_cuda(n_rows, n_cols) / 4,
                                      aoti_torch_dtype_float32(), x);
    a.workspace = ptr(workspace);
#endif
    launch(op, LIGER_FN(bias_grad), a, scope, n_cols, n_rows);
  }
};
} // namespace liger
