"""`fused_add_rms_norm` with a choice of implementation."""

from ..ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction
from ._operator import operator

__all__ = ["fused_add_rms_norm"]


@operator
def fused_add_rms_norm(
    X,
    R,
    W,
    eps=1e-6,
    offset=0.0,
    casting_mode="llama",
    in_place=False,
    *,
    impl=None,
    mode=None,
    backend=None,
):
    """(Y, S): S = X + R, Y = its RMS norm times (W + offset). See `LigerFusedAddRMSNormFunction`."""
    return LigerFusedAddRMSNormFunction.apply(X, R, W, eps, offset, casting_mode, in_place)
