"""`layer_norm` with a choice of implementation."""

import torch

from ..ops.layer_norm import LigerLayerNormFunction
from ._operator import operator

__all__ = ["layer_norm"]


@operator
def layer_norm(x, weight, bias=None, eps=1e-6, *, impl=None, mode=None, backend=None):
    """y = (x - mean) / sqrt(var + eps) * weight + bias; no bias: zeros. See `LigerLayerNormFunction`."""
    bias = torch.zeros_like(weight) if bias is None else bias
    return LigerLayerNormFunction.apply(x, weight, bias, eps)
