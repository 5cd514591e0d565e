"""Losses without a gradient of rows that fill a tile: on Hopper from a product that stores no logits,
elsewhere from the loop. Both say the same; numbers against eager's: test_no_grad of test_ops.py."""

import threading

import pytest
import torch

from liger_kernel.ops.linear_loss import force_loop_order
from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy, liger_linear_logprob

N, H, V = 256, 72, 517
OPS = {
    "cross_entropy": lambda x, w, y, **o: liger_fused_linear_cross_entropy(x, w, y, reduction="none", **o),
    "logprob": lambda x, w, y, **o: -liger_linear_logprob(x, w, y, **o).logprob,
}
both = pytest.mark.parametrize("op", OPS)


def draw(device, dtype=torch.bfloat16, v=V):
    x, w = torch.randn(N, H).to(device, dtype), (0.1 * torch.randn(v, H)).to(device, dtype)
    return x, w, torch.randint(v, (N,)).to(device)


def logits(x, w, bias=None):
    """In float64, rounded once to x's dtype, as both ways round them."""
    z = torch.nn.functional.linear(x.double(), w.double(), None if bias is None else bias.double())
    return z.to(x.dtype).double()


def truth(x, w, y, bias=None):
    return torch.nn.functional.cross_entropy(logits(x, w, bias), y, reduction="none")


def alone(op, *args, **options):
    with torch.no_grad():
        return OPS[op](*args, **options)


def close(loss, want):
    """A logit may fall to the other side of a rounding, in a row or so; what all rows have wrong, as five
    columns left out (.01), is no such thing."""
    error = (loss.double() - want).abs()
    assert error.max() <= 4 * torch.finfo(torch.bfloat16).eps  # a step of the largest logits
    assert error.square().mean().sqrt() <= 2e-3


@both
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
@pytest.mark.parametrize("v", (1, 255, 256, 517))
def test_values(op, v, dtype, device):
    x, w, y = draw(device, dtype, v)
    close(alone(op, x, w, y), truth(x, w, y))


@both
@pytest.mark.parametrize("bias_dtype", (torch.bfloat16, torch.float32))
def test_bias_of_its_own_dtype(op, bias_dtype, device):
    x, w, y = draw(device)
    bias = torch.randn(V).to(device, bias_dtype)
    close(alone(op, x, w, y, bias=bias), truth(x, w, y, bias.bfloat16()))


@both
def test_layouts(op, device):
    """Rows and ids apart, a row expanded to all, and rows that begin off a 16-byte boundary."""
    x, w, y = draw(device)
    wide = torch.full((N, 2 * H), torch.nan, dtype=x.dtype, device=device)
    wide[:, 8 : 8 + H] = x
    apart = torch.stack([y, torch.full_like(y, -100)], 1)[:, 0]
    close(alone(op, wide[:, 8 : 8 + H], w, apart), truth(x, w, y))
    same = x[:1].expand(N, H)
    close(alone(op, same, w, y), truth(same, w, y))
    same = w[:1].expand(V, H)
    close(alone(op, x, same, y), truth(x, same, y))
    odd = torch.empty(N * H + 1, dtype=x.dtype, device=device)[1:].view(N, H).copy_(x)
    close(alone(op, odd, w, y), truth(x, w, y))


@both
def test_rows_that_are_no_numbers_keep_to_themselves(op, device):
    x, w, y = draw(device)
    x[3], x[130, 5] = torch.nan, torch.inf
    y[7] = -100
    loss = alone(op, x, w, y)
    ok = torch.ones(N, dtype=torch.bool, device=device)
    ok[[3, 7, 130]] = False
    assert loss[3].isnan() and loss[130].isnan() and loss[7] == 0
    close(loss[ok], truth(x[ok], w, y[ok]))


@both
@pytest.mark.cuda_only
@pytest.mark.parametrize("value", (V, -1, 2**40))
def test_a_label_that_is_no_class(op, value, device):
    x, w, y = draw(device)
    bad = y.clone()
    bad[200] = value
    loss, good = alone(op, x, w, bad), alone(op, x, w, y)
    ok = torch.arange(N, device=device) != 200
    assert loss[200].isnan() and torch.equal(loss[ok], good[ok])


@both
@pytest.mark.cuda_only
def test_first_call_of_a_thread_and_in_a_graph(op, device):
    x, w, y = draw(device)
    want, found = alone(op, x, w, y), []
    torch.cuda.synchronize()
    thread = threading.Thread(target=lambda: found.append(alone(op, x, w, y)))
    thread.start()
    thread.join()
    assert torch.equal(found[0], want)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = alone(op, x, w, y)
    x.copy_(x.flip(0))
    y.copy_(y.flip(0))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured, want.flip(0))


@pytest.mark.cuda_only
def test_the_loop_says_the_same(device):
    x, w, y = draw(device)
    with force_loop_order("token"):
        want = alone("cross_entropy", x, w, y)
    close(alone("cross_entropy", x, w, y), want.double())


def test_lse_and_mean_logit(device):
    x, w, y = draw(device)
    with torch.no_grad():
        out = liger_linear_logprob(x, w, y, return_lse=True, return_mean_logit=True, temperature=0.5)
    z = 2 * logits(x, w)
    close(out.lse, z.logsumexp(-1))
    close(out.mean_logit, z.mean(-1))
