"""Dynamic tanh, a norm's replacement without statistics."""

import torch
from torch import nn

from ..ops.dyt import LigerDyTFunction

__all__ = ["LigerDyT"]
FUNCTIONAL = ("liger_dyt",)


def liger_dyt(x, alpha, gamma, beta):
    """y = gamma * tanh(alpha * x) + beta over the last dimension.

    x: (..., n_cols); alpha: (1,); gamma: (n_cols,); beta: (n_cols,) or None; each float32, bfloat16 or
    float16 (float64 on the CPU). The result has the dtype of x. Raises RuntimeError naming the argument for a
    wrong device, dtype or size. Source: arXiv:2503.10622.
    """
    return LigerDyTFunction.apply(x, alpha, gamma, beta)


class LigerDyT(nn.Module):
    """y = gamma * tanh(alpha * x) + beta, in the place of a norm.

    hidden_size: size of the last dimension. beta: whether there is a shift. init_alpha: alpha at the start.
    Parameters: alpha (1,), gamma (hidden_size,) of ones, beta (hidden_size,) of zeros or None.
    """

    def __init__(self, hidden_size, beta=True, init_alpha=0.5):
        super().__init__()
        self.hidden_size, self.init_alpha = hidden_size, init_alpha
        self.alpha = nn.Parameter(torch.full((1,), float(init_alpha)))
        self.gamma = nn.Parameter(torch.ones(hidden_size))
        self.register_parameter("beta", nn.Parameter(torch.zeros(hidden_size)) if beta else None)

    def forward(self, x):
        return LigerDyTFunction.apply(x, self.alpha, self.gamma, self.beta)

    def extra_repr(self):
        return f"{self.hidden_size}, init_alpha={self.init_alpha}, beta={self.beta is not None}"
