"""Faults in the norms: C kernels, glue and Python."""


def ops(op, what):
    return ["test/test_ops.py", "-k", f"{what} and {op}-"]


NUMBERS = "test_within_eagers_error"
NORM, GROUP = "csrc/kernels/norm.h", "csrc/kernels/group_norm.c"

MUTANTS = [
    (
        "layer_norm_one_pass_variance",
        NORM,
        "const real mean = sum / (real)n;",
        "const real mean = 0 * sum;",
        ops("layer_norm", NUMBERS),
    ),
    (
        "norm_rest_of_the_mean_lost",
        NORM,
        "((x - s.mean) - s.rest)",
        "(x - s.mean)",
        ops("layer_norm", NUMBERS),
    ),
    (
        "norm_tiles_merged_without_distance",
        NORM,
        "a.sum_squares + b.sum_squares + d * d * (real)a.n * share",
        "a.sum_squares + b.sum_squares + 0 * d",
        ops("layer_norm", NUMBERS),
    ),
    (
        "norm_dbias_lost_with_frozen_weight",
        NORM,
        "centred, 0, 1, t);",
        "centred, 0, 0, t);",
        ops("layer_norm", "frozen"),
    ),
    (
        "fused_add_residual_gradient_lost",
        NORM,
        "add ? dx + load_element(dS, i, t) : dx",
        "add ? dx + 0 * load_element(dS, i, t) : dx",
        ops("fused_add_rms_norm", NUMBERS),
    ),
    (
        "fused_add_unrounded_sum",
        NORM,
        "  load_row(x, S, S_at, n, t);\n",
        "",
        ["test/test_norms.py", "-k", "normalises_the_stored_sum"],
    ),
    (
        "group_norm_weight_of_first_group",
        GROUP,
        "const int64_t channel = group % a->n_groups * channels + k;",
        "const int64_t channel = 0 * (group % a->n_groups) * channels + k;",
        ops("group_norm", NUMBERS),
    ),
    (
        "group_norm_mean_without_weight",
        GROUP,
        "of_group.m += w * s.m;",
        "of_group.m += s.m;",
        ops("group_norm", NUMBERS),
    ),
    (
        "group_norm_channels_unchecked",
        "liger_kernel/ops/group_norm.py",
        "if X.dim() > 1 and X.shape[1] != num_channels:",
        "if X.dim() > 1 and X.shape[1] < num_channels:",
        ops("group_norm", "error_names"),
    ),
]
