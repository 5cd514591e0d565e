"""Generalised Jensen-Shannon divergence as a function and as a module."""

from torch import nn

from ..ops.jsd import check_beta, liger_jsd_apply

__all__ = ["LigerJSD"]
FUNCTIONAL = ("liger_jsd",)


def liger_jsd(input, target, shift_labels=None, beta=0.5, ignore_index=-100):
    """1/n_valid sum [beta P (ln P - ln M) + (1 - beta) Q (ln Q - ln M)],  M = beta P + (1 - beta) Q.

    input: (n_rows, n_classes) log-probabilities ln Q of the student; target: those of the teacher, ln P;
    float32, bfloat16, float16 (float64 on the CPU). beta = 0 is KL(P || Q), beta = 1 KL(Q || P).
    shift_labels: (n_rows,) int64 or None; rows whose label is ignore_index do not count. Returns a float32
    (float64) scalar, 0 where no row is valid. Raises as `LigerJSDFunction` does. Source: arXiv:2306.13649.
    """
    return liger_jsd_apply(input, target, shift_labels, beta, ignore_index)


class LigerJSD(nn.Module):
    """`liger_jsd` with beta and ignore_index fixed. Raises ValueError for a beta outside [0, 1]."""

    def __init__(self, beta=0.5, ignore_index=-100):
        super().__init__()
        check_beta(beta)
        self.beta, self.ignore_index = beta, ignore_index

    def forward(self, log_q, log_p, shift_labels=None):
        return liger_jsd_apply(log_q, log_p, shift_labels, self.beta, self.ignore_index)

    def extra_repr(self):
        return f"beta={self.beta}, ignore_index={self.ignore_index}"
