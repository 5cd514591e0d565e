"""`geglu` with a choice of implementation."""

from ..ops.geglu import LigerGELUMulFunction
from ._operator import operator

__all__ = ["geglu"]


@operator
def geglu(a, b, *, impl=None, mode=None, backend=None):
    """c = gelu(a) b, gelu in its tanh form: see `LigerGELUMulFunction`."""
    return LigerGELUMulFunction.apply(a, b)
