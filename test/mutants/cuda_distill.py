"""Faults in the kernels of fused distillation on GPUs."""

HARD, COSINE = "csrc/kernels/distill_hard.cuh", "csrc/kernels/fused_linear_cosine.cu"
WITH_LABELS = ["test/test_fused_distillation.py", "-k", "cross_entropy_of_rows"]
ZEROS = ["test/test_fused_distillation.py", "-k", "cosine_of_short_rows"]


def ops(op, what="test_within_eagers_error"):
    return ["test/test_ops.py", "-k", f"{what} and {op}-"]


MUTANTS = [
    (
        "fused_jsd_sum_of_gradients_dropped",
        "csrc/kernels/fused_linear_jsd.cuh",
        "(e.grad - e.q * total)",
        "e.grad",
        ops("fused_linear_jsd"),
    ),
    (
        "fused_jsd_series_skewed_otherwise",
        "csrc/kernels/fused_linear_jsd.cuh",
        "h[1] = c * c * skew / 6",
        "h[1] = -c * c * skew / 6",
        ops("fused_linear_jsd"),
    ),
    (
        "fused_jsd_nan_of_the_teacher_lost",
        "csrc/kernels/fused_linear_jsd.cuh",
        "(S + 0.0f * loss)",
        "S",
        ["test/test_fused_distillation.py", "-k", "16_bit"],
    ),
    (
        "distill_hard_label_forgotten",
        HARD,
        "q - (is_label ? 1.0f : 0.0f)",
        "q",
        WITH_LABELS,
    ),
    (
        "distill_hard_softmax_at_the_temperature",
        HARD,
        "a->temperature != 1 || a->hard",
        "a->hard",
        WITH_LABELS,
    ),
    (
        "distill_hard_of_the_teachers_classes",
        HARD,
        "col + j < h.n_cols ? z[j] : -INFINITY",
        "z[j]",
        WITH_LABELS,
    ),
    (
        "distill_dropped_tail",
        "csrc/kernels/distill.cuh",
        "if (tid < cut.tail) one(",
        "if (0) one(",
        ops("fused_linear_jsd"),
    ),
    (
        "fused_kl_div_target_adds_up",
        "csrc/kernels/fused_linear_kl_div.cu",
        "expf(log_q) * total",
        "expf(log_q)",
        ops("fused_linear_kl_div"),
    ),
    ("cosine_not_projected", COSINE, "of * c / length;", "0.0f;", ops("fused_linear_cosine")),
    ("cosine_floor_dropped", COSINE, "length < eps ? eps : length", "length", ZEROS),
    (
        "cosine_of_a_softmax_of_its_own",
        COSINE,
        "h.apart = true;",
        "h.apart = false;",
        ["test/test_chunked_distillation.py", "-k", "test_within_eagers_error and cosine-base"],
    ),
]
