"""`kl_div` with a choice of implementation."""

from ..ops.kl_div import liger_kl_div_apply
from ._operator import operator

__all__ = ["kl_div"]


@operator
def kl_div(
    y_pred, y_true, reduction="batchmean", log_target=False, eps=1e-10, *, impl=None, mode=None, backend=None
):
    """The Kullback-Leibler divergence, y_pred of log-probabilities: see `LigerKLDivLossFunction`."""
    return liger_kl_div_apply(y_pred, y_true, reduction, log_target, eps)
