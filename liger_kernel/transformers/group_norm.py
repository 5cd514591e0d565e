"""A GroupNorm module, shaped like Liger Kernel's and usable in place of torch.nn.GroupNorm."""

import torch
from torch import nn

from ..ops.group_norm import LigerGroupNormFunction

__all__ = ["LigerGroupNorm"]
FUNCTIONAL = ("liger_group_norm",)


def liger_group_norm(X, affine_scaling_weight, affine_shifting_bias, num_channels, num_groups, eps):
    """y = (x - mean) / sqrt(var + eps) * w + b, statistics over num_channels / num_groups channels.

    X: (batch, num_channels, ...), three or more dimensions, float32, bfloat16, float16 (float64 on the CPU);
    weight and bias: (num_channels,) of any of these dtypes, or None. The result has X's dtype. Raises
    ValueError if X has not num_channels channels. Source: arXiv:1803.08494.
    """
    return LigerGroupNormFunction.apply(
        X, affine_scaling_weight, affine_shifting_bias, num_channels, num_groups, eps
    )


class LigerGroupNorm(nn.Module):
    """y = (x - mean) / sqrt(var + eps) * weight + bias per group of channels, with nn.GroupNorm's state_dict.

    num_channels, num_groups: as nn.GroupNorm's, in upstream's order; num_groups divides num_channels.
    init_fn: "ones" or "zeros" for the weight. There is always a trainable bias, zeros at the start, whatever
    `bias` says (upstream's state_dict has it too). Raises ValueError for another init_fn or number of groups,
    and for an input of other than num_channels channels.
    """

    def __init__(self, num_channels, num_groups, eps=1e-6, bias=False, init_fn="ones"):
        super().__init__()
        if init_fn not in ("ones", "zeros"):
            raise ValueError(f"init_fn is {init_fn!r}, expected 'ones' or 'zeros'")
        if num_groups < 1 or num_channels % num_groups:
            raise ValueError(
                f"num_groups is {num_groups}, expected a divisor of num_channels, {num_channels}"
            )
        self.num_channels, self.num_groups, self.eps = num_channels, num_groups, eps
        self.weight = nn.Parameter(getattr(torch, init_fn)(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.variance_epsilon = eps

    def forward(self, hidden_states):
        sizes = self.num_channels, self.num_groups
        return LigerGroupNormFunction.apply(
            hidden_states, self.weight, self.bias, *sizes, self.variance_epsilon
        )

    def extra_repr(self):
        return f"{self.num_groups}, {self.num_channels}, eps={self.variance_epsilon}"
