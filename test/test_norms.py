"""What the norms promise beyond their `OpSpec`s: modules, and sums normalised as they are stored."""

import copy
import pickle

import pytest
import torch

from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction
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
