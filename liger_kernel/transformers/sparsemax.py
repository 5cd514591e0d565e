"""Sparsemax as a function and as a module."""

from torch import nn

from ..ops.sparsemax import LigerSparsemaxFunction

__all__ = ["LigerSparsemax"]
FUNCTIONAL = ("liger_sparsemax",)


def liger_sparsemax(input, dim=-1):
    """y = max(input - tau, 0) with tau such that sum(y) = 1, over dimension `dim`.

    input: at least one dimension, any strides and sizes, float32, bfloat16, float16 (float64 on the CPU); y
    has its shape and dtype. Raises RuntimeError for a wrong dtype or rank, IndexError for a wrong `dim`.
    Source: arXiv:1602.02068.
    """
    return LigerSparsemaxFunction.apply(input, dim)


class LigerSparsemax(nn.Module):
    """`liger_sparsemax` over dimension `dim`."""

    def __init__(self, dim=-1):
        super().__init__()
        self.dim = dim

    def forward(self, x):
        return LigerSparsemaxFunction.apply(x, self.dim)

    def extra_repr(self):
        return f"dim={self.dim}"
