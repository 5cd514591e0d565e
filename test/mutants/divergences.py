"""Faults in the C kernels of the divergences."""


def ops(op, what):
    return ["test/test_ops.py", "-k", f"{what} and {op}-"]


NUMBERS, TESTS = "test_within_eagers_error", ["test/test_divergences.py"]
DIVERGENCE = "csrc/kernels/divergence.h"

MUTANTS = [
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
]
