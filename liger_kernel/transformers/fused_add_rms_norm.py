"""The residual add and the RMSNorm after it, in one module."""

import torch
from torch import nn

from ..ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction

__all__ = ["LigerFusedAddRMSNorm"]
FUNCTIONAL = ("liger_fused_add_rms_norm",)


def liger_fused_add_rms_norm(X, R, W, eps, offset=0.0, casting_mode="llama", in_place=True):
    """(y, s): s = x + r and y = s / sqrt(mean(s^2) + eps) * (w + offset) over the last dimension.

    X, R: (..., n_cols), float32, bfloat16, float16 (float64 on the CPU); W: (n_cols,) of any of these dtypes,
    or None. y and s have the dtype of x + r. casting_mode: see `liger_rms_norm`. `in_place` is accepted for
    compatibility; no input and no gradient is written to. Source: arXiv:1910.07467.
    """
    return LigerFusedAddRMSNormFunction.apply(X, R, W, eps, offset, casting_mode, in_place)


class LigerFusedAddRMSNorm(nn.Module):
    """(y, s) of (hidden_states, residual): s is their sum, y its RMSNorm times (weight + offset).

    hidden_size: size of the last dimension. init_fn: "ones" or "zeros" for the weight. casting_mode: "llama",
    "gemma" or "none" (see `liger_rms_norm`). `in_place`: accepted for compatibility. Raises ValueError for an
    unknown casting_mode or init_fn.
    """

    def __init__(
        self, hidden_size, eps=1e-6, offset=0.0, casting_mode="llama", init_fn="ones", in_place=False
    ):
        super().__init__()
        if init_fn not in ("ones", "zeros"):
            raise ValueError(f"init_fn is {init_fn!r}, expected 'ones' or 'zeros'")
        if casting_mode not in ("llama", "gemma", "none"):
            raise ValueError(f"casting_mode is {casting_mode!r}, expected 'llama', 'gemma' or 'none'")
        self.weight = nn.Parameter(getattr(torch, init_fn)(hidden_size))
        self.variance_epsilon, self.offset = eps, offset
        self.casting_mode, self.in_place = casting_mode, in_place

    def forward(self, hidden_states, residual):
        options = self.variance_epsilon, self.offset, self.casting_mode, self.in_place
        return LigerFusedAddRMSNormFunction.apply(hidden_states, residual, self.weight, *options)

    def extra_repr(self):
        options = f"offset={self.offset}, casting_mode={self.casting_mode!r}"
        return f"{tuple(self.weight.shape)}, eps={self.variance_epsilon}, {options}"
