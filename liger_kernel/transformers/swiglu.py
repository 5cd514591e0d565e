"""SwiGLU modules, shaped like the Hugging Face classes they stand in for."""

from torch import nn

from ..ops.swiglu import LigerSiLUMulFunction

__all__ = ["LigerSwiGLUMLP", "LigerBlockSparseTop2MLP", "LigerPhi3SwiGLUMLP", "LigerQwen3MoeSwiGLUMLP"]
FUNCTIONAL = ("liger_swiglu",)


def liger_swiglu(a, b):
    """c = silu(a) * b, elementwise.

    a, b: one shape, any strides, float32, bfloat16, float16 (float64 on the CPU). Mixed dtypes promote as in
    torch. Raises RuntimeError naming the argument for a wrong device, dtype or shape.
    Source: arXiv:2002.05202.
    """
    return LigerSiLUMulFunction.apply(a, b)


def _check_silu(config):
    if config.hidden_act not in ("silu", "swish"):
        raise ValueError(f"hidden_act is {config.hidden_act!r}, expected 'silu' or 'swish'")


class LigerSwiGLUMLP(nn.Module):
    """down_proj(silu(gate_proj(x)) * up_proj(x)), a stand-in for LlamaMLP.

    Reads `hidden_size`, `intermediate_size` (unless given), `hidden_act` and, where the config has it,
    `mlp_bias`. x: (..., hidden_size). Raises ValueError unless hidden_act is "silu" or "swish".
    """

    def __init__(self, config, intermediate_size=None):
        super().__init__()
        _check_silu(config)
        bias = bool(getattr(config, "mlp_bias", False))
        self.config = config
        self.hidden_size = config.hidden_size
        self.intermediate_size = config.intermediate_size if intermediate_size is None else intermediate_size
        self.gate_proj = nn.Linear(self.hidden_size, self.intermediate_size, bias=bias)
        self.up_proj = nn.Linear(self.hidden_size, self.intermediate_size, bias=bias)
        self.down_proj = nn.Linear(self.intermediate_size, self.hidden_size, bias=bias)

    def forward(self, x):
        return self.down_proj(LigerSiLUMulFunction.apply(self.gate_proj(x), self.up_proj(x)))


class LigerQwen3MoeSwiGLUMLP(LigerSwiGLUMLP):
    """LigerSwiGLUMLP, a stand-in for Qwen3MoeMLP: the experts' width comes as `intermediate_size`."""


class LigerBlockSparseTop2MLP(nn.Module):
    """w2(silu(w1(x)) * w3(x)), a stand-in for MixtralBlockSparseTop2MLP of transformers 4."""

    def __init__(self, config):
        super().__init__()
        _check_silu(config)
        self.ffn_dim = config.intermediate_size
        self.hidden_dim = config.hidden_size
        self.w1 = nn.Linear(self.hidden_dim, self.ffn_dim, bias=False)
        self.w2 = nn.Linear(self.ffn_dim, self.hidden_dim, bias=False)
        self.w3 = nn.Linear(self.hidden_dim, self.ffn_dim, bias=False)

    def forward(self, x):
        return self.w2(LigerSiLUMulFunction.apply(self.w1(x), self.w3(x)))


class LigerPhi3SwiGLUMLP(nn.Module):
    """down_proj(silu(gate) * up) with (gate, up) = gate_up_proj(x): a stand-in for Phi3MLP, Glm4MLP."""

    def __init__(self, config):
        super().__init__()
        _check_silu(config)
        self.config = config
        self.hidden_size = config.hidden_size
        self.intermediate_size = config.intermediate_size
        self.gate_up_proj = nn.Linear(self.hidden_size, 2 * self.intermediate_size, bias=False)
        self.down_proj = nn.Linear(self.intermediate_size, self.hidden_size, bias=False)

    def forward(self, x):
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(LigerSiLUMulFunction.apply(gate, up))
