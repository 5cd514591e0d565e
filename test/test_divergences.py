"""What test_ops.py cannot say of jsd, kl_div and tvd: infinities, extreme logits, ties, limits, helpers."""

import pytest
import torch
import torch.nn.functional as F

from liger_kernel.ops import LigerJSDFunction, LigerKLDivLossFunction, LigerTVDLossFunction
from liger_kernel.ops import jsd as jsd_module
from liger_kernel.ops import kl_div as kl_div_module
from liger_kernel.ops import tvd as tvd_module
from liger_kernel.transformers import LigerJSD, LigerKLDIVLoss, LigerTVDLoss
from liger_kernel.transformers.functional import liger_jsd, liger_kl_div, liger_tvd

INF = float("inf")


def exact_jsd(x, y, beta):
    """(loss, dX) of every element in fp64, with the limits where a probability is 0."""
    x, y = x.double(), y.double()
    p, q = y.exp(), x.exp()

    def term(weight, log_ratio):
        return torch.where(weight == 0, 0.0, weight * log_ratio)

    if beta == 0:
        return term(p, y - x), -p
    if beta == 1:
        return term(q, x - y), q + term(q, x - y)
    m = torch.logaddexp(x + torch.tensor(1 - beta).double().log(), y + torch.tensor(beta).double().log())
    of_q = (1 - beta) * term(q, x - m)
    return beta * term(p, y - m) + of_q, of_q


def run(fn, x, *args):
    x = x.detach().requires_grad_()
    loss = fn(x, *args)
    return loss, torch.autograd.grad(loss, x)[0]


def log_probs(n, v, scale, device, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(n, v, generator=g, dtype=torch.float64) * scale).log_softmax(-1).to(device, dtype)


def assert_exact(got, truth, ulps, scale=None):
    """Within `ulps` units in the last place of the truth's largest value; infinite where the truth is."""
    infinite = ~truth.isfinite()
    assert torch.equal(got.double()[infinite], truth[infinite])
    if infinite.all():
        return
    error = (got.double() - truth)[~infinite].abs().max()
    bound = truth[~infinite].abs().max() if scale is None else scale
    assert error <= ulps * torch.finfo(got.dtype).eps * bound, (error, bound)


@pytest.mark.parametrize("beta", (0.0, 0.1, 0.5, 0.9, 1.0))
@pytest.mark.parametrize("spread", (1.0, 100.0, 1e4))
def test_jsd_of_extreme_logits(beta, spread, device):
    """At +-1e4 most probabilities are 0 in any float, some of both sides' at the same place."""
    x, y = (log_probs(6, 70, spread, device, seed) for seed in (1, 2))
    loss, dx = run(LigerJSDFunction.apply, x, y, None, beta)
    elements, gradient = exact_jsd(x, y, beta)
    assert_exact(loss, elements.sum() / 6, 8, elements.abs().sum() / 6)
    assert_exact(dx, gradient / 6, 8)
    assert loss.isfinite() and dx.isfinite().all()


@pytest.mark.parametrize("beta", (0.0, 0.3, 1.0))
def test_jsd_of_masked_classes(beta, device):
    """-inf in the student, in the teacher, in both: each element has its limit, no NaN."""
    x, y = (log_probs(5, 40, 2.0, device, seed) for seed in (1, 2))
    x[:, :3], y[:, :3] = -INF, -INF
    x[1, 5], y[2, 6] = -INF, -INF
    for row in range(5):
        loss, dx = run(LigerJSDFunction.apply, x[row : row + 1], y[row : row + 1], None, beta)
        elements, gradient = exact_jsd(x[row : row + 1], y[row : row + 1], beta)
        assert_exact(loss, elements.sum(), 8)
        assert_exact(dx, gradient, 8)
        assert (dx[:, :3] == 0).all()
        assert loss.isfinite() == ((row, beta) not in ((1, 0.0), (2, 1.0)))


def test_jsd_near_agreement_keeps_its_digits(device):
    """X - ln M is a small difference of logarithms: its error must not be that of a logarithm of e^-12."""
    x = log_probs(4, 1000, 1.0, device)
    y = x + 1e-3 * torch.randn(4, 1000, generator=torch.Generator().manual_seed(3)).to(device)
    _, dx = run(LigerJSDFunction.apply, x, y)
    _, gradient = exact_jsd(x, y, 0.5)
    assert (dx.double() - gradient / 4).norm() / (gradient / 4).norm() < 3e-4
    loss, dx = run(LigerJSDFunction.apply, x, x.clone())
    assert loss == 0 and (dx == 0).all()


def test_jsd_limits_are_the_two_kl_divergences(device):
    x, y = (log_probs(7, 33, 1.0, device, seed) for seed in (1, 2))
    forward = F.kl_div(x, y, reduction="batchmean", log_target=True)
    reverse = F.kl_div(y, x, reduction="batchmean", log_target=True)
    torch.testing.assert_close(liger_jsd(x, y, beta=0.0), forward)
    torch.testing.assert_close(liger_jsd(x, y, beta=1.0), reverse)
    for beta, limit in ((1e-5, forward), (1 - 1e-5, reverse)):  # the mixture's slope at its ends
        slope = liger_jsd(x.double().cpu(), y.double().cpu(), beta=beta) / min(beta, 1 - beta)
        torch.testing.assert_close(slope.float(), limit.cpu(), rtol=1e-3, atol=0)


def test_tvd_ties_have_no_gradient(device):
    p = torch.tensor([[0.2, 0.5, 0.3, 0.0]], device=device)
    q = torch.tensor([[0.2, 0.4, 0.4, 0.0]], device=device)
    loss, dp = run(LigerTVDLossFunction.apply, p, q)
    torch.testing.assert_close(loss, torch.tensor(0.1, device=device))
    assert dp.tolist() == [[0.0, 0.5, -0.5, 0.0]]


@pytest.mark.filterwarnings("ignore:reduction")
@pytest.mark.parametrize("reduction", ("none", "mean", "sum", "batchmean"))
@pytest.mark.parametrize("log_target", (False, True))
def test_kl_div_is_torchs(reduction, log_target, device):
    x = log_probs(7, 33, 1.0, device, 1)
    y = log_probs(7, 33, 1.0, device, 2)
    y = y if log_target else y.exp()
    expected = F.kl_div(x, y, reduction=reduction, log_target=log_target)
    torch.testing.assert_close(liger_kl_div(x, y, reduction=reduction, log_target=log_target), expected)
    module = LigerKLDIVLoss(reduction=reduction, log_target=log_target)
    torch.testing.assert_close(module(x, y), expected)
    assert isinstance(module, torch.nn.KLDivLoss) and LigerKLDIVLoss(1e-3).eps == 1e-3


def test_kl_div_legacy_arguments(device):
    x, y = log_probs(3, 5, 1.0, device, 1), log_probs(3, 5, 1.0, device, 2).exp()
    assert torch.equal(liger_kl_div(x, y, size_average=False), liger_kl_div(x, y, reduction="sum"))
    assert torch.equal(liger_kl_div(x, y, reduce=False), liger_kl_div(x, y, reduction="none"))


@pytest.mark.parametrize("log_target", (False, True))
def test_kl_div_of_what_the_target_excludes(log_target, device):
    """A target of 0 adds 0 even where x is -inf; a target above 0 there costs infinity."""
    x = log_probs(2, 6, 1.0, device, 1)
    p = torch.tensor([[0.0, 0.5, 0.5, 0.0, 0.0, 0.0]] * 2, device=device)
    x[:, 0], x[1, 1] = -INF, -INF
    y = p.log() if log_target else p
    rows = liger_kl_div(x, y, reduction="none", log_target=log_target).sum(-1)
    assert rows[0].isfinite() and rows[1] == INF
    _, dx = run(LigerKLDivLossFunction.apply, x, y, "sum", log_target)
    torch.testing.assert_close(dx, -p)


@pytest.mark.parametrize("fn", (LigerJSDFunction, LigerKLDivLossFunction, LigerTVDLossFunction))
def test_a_nan_stays_in_its_row(fn, device):
    """And reaches the loss, the element of the gradient that it stands in, and no other."""
    for side in (0, 1):
        pair = [log_probs(3, 40, 1.0, device, seed) for seed in (1, 2)]
        pair[side][1, 7] = float("nan")
        loss, dx = run(fn.apply, *pair)
        assert loss.isnan()
        silent = fn is LigerKLDivLossFunction and side == 0  # its gradient is the target's
        expected = torch.zeros_like(dx, dtype=torch.bool)
        expected[1, 7] = not silent
        assert torch.equal(dx.isnan(), expected)


def test_float16_takes_the_loss_scale_before_the_rounding(device):
    """1 / n_rows times a probability is 0 in float16; a loss scale must reach it first."""
    x, y = (log_probs(3000, 40, 1.0, device, seed, torch.float16) for seed in (1, 2))
    _, dx = run(lambda x: liger_jsd(x, y) * 2.0**14, x)
    truth = exact_jsd(x, y, 0.5)[1] / 3000 * 2.0**14
    assert (dx.double() - truth).norm() / truth.norm() < 1e-3


def test_the_target_gets_no_gradient(device):
    x, y = (log_probs(3, 5, 1.0, device, seed) for seed in (1, 2))
    for fn in (liger_jsd, liger_kl_div, liger_tvd):
        a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
        fn(a, b).backward()
        assert a.grad is not None and b.grad is None
        assert not fn(x, b).requires_grad


def test_modules_and_functions_agree(device):
    x, y = (log_probs(6, 9, 1.0, device, seed) for seed in (1, 2))
    labels = torch.tensor([1, 7, 1, 3, 7, 2], device=device)
    assert torch.equal(LigerJSD(0.3, 7)(x, y, labels), liger_jsd(x, y, labels, 0.3, 7))
    assert torch.equal(LigerTVDLoss("sum", 7)(x, y, labels), liger_tvd(x, y, labels, "sum", 7))
    torch.testing.assert_close(
        liger_jsd(x, y, labels, 0.3, 7), liger_jsd(x[labels != 7], y[labels != 7], beta=0.3)
    )
    torch.testing.assert_close(liger_tvd(x, y, labels, "mean", 7), liger_tvd(x[labels != 7], y[labels != 7]))
    for make in (lambda: LigerJSD(beta=2.0), lambda: LigerTVDLoss(reduction="max")):
        with pytest.raises(ValueError, match="expected"):
            make()


def test_helpers_of_upstream(device):
    x, y = (log_probs(4, 9, 1.0, device, seed) for seed in (1, 2))
    labels = torch.tensor([1, -100, 1, 3], device=device)
    two = torch.tensor(2.0, device=device)
    loss, dx = jsd_module.jsd_forward(x, y, labels, 0.3, -100, True)
    want = run(LigerJSDFunction.apply, x, y, labels, 0.3)
    torch.testing.assert_close((loss, dx), want)
    torch.testing.assert_close(jsd_module.jsd_backward(dx, two), 2 * want[1])
    p, q = x.exp(), y.exp()
    loss, dp = tvd_module.tv_distance_forward_triton(p, q, labels, "mean", -100, False)
    want = run(LigerTVDLossFunction.apply, p, q, None, "mean")
    torch.testing.assert_close((loss, dp), want)
    torch.testing.assert_close(tvd_module.tvd_backward_triton(two, dp), 2 * want[1])
    torch.testing.assert_close(
        kl_div_module.kldiv_forward_triton(x, q, False, "sum", 1e-10), F.kl_div(x, q, reduction="sum")
    )
    torch.testing.assert_close(kl_div_module.kldiv_backward_triton(y, two, torch.empty_like(y), True), -2 * q)
