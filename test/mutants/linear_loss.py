"""Faults in the engine of the linear losses: plan, loop, rows in parts. More of it: linear_logprob.py."""

PLAN, LOOP = "csrc/kernels/linear_loss_plan.c", "csrc/torch/linear_loss.h"
CE, HELPERS = "csrc/kernels/cross_entropy.c", "csrc/kernels/linear_loss.c"
GLUE = "csrc/torch/fused_linear_cross_entropy.cpp"


def parts(what="test_within_the_error and dtype0"):
    return ["test/test_vocabulary_blocks.py", "-k", what]


def plan(what):
    return ["test/test_linear_loss_plan.py", "-k", what]


def flce(what):
    return ["test/test_fused_linear_cross_entropy.py", "-k", what]


MUTANTS = [
    (
        "plan_dearer_order",
        PLAN,
        "other.seconds < plan->seconds",
        "other.seconds > plan->seconds",
        plan("cheaper"),
    ),
    ("plan_too_many_additions", PLAN, "? 20 : 10;", "? 200 : 100;", flce("three_times")),
    (
        "plan_over_the_budget",
        PLAN,
        "most = row_bytes ? a->memory_budget / row_bytes",
        "most = row_bytes ? 2 * a->memory_budget / row_bytes",
        plan("cover_the_rows"),
    ),
    (
        "plan_dx_added_up_in_16_bits",
        PLAN,
        "const int apart = plan->n_blocks > 1 && of_x",
        "const int apart = plan->n_blocks > 9 && of_x",
        plan("cover_the_vocabulary"),
    ),
    (
        "plan_recomputed_logits_cost_nothing",
        PLAN,
        "by_vocab && gradients ? 2 - 1 / n : 1",
        "by_vocab && gradients ? 1 : 1",
        plan("seconds"),
    ),
    (
        "plan_loss_alone_by_tokens",
        PLAN,
        "LIGER_ORDER_AUTO && plan->n_blocks",
        "LIGER_ORDER_AUTO && a->needs_dw && plan->n_blocks",
        plan("loss_alone"),
    ),
    (
        "engine_bias_alone_by_vocabulary",
        LOOP,
        "dbias_alone && loop_order",
        "0 && dbias_alone && loop_order",
        parts("bias_alone"),
    ),
    (
        "engine_blocks_overwrite_dw",
        LOOP,
        "else addmm(accumulator, accumulator, d_t, x_block);",
        "else mm(accumulator, d_t, x_block);",
        flce("three_times"),
    ),
    (
        "engine_parts_overwrite_dx",
        LOOP,
        "else addmm(dx_sum, dx_sum, part.logits, w_part);",
        "else mm(dx_sum, part.logits, w_part);",
        parts(),
    ),
    (
        "engine_dx_begins_with_the_first_part",
        LOOP,
        "part.first + part.n_cols == vocab_size;",
        "part.first == 0;",
        parts(),
    ),
    (
        "engine_bias_gradient_of_another_part",
        LOOP,
        "add_bias_gradient(part.ptr, n_rows, part.first,",
        "add_bias_gradient(part.ptr, n_rows, 0 * part.first,",
        parts(),
    ),
    (
        "engine_bias_of_the_first_part",
        LOOP,
        "view(*bias_in, 1, n, n, 1, first)",
        "view(*bias_in, 1, n, n, 1, 0)",
        parts(),
    ),
    ("engine_logits_of_another_part_kept", GLUE, "b == head.plan.n_blocks - 1)", "b == 0)", parts()),
    (
        "engine_sums_not_added",
        HELPERS,
        "for (int64_t i = 0; i < n; i++) x[i] += sum[i];",
        "for (int64_t i = 0; i < n; i++) x[i] += 0 * sum[i];",
        parts("test_within_the_error and dtype1"),
    ),
    (
        "parts_forget_the_parts_before",
        CE,
        "if (p->first_col) load_state(state, &s);",
        "if (0) load_state(state, &s);",
        parts(),
    ),
    (
        "parts_index_from_their_own_column",
        CE,
        "p->first_col + c, n, a->accuracy",
        "c, n, a->accuracy",
        parts(),
    ),
    (
        "parts_take_the_first_classes_weights",
        CE,
        "part.weight = (const real *)a->weight + p->first_col;",
        "part.weight = (const real *)a->weight;",
        parts(),
    ),
    (
        "parts_target_in_every_part",
        CE,
        "write_gradient(&part, row, y - p->first_col,",
        "write_gradient(&part, row, y % p->n_part,",
        parts(),
    ),
]
