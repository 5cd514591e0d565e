"""The rotary functions against transformers' own of the same name."""

import importlib

import pytest
import torch

from liger_kernel.ops.llama4_rope import LigerLlama4RopeFunction, llama4_rope_forward
from liger_kernel.ops.qwen2vl_mrope import qwen2vl_mrope_backward, qwen2vl_mrope_forward
from liger_kernel.transformers import functional
from liger_kernel.transformers.llama4_rope import (
    apply_liger_llama4_rope_full,
    liger_llama4_text_rotary_pos_emb,
    liger_llama4_vision_rotary_pos_emb,
)
from liger_kernel.transformers.qwen2vl_mrope import liger_multimodal_rotary_pos_emb
from liger_kernel.transformers.rope import (
    liger_rotary_pos_emb,
    liger_rotary_pos_emb_gpt_oss,
    liger_rotary_pos_emb_vision,
)

F32, BF16 = torch.float32, torch.bfloat16
dtypes = pytest.mark.parametrize("dtype", [F32, BF16], ids=["fp32", "bf16"])


def modeling(name):
    pytest.importorskip("transformers")
    return pytest.importorskip(f"transformers.models.{name}.modeling_{name}")


def tensors(device, dtype, *shapes):
    return [torch.randn(shape, dtype=dtype).to(device) for shape in shapes]


def same(ours, theirs, q, k, *rest):
    """Values and gradients of both functions at (q, k, *rest); theirs runs in fp32, where it is the truth."""
    low = [t.detach().requires_grad_() for t in (q, k)]
    high = [t.detach().float().requires_grad_() for t in (q, k)]
    outputs, truth = ours(*low, *rest), theirs(*high, *rest)
    upstream = [torch.randn(o.shape, device=o.device).to(q.dtype) for o in outputs]
    grads = torch.autograd.grad(outputs, low, upstream)
    true_grads = torch.autograd.grad(truth, high, [g.float() for g in upstream])
    for got, want, like in zip((*outputs, *grads), (*truth, *true_grads), (q, k) * 2):
        assert got.dtype == like.dtype and got.shape == want.shape
        half_an_ulp = torch.finfo(got.dtype).eps / 2
        torch.testing.assert_close(got.float(), want, rtol=half_an_ulp + 1e-6, atol=2e-6)


def test_names_are_where_upstream_has_them():
    import liger_kernel.ops as ops
    import liger_kernel.transformers as there

    assert functional.liger_qwen2vl_mrope is liger_multimodal_rotary_pos_emb
    assert there.liger_llama4_text_rotary_pos_emb is liger_llama4_text_rotary_pos_emb
    assert there.liger_llama4_vision_rotary_pos_emb is liger_llama4_vision_rotary_pos_emb
    assert ops.LigerLlama4RopeFunction is LigerLlama4RopeFunction
    assert ops.LigerQwen2VLMRopeFunction.__name__ == "LigerQwen2VLMRopeFunction"


# ---- halves ------------------------------------------------------------------------------------------------
@dtypes
def test_gpt_oss_half_tables(device, dtype):
    q, k = tensors(device, dtype, (2, 8, 7, 24), (2, 2, 7, 24))
    cos, sin = tensors(device, F32, (2, 7, 12), (2, 7, 12))
    same(liger_rotary_pos_emb_gpt_oss, modeling("gpt_oss").apply_rotary_pos_emb, q, k, cos, sin)


@dtypes
@pytest.mark.parametrize("shape", [(37, 3, 20), (2, 9, 4, 16)], ids=["image", "batch"])
def test_vision(device, dtype, shape):
    q, k = tensors(device, dtype, shape, shape)
    cos, sin = tensors(device, F32, (shape[-3], shape[-1] // 2), (shape[-3], shape[-1] // 2))
    cos, sin = torch.cat([cos, cos], -1), torch.cat([sin, sin], -1)
    same(liger_rotary_pos_emb_vision, modeling("qwen2_vl").apply_rotary_pos_emb_vision, q, k, cos, sin)


def test_vision_takes_slices_of_a_fused_projection(device):
    q, k, _ = torch.randn(11, 3, 4, 16, device=device).permute(1, 0, 2, 3).unbind(0)
    cos, sin = tensors(device, F32, (11, 16), (11, 16))
    got = liger_rotary_pos_emb_vision(q, k, cos, sin)
    want = liger_rotary_pos_emb_vision(q.contiguous(), k.contiguous(), cos, sin)
    assert all(torch.equal(a, b) for a, b in zip(got, want))


def test_vision_refuses_another_rank(device):
    q, table = torch.randn(7, 16, device=device), torch.randn(7, 16, device=device)
    with pytest.raises(ValueError, match=r"shapes \(7, 16\) and \(7, 16\), expected \(seq_len, n_heads"):
        liger_rotary_pos_emb_vision(q, q, table, table)


@dtypes
@pytest.mark.parametrize("section", [[8, 12, 12], [3, 5, 4]], ids=str)
def test_mrope(device, dtype, section):
    module = modeling("qwen2_vl")
    if not hasattr(
        module, "apply_multimodal_rotary_pos_emb"
    ):  # transformers 5 picks sections in its embedding
        theirs = merged_by_transformers_4
    else:
        theirs = module.apply_multimodal_rotary_pos_emb
    d = 2 * sum(section)
    q, k = tensors(device, dtype, (2, 6, 5, d), (2, 1, 5, d))
    halves = tensors(device, F32, (3, 2, 5, d // 2), (3, 2, 5, d // 2))
    cos, sin = (torch.cat([t, t], -1) for t in halves)
    same(liger_multimodal_rotary_pos_emb, theirs, q, k, cos, sin, section)


def merged_by_transformers_4(q, k, cos, sin, section):
    """What transformers 4.57 does: each section of both halves from the next of the three tables."""
    cos, sin = (
        torch.cat([m[i % 3] for i, m in enumerate(t.split(section * 2, dim=-1))], dim=-1).unsqueeze(1)
        for t in (cos, sin)
    )
    half = modeling("qwen2_vl").rotate_half
    return q * cos + half(q) * sin, k * cos + half(k) * sin


def test_mrope_equals_rope_on_merged_tables(device):
    """transformers 5 merges the sections itself and calls apply_rotary_pos_emb."""
    q, k, t, s = tensors(device, BF16, (2, 4, 5, 24), (2, 1, 5, 24), (3, 2, 5, 12), (3, 2, 5, 12))
    got = liger_multimodal_rotary_pos_emb(q, k, t, s, [2, 6, 4])
    one = [torch.cat([m[i] for i, m in enumerate(x.split([2, 6, 4], -1))], -1) for x in (t, s)]
    want = liger_rotary_pos_emb(q, k, *one, rotary_dim=24)
    assert all(torch.equal(a, b) for a, b in zip(got, want))


def test_mrope_helpers(device):
    q, k, cos, sin = tensors(device, F32, (2, 4, 5, 24), (2, 1, 5, 24), (3, 2, 5, 24), (3, 2, 5, 24))
    q.requires_grad_(), k.requires_grad_()
    outputs = liger_multimodal_rotary_pos_emb(q, k, cos, sin, [2, 6, 4])
    upstream = [torch.randn_like(o) for o in outputs]
    raw = qwen2vl_mrope_forward(q.detach(), k.detach(), cos, sin, [2, 6, 4])
    assert all(torch.equal(a, b) for a, b in zip(raw, (*outputs, cos, sin)))
    grads = qwen2vl_mrope_backward(*upstream, cos, sin, [2, 6, 4])
    assert all(torch.equal(a, b) for a, b in zip(grads, torch.autograd.grad(outputs, (q, k), upstream)))


# ---- interleaved -------------------------------------------------------------------------------------------
@dtypes
def test_gptj(device, dtype):
    theirs = modeling("gptj").apply_rotary_pos_emb
    q, k = tensors(device, dtype, (2, 7, 3, 20), (2, 7, 1, 20))
    sin, cos = tensors(device, F32, (2, 7, 6), (2, 7, 6))

    def both(q, k):
        return [
            torch.cat([theirs(x[..., :12], sin, cos), x[..., 12:]], -1) for x in (q, k)
        ]  # GPTJAttention, rotary_dim 12

    same(lambda q, k: liger_rotary_pos_emb(q, k, cos, sin, None, 2, 12, interleaved=True), both, q, k)


@dtypes
def test_glm(device, dtype):
    q, k = tensors(device, dtype, (2, 4, 7, 24), (2, 2, 7, 24))
    halves = tensors(device, F32, (2, 7, 6), (2, 7, 6))
    cos, sin = (torch.cat([t, t], -1) for t in halves)
    ours = lambda *args: liger_rotary_pos_emb(*args, interleaved=True)  # noqa: E731
    same(ours, modeling("glm").apply_rotary_pos_emb, q, k, cos, sin)


@dtypes
def test_cohere(device, dtype):
    q, k = tensors(device, dtype, (2, 4, 7, 24), (2, 2, 7, 24))
    cos, sin = (t.repeat_interleave(2, -1) for t in tensors(device, F32, (2, 7, 12), (2, 7, 12)))

    def ours(q, k, cos, sin):
        return liger_rotary_pos_emb(q, k, cos[..., ::2], sin[..., ::2], rotary_dim=24, interleaved=True)

    same(ours, modeling("cohere").apply_rotary_pos_emb, q, k, cos, sin)


def angles(device, *shape):
    return torch.polar(torch.rand(shape) + 0.5, 6 * torch.rand(shape)).to(device)


@dtypes
@pytest.mark.parametrize("batch", [1, 2])
def test_llama4_text(device, dtype, batch):
    q, k = tensors(device, dtype, (2, 7, 5, 40), (2, 7, 1, 40))
    theirs = modeling("llama4").apply_rotary_emb
    same(liger_llama4_text_rotary_pos_emb, theirs, q, k, angles(device, batch, 7, 20))


@dtypes
@pytest.mark.parametrize("shape", [(7, 44), (7, 1, 44), (1, 7, 44), (1, 7, 1, 44)], ids=str)
def test_llama4_vision(device, dtype, shape):
    q, k = tensors(device, dtype, (2, 7, 4, 88), (2, 7, 4, 88))
    theirs = modeling("llama4").vision_apply_rotary_emb
    same(liger_llama4_vision_rotary_pos_emb, theirs, q, k, angles(device, *shape))


def test_llama4_table_without_imaginary_part(device):
    """What a complex buffer becomes in a model cast to bf16: Hugging Face's product scales by it."""
    q, k = tensors(device, BF16, (2, 7, 4, 16), (2, 7, 4, 16))
    table = angles(device, 7, 8).real.to(BF16)
    same(liger_llama4_vision_rotary_pos_emb, modeling("llama4").vision_apply_rotary_emb, q, k, table)


def test_llama4_vision_refuses_another_rank(device):
    q = torch.randn(2, 7, 4, 16, device=device)
    with pytest.raises(ValueError, match=r"freqs_ci has shape \(8,\), expected two, three or four"):
        liger_llama4_vision_rotary_pos_emb(q, q, angles(device, 8))


def test_llama4_helper_and_block_size(device):
    q, k = tensors(device, F32, (2, 7, 4, 16), (2, 7, 2, 16))
    table = angles(device, 1, 7, 8)
    table = table / table.abs()
    turned = llama4_rope_forward(q, k, table)
    back = llama4_rope_forward(*turned, table, imag_sign=-1.0)
    for a, b in zip(back, (q, k)):
        torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match="imag_sign is 0.5, expected 1 or -1"):
        llama4_rope_forward(q, k, table, None, 0.5)
    q.requires_grad_()
    turned = LigerLlama4RopeFunction.apply(q, k, table, 128)[0]
    turned.backward(torch.randn_like(turned))  # upstream's backward fails here
    assert q.grad is not None


def test_llama4_conjugate_view(device):
    q, k = tensors(device, F32, (1, 5, 2, 8), (1, 5, 2, 8))
    table = angles(device, 5, 4)
    got = liger_llama4_text_rotary_pos_emb(q, k, table.conj())
    want = liger_llama4_text_rotary_pos_emb(q, k, table.conj().resolve_conj())
    assert all(torch.equal(a, b) for a, b in zip(got, want))


def test_apply_to_a_modeling_module():
    class Module:
        apply_rotary_emb = vision_apply_rotary_emb = None

    apply_liger_llama4_rope_full(Module)
    assert Module.apply_rotary_emb is liger_llama4_text_rotary_pos_emb
    assert Module.vision_apply_rotary_emb is liger_llama4_vision_rotary_pos_emb
    assert importlib.import_module("liger_kernel.transformers.llama4_rope")
