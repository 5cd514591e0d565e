"""What linear_logprob's spec can't say: memory, what is kept, edges of sizes and budgets, bad rows."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from liger_kernel.ops import linear_logprob as op_module
from liger_kernel.ops import linear_loss
from liger_kernel.transformers import LigerLinearLogprob
from liger_kernel.transformers.functional import LinearLogprob, liger_linear_logprob

ALL = dict(return_lse=True, return_entropy=True, return_argmax=True, return_mean_logit=True)


def draw(n=50, h=24, v=70, dtype=torch.float32, device="cpu", grad=True):
    g = torch.Generator().manual_seed(n + h + v)
    x = torch.randn(n, h, generator=g).to(device, dtype).requires_grad_(grad)
    w = (torch.randn(v, h, generator=g) * max(h, 1) ** -0.5).to(device, dtype).requires_grad_(grad)
    return x, w, torch.randint(max(v, 1), (n,), generator=g).to(device)


def floats(out):
    return [t for t in vars(out).values() if t is not None and t.is_floating_point()]


def step(x, w, ids, **options):
    """The outputs and, for a different weight on every one of their elements, the gradients."""
    out = liger_linear_logprob(x, w, ids, **options)
    total = sum(
        (t * torch.linspace(-1, 1, t.numel(), device=t.device).view(t.shape)).sum() for t in floats(out)
    )
    return out, torch.autograd.grad(total, (x, w))


MEASURE = """
import re, sys, torch
from liger_kernel.transformers.functional import liger_linear_logprob
budget, grad = int(sys.argv[1]), sys.argv[2] == "grad"
x, w = torch.randn(4096, 64), torch.randn(16000, 64)
y = torch.randint(16000, (4096,))
def step(n):
    a, b = x[:n].detach().requires_grad_(grad), w.detach().requires_grad_(grad)
    out = liger_linear_logprob(a, b, y[:n], return_entropy=True, memory_budget=budget)
    if grad: torch.autograd.grad((out.logprob + out.entropy).norm(), (a, b))
def kib(): return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
step(64)
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = kib()
step(4096)
print((kib() - before) * 1024)
"""


@pytest.mark.cpu_only
@pytest.mark.parametrize("grad", ("grad", "no_grad"))
@pytest.mark.parametrize("mib", (16, 260))
def test_logits_take_no_more_than_the_budget(grad, mib):
    """The peak of the process. All logits take 250 MiB: of 260 they are kept, and their gradient is they."""
    budget = mib * 2**20
    done = subprocess.run([sys.executable, "-c", MEASURE, str(budget), grad], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    gradients = (4096 + 16000) * 64 * 4 if grad == "grad" else 0
    # a tenth for what the products' library keeps, 4 MiB for the allocator
    assert int(done.stdout) <= 1.1 * (budget + gradients) + 4 * 2**20
    assert mib == 16 or int(done.stdout) >= 240 * 2**20


def forward_keeping(monkeypatch, keep):
    """Every forward pass with `keep` in place of its own decision; returns the list of what it decided."""
    seen, real = [], op_module._fwd

    def fwd(*args):
        seen.append(args[13:15])  # statistics, logits
        return real(*args[:14], args[14] if keep is None else keep, *args[15:])

    monkeypatch.setattr(op_module, "_fwd", fwd)
    return seen


@pytest.mark.parametrize("rows", (50, 20, 1), ids=lambda rows: f"{rows}_rows_fit")
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_kept_logits_give_what_recomputed_ones_give(dtype, rows, device, monkeypatch):
    """All of them, or those of the last block: 10 of 50 rows, or a single one."""
    n, v = 50, 70
    x, w, ids = draw(n, 24, v, dtype, device)
    ids[3] = -100
    size = n * v * dtype.itemsize
    assert op_module.keeps_logits(n, v, dtype, size) and not op_module.keeps_logits(n, v, dtype, size - 1)
    options = dict(extra_ids=torch.tensor([3, 5, 3], device=device), softcap=5.0, **ALL)
    options["memory_budget"] = rows * v * dtype.itemsize
    kept, d_kept = step(x, w, ids, **options)
    forward_keeping(monkeypatch, False)
    again, d_again = step(x, w, ids, **options)
    for a, b in zip((*floats(kept), *d_kept), (*floats(again), *d_again)):
        assert torch.equal(a, b)


def test_logits_are_kept_only_where_a_backward_can_come(monkeypatch):
    seen = forward_keeping(monkeypatch, None)
    x, w, ids = draw()
    for budget in (None, 20 * 70 * 4):
        out = liger_linear_logprob(x, w, ids, memory_budget=budget)
        node = out.logprob.grad_fn
        node = node.next_functions[0][0] if "View" in node.name() else node
        assert node.saved_tensors[6].shape == (50 if budget is None else 17, 70)
    with torch.no_grad():
        assert not liger_linear_logprob(x, w, ids).logprob.requires_grad
    liger_linear_logprob(x.detach(), w.detach(), ids)
    assert seen == [(True, True), (True, True), (False, False), (False, False)]


@pytest.mark.parametrize("budget", (None, 20 * 70 * 4))
def test_every_backward_over_kept_logits_gives_the_same(budget, device):
    """The first writes over them, the others compute them again in their memory; a copy is never needed."""
    x, w, ids = draw(device=device)
    out = liger_linear_logprob(x, w, ids, softcap=5.0, memory_budget=budget, **ALL)
    total = sum(t.sum() for t in floats(out))
    node = out.logprob.grad_fn
    node = node.next_functions[0][0] if "View" in node.name() else node
    kept = node.saved_tensors[6]
    before = kept.clone()
    first, second, third = (torch.autograd.grad(total, (x, w), retain_graph=True) for _ in range(3))
    assert not torch.equal(kept, before)
    for grads in (second, third):
        assert all(torch.equal(a, b) for a, b in zip(first, grads))


@pytest.mark.slow
@pytest.mark.parametrize("budget", (None, 20 * 70 * 4))
def test_compiled_backward_leaves_kept_logits_alone(budget, device):
    x, w, ids = draw(device=device)

    def loss(x, w):
        out = liger_linear_logprob(x, w, ids, return_entropy=True, memory_budget=budget)
        return (out.logprob + out.entropy).sum()

    want = torch.autograd.grad(loss(x, w), (x, w))
    total = torch.compile(loss, backend="aot_eager", fullgraph=True)(x, w)
    for _ in range(2):
        for a, b in zip(torch.autograd.grad(total, (x, w), retain_graph=True), want):
            torch.testing.assert_close(a, b)


def test_repeated_extra_ids_add_up(device):
    """The same id K times over, among them the row's own: as one id with K times the gradient."""
    x, w, ids = draw(12, 16, 30, device=device)
    many = torch.full((700,), 7, device=device)
    many[::2] = 3
    ids[:] = 3
    out = liger_linear_logprob(x, w, ids, extra_ids=many)
    d_many = torch.autograd.grad(out.logprob.sum() + out.extra_logprob.sum(), (x, w))
    once = liger_linear_logprob(x, w, ids, extra_ids=torch.tensor([3, 7], device=device))
    d_once = torch.autograd.grad(351 * once.logprob.sum() + 350 * once.extra_logprob[:, 1].sum(), (x, w))
    torch.testing.assert_close(d_many, d_once, rtol=1e-4, atol=1e-3)
    assert torch.equal(out.extra_logprob, once.extra_logprob[:, [0, 1]].repeat(1, 350))
    again = liger_linear_logprob(x, w, ids, extra_ids=many)
    d_again = torch.autograd.grad(again.logprob.sum() + again.extra_logprob.sum(), (x, w))
    assert all(torch.equal(a, b) for a, b in zip(d_many, d_again))


@pytest.mark.parametrize("budget", (None, 16 * 70 * 4))
def test_all_ignored_and_one_block_all_ignored(budget, device):
    x, w, ids = draw(48, device=device)
    ids[:] = -100
    extra = torch.tensor([1, 2], device=device)
    out, grads = step(x, w, ids, extra_ids=extra, memory_budget=budget, **ALL)
    assert all((t == 0).all() for t in (*floats(out), out.argmax, *grads))
    ids[:16], ids[32:] = 5, 6
    out, (dx, dw) = step(x, w, ids, extra_ids=extra, memory_budget=budget, **ALL)
    assert all((t[16:32] == 0).all() and (t[:16] != 0).all() for t in floats(out))
    assert (dx[16:32] == 0).all() and dx[:16].abs().min(1)[0].min() > 0 and dw.isfinite().all()


@pytest.mark.cpu_only
@pytest.mark.parametrize("ignored", (0.5, 0.98))
def test_ignored_rows_take_no_part_in_the_products(ignored):
    """The bits are those of the call without these rows. (A GPU would have to be waited for.)"""
    x, w, ids = draw(96)
    live = torch.rand(96, generator=torch.Generator().manual_seed(0)) >= ignored
    extra = torch.randint(70, (96, 5), generator=torch.Generator().manual_seed(1))
    options = dict(memory_budget=16 * 70 * 4, **ALL)

    def run(x, ids, extra, keep):
        out = liger_linear_logprob(x, w, ids, extra_ids=extra, **options)
        g = [torch.linspace(-1, 1, 96 * t[0].numel()).view(96, *t.shape[1:])[keep] for t in floats(out)]
        return out, torch.autograd.grad(floats(out), (x, w), g)

    want, (dx, dw) = run(x.detach()[live].requires_grad_(), ids[live], extra[live], live)
    out, grads = run(x, torch.where(live, ids, -100), extra, slice(None))
    assert torch.equal(grads[0][live], dx) and (grads[0][~live] == 0).all() and torch.equal(grads[1], dw)
    for a, b in zip(vars(out).values(), vars(want).values()):
        assert torch.equal(a[live], b) and (a[~live] == 0).all()


@pytest.mark.parametrize("n, h, v", ((0, 24, 70), (0, 24, 0), (5, 0, 70), (3, 24, 1), (0, 0, 1)))
def test_empty_and_smallest_sizes(n, h, v, device):
    x, w, ids = draw(n, h, v, device=device)
    out, (dx, dw) = step(x, w, ids, **ALL)
    assert dx.shape == x.shape and dw.shape == w.shape
    assert out.logprob.shape == (n,) and out.argmax.dtype == torch.int64
    if v == 1:  # one class is certain
        assert (out.logprob == 0).all() and (out.entropy == 0).all() and out.extra_logprob is None
    if h == 0 and n:
        torch.testing.assert_close(out.entropy, torch.full_like(out.entropy, 70.0).log())
    with torch.no_grad():
        assert torch.equal(liger_linear_logprob(x, w, ids).logprob, out.logprob)


@pytest.mark.cpu_only
def test_a_budget_below_one_row_goes_row_by_row_and_warns_once(monkeypatch, recwarn):
    monkeypatch.setattr(linear_loss, "_too_small", set())
    x, w, ids = draw()
    with pytest.warns(UserWarning, match="one row of logits takes 280"):
        small = step(x, w, ids, memory_budget=1, **ALL)
    step(x, w, ids, memory_budget=1, **ALL)
    assert len(recwarn) == 0
    whole = step(x, w, ids, **ALL)
    torch.testing.assert_close(
        (floats(small[0]), small[1]), (floats(whole[0]), whole[1]), rtol=1e-4, atol=1e-5
    )


def masked_head(device, value):
    """A head of one-dimensional hidden states, whose bias is `value` in some classes."""
    bias = torch.zeros(40, device=device)
    bias[::2] = value
    x = torch.randn(6, 1, device=device, requires_grad=True)
    return x, torch.randn(40, 1, device=device, requires_grad=True), bias.requires_grad_()


@pytest.mark.parametrize("value", (-float("inf"), torch.finfo(torch.float32).min, -1e30, 1e30, 3e38, 1e4))
@pytest.mark.parametrize("v_pad", (0, 4096))
def test_extreme_logits(value, v_pad, device):
    """Masked classes have no part in lse and entropy; the largest logits don't overflow."""
    x, w, bias = masked_head(device, value)
    if v_pad:  # several tiles, the first of them masked altogether
        w = F.pad(w.detach(), (0, 0, v_pad, 0)).requires_grad_()
        bias = F.pad(bias.detach(), (v_pad, 0), value=min(value, -1e4)).requires_grad_()
    ids = v_pad + torch.arange(6, device=device) * 2 + int(value < 0)
    out = liger_linear_logprob(x, w, ids, bias, return_lse=True, return_entropy=True, return_argmax=True)
    z = x.detach().double() @ w.detach().double().t() + bias.detach().double()
    logp = z.float().double().log_softmax(-1)
    entropy = -(logp.exp() * logp.clamp_min(-1e308)).sum(-1)
    torch.testing.assert_close(out.logprob.double(), logp.gather(1, ids[:, None])[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.lse.double(), z.logsumexp(-1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.entropy.double(), entropy, rtol=1e-4, atol=1e-4)
    grads = torch.autograd.grad(out.logprob.sum() + out.lse.sum() + out.entropy.sum(), (x, w, bias))
    assert all(g.isfinite().all() for g in grads)
    assert value > 0 or (grads[2][v_pad::2] == 0).all()


def test_rows_of_nothing_but_minus_infinity(device):
    x, w, _ = masked_head(device, 0.0)
    bias = torch.full((40,), -float("inf"), device=device)
    out = liger_linear_logprob(x, w, torch.arange(6, device=device), bias, **ALL)
    assert (out.logprob == -float("inf")).all() and (out.lse == -float("inf")).all()
    assert (out.entropy == 0).all() and (out.argmax == 0).all()
    grads = torch.autograd.grad(sum(t.sum() for t in (out.logprob, out.lse, out.entropy)), (x, w))
    assert all((g == 0).all() for g in grads)


@pytest.mark.parametrize("bad", (float("nan"), float("inf")))
def test_rows_that_are_not_finite_stay_where_they_are(bad, device):
    """They spoil their own outputs and their own row of dx alone; dW as eager's: NaN."""
    x, w, ids = draw(48, device=device)
    good = x.detach().clone()
    x.data[40] = bad
    out, (dx, dw) = step(x, w, ids, memory_budget=16 * 70 * 4, **ALL)
    ok = torch.arange(48, device=device) != 40
    want = liger_linear_logprob(good, w, ids, memory_budget=16 * 70 * 4, **ALL)
    for a, b in zip(floats(out), floats(want)):
        assert torch.equal(a[ok], b[ok])
    assert all(t[40].isnan() for t in (out.logprob, out.entropy))
    assert dx[40].isnan().all() and dx[ok].isfinite().all() and dw.isnan().any()


@pytest.mark.cuda_only
def test_ids_out_of_range_give_nan_and_no_gradient():
    x, w, ids = draw(12, device="cuda")
    ids[2], ids[5] = 70, -1
    extra = torch.tensor([3, 2**40, -5, -100], device="cuda")
    out, (dx, dw) = step(x, w, ids, extra_ids=extra, **ALL)
    bad = torch.tensor([2, 5], device="cuda")
    ok = [i for i in range(12) if i not in (2, 5)]
    assert all(t[bad].isnan().all() for t in floats(out)) and (out.argmax[bad] == -1).all()
    assert out.extra_logprob[ok][:, 1:3].isnan().all() and (out.extra_logprob[ok, 3] == 0).all()
    assert out.logprob[ok].isfinite().all() and out.extra_logprob[ok, 0].isfinite().all()


@pytest.mark.cuda_only
def test_gradients_beside_ids_out_of_range():
    x, w, ids = draw(12, device="cuda")
    ids[2] = 70
    extra = torch.tensor([3, 99], device="cuda")
    out = liger_linear_logprob(x, w, ids, extra_ids=extra)
    g = torch.ones(12, device="cuda"), torch.ones(12, 2, device="cuda")
    dx, dw = torch.autograd.grad((out.logprob, out.extra_logprob), (x, w), g)
    good = ids.clone()
    good[2] = -100
    out = liger_linear_logprob(x, w, good, extra_ids=extra[:1])
    want = torch.autograd.grad((out.logprob, out.extra_logprob), (x, w), (g[0], g[1][:, :1]))
    assert (dx[2] == 0).all() and torch.equal(dx, want[0]) and torch.equal(dw, want[1])


def test_compile_sees_one_node_each_way(device):
    x, w, ids = draw(device=device)
    nodes = []

    def backend(graph, _):
        nodes.append([n for n in graph.graph.nodes if "linear_logprob" in str(n.target)])
        return graph

    def f():
        out = liger_linear_logprob(x.detach(), w.detach(), ids, return_entropy=True)
        return out.logprob + out.entropy

    assert torch.equal(torch.compile(f, backend=backend, fullgraph=True)(), f())
    assert [len(n) for n in nodes] == [1]


def test_module_and_function_agree(device):
    x, w, ids = draw(device=device)
    bias, extra = torch.randn(70, device=device), torch.tensor([1, 2], device=device)
    options = dict(temperature=0.8, logit_scale=2.0, softcap=5.0, ignore_index=3, **ALL)
    a = LigerLinearLogprob(**options)(w, x, ids, bias, extra)
    b = liger_linear_logprob(x, w, ids, bias, extra_ids=extra, **options)
    assert isinstance(a, LinearLogprob) and list(vars(a)) == list(vars(b))
    assert all(torch.equal(s, t) for s, t in zip(vars(a).values(), vars(b).values()))
    assert "temperature=0.8" in repr(LigerLinearLogprob(**options))
    for wrong in (dict(temperature=0.0), dict(softcap=-1.0)):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*, expected"):
            LigerLinearLogprob(**wrong)
