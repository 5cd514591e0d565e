"""GEGLU modules, shaped like the Hugging Face classes they stand in for."""

from torch import nn

from ..ops.geglu import LigerGELUMulFunction

__all__ = ["LigerGEGLUMLP"]
FUNCTIONAL = ("liger_geglu",)


def liger_geglu(a, b, approximate="tanh"):
    """c = gelu(a) * b, elementwise.

    a, b: one shape, any strides, float32, bfloat16, float16 (float64 on the CPU). Mixed dtypes promote as in
    torch. approximate: "tanh", "none" (the exact gelu, as torch names it) or "quick" (a sigmoid(1.702 a)).
    Raises RuntimeError naming the argument for a wrong device, dtype or shape, ValueError for an unknown
    `approximate`. Source: arXiv:1606.08415, arXiv:2002.05202.
    """
    return LigerGELUMulFunction.apply(a, b, approximate)


class LigerGEGLUMLP(nn.Module):
    """down_proj(gelu(gate_proj(x)) * up_proj(x)) with the tanh form of gelu, a stand-in for GemmaMLP.

    Reads `hidden_size` and `intermediate_size` of the config. x: (..., hidden_size). The config's activation
    is not checked, as upstream has it: Gemma's own configs name it in different ways.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        outer, inner = config.hidden_size, config.intermediate_size
        self.hidden_size, self.intermediate_size = outer, inner
        self.gate_proj = nn.Linear(outer, inner, bias=False)
        self.up_proj = nn.Linear(outer, inner, bias=False)
        self.down_proj = nn.Linear(inner, outer, bias=False)

    def forward(self, x):
        return self.down_proj(LigerGELUMulFunction.apply(self.gate_proj(x), self.up_proj(x)))
