// Glue of embedding: schema, checks, allocation, launch. The sorting of the ids is torch's.
#include "liger_torch.h"

using liger::Arg;
using torch::stable::Tensor;

namespace {
// Ids as a dense vector, whatever their shape.
Arg check_ids(const char *op, const Arg &ids, const Arg &first) {
  liger::check_device(op, ids, first);
  if (ids.raw_dtype != aoti_torch_dtype_int64())
    liger::fail(op, ids.name, " has dtype ", liger::dtype_name(ids.raw_dtype), ", expected int64");
  return liger::dense(ids);
}

// On a GPU nobody may wait for the values: the kernel makes such a token NaN.
void check_id_values([[maybe_unused]] const char *op, [[maybe_unused]] const Arg &ids,
                     [[maybe_unused]] int64_t n_embeddings) {
#if !LIGER_GPU
  const auto *const values = (const int64_t *)ids.ptr;
  const int64_t bad = liger_embedding_bad_id_cpu(values, ids.numel(), n_embeddings);
  if (bad < 0) return;
  std::string place;
  int64_t rest = bad;
  for (int64_t i = ids.dim; i-- > 0; rest /= ids.sizes[i])
    place = std::to_string(rest % ids.sizes[i]) + (place.empty() ? "" : ", ") + place;
  liger::fail(op, "indices", place.empty() ? "" : "[" + place + "]", " is ", values[bad], ", expected 0 to ",
              n_embeddings - 1, ", the rows of embeddings");
#endif
}

Tensor embedding_fwd(const Tensor &weight_, const Tensor &indices_) {
  const char *op = "embedding_fwd";
  const Arg weight(weight_, "embeddings");
  const liger_dtype x_dtype = liger::check_float(op, weight);
  if (weight.dim != 2) liger::fail(op, "embeddings has shape ", weight.shape(), ", expected two dimensions");
  const Arg ids = check_ids(op, Arg(indices_, "indices"), weight);
  check_id_values(op, ids, weight.sizes[0]);
  if (ids.dim > 15) liger::fail(op, "indices has ", ids.dim, " dimensions, expected at most 15");
  const liger::Scope scope(weight);
  const liger::Rows w = liger::rows(weight);
  int64_t sizes[16];
  for (int64_t i = 0; i < ids.dim; i++) sizes[i] = ids.sizes[i];
  sizes[ids.dim] = weight.sizes[1];
  Tensor y = liger::empty(sizes, ids.dim + 1, weight.raw_dtype, weight);

  liger_embedding_fwd_args a{};
  a.Y = liger::ptr(y);
  a.W = w.ptr;
  a.ids = (const int64_t *)ids.ptr;
  a.n_rows = ids.numel();
  a.n_cols = weight.sizes[1];
  a.n_embeddings = weight.sizes[0];
  a.W_row_stride = w.row_stride;
  a.x_dtype = x_dtype;
  liger::launch(op, LIGER_FN(embedding_fwd), a, scope, a.n_rows, a.n_cols);
  return y;
}

Tensor embedding_bwd(const Tensor &dy_, const Tensor &sorted_, const Tensor &order_, int64_t num_embeddings,
                     int64_t padding_idx) {
  const char *op = "embedding_bwd";
  const Arg dy(dy_, "dy");
  const liger_dtype x_dtype = liger::check_float(op, dy);
  if (dy.dim < 1) liger::fail(op, "dy has no dimension, expected at least one");
  if (num_embeddings < 0) liger::fail(op, "num_embeddings is ", num_embeddings, ", expected 0 or more");
  const int64_t n_cols = dy.last();
  int64_t n_rows = 1;
  for (int64_t i = 0; i < dy.dim - 1; i++) n_rows *= dy.sizes[i];
  const Arg sorted = check_ids(op, Arg(sorted_, "sorted_ids"), dy),
            order = check_ids(op, Arg(order_, "order"), dy);
  liger::check_vector(op, sorted, n_rows, "one id per row of dy");
  liger::check_vector(op, order, n_rows, "one row of dy per id");
  const liger::Scope scope(dy);
  const liger::Rows rdy = liger::rows(dy);

  liger_embedding_bwd_args a{};
  a.n_slices = liger_embedding_slices(n_rows);
  const int64_t sizes[2] = {num_embeddings, n_cols};
  const Tensor dw = liger::empty(sizes, 2, dy.raw_dtype, dy);
  const Tensor partial = liger::empty_1d(2 * a.n_slices * n_cols, liger::accum_dtype(dy), dy);
  a.dW = liger::ptr(dw);
  a.partial = liger::ptr(partial);
  a.dY = rdy.ptr;
  a.sorted_ids = (const int64_t *)sorted.ptr;
  a.order = (const int64_t *)order.ptr;
  a.n_rows = n_rows;
  a.n_cols = n_cols;
  a.n_embeddings = num_embeddings;
  a.dY_row_stride = rdy.row_stride;
  a.padding_idx = padding_idx;
  a.x_dtype = x_dtype;
#if LIGER_GPU
  liger::launch(op, LIGER_FN(embedding_bwd), a, scope, 0, 0);
#else
  const int64_t per_slice = n_rows / a.n_slices * n_cols;
  liger::launch(op, LIGER_FN(embedding_bwd), a, scope, a.n_slices, per_slice);
  liger::launch(op, LIGER_FN(embedding_join), a, scope, a.n_slices, n_cols);
  liger::launch(op, LIGER_FN(embedding_zero), a, scope, num_embeddings, n_cols);
#endif
  return dw;
}
} // namespace

#if !LIGER_GPU
STABLE_TORCH_LIBRARY_FRAGMENT(liger, m) {
  m.def("embedding_fwd(Tensor embeddings, Tensor indices) -> Tensor");
  m.def("embedding_bwd(Tensor dy, Tensor sorted_ids, Tensor order, int num_embeddings, int padding_idx) -> "
        "Tensor");
}
#endif
STABLE_TORCH_LIBRARY_IMPL(liger, LIGER_BACKEND, m) {
  m.impl("embedding_fwd", TORCH_BOX(&embedding_fwd));
  m.impl("embedding_bwd", TORCH_BOX(&embedding_bwd));
}
