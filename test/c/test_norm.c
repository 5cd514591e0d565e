/* layer_norm and fused_add_rms_norm through the C API, against a loop in double. */
#include "harness.h"

typedef struct {
  const char *name;
  int centred, add;
  liger_status (*fwd)(const liger_norm_fwd_args *, int64_t, int64_t);
  int64_t (*blocks)(int64_t, int64_t);
  liger_status (*bwd)(const liger_norm_bwd_args *, int64_t, int64_t);
  liger_status (*params)(const liger_norm_bwd_args *, int64_t, int64_t);
} norm_op;

static const norm_op layer_norm = {"layer_norm",
                                   1,
                                   0,
                                   liger_layer_norm_fwd_cpu,
                                   liger_layer_norm_bwd_blocks_cpu,
                                   liger_layer_norm_bwd_cpu,
                                   liger_layer_norm_params_cpu};
static const norm_op fused_add = {"fused_add_rms_norm",
                                  0,
                                  1,
                                  liger_fused_add_rms_norm_fwd_cpu,
                                  liger_fused_add_rms_norm_bwd_blocks_cpu,
                                  liger_fused_add_rms_norm_bwd_cpu,
                                  liger_fused_add_rms_norm_params_cpu};

/* gradients 0: none of a parameter, 1: dW alone, 2: dbias alone, 3: both */
static void run(const norm_op *op, int64_t rows, int64_t cols, int64_t pad, liger_dtype xt, liger_dtype wt,
                int casting, double offset, int gradients) {
  snprintf(where, sizeof where, "%s %ldx%ld+%ld %s %s casting %d offset %g gradients %d", op->name,
           (long)rows, (long)cols, (long)pad, dtype_names[xt], dtype_names[wt], casting, offset, gradients);
  const int64_t stride = cols + pad;
  const liger_dtype real = real_of(xt);
  buf x = buf_random(rows * stride, xt, 2), r = buf_random(rows * stride, xt, 2), w = buf_random(cols, wt, 2),
      bias = buf_random(cols, wt, 2), dy = buf_random(rows * stride, xt, 1),
      ds = buf_random(rows * stride, xt, 1), y = buf_new(rows * cols, xt), s = buf_new(rows * cols, xt),
      mean = buf_new(rows, real), rstd = buf_new(rows, real), dx = buf_new(rows * cols, xt),
      dw = buf_new(cols, wt), db = buf_new(cols, wt);

  liger_norm_fwd_args f = {0};
  f.Y = y.p, f.S = op->add ? s.p : NULL, f.mean = op->centred ? mean.p : NULL, f.rstd = rstd.p;
  f.X = x.p, f.R = op->add ? r.p : NULL, f.W = w.p, f.bias = op->centred ? bias.p : NULL;
  f.n_rows = rows, f.n_cols = cols, f.X_row_stride = f.R_row_stride = stride, f.Y_row_stride = cols;
  f.eps = 1e-6, f.offset = offset, f.casting = casting, f.x_dtype = xt, f.w_dtype = f.bias_dtype = wt;
  expect(op->fwd(&f, 0, rows / 2) == LIGER_OK, "fwd, first half");
  expect(op->fwd(&f, rows / 2, rows) == LIGER_OK, "fwd, second half");

  double *want_y = calloc((size_t)(rows * cols + 1), 8), *want_dx = calloc((size_t)(rows * cols + 1), 8),
         *want_s = calloc((size_t)(rows * cols + 1), 8), *want_r = calloc((size_t)rows + 1, 8),
         *want_m = calloc((size_t)rows + 1, 8), *want_dw = calloc((size_t)cols + 1, 8),
         *want_db = calloc((size_t)cols + 1, 8);
  for (int64_t i = 0; i < rows; i++) {
    /* what is normalised is the sum as it was stored */
    const buf from = op->add ? s : x;
    const int64_t at = op->add ? i * cols : i * stride;
    long double sum = 0, squares = 0, c0 = 0, c1 = 0;
    for (int64_t c = 0; c < cols; c++) {
      want_s[i * cols + c] = get(x, i * stride + c) + get(r, i * stride + c);
      sum += get(from, at + c);
    }
    const double mu = op->centred ? (double)(sum / (cols ? cols : 1)) : 0;
    for (int64_t c = 0; c < cols; c++) squares += (get(from, at + c) - mu) * (get(from, at + c) - mu);
    const double inv = 1 / sqrt((double)squares / (double)cols + 1e-6);
    want_r[i] = inv, want_m[i] = mu;
    for (int64_t c = 0; c < cols; c++) {
      const double xhat = (get(from, at + c) - mu) * inv, g = get(dy, i * stride + c),
                   m = g * (get(w, c) + offset);
      want_y[i * cols + c] = xhat * (get(w, c) + offset) + (op->centred ? get(bias, c) : 0);
      want_dw[c] += g * xhat, want_db[c] += g;
      c0 += op->centred ? m / (double)cols : 0, c1 += m * xhat / (double)cols;
    }
    for (int64_t c = 0; c < cols; c++)
      want_dx[i * cols + c] = inv * (get(dy, i * stride + c) * (get(w, c) + offset) - (double)c0 -
                                     (get(from, at + c) - mu) * inv * (double)c1) +
                              (op->add ? get(ds, i * stride + c) : 0);
  }
  /* the roundings of a sum of n terms in the result's own dtype walk as sqrt(n) */
  const double walk = xt == LIGER_F32 || xt == LIGER_F64 ? sqrt((double)cols) / 8 : 0;
  close_rows("Y", y, cols, want_y, rows, cols, 4 + walk);
  if (op->add) close_rows("S", s, cols, want_s, rows, cols, 1);
  for (int64_t i = 0; i < rows && op->centred; i++) /* relative to the elements: the mean may be anything */
    expect(fabs(get(mean, i) - want_m[i]) <= 2 * eps_of(real), "mean");
  close_to("rstd", rstd, want_r, 8 + sqrt((double)cols) / 4);

  const int64_t blocks = op->blocks(rows, cols);
  buf partial = buf_new(blocks * cols, real), partial_b = buf_new(blocks * cols, real);
  const int has_dw = gradients & 1, has_db = op->centred && gradients & 2;
  liger_norm_bwd_args b = {0};
  b.dX = dx.p, b.dW = has_dw ? dw.p : NULL, b.dbias = has_db ? db.p : NULL;
  b.dW_partial = has_dw ? partial.p : NULL, b.dbias_partial = has_db ? partial_b.p : NULL;
  b.dY = dy.p, b.dS = op->add ? ds.p : NULL, b.X = op->add ? s.p : x.p, b.W = w.p;
  b.mean = op->centred ? mean.p : NULL, b.rstd = rstd.p;
  b.n_rows = rows, b.n_cols = cols, b.X_row_stride = op->add ? cols : stride;
  b.dY_row_stride = b.dS_row_stride = stride, b.n_blocks = blocks, b.offset = offset;
  b.x_dtype = xt, b.w_dtype = b.bias_dtype = wt;
  expect(op->bwd(&b, 0, blocks / 2) == LIGER_OK, "bwd, first half");
  expect(op->bwd(&b, blocks / 2, blocks) == LIGER_OK, "bwd, second half");
  expect(op->params(&b, 0, cols / 3) == LIGER_OK, "params, first third");
  expect(op->params(&b, cols / 3, cols) == LIGER_OK, "params, rest");
  if (cols == 1 && op->centred) { /* its terms, of rstd = 1000 times dY W, cancel entirely */
    for (int64_t i = 0; i < rows; i++) expect(fabs(get(dx, i)) <= 4e3 * eps_of(real), "dX of one column");
  } else { /* of one column of an RMS norm eps is left: written and finite */
    close_rows("dX", dx, cols, want_dx, rows, cols, cols == 1 ? 1e9 : 8 + walk);
  }
  if (has_dw && cols > 1) close_to("dW", dw, want_dw, 16);
  if (has_db) close_to("dbias", db, want_db, 16);

  buf all[] = {x, r, w, bias, dy, ds, y, s, mean, rstd, dx, dw, db, partial, partial_b};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) buf_free(all[i]);
  free(want_y), free(want_dx), free(want_s), free(want_r), free(want_m), free(want_dw), free(want_db);
}

int main(void) {
  const int64_t shapes[][3] = {{0, 8, 0},    {1, 1, 0},    {3, 1, 2},     {2, 7, 0},    {5, 33, 3},
                               {35, 128, 0}, {100, 17, 1}, {3, 8192, 16}, {2, 8193, 0}, {2, 16389, 7}};
  const liger_dtype x[] = {LIGER_F32, LIGER_BF16, LIGER_F16, LIGER_F64},
                    w[] = {LIGER_F32, LIGER_F16, LIGER_BF16, LIGER_F64};
  for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
    for (int t = 0; t < 4; t++) {
      const int64_t *n = shapes[i];
      for (int gradients = 0; gradients < 4; gradients++)
        run(&layer_norm, n[0], n[1], n[2], x[t], gradients % 2 ? w[t] : x[t], LIGER_CAST_NONE, 0, gradients);
      run(&fused_add, n[0], n[1], n[2], x[t], w[t], LIGER_CAST_NONE, 0, 1);
      run(&fused_add, n[0], n[1], n[2], x[t], x[t], LIGER_CAST_LLAMA, 0, 0);
      run(&fused_add, n[0], n[1], n[2], x[t], w[t], LIGER_CAST_GEMMA, 1, 1);
    }
  return finish("norm");
}
