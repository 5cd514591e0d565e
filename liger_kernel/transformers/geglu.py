"""GEGLU modules, shaped like the Hugging Face classes they stand in for."""

from torch import nn

from ..ops.geglu import LigerGELUMulFunction
from ._mlp import activation, gate_up_down

__all__ = ["LigerGEGLUMLP", "LigerGEGLUMLPForGemma4"]
FUNCTIONAL = ("liger_geglu",)


def liger_geglu(a, b, approximate="tanh"):
    """c = gelu(a) * b, elementwise.

    a, b: one shape, any strides, float32, bfloat16, float16 (float64 on the CPU). Mixed dtypes promote as in
    torch. approximate: "tanh", "none" (the exact gelu, as torch names it) or "quick" (a sigmoid(1.702 a)).
    Raises RuntimeError naming the argument for a wrong device, dtype or shape, ValueError for an unknown
    `approximate`. Source: arXiv:1606.08415, arXiv:2002.05202.
    """
    return LigerGELUMulFunction.apply(a, b, approximate)


# the names of Hugging Face's activations, and what `liger_geglu` calls each
_GELU = {
    "gelu_pytorch_tanh": "tanh",
    "gelu_python_tanh": "tanh",
    "gelu_new": "tanh",
    "gelu_fast": "tanh",
    "gelu_accurate": "tanh",
    "gelu": "none",
    "gelu_python": "none",
    "quick_gelu": "quick",
}


class LigerGEGLUMLP(nn.Module):
    """down_proj(gelu(gate_proj(x)) * up_proj(x)), a stand-in for GemmaMLP, Gemma2MLP, Gemma3MLP.

    Reads `hidden_size`, `intermediate_size` and the activation: `hidden_activation` where the config has it,
    else `hidden_act`. x: (..., hidden_size). Raises ValueError for an activation that is no gelu, with the
    names of those that are.
    """

    def __init__(self, config):
        super().__init__()
        self.approximate = activation(config, _GELU)
        gate_up_down(self, config)

    def forward(self, x):
        # a patched module of Hugging Face's has no such attribute; only the tanh form is patched
        approximate = getattr(self, "approximate", "tanh")
        return self.down_proj(LigerGELUMulFunction.apply(self.gate_proj(x), self.up_proj(x), approximate))


class LigerGEGLUMLPForGemma4(LigerGEGLUMLP):
    """A stand-in for Gemma4TextMLP: twice as wide in layers that reuse another layer's keys and values, where
    the config's `use_double_wide_mlp` says so.

    layer_idx: the layer's number; None: none of those layers.
    """

    def __init__(self, config, layer_idx=None):
        nn.Module.__init__(self)
        self.approximate = activation(config, _GELU)
        double = getattr(config, "use_double_wide_mlp", False) and _reuses_keys(config, layer_idx)
        gate_up_down(self, config, config.intermediate_size * (2 if double else 1))


def _reuses_keys(config, layer_idx):
    if layer_idx is None:
        return False
    n_shared = getattr(config, "num_kv_shared_layers", 0) or 0
    return n_shared > 0 and layer_idx >= config.num_hidden_layers - n_shared
