"""RMSNorm with a scale and a shift for groups of rows, as adaptive norms have them."""

import torch
from torch import nn

from ..ops.modulated_rms_norm import LigerModulatedRMSNormFunction

__all__ = ["LigerModulatedRMSNorm"]
FUNCTIONAL = ("liger_modulated_rms_norm",)


def liger_modulated_rms_norm(
    X, W, scale, shift=None, eps=1e-6, offset=0.0, casting_mode="llama", in_place=True
):
    """y = rms_norm(x) (w + offset) (1 + scale) + shift over the last dimension.

    X: (..., n_cols); W: (n_cols,) or None; scale: (..., n_cols), its number of rows a divisor of X's, each
    for as many neighbouring rows of X; shift: the same shape, or None. Each float32, bfloat16 or float16
    (float64 on the CPU). The result has X's dtype. `in_place` is accepted for compatibility. Raises
    RuntimeError naming the argument for a wrong device, dtype or size.
    Source: arXiv:2212.09748, arXiv:1910.07467.
    """
    return LigerModulatedRMSNormFunction.apply(X, W, scale, shift, eps, offset, casting_mode, in_place)


class LigerModulatedRMSNorm(nn.Module):
    """y = rms_norm(x) (weight + offset) (1 + scale) + shift; scale and shift come with each call.

    Arguments as LigerRMSNorm's. Raises ValueError for an unknown casting_mode or init_fn.
    """

    def __init__(
        self,
        hidden_size,
        eps=1e-6,
        offset=0.0,
        casting_mode="llama",
        init_fn="ones",
        in_place=True,
        elementwise_affine=True,
    ):
        super().__init__()
        for name, value, allowed in (
            ("casting_mode", casting_mode, ("llama", "gemma", "none")),
            ("init_fn", init_fn, ("ones", "zeros")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}, expected one of {', '.join(map(repr, allowed))}")
        weight = nn.Parameter(getattr(torch, init_fn)(hidden_size)) if elementwise_affine else None
        self.register_parameter("weight", weight)
        self.hidden_size, self.variance_epsilon, self.offset = hidden_size, eps, offset
        self.casting_mode, self.in_place = casting_mode, in_place

    def forward(self, hidden_states, scale, shift=None):
        options = self.variance_epsilon, self.offset, self.casting_mode, self.in_place
        return LigerModulatedRMSNormFunction.apply(hidden_states, self.weight, scale, shift, *options)

    def extra_repr(self):
        options = f"eps={self.variance_epsilon}, offset={self.offset}, casting_mode={self.casting_mode!r}"
        return f"{self.hidden_size}, {options}, weight={self.weight is not None}"
