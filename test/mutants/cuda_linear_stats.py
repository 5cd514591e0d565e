"""Faults in the product that keeps statistics alone, for --device cuda."""

LINEAR_STATS = "csrc/kernels/linear_stats_sm90.cu"


def ops(op, what):
    return ["test/test_ops.py", "-k", f"{what} and {op}-"]


MUTANTS = [
    (
        "linear_stats_zeros_beyond_the_vocabulary_counted",
        LINEAR_STATS,
        "if (col0 + COLS > vocab_size) {",
        "if (col0 > vocab_size) {",
        ops("fused_linear_cross_entropy", "test_no_grad"),
    ),
    (
        "linear_stats_second_row_of_a_thread",
        LINEAR_STATS,
        "const int64_t row = row0 + 8 * half;",
        "const int64_t row = row0 + 8 * (half & 0);",
        ops("fused_linear_cross_entropy", "test_no_grad"),
    ),
    (
        "linear_stats_both_blocks_take_the_same_rows",
        LINEAR_STATS,
        "x_at = (2 * tile.down + rank) * ROWS",
        "x_at = (2 * tile.down) * ROWS",
        ops("linear_logprob", "test_no_grad"),
    ),
    (
        "linear_stats_tiles_of_other_threads_lost",
        LINEAR_STATS,
        "for (int i = 1; i < MERGE_LANES; i++)",
        "for (int i = 2; i < MERGE_LANES; i++)",
        ops("fused_linear_cross_entropy", "test_no_grad"),
    ),
]
