"""`rms_norm` with a choice of implementation."""

from ..ops.rms_norm import LigerRMSNormFunction
from ._operator import operator

__all__ = ["rms_norm"]


@operator
def rms_norm(
    x,
    weight,
    eps=1e-6,
    *,
    offset=0.0,
    casting_mode="llama",
    in_place=False,
    row_mode=None,
    impl=None,
    mode=None,
    backend=None,
):
    """y = x / sqrt(mean(x^2) + eps) * (weight + offset): see `LigerRMSNormFunction`."""
    return LigerRMSNormFunction.apply(x, weight, eps, offset, casting_mode, in_place, row_mode)
