"""What the norms promise beyond their `OpSpec`s: modules, and sums normalised as they are stored."""

import copy
import importlib
import pickle

import pytest
import torch

from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction
from liger_kernel.transformers import rms_norm
from liger_kernel.transformers.functional import liger_fused_add_rms_norm, liger_layer_norm, liger_rms_norm
from liger_kernel.transformers.fused_add_rms_norm import LigerFusedAddRMSNorm
from liger_kernel.transformers.group_norm import LigerGroupNorm
from liger_kernel.transformers.layer_norm import LigerLayerNorm

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def same_module(module):
    """A deep copy and a pickled copy have the module's parameters, text and results."""
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert repr(other) == repr(module)
        assert list(other.state_dict()) == list(module.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(other.parameters(), module.parameters(), strict=True))
        yield other


# ---- fused_add_rms_norm ------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", DTYPES)
def test_fused_add_normalises_the_stored_sum(dtype, device):
    """s is x + r to the bit, and y is rms_norm of that s to the bit, so that fusing changes no model."""
    x, r, w = (torch.randn(n, device=device).to(dtype) for n in [(37, 264), (37, 264), 264])
    for casting in ("llama", "gemma", "none"):
        y, s = liger_fused_add_rms_norm(x, r, w, 1e-6, 0.0, casting)
        assert torch.equal(s, x + r)
        torch.testing.assert_close(y, liger_rms_norm(s, w, 1e-6, 0.0, casting), rtol=1e-6, atol=0)


@pytest.mark.parametrize("missing", ["y", "s"])
def test_fused_add_gradient_of_one_output(missing, device):
    """An output that nobody uses has no gradient: the other one's is right on its own."""
    x, r = (torch.randn(5, 40, device=device, dtype=torch.float32, requires_grad=True) for _ in range(2))
    w = torch.randn(40, device=device, requires_grad=True)
    y, s = LigerFusedAddRMSNormFunction.apply(x, r, w, 1e-6)
    g = torch.randn_like(y)
    if missing == "y":
        dx, dr, dw = torch.autograd.grad(s, (x, r, w), g, allow_unused=True)
        assert torch.equal(dx, g) and torch.equal(dr, g) and not dw.any()
        return
    dx, dr, dw = torch.autograd.grad(y, (x, r, w), g)
    want = torch.autograd.grad(liger_rms_norm(x + r, w, 1e-6), (x, r, w), g)
    for a, b in zip((dx, dr, dw), want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_fused_add_gradients_are_separate_leaves(device):
    """dX and dR are equal, but adding into one .grad must not change the other."""
    x, r = (torch.randn(5, 40, device=device, requires_grad=True) for _ in range(2))
    w = torch.randn(40, device=device, requires_grad=True)
    for _ in range(2):
        y, s = LigerFusedAddRMSNormFunction.apply(x, r, w, 1e-6)
        (y.sum() + s.pow(2).sum()).backward()
        x.grad.mul_(2.0)
    torch.testing.assert_close(x.grad, 3.0 * r.grad)


def test_fused_add_module(device):
    module = LigerFusedAddRMSNorm(48, eps=1e-5, offset=1.0, casting_mode="gemma", init_fn="zeros").to(device)
    assert list(module.state_dict()) == ["weight"]
    x, r = torch.randn(2, 3, 48, device=device), torch.randn(2, 3, 48, device=device)
    y, s = module(x, r)
    torch.testing.assert_close(s, x + r, rtol=0, atol=0)
    torch.testing.assert_close(y, torch.nn.functional.rms_norm(x + r, (48,), eps=1e-5))
    for other in same_module(module):
        assert torch.equal(other(x, r)[0], y)
    with pytest.raises(ValueError, match="casting_mode is 'bert', expected"):
        LigerFusedAddRMSNorm(48, casting_mode="bert")
    with pytest.raises(ValueError, match="init_fn is 'random', expected"):
        LigerFusedAddRMSNorm(48, init_fn="random")


# ---- layer_norm --------------------------------------------------------------------------------------------
def test_layer_norm_module_stands_in_for_torchs(device):
    ours, theirs = LigerLayerNorm(48, eps=1e-5).to(device), torch.nn.LayerNorm(48, eps=1e-5).to(device)
    x = torch.randn(2, 3, 48, device=device)
    torch.testing.assert_close(ours(x), theirs(x))
    with torch.no_grad():
        theirs.weight.normal_(), theirs.bias.normal_()
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(x), theirs(x))
    for other in same_module(ours):
        assert torch.equal(other(x), ours(x))
    torch.testing.assert_close(liger_layer_norm(x, ours.weight, None, 1e-5), theirs(x) - theirs.bias)


def test_layer_norm_module_has_one_implementation():
    assert LigerLayerNorm(8, impl="liger", mode="default").backend == "liger"
    for name in ("impl", "mode", "backend"):
        with pytest.raises(ValueError, match=f"{name} is 'nvidia-cutedsl', expected"):
            LigerLayerNorm(8, **{name: "nvidia-cutedsl"})


def test_layer_norm_wrong_width_names_it(device):
    with pytest.raises(RuntimeError, match=r"weight has shape \(8,\), expected \(9,\)"):
        LigerLayerNorm(8).to(device)(torch.randn(3, 9, device=device))


# ---- group_norm --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(2, 12, 7), (2, 12, 3, 5), (1, 12, 2, 3, 4)], ids=str)
def test_group_norm_module_stands_in_for_torchs(shape, device):
    ours, theirs = LigerGroupNorm(12, 4, eps=1e-5).to(device), torch.nn.GroupNorm(4, 12, eps=1e-5).to(device)
    with torch.no_grad():
        theirs.weight.normal_(), theirs.bias.normal_()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(shape, device=device)
    torch.testing.assert_close(ours(x), theirs(x))
    for other in same_module(ours):
        assert torch.equal(other(x), ours(x))


def test_group_norm_module_errors(device):
    with pytest.raises(ValueError, match="num_groups is 5, expected a divisor of num_channels, 12"):
        LigerGroupNorm(12, 5)
    with pytest.raises(ValueError, match=r"X has 8 channels \(dimension 1\), expected num_channels, 12"):
        LigerGroupNorm(12, 4).to(device)(torch.randn(2, 8, 3, device=device))


# ---- RMSNorm modules ---------------------------------------------------------------------------------------
# our class: (module of transformers.models, its class)
HUGGING_FACE = {
    "LigerRMSNorm": ("llama", "LlamaRMSNorm"),
    "LigerRMSNormForGemma": ("gemma", "GemmaRMSNorm"),
    "LigerRMSNormForGemma2": ("gemma2", "Gemma2RMSNorm"),
    "LigerRMSNormForGemma3": ("gemma3", "Gemma3RMSNorm"),
    "LigerRMSNormForGemma4": ("gemma4", "Gemma4RMSNorm"),
    "LigerRMSNormForGlm4": ("glm4", "Glm4RMSNorm"),
    "LigerRMSNormForMuseGlimmer": ("muse_glimmer", "MuseGlimmerRMSNorm"),
    "LigerRMSNormForMuseGlimmerTextCentered": ("muse_glimmer", "MuseGlimmerTextCenteredRMSNorm"),
    "LigerRMSNormForOlmo2": ("olmo2", "Olmo2RMSNorm"),
    "LigerRMSNormForQwen3Next": ("qwen3_next", "Qwen3NextRMSNorm"),
}
every_class = pytest.mark.parametrize("name", HUGGING_FACE)


def hugging_face(name):
    """The class that `name` stands in for, if this version of transformers has it."""
    folder, cls = HUGGING_FACE[name]
    try:
        module = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
    except ModuleNotFoundError as error:
        pytest.skip(f"no {folder} here: {error}")
    return getattr(module, cls)


def test_every_class_has_its_hugging_face_class():
    assert set(HUGGING_FACE) == set(rms_norm.__all__)


def gradients(module, x, g):
    x = x.detach().requires_grad_()
    y = module(x)
    return y, *torch.autograd.grad(y, [x, *module.parameters()], g)


@pytest.mark.parametrize("dtype", DTYPES)
@every_class
def test_rms_norm_class_is_hugging_faces(name, dtype, device):
    """A fresh module gives what a fresh one of Hugging Face's does, and with its weights so does every
    gradient, to a rounding: the casting mode may be upstream's and not Hugging Face's (Olmo 2)."""
    theirs = hugging_face(name)(72, eps=1e-5).to(device, dtype)
    ours = getattr(rms_norm, name)(72, eps=1e-5).to(device, dtype)
    x = torch.randn(4, 9, 72, device=device).to(dtype)
    g = torch.randn(4, 9, 72, device=device).to(dtype)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(ours(x), theirs(x), rtol=2 * eps, atol=2 * eps)
    with torch.no_grad():
        theirs.weight.add_(torch.randn(72, device=device).to(dtype) / 2)
    ours.load_state_dict(theirs.state_dict())
    assert {k: v.dtype for k, v in ours.state_dict().items()} == {
        k: v.dtype for k, v in theirs.state_dict().items()
    }
    for mine, wanted in zip(gradients(ours, x, g), gradients(theirs, x, g), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=4 * eps, atol=4 * eps * wanted.abs().max().item())


@every_class
def test_rms_norm_class_copies_and_prints(name, device):
    module = getattr(rms_norm, name)(48, eps=1e-5).to(device)
    x = torch.randn(3, 48, device=device)
    for other in same_module(module):
        assert torch.equal(other(x), module(x))
    assert "(48,)" in repr(module) and "eps=1e-05" in repr(module)


@pytest.mark.parametrize("name", ["LigerRMSNormForGemma4", "LigerRMSNormForMuseGlimmer"])
def test_rms_norm_without_scale(name, device):
    theirs = hugging_face(name)(48, with_scale=False)
    ours = getattr(rms_norm, name)(48, with_scale=False)
    assert not list(ours.state_dict()) and not list(ours.parameters())
    ours.load_state_dict(theirs.state_dict())
    for dtype in DTYPES:
        x = torch.randn(4, 9, 48, device=device).to(dtype)
        torch.testing.assert_close(ours(x), theirs(x))
        mine, wanted = (gradients(m, x, torch.ones_like(x) + x.abs()) for m in (ours, theirs))
        torch.testing.assert_close(mine[1], wanted[1])
    for other in same_module(ours):
        assert torch.equal(other(x), ours(x))
    assert "no weight" in repr(ours)


def test_muse_glimmer_without_dim(device):
    x = torch.randn(3, 40, device=device)
    norm = rms_norm.LigerRMSNormForMuseGlimmer(with_scale=False)
    torch.testing.assert_close(norm(x), torch.nn.functional.rms_norm(x, (40,), eps=1e-6))
    with pytest.raises(ValueError, match="dim is None, expected"):
        rms_norm.LigerRMSNormForMuseGlimmer()


@every_class
def test_rms_norm_class_checks_its_options(name):
    for option in ({"casting_mode": "bert"}, {"init_fn": "random"}):
        (key, value), cls = *option.items(), getattr(rms_norm, name)
        with pytest.raises(ValueError, match=f"{key} is '{value}', expected"):
            cls(8, **option)
