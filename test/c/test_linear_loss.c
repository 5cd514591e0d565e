/* What the linear losses need beside products and loss kernels, through the C API: convert, bias_grad, and the plan. */
#include "harness.h"

static void run_convert(int64_t rows, int64_t cols, int64_t pad, liger_dtype from, liger_dtype to, int add) {
  snprintf(where, sizeof where, "convert %ldx%ld+%ld %s to %s add %d", (long)rows, (long)cols, (long)pad,
           dtype_names[from], dtype_names[to], add);
  const int64_t stride = cols + pad, n = rows * cols;
  buf src = buf_random(rows * stride, from, 3), dst = buf_new(rows * stride, to);
  double *want = calloc((size_t)n + 1, 8);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c < cols; c++) {
      const int64_t i = r * stride + c;
      if (add) put(dst, i, 2 * uniform());
      want[r * cols + c] = get(src, i) + (add ? get(dst, i) : 0);
    }
  const liger_dtype real = from == LIGER_F64 || to == LIGER_F64 ? LIGER_F64 : LIGER_F32;
  const liger_convert_args a = {dst.p, src.p, rows, cols, stride, stride, add, to, from, real};
  const int64_t half = rows / 2;
  expect(liger_convert_cpu(&a, 0, half) == LIGER_OK && liger_convert_cpu(&a, half, rows) == LIGER_OK,
         "convert");
  close_rows("dst", dst, stride, want, rows, cols, 1);
  buf_free(src), buf_free(dst);
  free(want);
}

static void run_bias_grad(int64_t rows, int64_t cols, int64_t pad, liger_dtype t, int add) {
  snprintf(where, sizeof where, "bias_grad %ldx%ld+%ld %s add %d", (long)rows, (long)cols, (long)pad,
           dtype_names[t], add);
  const int64_t stride = cols + pad;
  buf x = buf_random(rows * stride, t, 1), sum = buf_new(cols, real_of(t)), whole = buf_new(cols, real_of(t));
  double *want = calloc((size_t)cols + 1, 8);
  for (int64_t c = 0; c < cols; c++) {
    if (add) {
      const double before = uniform();
      put(sum, c, before), put(whole, c, before);
      want[c] = get(sum, c);
    }
    for (int64_t r = 0; r < rows; r++) want[c] += get(x, r * stride + c);
  }
  liger_bias_grad_args a = {sum.p, x.p, NULL, rows, cols, stride, add, t};
  const int64_t half = cols / 3; /* a cut anywhere gives the same bits */
  expect(liger_bias_grad_cpu(&a, 0, half) == LIGER_OK && liger_bias_grad_cpu(&a, half, cols) == LIGER_OK,
         "bias_grad");
  a.sum = whole.p;
  expect(liger_bias_grad_cpu(&a, 0, cols) == LIGER_OK, "bias_grad at once");
  close_to("sum", sum, want, 8);
  expect(memcmp(sum.p, whole.p, (size_t)cols * size_of(real_of(t))) == 0, "the cut changes the sums");
  buf_free(x), buf_free(sum), buf_free(whole);
  free(want);
}

static void run_plan(void) {
  snprintf(where, sizeof where, "plan");
  liger_linear_loss_plan_args a = {8192, 4096, 128256,           256 << 20,  1,         1,
                                   1,    1,    LIGER_ACCUM_AUTO, LIGER_BF16, LIGER_BF16};
  liger_linear_loss_plan_result p;
  expect(liger_linear_loss_plan(&a, &p) == LIGER_OK, "an ordinary plan");
  expect(p.loop_order == LIGER_TOKEN_BLOCKS && p.block_rows == 1024 && p.n_blocks == 8, "blocks");
  expect(p.block_bytes == 1024 * 128256L * 2 && p.accum_dtype == LIGER_BF16 && p.accum_bytes == 0, "bytes");
  a.memory_budget = 1; /* not one row fits: row by row, added up in fp32 */
  expect(liger_linear_loss_plan(&a, &p) == LIGER_OK && p.block_rows == 1 && p.n_blocks == 8192, "one row");
  expect(p.accum_dtype == LIGER_F32 && p.accum_bytes == 4 * 4096L * 128256, "fp32 accumulator");
  a.chunk_mem_const = INT64_MAX, a.memory_budget = INT64_MAX; /* nothing overflows */
  expect(liger_linear_loss_plan(&a, &p) == LIGER_OK && p.n_blocks == 1, "everything in one block");
  a.n_rows = 0;
  expect(liger_linear_loss_plan(&a, &p) == LIGER_OK && p.n_blocks == 0, "no rows");
  a.n_rows = -1;
  expect(liger_linear_loss_plan(&a, &p) == LIGER_ERR_SIZE, "a negative size");
  a.n_rows = 1, a.accum = 7;
  expect(liger_linear_loss_plan(&a, &p) == LIGER_ERR_DTYPE, "an unknown dtype");
}

int main(void) {
  const int64_t shapes[][3] = {{0, 8, 0},  {1, 1, 0},    {3, 7, 2},    {2, 2048, 0},  {2, 2049, 1},
                               {63, 5, 0}, {64, 256, 3}, {65, 257, 0}, {200, 600, 0}, {1, 9000, 0}};
  for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
    for (int t = LIGER_F32; t <= LIGER_F64; t++)
      for (int add = 0; add < 2; add++) {
        run_bias_grad(shapes[s][0], shapes[s][1], shapes[s][2], (liger_dtype)t, add);
        for (int to = LIGER_F32; to <= LIGER_F64; to++)
          run_convert(shapes[s][0], shapes[s][1], shapes[s][2], (liger_dtype)t, (liger_dtype)to, add);
      }
  run_plan();
  return finish("linear_loss");
}
