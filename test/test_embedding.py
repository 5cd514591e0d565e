"""What the embedding promises beyond its OpSpec: indices out of range, long runs of one id, the module."""

import pytest
import torch

from liger_kernel import _check as C
from liger_kernel.ops import LigerEmbeddingFunction, _labels
from liger_kernel.transformers.experimental import LigerEmbedding


@pytest.mark.parametrize("value", [11, -1, 2**40, -(2**63)])
def test_index_out_of_range(value, device, monkeypatch):
    w = torch.randn(11, 24, device=device, requires_grad=True)
    ids = torch.tensor([[3, 0], [value, 10]], device=device)
    if device == "cuda":
        y = LigerEmbeddingFunction.apply(w, ids)
        ok = ids.flatten() != value
        assert y[1, 0].isnan().all() and torch.equal(y.flatten(0, 1)[ok], w[ids.flatten()[ok]])
        g = torch.randn_like(y)
        y.backward(g)
        expected = torch.zeros_like(w).index_add_(0, ids.flatten()[ok], g.flatten(0, 1)[ok])
        torch.testing.assert_close(w.grad, expected, rtol=0, atol=0)
        monkeypatch.setattr(_labels, "_DEBUG", True)
    with pytest.raises(RuntimeError, match=rf"indices\[1, 0\] is {value}, expected 0 to 10"):
        LigerEmbeddingFunction.apply(w, ids)


@pytest.mark.parametrize("n", [31, 64, 2048, 100_003])
def test_one_id_for_every_token(n, device):
    """The sum of n equal terms, exact in fp32: no slice is lost or counted twice."""
    w = torch.zeros(3, 8, device=device, requires_grad=True)
    LigerEmbeddingFunction.apply(w, torch.full((n,), 1, device=device)).backward(
        torch.ones(n, 8, device=device)
    )
    assert w.grad.tolist() == [[0.0] * 8, [float(n)] * 8, [0.0] * 8]


@pytest.mark.parametrize("n_ids", [1, 2, 3, 40])
def test_runs_that_begin_and_end_anywhere(n_ids, device):
    """Run lengths around the length of a slice, in exact sums of small integers."""
    generator = torch.Generator().manual_seed(n_ids)
    ids = torch.randint(n_ids, (5000,), generator=generator)
    dy = torch.randint(-4, 5, (5000, 12), generator=generator).float()
    want = torch.zeros(n_ids + 2, 12).index_add_(0, ids, dy)
    w = torch.zeros(n_ids + 2, 12, device=device, requires_grad=True)
    LigerEmbeddingFunction.apply(w, ids.to(device)).backward(dy.to(device))
    assert torch.equal(w.grad.cpu(), want)


def test_gradient_of_a_long_run_is_more_exact_than_one_sum_in_bf16(device):
    """10^5 times one id: added up in fp32 and rounded once."""
    dy = torch.rand(100_000, 4, device=device).bfloat16()
    w = torch.zeros(1, 4, device=device, dtype=torch.bfloat16, requires_grad=True)
    LigerEmbeddingFunction.apply(w, torch.zeros(100_000, dtype=torch.int64, device=device)).backward(dy)
    assert torch.equal(w.grad[0], dy.double().sum(0).bfloat16())


def test_int32_indices(device):
    w = torch.randn(5, 3, device=device)
    ids = torch.tensor([4, 0, 4], device=device, dtype=torch.int32)
    assert torch.equal(LigerEmbeddingFunction.apply(w, ids), w[ids.long()])


def test_module_is_nn_embedding(device):
    ours = LigerEmbedding(13, 6, padding_idx=-2).to(device)
    theirs = torch.nn.Embedding(13, 6, padding_idx=11).to(device)
    theirs.load_state_dict(ours.state_dict())
    assert ours.weight[11].eq(0).all() and ours.padding_idx == theirs.padding_idx
    assert repr(ours) == repr(theirs).replace("Embedding", "LigerEmbedding")
    ids = torch.randint(13, (4, 9), device=device)
    g = torch.randn(4, 9, 6, device=device)
    for module in (ours, theirs):
        module(ids).backward(g)
    assert torch.equal(ours(ids), theirs(ids))
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    with pytest.raises(ValueError, match="padding_idx is 13, expected -13 to 12"):
        LigerEmbedding(13, 6, padding_idx=13)


@pytest.mark.big
@pytest.mark.cuda_only
def test_more_than_2_to_the_31_elements():
    """A table and a result of more than 2^31 elements; the last rows are read, written and added to."""
    n, h = 2**31 // 4096 + 37, 4096
    w = torch.empty(n, h, device="cuda", dtype=torch.bfloat16).normal_().requires_grad_()
    ids = torch.arange(n - 1, -1, -1, device="cuda")
    y = LigerEmbeddingFunction.apply(w, ids)
    assert C.same_bits(y[:5], w[-5:].flip(0)) and C.same_bits(y[-5:], w[:5].flip(0))
    (dw,) = torch.autograd.grad(y, w, y.detach())
    assert torch.equal(dw, w)
