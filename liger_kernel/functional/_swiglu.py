"""`swiglu` with a choice of implementation."""

from ..ops.swiglu import LigerSiLUMulFunction
from ._operator import operator

__all__ = ["swiglu"]


@operator
def swiglu(a, b, gate_multiplier=1.0, down_multiplier=1.0, *, impl=None, mode=None, backend=None):
    """c = silu(gate_multiplier a) b down_multiplier: see `LigerSiLUMulFunction`."""
    return LigerSiLUMulFunction.apply(a, b, gate_multiplier, down_multiplier)
