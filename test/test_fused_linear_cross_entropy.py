"""What test_ops.py cannot say of it: memory, accuracy over many blocks, what is not computed, the helpers."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import liger_kernel
from liger_kernel.ops import fused_linear_cross_entropy as op_module
from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction
from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
from liger_kernel.transformers.functional import CrossEntropyOutput, liger_fused_linear_cross_entropy


def draw(n=50, h=24, v=70, dtype=torch.float32, device="cpu", w_dtype=None, grad=(True, True)):
    g = torch.Generator().manual_seed(n + h + v)
    x = torch.randn(n, h, generator=g).to(device, dtype).requires_grad_(grad[0])
    w = (torch.randn(v, h, generator=g) * h**-0.5).to(device, w_dtype or dtype).requires_grad_(grad[1])
    return x, w, torch.randint(v, (n,), generator=g).to(device)


def relative_error(a, truth):
    return ((a.double() - truth).norm() / truth.norm()).item()


def errors_of_dw(n, h, v, device, **options):
    """(ours, eager's): the error of the weight gradient in bf16 against fp64 on the same rounded inputs."""
    x, w, y = draw(n, h, v, torch.bfloat16, device)
    (ours,) = torch.autograd.grad(liger_fused_linear_cross_entropy(x, w, y, **options), w)
    (eager,) = torch.autograd.grad(F.cross_entropy((x @ w.t()).float(), y), w)
    wide = w.detach().double().requires_grad_()
    (truth,) = torch.autograd.grad(F.cross_entropy(x.detach().double() @ wide.t(), y), wide)
    return relative_error(ours, truth), relative_error(eager, truth)


@pytest.mark.parametrize("h, blocks", ((64, 2), (64, 11), (64, 12), (64, 100), (512, 21), (512, 22)))
def test_dw_error_within_three_times_eagers_for_any_number_of_blocks(h, blocks, device):
    n, v = 16 * blocks, 96
    ours, eager = errors_of_dw(n, h, v, device, memory_budget=16 * v * 2)
    assert 0 < ours <= 3 * eager


@pytest.mark.parametrize("blocks", (2, 100))
def test_dw_error_is_eagers_own_with_fp32_accumulation(blocks, device):
    n, v = 32 * blocks, 96
    ours, eager = errors_of_dw(n, 64, v, device, memory_budget=16 * v * 6, accum_dtype=torch.float32)
    assert 0 < ours <= 1.02 * eager


MEASURE = """
import re, sys, torch
from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy as flce
budget, grad = int(sys.argv[1]), sys.argv[2] == "grad"
x, w = torch.randn(4096, 64), torch.randn(16000, 64)
y = torch.randint(16000, (4096,))
def step(n):
    a, b = x[:n].detach().requires_grad_(grad), w.detach().requires_grad_(grad)
    loss = flce(a, b, y[:n], memory_budget=budget)
    if grad: loss.backward()
def kib(): return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
step(64)
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = kib()
step(4096)
print((kib() - before) * 1024)
"""


@pytest.mark.cpu_only
@pytest.mark.parametrize("grad", ("grad", "no_grad"))
def test_logits_take_no_more_than_the_budget(grad):
    """The peak of the process: the whole logits would be 250 MiB."""
    budget = 16 * 2**20
    done = subprocess.run([sys.executable, "-c", MEASURE, str(budget), grad], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    gradients = (4096 + 16000) * 64 * 4 if grad == "grad" else 0
    # a tenth for what the products' library keeps, 4 MiB for the allocator
    assert int(done.stdout) <= 1.1 * (budget + gradients) + 4 * 2**20


def gradients_made(monkeypatch, call):
    """The needs_dx, needs_dw, needs_dbias of every run of the operator."""
    seen, real = [], op_module._op

    def spy(*args):
        seen.append(args[15:18])
        return real(*args)

    monkeypatch.setattr(op_module, "_op", spy)
    call()
    return seen


def test_only_wanted_gradients_are_made(monkeypatch):
    def run(grad, no_grad=False, bias=False, **options):
        x, w, y = draw(grad=grad)
        b = torch.zeros(70, requires_grad=True) if bias else None
        with torch.set_grad_enabled(not no_grad):
            loss = LigerFusedLinearCrossEntropyFunction.apply(x, w, y, b)[0]
            through_function = liger_fused_linear_cross_entropy(x, w, y, b)
        assert loss.requires_grad == through_function.requires_grad == (not no_grad and (any(grad) or bias))

    for grad, no_grad, bias, expected in (
        ((True, True), False, False, (True, True, False)),
        ((True, False), False, False, (True, False, False)),
        ((False, True), False, False, (False, True, False)),
        ((False, False), False, True, (False, False, True)),
        ((False, False), False, False, (False, False, False)),
        ((True, True), True, True, (False, False, False)),
    ):
        made = gradients_made(monkeypatch, lambda: run(grad, no_grad, bias))  # noqa: B023
        assert made == [expected, expected]
        monkeypatch.undo()


def test_deferred_gradients_keep_a_loss_scale_in_float16(device):
    """1 / n_rows of fp16's smallest numbers is 0: the scale must be in before the rounding, as in eager."""
    x, w, y = draw(2000, 16, 50, torch.float16, device)
    scale = 2.0**14
    dx, dw = torch.autograd.grad(liger_fused_linear_cross_entropy(x, w, y) * scale, (x, w))
    x2, w2 = (t.detach().double().requires_grad_() for t in (x, w))
    truth = torch.autograd.grad(F.cross_entropy(x2 @ w2.t(), y) * scale, (x2, w2))
    assert relative_error(dx, truth[0]) < 2e-3 and relative_error(dw, truth[1]) < 2e-3


def test_autocast_of_backward_is_forwards(device):
    """reduction "none" multiplies in backward, outside the autocast region: in the forward's dtype."""
    x, w, y = draw(device=device)
    device_type = torch.device(device).type
    with torch.autocast(device_type, torch.bfloat16):
        loss = liger_fused_linear_cross_entropy(x, w, y, reduction="none")
    late = torch.autograd.grad(loss.sum(), (x, w))
    with torch.autocast(device_type, torch.bfloat16):
        early = torch.autograd.grad(liger_fused_linear_cross_entropy(x, w, y, reduction="sum"), (x, w))
    for a, b in zip(late, early):
        assert a.dtype == torch.float32 and torch.equal(a, b)


def test_compile_sees_one_node_and_follows_the_budget(device):
    x, w, y = draw(device=device)
    graphs = []

    def backend(graph, _):
        graphs.append([n for n in graph.graph.nodes if "fused_linear_cross_entropy" in str(n.target)])
        return graph

    f = torch.compile(
        lambda: liger_fused_linear_cross_entropy(x.detach(), w.detach(), y), backend=backend, fullgraph=True
    )
    expected = liger_fused_linear_cross_entropy(x.detach(), w.detach(), y)
    try:
        assert torch.equal(f(), expected)
        liger_kernel.set_memory_budget(70 * 4 * 3)
        torch.testing.assert_close(f(), expected)
    finally:
        liger_kernel.set_memory_budget(None)
    assert [len(nodes) for nodes in graphs] == [1, 1]
    assert [nodes[0].args[-1] for nodes in graphs] == [256 * 2**20, 70 * 4 * 3]


def test_helpers_are_looked_up_at_call_time(monkeypatch):
    """As programs wrap them: with *args and **kwargs, on the module."""
    calls = []
    for name in ("fused_linear_cross_entropy_forward", "fused_linear_cross_entropy_backward"):
        real = getattr(op_module, name)
        monkeypatch.setattr(
            op_module, name, lambda *a, _f=real, **k: (calls.append(_f.__name__), _f(*a, **k))[1]
        )
    x, w, y = draw()
    liger_fused_linear_cross_entropy(x, w, y).backward()
    assert calls == ["fused_linear_cross_entropy_forward", "fused_linear_cross_entropy_backward"]


def test_forward_helper_of_upstream(device):
    x, w, y = draw(device=device)
    loss, z, accuracy, predicted, dx, dw, db = op_module.fused_linear_cross_entropy_forward(x, w, y)
    assert (z, accuracy, predicted, db) == (None,) * 4
    reference = torch.autograd.grad(F.cross_entropy(x @ w.t(), y), (x, w))
    torch.testing.assert_close((dx, dw), reference, rtol=1e-4, atol=1e-7)
    dx2, dw2, none = op_module.fused_linear_cross_entropy_backward(
        torch.tensor(2.0, device=device), dx, dw, None
    )
    assert none is None
    torch.testing.assert_close((dx2, dw2), tuple(2 * g for g in reference), rtol=1e-4, atol=1e-7)


def test_module_and_function_agree(device):
    x, w, y = draw(device=device)
    bias = torch.randn(70, device=device)
    options = dict(
        label_smoothing=0.1,
        softcap=5.0,
        lse_square_scale=1e-3,
        return_z_loss=True,
        return_token_accuracy=True,
    )
    a = LigerFusedLinearCrossEntropyLoss(**options)(w, x, y, bias)
    b = liger_fused_linear_cross_entropy(x, w, y, bias, **options)
    assert isinstance(a, CrossEntropyOutput) and a.predicted_tokens is None
    assert (
        torch.equal(a.loss, b.loss)
        and torch.equal(a.z_loss, b.z_loss)
        and torch.equal(a.token_accuracy, b.token_accuracy)
    )
    assert LigerFusedLinearCrossEntropyLoss()(w, x, y).dim() == 0
    for wrong in (dict(label_smoothing=2.0), dict(reduction="batchmean"), dict(softcap=0.0)):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*, expected"):
            LigerFusedLinearCrossEntropyLoss(**wrong)


@pytest.mark.cpu_only
def test_one_block_all_ignored_and_not_finite_logits_stay_where_they_are():
    """A row of NaN or inf in x spoils its own loss and dx alone; dW as eager's: NaN."""
    n, v = 48, 70
    x, w, y = draw(n, 24, v)
    y[16:32] = -100
    x.data[40] = float("nan")
    loss = liger_fused_linear_cross_entropy(x, w, y, reduction="none", memory_budget=16 * v * 4)
    dx, dw = torch.autograd.grad(loss.sum(), (x, w))
    ok = torch.arange(n) != 40
    reference = F.cross_entropy(x @ w.t(), y, reduction="none")
    torch.testing.assert_close(loss[ok], reference[ok])
    assert loss[40].isnan() and dx[40].isnan().all() and dx[ok].isfinite().all() and dw.isnan().any()
    assert (loss[16:32] == 0).all() and (dx[16:32] == 0).all()


@pytest.mark.parametrize("ignored", (0.5, 0.98, 1.0))
@pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
def test_ignored_rows_take_no_part_in_the_products(reduction, ignored, device, monkeypatch):
    """The bits are those of the call without these rows: on the CPU by itself, on a GPU with skip_ignored."""
    x, w, y = draw(96, 24, 70, device=device)
    if device == "cpu":  # the GPU's way is tested here too
        monkeypatch.setattr(op_module, "_live_rows", lambda x, y, i: (y != i).nonzero()[:, 0])
    live = torch.rand(96, generator=torch.Generator().manual_seed(0)).to(device) >= ignored
    labels = torch.where(live, y, -100)
    bias = torch.linspace(-1, 1, 70, device=device, requires_grad=True)
    flags = dict(return_z_loss=True, return_token_accuracy=True, return_predicted_tokens=True)
    options = dict(lse_square_scale=0.1, memory_budget=16 * 70 * 4, reduction=reduction, **flags)
    per_row = torch.linspace(1, 2, 96, device=device) if reduction == "none" else None

    def run(x, y, g, **more):
        out = liger_fused_linear_cross_entropy(x, w, y, bias, **options, **more)
        return out, torch.autograd.grad(
            out.loss, (x, w, bias), torch.full_like(out.loss, 1.5) if g is None else g
        )

    only = x.detach()[live].requires_grad_()
    want, (dx, dw, db) = run(only, y[live], None if per_row is None else per_row[live])
    for skip in (True, False) if device == "cpu" else (True,):
        out, grads = run(x, labels, per_row, skip_ignored=skip)
        assert torch.equal(grads[0][live], dx) and (grads[0][~live] == 0).all()
        assert torch.equal(grads[1], dw) and torch.equal(grads[2], db)
        assert torch.equal(out.predicted_tokens[live], want.predicted_tokens)
        assert (out.predicted_tokens[~live] == -1).all()
        for name in ("loss", "z_loss", "token_accuracy"):
            a, b = getattr(out, name), getattr(want, name)
            assert torch.equal(a[live] if reduction == "none" else a, b)
            assert reduction != "none" or (a[~live] == 0).all()


@pytest.mark.cpu_only
def test_a_budget_below_one_row_warns_once(monkeypatch):
    from liger_kernel.ops import linear_loss

    monkeypatch.setattr(linear_loss, "_too_small", set())
    x, w, y = draw()
    with pytest.warns(UserWarning, match="one row of logits takes 280"):
        a = liger_fused_linear_cross_entropy(x, w, y, memory_budget=1)
    torch.testing.assert_close(a, liger_fused_linear_cross_entropy(x, w, y))
