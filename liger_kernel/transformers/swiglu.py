"""SwiGLU modules, shaped like the Hugging Face classes they stand in for."""

from torch import nn

from ..ops.swiglu import LigerFusedGateUpSiLUMulFunction, LigerSiLUMulFunction
from ._mlp import activation, gate_up_down

__all__ = [
    "LigerBlockSparseTop2MLP",
    "LigerFalconH1SwiGLUMLP",
    "LigerHunyuanV1SwiGLUMLP",
    "LigerPhi3SwiGLUMLP",
    "LigerQwen3MoeSwiGLUMLP",
    "LigerSwiGLUMLP",
    "LigerSwiGLUMLPForMuseGlimmer",
]
FUNCTIONAL = ("liger_swiglu",)
_SILU = {"silu": None, "swish": None}


def liger_swiglu(a, b):
    """c = silu(a) * b, elementwise.

    a, b: one shape, any strides, float32, bfloat16, float16 (float64 on the CPU). Mixed dtypes promote as in
    torch. Raises RuntimeError naming the argument for a wrong device, dtype or shape.
    Source: arXiv:2002.05202.
    """
    return LigerSiLUMulFunction.apply(a, b)


class LigerSwiGLUMLP(nn.Module):
    """down_proj(silu(gate_proj(x)) * up_proj(x)), a stand-in for LlamaMLP.

    Reads `hidden_size`, `intermediate_size` (unless given), the activation and, where the config has it,
    `mlp_bias`. x: (..., hidden_size). Raises ValueError unless the activation is "silu" or "swish".
    """

    def __init__(self, config, intermediate_size=None):
        super().__init__()
        activation(config, _SILU)
        gate_up_down(self, config, intermediate_size, bias=bool(getattr(config, "mlp_bias", False)))

    def forward(self, x):
        return self.down_proj(LigerSiLUMulFunction.apply(self.gate_proj(x), self.up_proj(x)))


class _WithoutBias(LigerSwiGLUMLP):
    """LigerSwiGLUMLP for Hugging Face classes that have no bias whatever the config says."""

    def __init__(self, config, intermediate_size=None):
        nn.Module.__init__(self)
        activation(config, _SILU)
        gate_up_down(self, config, intermediate_size)


class LigerSwiGLUMLPForMuseGlimmer(_WithoutBias):
    """A stand-in for MuseGlimmerTextMLP: the activation is `hidden_activation`, else `hidden_act`."""

    def __init__(self, config):
        super().__init__(config)


class LigerQwen3MoeSwiGLUMLP(_WithoutBias):
    """A stand-in for Qwen3MoeMLP: the experts' width comes as `intermediate_size`."""


class LigerHunyuanV1SwiGLUMLP(_WithoutBias):
    """A stand-in for HunYuanDenseV1MLP and HunYuanMoEV1MLP, whose two further arguments change nothing."""

    def __init__(self, config, layer_idx=None, is_shared_mlp=False):
        super().__init__(config)
        self.layer_idx, self.is_shared_mlp = layer_idx, is_shared_mlp


class LigerFalconH1SwiGLUMLP(nn.Module):
    """down_proj(silu(g gate_proj(x)) * up_proj(x)) d with g, d = config.mlp_multipliers: FalconH1MLP.

    Reads `hidden_size`, `intermediate_size`, `mlp_bias`, `mlp_multipliers` and the activation. The kernel
    multiplies by d, unless down_proj has a bias: then it comes last. Raises ValueError unless the activation
    is "silu" or "swish".
    """

    def __init__(self, config):
        super().__init__()
        activation(config, _SILU)
        gate_up_down(self, config, bias=config.mlp_bias)
        self.gate_multiplier, self.down_multiplier = config.mlp_multipliers

    def forward(self, x):
        inside = self.down_proj.bias is None
        multipliers = self.gate_multiplier, self.down_multiplier if inside else 1.0
        y = self.down_proj(LigerSiLUMulFunction.apply(self.gate_proj(x), self.up_proj(x), *multipliers))
        return y if inside else y * self.down_multiplier


class LigerBlockSparseTop2MLP(nn.Module):
    """w2(silu(w1(x)) * w3(x)), a stand-in for MixtralBlockSparseTop2MLP of transformers 4."""

    def __init__(self, config):
        super().__init__()
        activation(config, _SILU)
        self.ffn_dim = config.intermediate_size
        self.hidden_dim = config.hidden_size
        self.w1 = nn.Linear(self.hidden_dim, self.ffn_dim, bias=False)
        self.w2 = nn.Linear(self.ffn_dim, self.hidden_dim, bias=False)
        self.w3 = nn.Linear(self.hidden_dim, self.ffn_dim, bias=False)

    def forward(self, x):
        return self.w2(LigerSiLUMulFunction.apply(self.w1(x), self.w3(x)))


class LigerPhi3SwiGLUMLP(nn.Module):
    """down_proj(silu(gate) * up) with (gate, up) = gate_up_proj(x): a stand-in for Phi3MLP, Glm4MLP.

    The projection's result is read where it lies and its gradient is written in one piece.
    """

    def __init__(self, config):
        super().__init__()
        activation(config, _SILU)
        self.config = config
        self.hidden_size = config.hidden_size
        self.intermediate_size = config.intermediate_size
        self.gate_up_proj = nn.Linear(self.hidden_size, 2 * self.intermediate_size, bias=False)
        self.down_proj = nn.Linear(self.intermediate_size, self.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(LigerFusedGateUpSiLUMulFunction.apply(self.gate_up_proj(x)))
