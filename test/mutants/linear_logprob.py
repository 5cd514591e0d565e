"""Faults in linear_logprob, from the C kernel up, and in what it asks of the linear-loss engine."""


def ops(op, what):
    return ["test/test_ops.py", "-k", f"{what} and {op}-"]


NUMBERS = "test_within_eagers_error"
LOGPROB, PY = "csrc/kernels/linear_logprob.c", "liger_kernel/ops/"

MUTANTS = [
    (
        "logprob_entropy_not_moved_to_the_new_maximum",
        LOGPROB,
        "s += scale * (r.s + before.d * far_clamped(before.m - ref));",
        "s += scale * r.s;",
        ops("linear_logprob", NUMBERS),
    ),
    (
        "logprob_far_logits_unclamped",
        LOGPROB,
        "return x < LP_FAR ? LP_FAR : x;",
        "return x;",
        ["test/test_linear_logprob.py", "-k", "extreme"],
    ),
    (
        "logprob_extra_id_only_once",
        LOGPROB,
        "dz[extra_ids[i] - c] += slope * dextra[i];",
        "dz[extra_ids[i] - c] = slope * dextra[i];",
        ["test/test_linear_logprob.py", "-k", "repeated"],
    ),
    (
        "logprob_softcap_slope",
        LOGPROB,
        "dz[i] *= 1 - (z[i] * inv) * (z[i] * inv);",
        "dz[i] *= 1 + 0 * inv;",
        ops("linear_logprob", NUMBERS),
    ),
    (
        "logprob_ignored_rows_unwritten",
        LOGPROB,
        "    memset(zero, 0, sizeof zero);\n    for (int64_t c = 0;",
        "    memset(zero, 0, sizeof zero);\n    for (int64_t c = 0; 0 && ",
        ["test/test_c.py", "-k", "linear_logprob"],
    ),
    (
        "logprob_kept_logits_not_read",
        "csrc/torch/linear_loss.h",
        "block.source = is_there ? ptr(*adopted) : block.ptr;",
        "block.source = block.ptr;",
        ["test/test_ops.py", "-k", "aot_eager and linear_logprob and fp32-fp32"],  # elsewhere they are one
    ),
    (
        "logprob_kept_logits_of_another_block",
        "csrc/torch/linear_loss.h",
        "adopted && first == last_block();",
        "adopted && first == 0;",
        ["test/test_linear_logprob.py", "-k", "kept_logits_give"],
    ),
    (
        "engine_first_block_adds_to_nothing",
        "csrc/torch/linear_loss.h",
        "    const bool first = !begun;",
        "    const bool first = block.first == 0;",
        ops("linear_logprob", NUMBERS),
    ),
    (
        "logprob_gradient_of_a_gradient",
        PY + "linear_logprob.py",
        "            ctx.spent = True",
        "            pass",
        ["test/test_linear_logprob.py", "-k", "every_backward"],
    ),
    (
        "logprob_block_of_extra_ids",
        "csrc/torch/linear_logprob.cpp",
        "(const int64_t *)extra->ptr + block.first * extra->row_stride;",
        "(const int64_t *)extra->ptr;",
        ops("linear_logprob", NUMBERS),
    ),
    (
        "logprob_stats_of_the_first_block",
        "csrc/torch/linear_logprob.cpp",
        "(const char *)stats.ptr + block.first * LIGER_LOGPROB_STATS * size;",
        "(const char *)stats.ptr;",
        ops("linear_logprob", NUMBERS),
    ),
    (
        "logprob_keeps_more_than_the_budget",
        PY + "linear_logprob.py",
        "return copies * n_rows * vocab_size * dtype.itemsize <= budget",
        "return copies * n_rows * vocab_size * dtype.itemsize <= 2 * budget",
        ["test/test_linear_logprob.py", "-k", "kept"],
    ),
    (
        "logprob_lse_for_mean",
        PY + "linear_logprob.py",
        "outputs = (logprob, lse, entropy, argmax, mean_logit, extra)",
        "outputs = (logprob, lse, entropy, argmax, lse, extra)",
        ops("linear_logprob", NUMBERS),
    ),
    (
        "ignored_rows_put_back_elsewhere",
        "csrc/torch/live_rows.h",
        "std::memcpy(to + rows_[(size_t)i] * n_cols * size,",
        "std::memcpy(to + i * n_cols * size,",
        ops("fused_linear_cross_entropy", NUMBERS),
    ),
    (
        "ignored_rows_multiplied_all_the_same",
        "csrc/torch/live_rows.h",
        "* 16 <= n_rows * 15;",
        "* 16 < 0;",
        ["test/test_fused_linear_cross_entropy.py", "-k", "no_part"],
    ),
]
