/* The loop of every elementwise kernel: up to three inputs and two outputs of one shape, tile by tile.
 *
 * An op brings an inline function of one tile (elementwise_tile), which moves its elements by load_element and
 * store_element. Tensors of one dtype that those convert are read and written once, in place. The others pass
 * through `real` buffers of a tile, which stay in the first-level cache. */
#ifndef LIGER_ELEMENTWISE_H
#define LIGER_ELEMENTWISE_H
#include "primitives.h"

enum { ELEMENTWISE_MOST = 3 };

typedef struct {
  const void *tensor; /* NULL: an output that is not wanted */
  int64_t row_stride;
  liger_dtype dtype;
} elementwise_rows;

/* n elements of every tensor, all of dtype t: t is a constant at each call, so that the loop is compiled for
 * it */
typedef void elementwise_tile(void *const *out, const void *const *in, int64_t n, const void *options,
                              liger_dtype t);

/* tiles [begin, end) of the rows of n_cols: tile t is LIGER_ELEMENT_TILE columns (or what is left) of row t /
 * tiles per row */
LIGER_INLINE liger_status elementwise(elementwise_tile *tile, int n_out, const elementwise_rows *out,
                                      int n_in, const elementwise_rows *in, int64_t n_cols,
                                      const void *options, int64_t begin, int64_t end) {
  real buffer[2 * ELEMENTWISE_MOST][LIGER_ELEMENT_TILE];
  real(*const in_buffer)[LIGER_ELEMENT_TILE] = buffer + ELEMENTWISE_MOST;
  const liger_dtype t = in[0].dtype;
  int direct = element_direct(t);
  for (int i = 0; i < n_in; i++) direct &= in[i].dtype == t;
  for (int i = 0; i < n_out; i++) direct &= out[i].dtype == t;
  const int64_t per_row = (n_cols + LIGER_ELEMENT_TILE - 1) / LIGER_ELEMENT_TILE;
  for (int64_t number = begin; number < end; number++) {
    const int64_t row = number / per_row, col = number % per_row * LIGER_ELEMENT_TILE;
    const int64_t n = n_cols - col < LIGER_ELEMENT_TILE ? n_cols - col : LIGER_ELEMENT_TILE;
    const void *from[ELEMENTWISE_MOST];
    void *to[ELEMENTWISE_MOST];
    for (int i = 0; i < n_in; i++) {
      const int64_t at = row * in[i].row_stride + col;
      from[i] = direct ? elements_at(in[i].tensor, at, t) : in_buffer[i];
      if (!direct) load_row(in_buffer[i], in[i].tensor, at, n, in[i].dtype);
    }
    for (int i = 0; i < n_out; i++)
      to[i] = direct && out[i].tensor ? (void *)elements_at(out[i].tensor, row * out[i].row_stride + col, t)
                                      : buffer[i];
    if (direct && t == LIGER_BF16) tile(to, from, n, options, LIGER_BF16);
    else tile(to, from, n, options, LIGER_REAL);
    for (int i = 0; i < n_out && !direct; i++)
      if (out[i].tensor)
        store_row((void *)out[i].tensor, row * out[i].row_stride + col, buffer[i], n, out[i].dtype);
  }
  return LIGER_OK;
}
#endif
