"""Faults in the C kernels of the divergences."""


def ops(op, what):
    return ["test/test_ops.py", "-k", f"{what} and {op}-"]


NUMBERS, TESTS = "test_within_eagers_error", ["test/test_divergences.py"]
DIVERGENCE = "csrc/kernels/divergence.h"
COSINE = "csrc/kernels/fused_linear_cosine.c"
ZEROS = ["test/test_fused_distillation.py", "-k", "cosine_of_short_rows"]
HARD = "csrc/kernels/distill_hard.h"
ROWS = ["test/test_fused_distillation.py", "-k", "cross_entropy_of_rows"]
SUMS = ["test/test_chunked_distillation.py", "-k", "test_within_eagers_error and jsd and not 16_bits"]

MUTANTS = [
    (
        "fused_jsd_first_piece_of_the_teacher_again",
        "csrc/torch/two_heads_torch.h",
        "other.logits(part.first, n)",
        "other.logits(block.first, n)",
        ["test/test_fused_distillation.py", "-k", "pieces"],
    ),
    (
        "jsd_weights_swapped",
        DIVERGENCE,
        "a = y_is_larger ? beta : rest",
        "a = y_is_larger ? rest : beta",
        ops("jsd", NUMBERS),
    ),
    (
        "jsd_infinite_distance",
        DIVERGENCE,
        "(far < size ? far : size)",
        "size",
        ["test/test_divergences.py", "-k", "masked_classes"],
    ),
    (
        "jsd_of_q_without_its_q",
        "csrc/kernels/jsd.c",
        "of_grad * (e.grad + e.q)",
        "of_grad * e.grad",
        ops("jsd", NUMBERS),
    ),
    (
        "divergence_ignored_rows_count",
        DIVERGENCE,
        "return a->labels && a->labels",
        "return 0 && a->labels",
        ops("jsd", NUMBERS),
    ),
    (
        "kl_div_eps_dropped",
        DIVERGENCE,
        "log_positive(y > eps ? y : eps)",
        "log_positive(y)",
        ops("kl_div", "option_changes"),
    ),
    ("kl_div_zero_times_infinity", DIVERGENCE, "return p == 0 ? 0 : p * x;", "return p * x;", TESTS),
    ("tvd_tie", "csrc/kernels/tvd.c", "t < 0 ? -half : t);", "t < 0 ? -half : half);", TESTS),
    (
        "tvd_elementwise_gradient_ignored",
        DIVERGENCE,
        "dX[i] *= g[i];",
        "dX[i] *= g[0];",
        ops("tvd", NUMBERS),
    ),
    (
        "fused_jsd_sum_of_gradients_dropped",
        "csrc/kernels/fused_linear_jsd.c",
        "d[i] = of_grad * (e.grad - e.q * total);",
        "d[i] = of_grad * e.grad;",
        ops("fused_linear_jsd", NUMBERS),
    ),
    (
        "fused_jsd_temperature_of_the_gradient",
        "csrc/kernels/fused_linear_jsd.c",
        "soft_scale(a) / (real)a->temperature",
        "soft_scale(a)",
        ops("fused_linear_jsd", NUMBERS),
    ),
    ("distill_hard_label_forgotten", HARD, "exp_nonpos(z[i]) - hit", "exp_nonpos(z[i])", SUMS),
    (
        "distill_hard_softmax_at_the_temperature",
        HARD,
        "same = soft && a->temperature == 1",
        "same = soft",
        SUMS,
    ),
    ("distill_hard_of_the_teachers_classes", HARD, "m = left < n ? left : n", "m = n", ROWS),
    (
        "distill_hard_nan_of_the_teacher",
        HARD,
        "if (of_soft == 0) memset",
        "if (0) memset",
        ["test/test_chunked_distillation.py", "-k", "nan_of_the_teacher"],
    ),
    (
        "distill_hard_gradient_of_the_soft_loss",
        "csrc/torch/two_heads_torch.h",
        "(const char *)g->ptr + real_size",
        "(const char *)g->ptr",
        ["test/test_chunked_distillation.py", "-k", "losses_apart"],
    ),
    (
        "distill_gradient_of_the_sum_alone",
        "liger_kernel/ops/_distill.py",
        "return of_sum if d is None else of_sum + d",
        "return of_sum",
        ["test/test_chunked_distillation.py", "-k", "losses_apart"],
    ),
    (
        "fused_jsd_a_budget_for_each_head",
        "csrc/torch/two_heads_torch.h",
        "half = memory_budget / 2;",
        "half = memory_budget;",
        ["test/test_fused_distillation.py", "-k", "share_one_budget"],
    ),
    (
        "fused_jsd_the_teachers_quarter_on_top",
        "csrc/torch/two_heads_torch.h",
        "uneven = {memory_budget - rows * row_bytes,",
        "uneven = {memory_budget,",
        ["test/test_fused_distillation.py", "-k", "share_one_budget"],
    ),
    (
        "fused_kl_div_target_of_the_first_block",
        "csrc/torch/fused_linear_kl_div.cpp",
        "block.first * ry.row_stride * y_size",
        "0 * ry.row_stride * y_size",
        ops("fused_linear_kl_div", NUMBERS),
    ),
    (
        "fused_kl_div_target_adds_up",
        "csrc/kernels/fused_linear_kl_div.c",
        "exp_nonpos(x[i]) * total - y[i]",
        "exp_nonpos(x[i]) - y[i]",
        ops("fused_linear_kl_div", NUMBERS),
    ),
    (
        "ce_tvd_sigma_dropped",
        "csrc/kernels/fused_ce_tvd.c",
        "(sign - sigma)",
        "sign",
        ops("fused_ce_tvd", NUMBERS),
    ),
    (
        "ce_tvd_tie",
        "csrc/kernels/fused_ce_tvd.c",
        "p < q ? -1 : 0;",
        "-1;",
        ["test/test_fused_distillation.py", "-k", "ties"],
    ),
    (
        "cosine_not_projected",
        COSINE,
        "length == 0 ? 0 : of * c / length",
        "0",
        ops("fused_linear_cosine", NUMBERS),
    ),
    ("cosine_floor_dropped", COSINE, "length < eps ? eps : length", "length", ZEROS),
    (
        "cosine_fake_of_a_hard_loss",
        "liger_kernel/ops/fused_linear_cosine.py",
        "soft.new_empty((0,)) if n_classes is None else hard",
        "hard",
        ops("fused_linear_cosine", "test_opcheck"),
    ),
]
