"""Squared ReLU, shaped like ReLUSquaredActivation of Hugging Face (`ACT2FN["relu2"]`)."""

from torch import nn

from ..ops.relu_squared import LigerReLUSquaredFunction

__all__ = ["LigerReLUSquared"]
FUNCTIONAL = ("liger_relu_squared",)


def liger_relu_squared(x):
    """y = max(x, 0)^2, elementwise.

    x: any shape and strides, float32, bfloat16, float16 (float64 on the CPU). Raises RuntimeError naming the
    argument for a wrong device or dtype. Source: arXiv:2109.08668.
    """
    return LigerReLUSquaredFunction.apply(x)


class LigerReLUSquared(nn.Module):
    """y = max(x, 0)^2, a stand-in for ReLUSquaredActivation (Nemotron)."""

    def forward(self, x):
        return LigerReLUSquaredFunction.apply(x)
