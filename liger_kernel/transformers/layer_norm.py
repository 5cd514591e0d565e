"""A LayerNorm module, shaped like Liger Kernel's and usable in place of torch.nn.LayerNorm."""

import torch
from torch import nn

from ..ops.layer_norm import LigerLayerNormFunction

__all__ = ["LigerLayerNorm"]
FUNCTIONAL = ("liger_layer_norm",)


def liger_layer_norm(X, W, B, eps):
    """y = (x - mean) / sqrt(var + eps) * w + b over the last dimension.

    X: (..., n_cols), float32, bfloat16, float16 (float64 on the CPU); W, B: (n_cols,) of any of these dtypes,
    or None. Statistics are fp32; the result has X's dtype. Source: arXiv:1607.06450.
    """
    return LigerLayerNormFunction.apply(X, W, B, eps)


def _one_implementation(name, value):
    if value not in (None, "liger", "default"):
        raise ValueError(
            f"{name} is {value!r}, expected None, 'liger' or 'default': there is one implementation here"
        )
    return value


class LigerLayerNorm(nn.Module):
    """y = (x - mean) / sqrt(var + eps) * weight + bias, with nn.LayerNorm's state_dict.

    hidden_size: size of the last dimension. init_fn: "ones" or "zeros" for the weight. There is always a
    trainable bias, zeros at the start, whatever `bias` says (upstream's state_dict has it too). `impl`,
    `mode`, `backend`: None, "liger" or "default". Raises ValueError for another of these, for an unknown
    init_fn, and for an input whose last size is not hidden_size.
    """

    def __init__(self, hidden_size, eps=1e-6, bias=False, init_fn="ones", impl=None, mode=None, backend=None):
        super().__init__()
        if init_fn not in ("ones", "zeros"):
            raise ValueError(f"init_fn is {init_fn!r}, expected 'ones' or 'zeros'")
        self.hidden_size, self.eps = hidden_size, eps
        self.weight = nn.Parameter(getattr(torch, init_fn)(hidden_size))
        self.bias = nn.Parameter(torch.zeros(hidden_size))
        self.variance_epsilon = eps
        self.impl = _one_implementation("impl", impl) or _one_implementation("backend", backend)
        self.mode = _one_implementation("mode", mode)

    @property
    def backend(self):
        """Another name of `impl`."""
        return self.impl

    @backend.setter
    def backend(self, value):
        self.impl = _one_implementation("backend", value)

    def forward(self, hidden_states):
        return LigerLayerNormFunction.apply(hidden_states, self.weight, self.bias, self.variance_epsilon)

    def extra_repr(self):
        return f"{self.hidden_size}, eps={self.variance_epsilon}"
