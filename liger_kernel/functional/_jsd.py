"""`jsd` with a choice of implementation."""

from ..ops.jsd import liger_jsd_apply
from ._operator import operator

__all__ = ["jsd"]


@operator
def jsd(
    _input, target, shift_labels=None, beta=0.5, ignore_index=-100, *, impl=None, mode=None, backend=None
):
    """The generalised Jensen-Shannon divergence of log-probabilities: see `LigerJSDFunction`."""
    return liger_jsd_apply(_input, target, shift_labels, beta, ignore_index)
