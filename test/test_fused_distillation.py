"""What test_ops.py cannot say of the fused distillation losses: extreme and masked logits, memory, what
is not computed, the helpers."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from liger_kernel.ops import LigerFusedCETVDFunction
from liger_kernel.ops import fused_ce_tvd as ce_tvd_module
from liger_kernel.ops import fused_linear_jsd as jsd_module
from liger_kernel.ops import fused_linear_kl_div as kl_module
from liger_kernel.ops.fused_linear_cosine import liger_fused_linear_cosine_apply
from liger_kernel.transformers import LigerFusedCETVDLoss, LigerFusedLinearJSD, LigerFusedLinearKLDivLoss
from liger_kernel.transformers.functional import liger_fused_linear_jsd, liger_fused_linear_kl_div, liger_jsd

INF = float("inf")


def draw(n=20, h=12, v=33, th=15, device="cpu", dtype=torch.float32, scale=1.0):
    g = torch.Generator().manual_seed(n + h + v)

    def normal(*shape, by=1.0):
        return (torch.randn(*shape, generator=g) * by).to(device, dtype)

    x, w = normal(n, h), normal(v, h, by=scale * h**-0.5)
    return x.requires_grad_(), w.requires_grad_(), normal(n, th), normal(v, th, by=scale * th**-0.5)


def exact_jsd(z, zt, beta, temperature):
    """The mean JSD of logits, in fp64 and with the limits where a probability is 0; differentiable."""
    x, y = (torch.log_softmax(t.double() / temperature, -1) for t in (z, zt))
    q, p = x.exp(), y.exp()

    def term(weight, log_ratio):
        return torch.where(weight == 0, 0.0, weight * log_ratio)

    if beta in (0.0, 1.0):
        return (term(p, y - x) if beta == 0 else term(q, x - y)).sum() / z.shape[0]
    m = torch.logaddexp(x + torch.tensor(1 - beta).double().log(), y + torch.tensor(beta).double().log())
    return (beta * term(p, y - m) + (1 - beta) * term(q, x - m)).sum() / z.shape[0]


def identity_heads(z, zt):
    """Heads whose logits are exactly z and zt: hidden states times the identity."""
    eye = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    return z.detach().clone().requires_grad_(), eye, zt, eye.clone()


@pytest.mark.parametrize("beta", (0.0, 0.3, 1.0))
@pytest.mark.parametrize("temperature", (1.0, 4.0))  # whose division rounds nothing, in eager neither
def test_jsd_of_extreme_logits(beta, temperature, device):
    """Classes at -1e4, 0 and 1e4, which student and teacher place alike in half the rows."""
    g = torch.Generator().manual_seed(0)
    z, zt = (
        torch.randn(6, 40, generator=g) + 1e4 * torch.randint(-1, 2, (6, 40), generator=g) for _ in range(2)
    )
    zt[:3] = z[:3] + torch.randn(3, 40, generator=g)
    z, zt = z.to(device), zt.to(device)
    x, w, tx, tw = identity_heads(z, zt)
    loss = liger_fused_linear_jsd(x, w, tx, tw, jsd_beta=beta, temperature=temperature)
    (dx,) = torch.autograd.grad(loss, x)
    exact = z.double().requires_grad_()
    truth = exact_jsd(exact, zt, beta, temperature)
    (gradient,) = torch.autograd.grad(truth, exact)
    torch.testing.assert_close(loss.double(), truth, rtol=2e-6, atol=0)
    torch.testing.assert_close(dx.double(), gradient, rtol=0, atol=2e-6 * gradient.abs().max().item())


def masked_jsd(z, zt, beta):
    """(loss, dlogits) of rows of logits: those of a bias, where the hidden state is 0."""
    zeros = torch.zeros(z.shape[0], 1, device=z.device)
    outs = []
    for row in range(z.shape[0]):  # a bias is a whole row of logits where the hidden state is 0
        w = torch.zeros(z.shape[1], 1, device=z.device)
        loss, _, _, dbias = torch.ops.liger.fused_linear_jsd(
            *(zeros[:1], w, zeros[:1], w, z[row].contiguous(), zt[row].contiguous(), None, None),
            *(beta, -100, 1.0, False, False, True, 0, -1, 2**20),
        )
        outs.append((loss, dbias))
    return torch.stack([o[0] for o in outs]), torch.stack([o[1] for o in outs])


@pytest.mark.parametrize("beta", (0.0, 0.5, 1.0))
def test_jsd_of_masked_classes(beta, device):
    """-inf in the student, the teacher, both: no NaN, no gradient where the student has no probability."""
    g = torch.Generator().manual_seed(0)
    z, zt = (torch.randn(4, 30, generator=g).to(device) for _ in range(2))
    z[:, :4], zt[:, :4] = -INF, -INF
    z[1, 7], zt[2, 8] = -INF, -INF
    loss, dz = masked_jsd(z, zt, beta)
    for row in range(4):
        infinite = (row, beta) in ((1, 0.0), (2, 1.0))
        assert loss[row].isinf() == infinite and not loss[row].isnan()
        if infinite:
            continue
        live = z[row] > -INF
        exact = z[row : row + 1].double()
        truth = exact_jsd(exact, zt[row : row + 1], beta, 1.0)
        torch.testing.assert_close(loss[row].double(), truth, rtol=2e-6, atol=0)
        assert (dz[row][~live] == 0).all() and dz[row].isfinite().all()
        assert abs(dz[row].sum()) < 1e-6  # softmax's gradients add up to nothing


@pytest.mark.parametrize("beta, temperature", ((0.5, 1.0), (0.1, 2.0), (0.9, 1.0)))
@pytest.mark.parametrize("v", (40, 1001, 50008))  # a small block, unaligned rows, many turns
def test_jsd_of_16_bit_rows(v, beta, temperature, device):
    """Rows whose probabilities are alike, apart, masked, and far beyond any float; a NaN stays in its row."""
    g = torch.Generator().manual_seed(0)
    z, zt = (4 * torch.randn(6, v, generator=g) for _ in range(2))
    zt[0] = z[0] + 0.05 * torch.randn(v, generator=g)
    z[1], zt[2] = 1e4 * torch.randint(-1, 2, (v,), generator=g), 100 * zt[2]
    z[3, :7], zt[3, 5:9], z[3, 20], zt[3, 20] = -INF, -INF, -INF, -INF
    zt[4] = z[4]
    zt[5, 3] = torch.nan
    z, zt = z.to(device, torch.bfloat16), zt.to(device, torch.bfloat16)
    zeros, w = z.new_zeros(1, 1), z.new_zeros(v, 1)
    for row in range(6):  # a bias is a whole row of logits where the hidden state is 0
        biases = (z[row].contiguous(), zt[row].contiguous())
        loss, _, _, dz = torch.ops.liger.fused_linear_jsd(
            *(zeros, w, zeros, w, *biases, None, None, beta, -100, temperature),
            *(False, False, True, 2, -1, 2**20),
        )
        if row == 5:
            assert loss.isnan() and dz.isnan().all()
            continue
        truth = exact_jsd(z[row : row + 1], zt[row : row + 1], beta, temperature)
        x, y = (torch.log_softmax(t[row].double() / temperature, -1) for t in (z, zt))
        q, b = x.exp(), torch.tensor(beta).double()
        ratio = torch.logaddexp(y + b.log(), x + (1 - b).log()) - x  # ln(M / Q)
        part = torch.where(q == 0, 0.0, -(1 - b) * q * ratio)
        gradient = (part - q * part.sum()) / temperature
        assert abs(loss.double() - truth) <= 2e-5 * truth + 1e-6
        assert (dz.double() - gradient).abs().max() <= 4e-3 * gradient.abs().max() + 2e-6
        assert (dz[z[row] == -INF] == 0).all()


@pytest.mark.parametrize("dtype, code", ((torch.float32, 0), (torch.bfloat16, 2), (torch.float16, 1)))
@pytest.mark.parametrize("beta, temperature", ((0.0, 1.0), (0.4, 1.0), (0.4, 2.0), (1.0, 0.5)))
@pytest.mark.parametrize("v, classes", ((1, 1), (40, 33), (1001, 1001), (9008, 9001), (50008, 50008)))
def test_jsd_with_cross_entropy_of_rows(v, classes, beta, temperature, dtype, code, device):
    """Both losses and their gradient of rows alike, masked, without any finite logit, and all but certain.

    By the weights 0.5 and 2, and by one loss' incoming gradient alone.
    """
    g = torch.Generator().manual_seed(v)
    z, zt = (3 * torch.randn(5, v, generator=g) for _ in range(2))
    labels = [classes - 1, 0, classes // 2, 0, classes // 3]
    z[0], z[2, labels[2]] = zt[0] + 0.05 * z[0], 40.0
    if beta != 0:
        z[1, 1::3] = -INF
    if beta != 1:
        zt[1, 1:9:2] = -INF
    z, zt = z.to(device, dtype), zt.to(device, dtype)
    zeros, w = z.new_zeros(1, 1), z.new_zeros(v, 1)

    def run(row, label, dlosses=None, weights=(0.5, 2.0), classes=classes):
        biases, label = (z[row].contiguous(), zt[row].contiguous()), torch.tensor([label], device=device)
        soft, hard, _, _, dz = torch.ops.liger.fused_linear_jsd_ce(
            *(zeros, w, zeros, w, *biases, label, dlosses, classes, *weights, beta, -100, temperature),
            *(False, False, True, code, -1, 2**20),
        )
        return soft.double(), hard.double(), dz.double()

    eps = torch.finfo(dtype).eps
    for row, label in enumerate(labels):
        soft, hard, dz = run(row, label)
        exact = z[row : row + 1].double()
        truth = exact_jsd(exact, zt[row : row + 1], beta, temperature)
        log_p = exact[0, :classes].log_softmax(-1)
        torch.testing.assert_close(soft, truth, rtol=2e-5, atol=1e-6)
        torch.testing.assert_close(hard, -log_p[label], rtol=2e-6, atol=2e-6)
        of_hard = F.pad(log_p.exp(), (0, v - classes))
        of_hard[label] -= 1
        one = torch.tensor([1.0, 0.0], device=device)
        of_soft, alone = run(row, label, one, (1.0, 1.0))[2], run(row, label, one.flip(0), (1.0, 1.0))[2]
        for got, want in ((alone, of_hard), (dz, 0.5 * of_soft + 2 * of_hard)):
            assert (got - want).abs().max() <= (1 if dtype == torch.float32 else 2) * (eps + 2e-6)
        plain = torch.ops.liger.fused_linear_jsd(
            *(zeros, w, zeros, w, z[row].contiguous(), zt[row].contiguous(), None, None, beta, -100),
            *(temperature, False, False, True, code, -1, 2**20),
        )
        assert torch.equal(plain[0].double(), soft) and torch.equal(plain[3].double(), of_soft)
    assert all((o == 0).all() for o in run(0, -100))
    if device != "cpu":
        assert all(o.isnan().all() for o in run(0, classes))


def test_cross_entropy_of_masked_labels(device):
    """A label without probability has an infinite loss and a gradient of -1; a row without any class none."""
    z = torch.randn(2, 12, generator=torch.Generator().manual_seed(0)).to(device)
    z[0, 3], z[1] = -INF, -INF
    zeros, w, label = z.new_zeros(1, 1), z.new_zeros(12, 1), torch.tensor([3], device=device)
    for row in range(2):
        biases = (z[row].contiguous(), torch.zeros(12, device=device))
        _, hard, _, _, dz = torch.ops.liger.fused_linear_jsd_ce(
            *(zeros, w, zeros, w, *biases, label, None, 12, 0.0, 1.0, 0.5, -100, 1.0),
            *(False, False, True, 0, -1, 2**20),
        )
        want = z[0].softmax(-1) - F.one_hot(label[0], 12) if row == 0 else torch.zeros_like(dz)
        assert hard == INF
        torch.testing.assert_close(dz, want)


@pytest.mark.parametrize("temperature", (1.0, 4.0))
def test_cosine_of_short_rows(temperature, device):
    """Rows of 0, below the floor of lengths, long ones, parallel and opposite ones: eager's limits."""
    z, zt = (torch.randn(7, 33, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
    z[0], z[1], zt[2], zt[3] = 0, z[1] * 1e-11, 0, zt[3] * 1e-11
    z[4], zt[4], zt[5], zt[6] = 1e6 * z[4], 1e6 * zt[4], 3 * z[5], -2 * z[6]
    z, zt = z.to(device), zt.to(device)
    x, w, tx, tw = identity_heads(z, zt)
    exact = z.double().requires_grad_()
    for row in range(7):
        of_row = slice(row, row + 1)
        heads = (x[of_row], w, None, tx[of_row], tw, None)
        loss = liger_fused_linear_cosine_apply(*heads, None, 0.7, -100, temperature)
        (dx,) = torch.autograd.grad(loss, x)
        s, t = exact[of_row] / temperature, zt[of_row].double() / temperature
        truth = 0.7 * (1 - F.cosine_similarity(s, t)).sum()
        (want,) = torch.autograd.grad(truth, exact)
        assert abs(loss.double() - truth) < 2e-6
        size = want.abs().max().item() if row not in (5, 6) else 1 / z[row].norm().item()
        torch.testing.assert_close(dx.double(), want, rtol=0, atol=2e-6 * size)


def test_jsd_is_the_row_ops_on_logits(device):
    x, w, tx, tw = draw(device=device)
    labels = torch.randint(3, (20,), generator=torch.Generator().manual_seed(1)).to(device)
    for beta in (0.0, 0.4, 1.0):
        loss = liger_fused_linear_jsd(x, w, tx, tw, labels, beta, 1, 2.0)
        log_p = (torch.log_softmax(a @ b.t() / 2.0, -1) for a, b in ((x, w), (tx, tw)))
        expected = liger_jsd(*log_p, labels, beta, 1)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(
            *(torch.autograd.grad(t, (x, w)) for t in (loss, expected)), rtol=1e-4, atol=1e-7
        )
        module = LigerFusedLinearJSD(beta, 1, 2.0)
        assert torch.equal(module(x, w, tx, tw, labels), loss)


def test_kl_div_of_a_target_that_does_not_add_up(device):
    x, w, *_ = draw(device=device)
    target = torch.rand(20, 33, generator=torch.Generator().manual_seed(1)).to(device)
    target[:, :5] = 0
    for reduction in ("mean", "sum", "batchmean"):
        loss = liger_fused_linear_kl_div(x, w, target, reduction=reduction, temperature=1.5)
        expected = F.kl_div(torch.log_softmax(x @ w.t() / 1.5, -1), target, reduction="sum")
        expected = expected / {"mean": target.numel(), "sum": 1, "batchmean": 20}[reduction]
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(
            *(torch.autograd.grad(t, (x, w)) for t in (loss, expected)), rtol=1e-4, atol=1e-6
        )
        assert torch.equal(LigerFusedLinearKLDivLoss(reduction, temperature=1.5)(x, w, target), loss)


MEASURE = """
import re, sys, torch
from liger_kernel.transformers.functional import liger_fused_linear_jsd as jsd
budget, grad, (h, th) = int(sys.argv[1]), sys.argv[2] == "grad", map(int, sys.argv[3:])
torch.set_num_threads(1)  # BLAS keeps buffers of its own for each
x, w, tx, tw = torch.randn(2048, h), torch.randn(16000, h), torch.randn(2048, th), torch.randn(16000, th)
def step(n):
    a, b = x[:n].detach().requires_grad_(grad), w.detach().requires_grad_(grad)
    loss = jsd(a, b, tx[:n], tw, memory_budget=budget)
    if grad: loss.backward()
def kib(): return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
step(64)
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = kib()
step(2048)
print((kib() - before) * 1024)
"""


@pytest.mark.cpu_only
@pytest.mark.parametrize("grad, h, th", (("grad", 64, 96), ("no_grad", 64, 96), ("no_grad", 512, 16)))
def test_two_heads_share_one_budget(grad, h, th):
    """The peak of the process: both heads' whole logits would be 250 MiB. The last teacher has a quarter."""
    budget = 32 * 2**20
    command = [sys.executable, "-c", MEASURE, *map(str, (budget, grad, h, th))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    gradients = (2048 + 16000) * h * 4 if grad == "grad" else 0
    assert int(done.stdout) <= 1.1 * (budget + gradients) + 4 * 2**20


@pytest.mark.parametrize("budget", (1, 7 * 2 * 33 * 4, 2**20))
def test_budget_does_not_change_the_result(budget, device):
    x, w, tx, tw = draw(device=device)
    whole, cut = (liger_fused_linear_jsd(x, w, tx, tw, memory_budget=b) for b in (None, budget))
    torch.testing.assert_close(cut, whole)
    torch.testing.assert_close(*(torch.autograd.grad(t, (x, w)) for t in (cut, whole)), rtol=1e-4, atol=1e-7)


def test_a_block_meets_the_teachers_in_pieces(device):
    """A student's block is three of the teacher's where its products are the dearer ones."""
    # unit: rows of the teacher's logits at a time
    unit, h, v = (64, 1024, 4000) if device == "cpu" else (256, 4096, 4000)
    x, w, tx, tw = draw(6 * unit + 16, h, v, 16, device)
    labels = torch.arange(len(x), device=device) % 7
    whole, cut = (
        liger_fused_linear_jsd(x, w, tx, tw, labels, 0.3, 2, memory_budget=b)
        for b in (2**30, 4 * unit * v * 4)
    )
    torch.testing.assert_close(cut, whole)
    torch.testing.assert_close(*(torch.autograd.grad(t, (x, w)) for t in (cut, whole)), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("module, needs", ((jsd_module, slice(11, 13)), (kl_module, slice(9, 11))))
def test_only_wanted_gradients_are_made(module, needs, monkeypatch):
    seen, real = [], module._op
    monkeypatch.setattr(module, "_op", lambda *a: (seen.append(a[needs]), real(*a))[1])
    call = liger_fused_linear_jsd if module is jsd_module else liger_fused_linear_kl_div
    for grads in ((True, True), (True, False), (False, True), (False, False)):
        x, w, tx, tw = draw()
        x, w = x.detach().requires_grad_(grads[0]), w.detach().requires_grad_(grads[1])
        rest = (tx.requires_grad_(), tw.requires_grad_()) if module is jsd_module else (torch.rand(20, 33),)
        assert call(x, w, *rest).requires_grad == any(grads)
        with torch.no_grad():
            call(x, w, *rest)
    assert seen == [
        pair
        for g in ((True, True), (True, False), (False, True), (False, False))
        for pair in (g, (False, False))
    ]


def test_float16_takes_the_loss_scale_before_the_rounding(device):
    x, w, tx, tw = draw(3000, 16, 40, device=device, dtype=torch.float16)
    got = torch.autograd.grad(liger_fused_linear_jsd(x, w, tx, tw) * 2.0**14, (x, w))
    wide = [t.detach().double().requires_grad_() for t in (x, w)]
    truth = torch.autograd.grad(
        exact_jsd(wide[0] @ wide[1].t(), tx.double() @ tw.double().t(), 0.5, 1.0) * 2.0**14, wide
    )
    for a, b in zip(got, truth):
        assert a.dtype == torch.float16 and (a.double() - b).norm() / b.norm() < 5e-3


def test_helpers_of_upstream(device):
    x, w, tx, tw = draw(device=device)
    labels = torch.zeros(20, dtype=torch.int64, device=device)
    two = torch.tensor(2.0, device=device)
    loss, dx, dw = jsd_module.fused_linear_jsd_forward(x, w, tx, tw, labels, 0.5, 0, False, 1.0)
    expected = liger_fused_linear_jsd(x, w, tx, tw)
    torch.testing.assert_close(loss, expected)
    grads = torch.autograd.grad(expected, (x, w))
    torch.testing.assert_close(jsd_module.fused_linear_jsd_backward(two, dx, dw), tuple(2 * g for g in grads))
    target = torch.rand(20, 33, device=device)
    loss, dx, dw = kl_module.fused_linear_kl_div_forward(
        x.detach(), w, target, None, "sum", -100, False, 1.0, 1e-10
    )
    expected = liger_fused_linear_kl_div(x, w, target, reduction="sum")
    torch.testing.assert_close(loss, expected)
    assert dx is None
    torch.testing.assert_close(dw, torch.autograd.grad(expected, w)[0])


def test_ce_tvd_ties_extremes_and_helpers(device):
    g = torch.Generator().manual_seed(0)
    z, zt = ((torch.randn(6, 40, generator=g) * 1e4).to(device) for _ in range(2))
    zt[0] = z[0]
    target = torch.tensor([1, 2, -100, 4, 5, 6], device=device)
    x = z.clone().requires_grad_()
    ce, tvd = LigerFusedCETVDLoss()(x, zt, target)
    assert tvd[0] == 0 and ce[2] == 0 and tvd[2] == 0
    (of_tvd,) = torch.autograd.grad(tvd.sum(), x, retain_graph=True)
    assert (of_tvd[0] == 0).all() and (of_tvd[2] == 0).all()
    (of_ce,) = torch.autograd.grad(ce.sum(), x)
    exact = z.double().requires_grad_()
    want = F.cross_entropy(exact, target, reduction="none")
    torch.testing.assert_close(ce.double(), want, rtol=1e-6, atol=1e-2)
    torch.testing.assert_close(of_ce.double(), torch.autograd.grad(want.sum(), exact)[0], rtol=0, atol=2e-6)

    z, zt = z / 1e4, zt / 1e4
    outputs = ce_tvd_module.fused_ce_tvd_forward(z, zt, target, -100)
    torch.testing.assert_close(outputs[2][target >= 0], torch.logsumexp(z, -1)[target >= 0])
    x = z.clone().requires_grad_()
    ce, tvd = LigerFusedCETVDFunction.apply(x, zt, target)
    up = torch.rand(6, device=device), torch.rand(6, device=device)
    (expected,) = torch.autograd.grad((ce, tvd), x, up)
    got = ce_tvd_module.fused_ce_tvd_backward(*up, z, zt, target, *outputs[2:], -100)
    torch.testing.assert_close(got, expected)
