"""The gated MLPs against the Hugging Face classes they stand in for, each on its own tiny configuration.

Hugging Face's class in float64 is the truth, in the tested dtype it is the bar. Where this transformers has
no such class (MixtralBlockSparseTop2MLP left with 5.0, MuseGlimmer came later) the row is skipped.
"""

import copy
import importlib
import pickle

import pytest
import torch

from liger_kernel import _check as C
from liger_kernel import transformers as liger

pytest.importorskip("transformers")
SIZES = dict(hidden_size=64, intermediate_size=72, num_hidden_layers=4)
GEMMA4 = dict(
    num_kv_shared_layers=2, use_double_wide_mlp=True, layer_types=["sliding_attention", "full_attention"] * 2
)

# ours, Hugging Face's folder, configuration, class; more of the configuration; more arguments of the layer
ROWS = [
    ("LigerSwiGLUMLP", "llama", "LlamaConfig", "LlamaMLP", {}, {}),
    ("LigerSwiGLUMLP", "llama", "LlamaConfig", "LlamaMLP", {"mlp_bias": True}, {}),
    ("LigerSwiGLUMLP", "qwen3", "Qwen3Config", "Qwen3MLP", {"hidden_act": "swish"}, {}),
    ("LigerSwiGLUMLP", "deepseek_v3", "DeepseekV3Config", "DeepseekV3MLP", {}, {"intermediate_size": 40}),
    ("LigerBlockSparseTop2MLP", "mixtral", "MixtralConfig", "MixtralBlockSparseTop2MLP", {}, {}),
    ("LigerPhi3SwiGLUMLP", "phi3", "Phi3Config", "Phi3MLP", {"pad_token_id": 0}, {}),
    ("LigerPhi3SwiGLUMLP", "glm4", "Glm4Config", "Glm4MLP", {"pad_token_id": 0}, {}),
    ("LigerQwen3MoeSwiGLUMLP", "qwen3_moe", "Qwen3MoeConfig", "Qwen3MoeMLP", {}, {"intermediate_size": 40}),
    ("LigerHunyuanV1SwiGLUMLP", "hunyuan_v1_dense", "HunYuanDenseV1Config", "HunYuanDenseV1MLP", {}, {}),
    ("LigerHunyuanV1SwiGLUMLP", "hunyuan_v1_moe", "HunYuanMoEV1Config", "HunYuanMoEV1MLP", {}, {}),
    *(
        ("LigerFalconH1SwiGLUMLP", "falcon_h1", "FalconH1Config", "FalconH1MLP", more, {})
        for more in ({"mlp_multipliers": [0.7, 1.3]}, {"mlp_multipliers": [0.7, 1.3], "mlp_bias": True})
    ),
    ("LigerSwiGLUMLPForMuseGlimmer", "muse_glimmer", "MuseGlimmerTextConfig", "MuseGlimmerTextMLP", {}, {}),
    ("LigerGEGLUMLP", "gemma", "GemmaConfig", "GemmaMLP", {}, {}),
    ("LigerGEGLUMLP", "gemma", "GemmaConfig", "GemmaMLP", {"hidden_act": "gelu_new"}, {}),
    *(
        ("LigerGEGLUMLP", "gemma2", "Gemma2Config", "Gemma2MLP", {"hidden_activation": name}, {})
        for name in ("gelu_pytorch_tanh", "gelu", "quick_gelu", "gelu_fast")
    ),
    ("LigerGEGLUMLP", "gemma3", "Gemma3TextConfig", "Gemma3MLP", {}, {}),
    ("LigerGEGLUMLPForGemma4", "gemma4", "Gemma4TextConfig", "Gemma4TextMLP", GEMMA4, {"layer_idx": 1}),
    ("LigerGEGLUMLPForGemma4", "gemma4", "Gemma4TextConfig", "Gemma4TextMLP", GEMMA4, {"layer_idx": 2}),
]


def pair(row, dtype=torch.float32, device="cpu"):
    """(ours, Hugging Face's) with the same weights."""
    ours, folder, config, layer, more, arguments = row
    try:
        configuration = importlib.import_module(f"transformers.models.{folder}.configuration_{folder}")
        modeling = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
        config, layer = getattr(configuration, config), getattr(modeling, layer)
    except (ImportError, AttributeError):
        pytest.skip(f"this transformers has no {layer}")
    config = config(**SIZES, **more)
    torch.manual_seed(1)
    theirs = layer(config, **arguments)
    mine = getattr(liger, ours)(config, **arguments)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    mine.load_state_dict(theirs.state_dict())  # the names, the shapes
    return mine.to(device, dtype), theirs.to(device, dtype)


def rows(test):
    names = ["-".join([r[0], r[1], *map(str, (*r[4].values(), *r[5].values()))][:4]) for r in ROWS]
    return pytest.mark.parametrize("row", ROWS, ids=names)(test)


def run(layer, x, gradient):
    x = x.detach().clone().requires_grad_()
    out = layer(x)
    parameters = dict(layer.named_parameters())
    grads = torch.autograd.grad(out, [x, *parameters.values()], gradient)
    return {"out": out, "dx": grads[0], **{f"d{k}": g for k, g in zip(parameters, grads[1:])}}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@rows
def test_mlp_equals_hugging_face(row, dtype, device):
    mine, theirs = pair(row, dtype, device)
    x = torch.randn(2, 37, SIZES["hidden_size"], device=device).to(dtype)
    gradient = torch.randn(x.shape, device=device).to(dtype)
    got, eager = run(mine, x, gradient), run(theirs, x, gradient)
    truth = run(copy.deepcopy(theirs).double(), x.double(), gradient.double())
    assert got.keys() == eager.keys()
    for name, value in got.items():
        assert value.dtype == eager[name].dtype and value.shape == eager[name].shape
        a, b = (C.measures(t, truth[name], dtype, False) for t in (value, eager[name]))
        for measure, error in a.items():
            bar = b[measure] + (4 if measure == "max" else 1) * torch.finfo(dtype).eps
            assert error <= bar, f"{name}, {measure}: {error:.3e} above {bar:.3e}"


@rows
def test_mlp_copies_and_pickles(row, device):
    mine, theirs = pair(row, device=device)
    x = torch.randn(3, SIZES["hidden_size"], device=device)
    assert list(mine.state_dict()) == list(theirs.state_dict())
    for other in (copy.deepcopy(mine), pickle.loads(pickle.dumps(mine))):
        assert C.same_bits(other(x), mine(x))


@rows
def test_unsupported_activation_is_refused(row, device):
    ours, folder, config, layer, more, arguments = row
    mine, theirs = pair(row)
    config = copy.deepcopy(mine.config if hasattr(mine, "config") else _config_of(row))
    key = "hidden_activation" if getattr(config, "hidden_activation", None) else "hidden_act"
    setattr(config, key, "relu")
    supported = "'gelu_pytorch_tanh', .* or 'quick_gelu'" if "GEGLU" in ours else "'silu' or 'swish'"
    with pytest.raises(ValueError, match=f"{key} of .* is 'relu', expected {supported}"):
        getattr(liger, ours)(config, **arguments)


def _config_of(row):
    configuration = importlib.import_module(f"transformers.models.{row[1]}.configuration_{row[1]}")
    return getattr(configuration, row[2])(**SIZES, **row[4])


def test_relu_squared_equals_hugging_face(device):
    from transformers.activations import ACT2FN

    x = torch.randn(5, 7, device=device)
    assert C.same_bits(liger.LigerReLUSquared()(x), ACT2FN["relu2"](x))


@pytest.mark.parametrize("beta", [True, False])
def test_dyt_module(beta, device):
    layer = liger.LigerDyT(7, beta=beta, init_alpha=0.25).to(device)
    x = torch.randn(5, 7, device=device)
    torch.testing.assert_close(layer(x), torch.tanh(0.25 * x), rtol=1e-6, atol=1e-6)
    assert list(layer.state_dict()) == ["alpha", "gamma", "beta"][: 3 if beta else 2]
    assert "init_alpha=0.25" in repr(layer)
