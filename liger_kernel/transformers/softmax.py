"""Softmax as a function and as a module."""

from torch import nn

from ..ops.softmax import LigerSoftmaxFunction

__all__ = ["LigerSoftmax"]
FUNCTIONAL = ("liger_softmax",)


def liger_softmax(x, dim=-1):
    """y = exp(x - max(x)) / sum(exp(x - max(x))) over dimension `dim`.

    x: at least one dimension, any strides and sizes, float32, bfloat16, float16 (float64 on the CPU); y has
    its shape and dtype. Computed in fp32 and rounded once; NaN where torch.softmax is (a row of -inf alone,
    a NaN, +inf). Raises RuntimeError for a wrong dtype, rank or `dim`, naming the argument.
    Source: torch.softmax; arXiv:1805.02867.
    """
    return LigerSoftmaxFunction.apply(x, dim)


class LigerSoftmax(nn.Module):
    """`liger_softmax` over dimension `dim`, a stand-in for nn.Softmax."""

    def __init__(self, dim=-1):
        super().__init__()
        self.dim = dim

    def forward(self, x):
        return LigerSoftmaxFunction.apply(x, self.dim)

    def extra_repr(self):
        return f"dim={self.dim}"
