"""fused_linear_cross_entropy by blocks of the vocabulary: the same results as by blocks of tokens."""

import pytest
import torch

from liger_kernel import _check as C
from liger_kernel.ops import SPECS
from liger_kernel.ops.linear_loss import force_loop_order, plan
from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

N, H, V = 37, 24, 701
FLAGS = dict(return_z_loss=True, return_token_accuracy=True, return_predicted_tokens=True)
OPTIONS = {
    "mean": {},
    "none": dict(reduction="none"),
    "smoothing": dict(label_smoothing=0.1, lse_square_scale=0.01, **FLAGS),
    "weights": dict(label_smoothing=0.1, reduction="sum", ce_weight=True),
    "softcap": dict(softcap=3.0, use_token_scaling=True, **FLAGS),
    "no_bias": dict(bias=False),
}


def draw(dtype, device, w_dtype=None, grad=(True, True)):
    x = torch.randn(N, H).to(device, dtype).requires_grad_(grad[0])
    w = (torch.randn(V, H) * H**-0.5).to(device, w_dtype or dtype).requires_grad_(grad[1])
    y = torch.randint(V, (N,)).to(device)
    y[3], y[-1], y[0], y[1] = -100, V - 1, 0, 255
    return x, w, y


def run(order, x, w, y, size, bias=True, ce_weight=False, wanted=None, **options):
    """(every output, the gradients) by that order; blocks of 256 columns, or one block of tokens."""
    b = torch.linspace(-1, 1, V, device=x.device).to(w.dtype).requires_grad_() if bias else None
    if ce_weight:
        options["ce_weight"] = torch.linspace(0.1, 2, V, device=x.device)
    budget = N * 300 * size if order == "vocabulary" else 2**30
    with force_loop_order(order):
        out = liger_fused_linear_cross_entropy(x, w, y, b, memory_budget=budget, **options)
        outs = [t for t in (vars(out).values() if hasattr(out, "loss") else [out]) if t is not None]
        leaves = [t for t in (x, w, b) if t is not None and t.requires_grad]
        g = torch.linspace(0.5, 1.5, outs[0].numel(), device=x.device).view(outs[0].shape)
        return outs, torch.autograd.grad(outs[0], leaves, g)


def apart(a, truth):
    return ((a.double() - truth.double()).norm() / truth.double().norm().clamp_min(1e-300)).item()


SPEC = SPECS["fused_linear_cross_entropy"]


@pytest.mark.parametrize("sample", SPEC.samples, ids=str)
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_within_eagers_error(sample, dtype, device):
    """In 16 bits the orders' products round alike only on the CPU, so each has eager's error as its bar."""
    with force_loop_order("vocabulary"):
        C.check(SPEC, sample, device, dtype)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
def test_within_the_error_of_token_blocks(name, dtype, device):
    if device == "cuda" and dtype.itemsize == 2:
        pytest.skip("test_within_eagers_error is the claim on a GPU")
    x, w, y = draw(dtype, device)
    order = dict(memory_budget=N * 300 * dtype.itemsize, device=device, loop_order="vocabulary")
    assert plan(N, H, V, dtype, **order).n_blocks == 3
    exact = [t.detach().cpu().double().requires_grad_() for t in (x, w)]
    truth, d_truth = run("token", *exact, y.cpu(), 8, **OPTIONS[name])
    (a, da), (b, db) = (
        run(order, x, w, y, dtype.itemsize, **OPTIONS[name]) for order in ("vocabulary", "token")
    )
    for s, t, u in zip(a, b, truth, strict=True):
        if s.dtype == torch.int64:
            assert torch.equal(s, t)
        else:
            assert apart(s.cpu(), u) <= 1.1 * apart(t.cpu(), u) + 1e-6
    for s, t, u in zip(da, db, d_truth, strict=True):
        # a CPU's 16-bit products are rounded before dx is added up in fp32: a rounding per block, not one
        bar = 1.5 if device == "cpu" and dtype.itemsize == 2 else 1.1
        assert s.dtype == t.dtype and apart(s.cpu(), u) <= bar * apart(t.cpu(), u) + 1e-6


@pytest.mark.parametrize(
    "x_dtype, w_dtype", ((torch.bfloat16, torch.float32), (torch.float32, torch.float16))
)
@pytest.mark.parametrize("autocast", (False, True))
def test_mixed_dtypes(x_dtype, w_dtype, autocast, device):
    x, w, y = draw(x_dtype, device, w_dtype)
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=autocast):
        (a, da), (b, db) = (run(order, x, w, y, 4) for order in ("vocabulary", "token"))
    rtol = 2e-2 if autocast else 1e-2
    for s, t in zip((*a, *da), (*b, *db), strict=True):
        assert s.dtype == t.dtype and apart(s, t) < rtol


@pytest.mark.parametrize("grad", ((True, False), (False, True)))
def test_frozen_arguments(grad, device):
    x, w, y = draw(torch.float32, device, grad=grad)
    (_, da), (_, db) = (run(order, x, w, y, 4) for order in ("vocabulary", "token"))
    for s, t in zip(da, db, strict=True):
        torch.testing.assert_close(s, t, rtol=1e-4, atol=1e-6)


def alone(x, w, y, bias=None, **options):
    """The outputs of a call without gradients, within a budget of 300 columns."""
    with torch.no_grad():
        out = liger_fused_linear_cross_entropy(x, w, y, bias, memory_budget=N * 300 * 4, **options)
    return [t for t in (vars(out).values() if hasattr(out, "loss") else [out]) if t is not None]


@pytest.mark.parametrize("name", OPTIONS)
def test_the_loss_alone(name, device):
    """By vocabulary where the plan says so, with every option, the labels of ignored rows, and reductions."""
    options = dict(OPTIONS[name])
    x, w, y = draw(torch.float32, device)
    b = torch.linspace(-1, 1, V, device=device) if options.pop("bias", True) else None
    if options.get("ce_weight"):
        options["ce_weight"] = torch.linspace(0.1, 2, V, device=device)
    sizes = dict(memory_budget=N * 300 * 4, needs_dx=False, needs_dw=False, device=device)
    assert plan(N, H, V, torch.float32, **sizes).loop_order == "vocabulary"
    outs = alone(x, w, y, b, **options)
    wide = [t if t is None else t.double().cpu() for t in (x, w, b)]
    if options.get("ce_weight") is not None:
        options["ce_weight"] = options["ce_weight"].cpu()
    with force_loop_order("token"):
        truth = alone(*wide[:2], y.cpu(), wide[2], **options)
    bar = 2e-6 if device == "cpu" else 1e-5  # fp32 products of a GPU add up in another order
    for s, t in zip(outs, truth, strict=True):
        if s.dtype == torch.int64:
            assert torch.equal(s.cpu(), t)
        else:
            torch.testing.assert_close(s.double().cpu(), t, rtol=bar, atol=bar)


def test_the_bias_alone_needs_no_second_look(device):
    """Its gradient is a sum of dlogits, made while a block of tokens is there; its bits are that order's."""
    x, w, y = draw(torch.float32, device, grad=(False, False))

    def step(order):
        b = torch.linspace(-1, 1, V, device=device).requires_grad_()
        with force_loop_order(order):
            loss = liger_fused_linear_cross_entropy(x, w, y, b, memory_budget=N * 300 * 4)
        return loss, torch.autograd.grad(loss, b)[0]

    chosen, token, other = step(None), step("token"), step("vocabulary")
    assert all(map(torch.equal, chosen, token))
    assert not torch.equal(chosen[1], other[1])


def test_all_ignored_not_finite_and_strided(device):
    x, w, y = draw(torch.float32, device)
    wide = torch.randn(H, V, device=device).t().requires_grad_()  # a weight of another layout
    outs, grads = run("vocabulary", x, wide, torch.full_like(y, -100), 4, bias=False)
    assert outs[0] == 0 and all((g == 0).all() for g in grads)
    (a, da), (b, db) = (run(order, x, wide, y, 4) for order in ("vocabulary", "token"))
    torch.testing.assert_close((a, da), (b, db), rtol=1e-4, atol=1e-5)
    x.data[5] = float("nan")
    (loss,), (dx, dw, _) = run("vocabulary", x, w, y, 4, reduction="none")
    ok = torch.arange(N, device=device) != 5
    assert loss[5].isnan() and loss[ok].isfinite().all()
    assert dx[5].isnan().all() and dx[ok].isfinite().all() and dw.isnan().any()


def test_dw_is_as_exact_as_eagers(device):
    """One product a block of the vocabulary: no additions of 16-bit numbers, whatever the number of rows."""
    x, w, y = draw(torch.bfloat16, device)
    (_, (dx, dw)) = run("vocabulary", x, w, y, 2, bias=False)
    wide = [t.detach().double().requires_grad_() for t in (x, w)]
    truth = torch.autograd.grad(torch.nn.functional.cross_entropy(wide[0] @ wide[1].t(), y), wide)
    eager = torch.autograd.grad(torch.nn.functional.cross_entropy((x @ w.t()).float(), y), (x, w))
    for ours, e, t in zip((dx, dw), eager, truth):
        assert apart(2 * ours, t) <= 1.5 * apart(e, t)  # the incoming gradient is a half


@pytest.mark.cuda_only
def test_a_label_out_of_range_gives_nan():
    x, w, y = draw(torch.float32, "cuda")
    y[7], y[9] = V, -1
    (loss,), (dx, dw, _) = run("vocabulary", x, w, y, 4, reduction="none")
    bad = torch.tensor([7, 9], device="cuda")
    ok = [i for i in range(N) if i not in (7, 9)]
    assert loss[bad].isnan().all() and loss[ok].isfinite().all() and dx[ok].isfinite().all()
