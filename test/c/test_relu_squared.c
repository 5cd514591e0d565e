/* relu_squared through the C API, against loops in double. */
#include "harness.h"

static void run(int64_t rows, int64_t cols, int64_t pad, liger_dtype t) {
  snprintf(where, sizeof where, "%ldx%ld+%ld %s", (long)rows, (long)cols, (long)pad, dtype_names[t]);
  const int64_t stride = cols + pad, n = rows * cols;
  buf x = buf_random(rows * stride, t, 3), dy = buf_random(rows * stride, t, 1);
  buf y = buf_new(n, t), dx = buf_new(n, t);
  double *want_y = calloc((size_t)n + 1, 8), *want_dx = calloc((size_t)n + 1, 8);
  for (int64_t i = 0; i < n; i++) {
    const int64_t at = i / cols * stride + i % cols;
    const double r = fmax(get(x, at), 0);
    want_y[i] = r * r;
    want_dx[i] = 2 * r * get(dy, at);
  }
  const int64_t tiles = rows * ((cols + LIGER_ELEMENT_TILE - 1) / LIGER_ELEMENT_TILE);
  liger_relu_squared_args a = {y.p, NULL, x.p, rows, cols, 0, stride, t};
  expect(liger_relu_squared_cpu(&a, 0, tiles / 2) == LIGER_OK, "fwd, first half");
  expect(liger_relu_squared_cpu(&a, tiles / 2, tiles) == LIGER_OK, "fwd, second half");
  a.Y = dx.p, a.dY = dy.p, a.dY_row_stride = stride;
  expect(liger_relu_squared_cpu(&a, 0, tiles / 2) == LIGER_OK, "bwd, first half");
  expect(liger_relu_squared_cpu(&a, tiles / 2, tiles) == LIGER_OK, "bwd, second half");
  close_to("Y", y, want_y, 1);
  close_to("dX", dx, want_dx, 1);
  buf all[] = {x, dy, y, dx};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) buf_free(all[i]);
  free(want_y), free(want_dx);
}

int main(void) {
  const int64_t shapes[][3] = {{0, 8, 0},    {1, 1, 0},    {3, 7, 2},   {2, 33, 0},
                               {1, 1024, 0}, {3, 1025, 5}, {1, 5000, 0}};
  const liger_dtype types[] = {LIGER_F32, LIGER_BF16, LIGER_F16, LIGER_F64};
  for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
    for (int t = 0; t < 4; t++) run(shapes[s][0], shapes[s][1], shapes[s][2], types[t]);
  return finish("relu_squared");
}
