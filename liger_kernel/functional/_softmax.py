"""`softmax` with a choice of implementation."""

from ..ops.softmax import LigerSoftmaxFunction
from ._operator import operator

__all__ = ["softmax"]


@operator
def softmax(x, *, impl=None, mode=None, backend=None):
    """exp(x) / sum(exp(x)) over the last dimension: see `LigerSoftmaxFunction`."""
    return LigerSoftmaxFunction.apply(x)
