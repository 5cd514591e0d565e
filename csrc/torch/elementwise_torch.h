// Glue of the elementwise operators: sizes and launch.
#pragma once
#include "liger_torch.h"

namespace liger {
inline bool is_flat(const Rows &r) { return r.row_stride == r.n_cols; }

// n_rows and n_cols of the args struct. `flat`: all tensors are contiguous, so the whole is one row.
template <class Args> void set_sizes(Args &args, const Rows &r, bool flat) {
  args.n_rows = flat && r.n_rows ? 1 : r.n_rows;
  args.n_cols = flat ? r.n_rows * r.n_cols : r.n_cols;
}

// Launches over the tiles that csrc/liger.h defines.
template <class Fn, class Args>
void launch_tiles(const char *op, Fn fn, const Args &args, const Scope &scope) {
  constexpr int64_t tile = LIGER_ELEMENT_TILE;
  launch(op, fn, args, scope, args.n_rows * ((args.n_cols + tile - 1) / tile),
         args.n_cols < tile ? args.n_cols : tile);
}
} // namespace liger
