"""Rotary position embedding of Llama 4, interleaved and with complex angles: the kernel is rope's.

Neighbours of a head's vector are the parts of a complex number, which is multiplied by its angle's:

    y_2i + j y_2i+1 = (x_2i + j x_2i+1) (c_i + j s_i)        i < head_dim / 2,  j^2 = -1

Backward multiplies by the conjugate. Source: arXiv:2104.09864; apply_rotary_emb and vision_apply_rotary_emb
in transformers' modeling_llama4.py.
"""

import torch

from ._spec import Case, OpSpec, Sample, T
from .rope import NO_SECTIONS, rotated_ref

__all__ = ["LigerLlama4RopeFunction"]

_rope = torch.ops.liger.rope.default


def _tables(q, freqs_cis):
    """(cos, sin), views of (rows, head_dim / 2) or (batch, seq_len, head_dim / 2)."""
    half, given = q.shape[-1] // 2, freqs_cis
    if given.is_complex():
        given = torch.view_as_real(given.resolve_conj())
    elif given.dim() < 3 or given.shape[-1] != 2 or given.shape[-2] != half:
        given = torch.stack([given, torch.zeros_like(given)], dim=-1)  # numbers without imaginary part
    if given.dim() == 5:  # with a dimension for the heads
        given = given.squeeze(2)
    if given.dim() == 4 and given.shape[0] == 1:
        given = given.squeeze(0)
    elif given.dim() == 4 and given.shape[1] == 1 and q.shape[1] != 1:  # vision's
        given = given.squeeze(1)
    if q.shape[-1] % 2 or given.dim() not in (3, 4) or given.shape[-2] != half:
        raise ValueError(
            f"freqs_cis has shape {tuple(freqs_cis.shape)} and dtype {freqs_cis.dtype}, expected complex "
            f"(T, head_dim / 2) or (1 or batch, seq_len, head_dim / 2), or real with a last dimension of 2, "
            f"for head_dim {q.shape[-1]}"
        )
    return given.unbind(-1)


class LigerLlama4RopeFunction(torch.autograd.Function):
    """(q, k), their neighbouring columns multiplied as complex numbers by freqs_cis; differentiable in q, k.

    q: (batch, seq_len, n_q_heads, head_dim), k: the same with n_kv_heads, head_dim even. Any strides; the
    results are dense in the memory order of their inputs. float32, bfloat16, float16 (float64 on the CPU),
    computed in fp32.
    freqs_cis: complex, (T >= seq_len, head_dim / 2) read from row 0 on, (1 or batch, seq_len, head_dim / 2),
    (seq_len, 1, head_dim / 2), or 4-D with a heads dimension of 1; or real with the two parts as a last
    dimension of 2. A real table of a complex one's shape has imaginary parts of 0, as in torch's product. No
    gradient. BLOCK_SIZE is accepted and unused.
    Raises ValueError for another shape of freqs_cis, RuntimeError for a wrong device, dtype or shape.
    """

    @staticmethod
    def forward(ctx, q, k, freqs_cis, BLOCK_SIZE=None):
        cos, sin = _tables(q, freqs_cis)
        ctx.save_for_backward(cos, sin)
        return _rotated(q, k, cos, sin, False)

    @staticmethod
    def backward(ctx, dq, dk):
        dq, dk = _rotated(dq, dk, *ctx.saved_tensors, True)
        return (dq, dk, *(None,) * (len(ctx.needs_input_grad) - 2))


def _rotated(q, k, cos, sin, backward):
    return _rope(q, k, cos, sin, None, 2, q.shape[-1], True, *NO_SECTIONS, backward)


def llama4_rope_forward(q, k, freqs_cis, BLOCK_SIZE=None, imag_sign=1.0):
    """Upstream's helper: (q, k) rotated, in new tensors; by the negated angles with imag_sign -1."""
    if imag_sign not in (1, -1):
        raise ValueError(f"imag_sign is {imag_sign}, expected 1 or -1")
    return _rotated(q, k, *_tables(q, freqs_cis), imag_sign == -1)


def llama4_rope_ref(q, k, freqs_cis, as_complex=False):
    cos, sin = freqs_cis.unbind(-1) if freqs_cis.shape[-1] == 2 else (freqs_cis, torch.zeros_like(freqs_cis))
    if cos.dim() == 2:
        cos, sin = cos[: q.shape[1]], sin[: q.shape[1]]
    elif cos.shape[1] == 1:
        cos, sin = cos.squeeze(1), sin.squeeze(1)
    return rotated_ref(q, k, cos.unsqueeze(-2), sin.unsqueeze(-2), True)


def _llama4_rope(q, k, freqs_cis, as_complex=False):
    if as_complex:
        freqs_cis = torch.complex(freqs_cis[..., 0], freqs_cis[..., 1])
    return LigerLlama4RopeFunction.apply(q, k, freqs_cis)


def _sample(b, n_q, n_kv, s, d, table=None, kind="w", parts=(2,), id="", **options):
    name = f"{b}x{s}x{n_q}+{n_kv}x{d}" + id + "".join(f"-{k}_{v}" for k, v in options.items())
    freqs = T((*(table or (1, s)), d // 2, *parts), kind, grad=False)
    return Sample(name, {"q": T((b, s, n_q, d)), "k": T((b, s, n_kv, d)), "freqs_cis": freqs, **options})


def _raw(args):
    cos, sin = _tables(args["q"], args["freqs_cis"])
    rest = (cos, sin, None, 2, args["q"].shape[-1], True, *NO_SECTIONS)
    return [(_rope, (args["q"], args["k"], *rest, backward)) for backward in (False, True)]


def _case(b, n_q, n_kv, s, d, id):
    n = b * s * (n_q + n_kv) * d
    return Case(id, _sample(b, n_q, n_kv, s, d, kind="fp32"), 2 * n, 4 * n)


_complex = {"kind": "fp32", "as_complex": True}
_base = _sample(2, 4, 2, 5, 16)
SPEC = OpSpec(
    name="llama4_rope",
    fn=_llama4_rope,
    ref=llama4_rope_ref,
    samples=(
        _base,
        *(
            _sample(*shape, **_complex)
            for shape in [
                (2, 4, 2, 5, 16),
                (0, 2, 1, 3, 8),
                (1, 2, 1, 0, 8),
                (1, 1, 1, 1, 2),
                (1, 3, 1, 7, 6),
                (2, 3, 2, 33, 20),
                (1, 9, 3, 37, 64),
                (1, 5, 1, 3, 128),
                (1, 1, 1, 2, 4100),
            ]
        ),
        _sample(2, 3, 1, 5, 16, table=(2, 5), id="-batch", **_complex),
        _sample(2, 3, 1, 5, 16, table=(9,), id="-longer-table", **_complex),
        _sample(2, 3, 1, 5, 88, table=(5, 1), id="-vision", **_complex),
        _sample(2, 3, 1, 5, 16, table=(2, 5), id="-batch"),
        _sample(2, 3, 1, 5, 18, id="-real-odd"),
        _sample(2, 3, 1, 5, 24, parts=(), id="-no-imaginary-part"),
    ),
    raw=_raw,
    errors=(
        (r"freqs_cis has shape \(1, 5, 7, 2\) and dtype torch.float32", {"freqs_cis": T((1, 5, 7, 2))}),
        (r"freqs_cis has shape \(8, 2\) and dtype torch.float32", {"freqs_cis": T((8, 2))}),
        (r"cos has shape \(4, 8\), expected at least 5 rows", {"freqs_cis": T((4, 8, 2), grad=False)}),
        (r"cos has shape \(3, 5, 8\), expected", {"freqs_cis": T((3, 5, 8, 2), grad=False)}),
        (r"k has shape \(2, 5, 2, 8\), expected", {"k": T((2, 5, 2, 8))}),
        (r"q has dtype int64, expected float32", {"q": T((2, 5, 4, 16), "index", grad=False, high=9)}),
    ),
    cases={
        "cpu": (_case(2, 40, 8, 1024, 128, "40+8x128"),),
        "cuda": (_case(4, 40, 8, 4096, 128, "40+8x128"),),
    },
    notes="interleaved, complex or real tables, any strides",
)
