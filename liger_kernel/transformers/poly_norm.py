"""Polynomial normalisation, the activation of PolyCom."""

import torch
from torch import nn

from ..ops.poly_norm import LigerPolyNormFunction

__all__ = ["LigerPolyNorm"]
FUNCTIONAL = ("liger_poly_norm",)


def liger_poly_norm(X, W, B, eps=1e-6, in_place=True):
    """y = w0 n(x^3) + w1 n(x^2) + w2 n(x) + b,   n(u) = u / sqrt(mean(u^2) + eps) over the last dimension.

    X: (..., n_cols); W: (3,); B: one number, () or (1,); each float32, bfloat16 or float16 (float64 on the
    CPU). The result has X's dtype. `in_place` is accepted for compatibility; X and the incoming gradient are
    never written to. Raises RuntimeError naming the argument for a wrong device, dtype or size.
    Source: arXiv:2411.03884.
    """
    return LigerPolyNormFunction.apply(X, W, B, eps, in_place)


class LigerPolyNorm(nn.Module):
    """y = w0 n(x^3) + w1 n(x^2) + w2 n(x) + b with n as in `liger_poly_norm`.

    Parameters: weight (3,), each 1/3 at the start, and bias, one number, 1 at the start. `in_place`: accepted
    for compatibility.
    """

    def __init__(self, eps=1e-6, in_place=True):
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), 1.0 / 3.0))
        self.bias = nn.Parameter(torch.tensor(1.0))
        self.variance_epsilon, self.in_place = eps, in_place

    def forward(self, hidden_states):
        options = self.variance_epsilon, self.in_place
        return LigerPolyNormFunction.apply(hidden_states, self.weight, self.bias, *options)

    def extra_repr(self):
        return f"{tuple(self.weight.shape)}, eps={self.variance_epsilon}"
