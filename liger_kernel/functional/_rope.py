"""`rope` with a choice of implementation."""

from ..ops.rope import LigerRopeFunction
from ._operator import operator

__all__ = ["rope"]


@operator
def rope(q, k, cos, sin, position_ids=None, unsqueeze_dim=1, *, impl=None, mode=None, backend=None):
    """(q, k) rotated by the tables' angles: see `LigerRopeFunction`."""
    return LigerRopeFunction.apply(q, k, cos, sin, position_ids, unsqueeze_dim)
