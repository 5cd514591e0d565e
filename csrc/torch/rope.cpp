// Glue of rope: schema, checks, allocation, launch. One op serves both directions.
#include "liger_torch.h"

using liger::Arg;
using torch::stable::Tensor;

namespace {
constexpr const char *OP = "rope";

// q or k: four dimensions, of which `seq` and `head` are 2 and 1, or 1 and 2
struct Heads {
  Arg x;
  Tensor out;
  liger_rope_strides in_strides, out_strides;
  int64_t n_heads;
};

liger_rope_strides strides_of(const int64_t *s, int seq, int head) { return {s[0], s[head], s[seq]}; }

// The result has the memory order of its argument, so that a later transpose back is free: tokens outside
// heads, or heads outside tokens, and dense. The fake in liger_kernel/ops/rope.py decides by the same
// comparison.
Heads heads(const Arg &given, int seq, int head) {
  const int64_t *size = given.sizes, *stride = given.strides;
  const int outer = stride[seq] >= stride[head] ? seq : head, inner = seq + head - outer;
  const auto span = [&](int dim) { return size[dim] > 1 ? size[dim] : 1; };
  int64_t out_strides[4];
  out_strides[3] = 1;
  out_strides[inner] = span(3);
  out_strides[outer] = span(3) * span(inner);
  out_strides[0] = span(3) * span(inner) * span(outer);
  AtenTensorHandle h;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(4, size, out_strides, given.raw_dtype, given.device_type,
                                                  given.device_index, &h));
  Tensor out(h);
  const Arg x = stride[3] == 1 || size[3] <= 1 ? given : Arg(liger::dense_copy(given.tensor), given.name);
  return {x, std::move(out), strides_of(x.strides, seq, head), strides_of(out_strides, seq, head),
          size[head]};
}

// (rows, dim), (1 or batch, seq_len, dim), or with sections (3, 1 or batch, seq_len, dim)
void check_table(const Arg &t, const Arg &q, const Arg &like, int64_t batch, int64_t seq_len, bool indexed,
                 bool sections) {
  liger::check_device(OP, t, q);
  liger::check_float(OP, t);
  liger::check_same_dtype(OP, t, like);
  liger::check_same_shape(OP, t, like);
  const int64_t *size = t.sizes + (sections ? 1 : 0);
  if (sections ? t.dim != 4 || t.sizes[0] != 3 : t.dim != 2 && t.dim != 3) size = nullptr;
  if (t.dim == 2 && size) {
    if (!indexed && t.sizes[0] < seq_len)
      liger::fail(OP, t.name, " has shape ", t.shape(), ", expected at least ", seq_len,
                  " rows, the sequence length");
  } else if (!size || (size[0] != 1 && size[0] != batch) || size[1] != seq_len) {
    liger::fail(OP, t.name, " has shape ", t.shape(), ", expected ",
                sections ? "(3, 1, seq_len, dim) or (3, batch, seq_len, dim)"
                         : "(seq_len, dim), (1, seq_len, dim) or (batch, seq_len, dim)",
                ", for batch ", batch, " and seq_len ", seq_len);
  }
}

// On a GPU nobody may wait for the values: the kernel makes such a token NaN.
void check_position_values([[maybe_unused]] const liger_rope_args &a) {
#if !LIGER_GPU
  for (int64_t b = 0; b < a.batch; b++)
    for (int64_t s = 0; s < a.seq_len; s++) {
      const int64_t p = a.position_ids[b * a.position_batch_stride + s * a.position_token_stride];
      if (p < 0 || p >= a.n_positions)
        liger::fail(OP, "position_ids is ", p, " at batch ", b, ", token ", s, ", expected 0 to ",
                    a.n_positions - 1, ", the rows of cos");
    }
#endif
}

std::tuple<Tensor, Tensor> rope(const Tensor &q_, const Tensor &k_, const Tensor &cos_, const Tensor &sin_,
                                const std::optional<Tensor> &position_ids, int64_t unsqueeze_dim,
                                int64_t rotary_dim, bool interleaved, int64_t section_2, int64_t section_3,
                                bool backward) {
  const Arg q(q_, "q"), k(k_, "k");
  const liger_dtype q_dtype = liger::check_float(OP, q), k_dtype = liger::check_float(OP, k);
  liger::check_device(OP, k, q);
  if ((q_dtype == LIGER_F64) != (k_dtype == LIGER_F64)) liger::check_same_dtype(OP, k, q);
  if (unsqueeze_dim != 1 && unsqueeze_dim != 2)
    liger::fail(OP, "unsqueeze_dim is ", unsqueeze_dim,
                ", expected 1, for q of (batch, heads, seq_len, head_dim), or 2");
  const int head = (int)unsqueeze_dim, seq = 3 - head;
  const char *layout = head == 1 ? "(batch, heads, seq_len, head_dim)" : "(batch, seq_len, heads, head_dim)";
  if (q.dim != 4) liger::fail(OP, "q has shape ", q.shape(), ", expected ", layout);
  if (k.dim != 4 || k.sizes[0] != q.sizes[0] || k.sizes[seq] != q.sizes[seq] || k.sizes[3] != q.sizes[3])
    liger::fail(OP, "k has shape ", k.shape(), ", expected ", layout, " as q but for the heads; q has ",
                q.shape());
  const int64_t batch = q.sizes[0], seq_len = q.sizes[seq], head_dim = q.sizes[3];

  const Arg cos_arg(cos_, "cos"), sin_arg(sin_, "sin");
  const bool sections = section_3 >= 0;
  check_table(cos_arg, q, cos_arg, batch, seq_len, position_ids.has_value(), sections);
  check_table(sin_arg, q, cos_arg, batch, seq_len, position_ids.has_value(), sections);
  const int64_t width = cos_arg.last();
  if (rotary_dim == 0) rotary_dim = width < head_dim ? width : head_dim;
  if (head_dim && (rotary_dim <= 0 || rotary_dim > head_dim || rotary_dim % 2))
    liger::fail(OP, "rotary_dim is ", rotary_dim, ", expected an even number from 2 to head_dim, ", head_dim);
  if (head_dim && width < rotary_dim / 2)
    liger::fail(OP, "cos has shape ", cos_arg.shape(), ", expected at least ", rotary_dim / 2,
                " columns, half of rotary_dim");
  if (sections && (section_2 < 0 || section_2 > section_3 || section_3 > rotary_dim / 2))
    liger::fail(OP, "the sections begin at 0, ", section_2, " and ", section_3,
                ", expected ascending numbers up to ", rotary_dim / 2, ", half of rotary_dim");
  const liger::Scope scope(q);
  // Columns side by side, or every other element: complex angles and tables that hold each angle twice stay
  // as they are, and so does an expanded table.
  const auto step = [](const Arg &t) { return t.last() <= 1 ? 1 : t.strides[t.dim - 1]; };
  const int64_t col_stride = step(cos_arg) == 2 && step(sin_arg) == 2 ? 2 : 1;
  const auto table = [&](const Arg &t) {
    return step(t) == col_stride ? t : Arg(liger::dense_copy(t.tensor), t.name);
  };
  const Arg cos = table(cos_arg), sin = table(sin_arg);
  const Heads hq = heads(q, seq, head), hk = heads(k, seq, head);

  liger_rope_args a{};
  a.Q_out = liger::ptr(hq.out);
  a.K_out = liger::ptr(hk.out);
  a.Q = hq.x.ptr;
  a.K = hk.x.ptr;
  a.cos = cos.ptr;
  a.sin = sin.ptr;
  a.Q_strides = hq.in_strides;
  a.K_strides = hk.in_strides;
  a.Q_out_strides = hq.out_strides;
  a.K_out_strides = hk.out_strides;
  a.cos_row_stride = cos.strides[cos.dim - 2];
  a.sin_row_stride = sin.strides[sin.dim - 2];
  const auto batch_stride = [](const Arg &t) {
    return t.dim > 2 && t.sizes[t.dim - 3] > 1 ? t.strides[t.dim - 3] : 0;
  };
  a.cos_batch_stride = batch_stride(cos);
  a.sin_batch_stride = batch_stride(sin);
  a.table_col_stride = col_stride;
  if (sections) {
    a.cos_section_stride = cos.strides[0];
    a.sin_section_stride = sin.strides[0];
    a.section_2 = section_2;
    a.section_3 = section_3;
  }
  a.batch = batch;
  a.n_q_heads = hq.n_heads;
  a.n_kv_heads = hk.n_heads;
  a.seq_len = seq_len;
  a.head_dim = head_dim;
  a.rotary_dim = head_dim ? rotary_dim : 0;
  a.n_positions = cos.sizes[cos.dim - 2];
  a.interleaved = interleaved;
  a.backward = backward;
  a.q_dtype = q_dtype;
  a.k_dtype = k_dtype;
  a.table_dtype = liger::check_float(OP, cos);
  if (position_ids) {
    const Arg p(*position_ids, "position_ids");
    liger::check_device(OP, p, q);
    if (p.raw_dtype != aoti_torch_dtype_int64())
      liger::fail(OP, "position_ids has dtype ", liger::dtype_name(p.raw_dtype), ", expected int64");
    if (cos.dim != 2)
      liger::fail(OP, "position_ids index tables of two dimensions, but cos has shape ", cos.shape());
    if ((p.dim != 1 && p.dim != 2) || p.last() != seq_len ||
        (p.dim == 2 && p.sizes[0] != 1 && p.sizes[0] != batch))
      liger::fail(OP, "position_ids has shape ", p.shape(),
                  ", expected (seq_len,), (1, seq_len) or (batch, seq_len), for batch ", batch,
                  " and seq_len ", seq_len);
    a.position_ids = (const int64_t *)p.ptr;
    a.position_token_stride = p.strides[p.dim - 1];
    a.position_batch_stride = p.dim == 2 && p.sizes[0] > 1 ? p.strides[0] : 0;
    check_position_values(a);
  }
  liger::launch(OP, LIGER_FN(rope), a, scope, head_dim ? batch * seq_len : 0,
                (hq.n_heads + hk.n_heads) * head_dim);
  return {hq.out, hk.out};
}
} // namespace

#if !LIGER_GPU
STABLE_TORCH_LIBRARY_FRAGMENT(liger, m) {
  m.def("rope(Tensor q, Tensor k, Tensor cos, Tensor sin, Tensor? position_ids, int unsqueeze_dim, int "
        "rotary_dim, bool interleaved, int section_2, int section_3, bool backward)"
        " -> (Tensor q_out, Tensor k_out)");
}
#endif
STABLE_TORCH_LIBRARY_IMPL(liger, LIGER_BACKEND, m) { m.impl("rope", TORCH_BOX(&rope)); }
