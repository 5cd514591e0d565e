"""Bad input and limits of fused_linear_cross_entropy and linear_logprob, on CPU and GPU.

What the error cases of their specs say is in test_ops.py.
"""

import pytest
import torch
import torch.nn.functional as F

from liger_kernel.ops import _labels, linear_loss
from liger_kernel.ops.linear_loss import force_loop_order
from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy, liger_linear_logprob

OPS = {
    "cross_entropy": lambda x, w, y, **o: liger_fused_linear_cross_entropy(x, w, y, reduction="none", **o),
    "logprob": lambda x, w, y, **o: -liger_linear_logprob(x, w, y, **o).logprob,
}
both = pytest.mark.parametrize("op", OPS)


def draw(n=48, h=24, v=70, dtype=torch.float32, device="cpu"):
    x = torch.randn(n, h).to(device, dtype).requires_grad_()
    w = (torch.randn(v, h) * max(h, 1) ** -0.5).to(device, dtype).requires_grad_()
    return x, w, torch.randint(max(v, 1), (n,)).to(device)


def gradients(loss, *leaves):
    return torch.autograd.grad(loss.sum(), leaves)


@both
@pytest.mark.parametrize("n, h, v", ((0, 24, 70), (0, 24, 0), (0, 0, 0), (5, 0, 70), (1, 1, 1)))
def test_empty_and_smallest_sizes(op, n, h, v, device):
    x, w, y = draw(n, h, v, device=device)
    loss = OPS[op](x, w, y)
    dx, dw = gradients(loss, x, w)
    assert loss.shape == (n,) and dx.shape == x.shape and dw.shape == w.shape and (dw == 0).all() | (n > 0)
    if h == 0 and n:  # all logits are 0
        torch.testing.assert_close(loss, torch.full_like(loss, 70.0).log())


@both
def test_rows_without_a_class_cannot_have_a_label(op, device):
    x, w, y = draw(3, 24, 0, device=device)
    ignored = torch.full_like(y, -100)
    loss = OPS[op](x, w, ignored)
    assert (loss == 0).all() and all((g == 0).all() for g in gradients(loss, x, w))
    if device == "cpu":
        with pytest.raises(RuntimeError, match=r"\[0\] is 0, expected a value in \[0, 0\)"):
            OPS[op](x, w, y)
    else:
        assert OPS[op](x, w, y).isnan().all()


@both
@pytest.mark.parametrize("value", (70, -1, 2**40))
def test_a_label_out_of_range(op, value, device, monkeypatch):
    """A named error on the CPU and under LIGER_DEBUG=1; else NaN, and the other rows are as they were."""
    x, w, y = draw(device=device)
    bad = y.clone()
    bad[7] = value
    if device == "cuda":
        loss, good = OPS[op](x, w, bad), OPS[op](x, w, y)
        ok = torch.arange(len(y), device=device) != 7
        assert loss[7].isnan() and torch.equal(loss[ok], good[ok])
        monkeypatch.setattr(_labels, "_DEBUG", True)
    with pytest.raises(RuntimeError, match=rf"\[7\] is {value}, expected a value in \[0, 70\)"):
        OPS[op](x, w, bad)


@both
@pytest.mark.parametrize("budget", (None, 16 * 70 * 4))
def test_all_ignored_and_one_block_all_ignored(op, budget, device):
    x, w, y = draw(device=device)
    loss = OPS[op](x, w, torch.full_like(y, -100), memory_budget=budget)
    assert (loss == 0).all() and all((g == 0).all() for g in gradients(loss, x, w))
    y[16:32] = -100
    loss = OPS[op](x, w, y, memory_budget=budget)
    dx, dw = gradients(loss, x, w)
    want = F.cross_entropy(x @ w.t(), y, reduction="none")
    d_want = gradients(want, x, w)
    torch.testing.assert_close((loss, dx, dw), (want, *d_want), rtol=1e-4, atol=1e-5)
    assert (dx[16:32] == 0).all() and (loss[16:32] == 0).all()


@both
@pytest.mark.parametrize("bad", (float("nan"), float("inf"), -float("inf")))
@pytest.mark.parametrize("budget", (None, 16 * 70 * 4))
def test_a_row_that_is_not_finite_stays_where_it_is(op, bad, budget, device):
    """It spoils its own loss and its own row of dx alone; dW as eager's: NaN."""
    x, w, y = draw(device=device)
    good = OPS[op](x, w, y, memory_budget=budget).detach()
    x.data[40] = bad
    loss = OPS[op](x, w, y, memory_budget=budget)
    dx, dw = gradients(loss, x, w)
    ok = torch.arange(48, device=device) != 40
    assert torch.equal(loss[ok], good[ok]) and not loss[40].isfinite()
    assert dx[ok].isfinite().all() and dx[40].isnan().all() and dw.isnan().any()


@both
def test_fp16_that_overflows_is_not_a_plausible_number(op, device):
    """Logits beyond 65504: no finite loss where the products are fp16, the right one where they are fp32."""
    x, w, y = draw(dtype=torch.float16, device=device)
    with torch.no_grad():
        x[3], w[:] = 60000.0, 1.0
        loss = OPS[op](x, w, y)
        logits = x.float() @ w.float().t()
    ok = torch.arange(48, device=device) != 3
    torch.testing.assert_close(
        loss[ok], F.cross_entropy(logits, y, reduction="none")[ok], rtol=1e-2, atol=1e-2
    )
    products = linear_loss.products_dtype_of(x, w)
    assert loss[3].isfinite() == (products == torch.float32)


@both
def test_a_budget_below_one_row_goes_row_by_row_and_warns_once(op, device, monkeypatch, recwarn):
    monkeypatch.setattr(linear_loss, "_too_small", set())
    x, w, y = draw(device=device)
    with pytest.warns(UserWarning, match="one row of logits takes 280"):
        small = OPS[op](x, w, y, memory_budget=1)
    d_small = gradients(small, x, w)
    OPS[op](x, w, y, memory_budget=1)
    assert len(recwarn) == 0
    whole = OPS[op](x, w, y)
    torch.testing.assert_close((small, *d_small), (whole, *gradients(whole, x, w)), rtol=1e-4, atol=1e-5)


@both
def test_wrong_sizes_devices_and_options_are_named(op, device):
    x, w, y = draw(device=device)
    for wrong, match in (
        (dict(w=w[:, :-1]), r"weight has shape \(70, 23\), expected \(vocab_size, 24\)"),
        (dict(y=y[:-1]), r"has shape \(47,\), expected \(48,\)"),
        (dict(softcap=0.0), "softcap is 0.0, expected"),
        (dict(softcap=-1.0), "softcap is -1.0, expected"),
        (dict(memory_budget=0), "memory_budget is 0, expected"),
    ):
        with pytest.raises((RuntimeError, ValueError), match=match):
            OPS[op](**{"x": x, "w": w, "y": y, **wrong})
    for temperature in (0.0, -1.0):
        with pytest.raises(ValueError, match=f"temperature is {temperature}, expected a positive"):
            liger_linear_logprob(x, w, y, temperature=temperature)
    if device == "cuda":
        with pytest.raises(RuntimeError, match="weight is on cpu, but .* is on cuda:0"):
            OPS[op](x, w.cpu(), y)


@pytest.mark.cuda_only
@pytest.mark.big
@both
@pytest.mark.parametrize("order, power", (("token", 31), ("token", 32), ("vocabulary", 31)))
def test_more_logits_than_2_to_the_32(op, order, power):
    """In one block: the last rows are as those rows alone."""
    v = 2**17 + 8
    n = 2**power // v + 300
    x = torch.randn(n, 8, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    w = torch.randn(v, 8, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    y = torch.randint(v, (n,), device="cuda")
    with force_loop_order(order):
        loss = OPS[op](x, w, y, memory_budget=2**40 if order == "token" else 2**33)
        (dx,) = gradients(loss, x)
    tail = x.detach()[-64:].requires_grad_()
    want = OPS[op](tail, w, y[-64:])
    (d_want,) = gradients(want, tail)
    torch.testing.assert_close(loss[-64:], want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dx[-64:], d_want, rtol=2e-2, atol=2e-2)
