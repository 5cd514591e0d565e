"""Faults in the GPU kernels of jsd, kl_div, tvd and fused_ce_tvd."""

DIVERGENCE = "csrc/kernels/divergence.cuh"


def ops(op, what="test_within_eagers_error"):
    return ["test/test_ops.py", "-k", f"{what} and {op}-"]


MUTANTS = [
    (
        "jsd_weights_swapped",
        DIVERGENCE,
        "a = y_is_larger ? beta : rest",
        "a = y_is_larger ? rest : beta",
        ops("jsd"),
    ),
    ("jsd_far_side", DIVERGENCE, "near_smaller ? v : v + size", "v + size", ops("jsd")),
    ("jsd_half_far_side", DIVERGENCE, "smaller * fmaf(-0.5f, s, v)", "smaller * v", ops("jsd")),
    ("jsd_half_series", DIVERGENCE, "near, s2, -6.24999925e-2f", "near, s2, -6.2e-2f", ops("jsd")),
    (
        "jsd_nan_of_the_larger_lost",
        DIVERGENCE,
        "larger = exp_of(gpu_max(x, y)), e = exp_of(-s), s2",
        "larger = exp_of(fmaxf(x, y)), e = exp_of(-s), s2",
        ["test/test_divergences.py", "-k", "nan"],
    ),
    ("divergence_dropped_tail", DIVERGENCE, "if (tid < cut.tail) one(", "if (0) one(", ops("jsd")),
    (
        "kl_div_other_row",
        DIVERGENCE,
        "p.grad[row * p.grad_row_stride + col + j]",
        "p.grad[col + j]",
        ops("kl_div"),
    ),
    (
        "tvd_tie",
        "csrc/kernels/tvd.cu",
        "t < 0.0f ? -0.5f : t}",
        "t < 0.0f ? -0.5f : 0.5f}",
        ["test/test_divergences.py", "-k", "ties"],
    ),
    ("kl_div_logarithm", DIVERGENCE, "z2, 6.66666865e-1f)", "z2, 6.7e-1f)", ops("kl_div")),
    ("walk_dropped_rest", "csrc/kernels/distill.cuh", "if (!back) rest();", "", ops("fused_ce_tvd")),
    ("walk_back_dropped_rest", "csrc/kernels/distill.cuh", "if (back) rest();", "", ops("fused_ce_tvd")),
    (
        "ce_tvd_sigma_dropped",
        "csrc/kernels/fused_ce_tvd.cu",
        "(sign - sigma)",
        "sign",
        ops("fused_ce_tvd"),
    ),
    (
        "ce_tvd_target_dropped",
        "csrc/kernels/fused_ce_tvd.cu",
        "col + j == target ? of_target : x[j]",
        "x[j]",
        ops("fused_ce_tvd"),
    ),
]
