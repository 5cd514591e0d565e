"""Multimodal rotary position embedding (M-RoPE), as in Qwen2-VL: the kernel is rope's.

A token has three positions, in time, height and width, and so three tables of angles. Of the h = head_dim / 2
angles of a head, the first mrope_section[0] come from the table of time, the next mrope_section[1] from that
of height, the rest from that of width; with these, the head turns as in `rope`, in the halves layout.

Backward is the same map with the sine negated. Source: arXiv:2409.12191; apply_multimodal_rotary_pos_emb in
modeling_qwen2_vl.py of transformers 4.57.
"""

import torch

from ._spec import Case, OpSpec, Sample, T
from .rope import _heads_dim, rotated_ref

__all__ = ["LigerQwen2VLMRopeFunction"]

_rope = torch.ops.liger.rope.default


def _arguments(q, cos, sin, mrope_section, unsqueeze_dim=1):
    """What the raw op takes between q, k and `backward`."""
    sections, half = list(mrope_section), q.shape[-1] // 2
    if len(sections) != 3 or min(sections) < 0 or sum(sections) != half:
        raise ValueError(
            f"mrope_section is {mrope_section}, expected three sizes that add up to {half}, half of head_dim"
        )
    where = (sections[0], sections[0] + sections[1])
    return cos, sin, None, _heads_dim(unsqueeze_dim), 2 * half, False, *where


class LigerQwen2VLMRopeFunction(torch.autograd.Function):
    """(q, k) rotated by their tokens' angles in time, height and width; differentiable in q and k.

    q: (batch, n_q_heads, seq_len, head_dim), k: the same with n_kv_heads; with unsqueeze_dim=2 the heads
    come after seq_len. Any strides; the results are dense in the memory order of their inputs. float32,
    bfloat16, float16 (float64 on the CPU), computed in fp32.
    cos, sin: (3, batch or 1, seq_len, w >= head_dim / 2), any of these dtypes, no gradient; only the first
    head_dim / 2 columns are read. mrope_section: three sizes that add up to head_dim / 2.
    Raises ValueError for other sections or unsqueeze_dim, RuntimeError for a wrong device, dtype or shape.
    """

    @staticmethod
    def forward(ctx, q, k, cos, sin, mrope_section, unsqueeze_dim=1):
        cos, sin, _, *options = _arguments(q, cos, sin, mrope_section, unsqueeze_dim)
        ctx.save_for_backward(cos, sin)
        ctx.options = options
        return _rope(q, k, cos, sin, None, *options, False)

    @staticmethod
    def backward(ctx, dq, dk):
        dq, dk = _rope(dq, dk, *ctx.saved_tensors, None, *ctx.options, True)
        return (dq, dk, *(None,) * (len(ctx.needs_input_grad) - 2))


def qwen2vl_mrope_forward(q, k, cos, sin, mrope_section):
    """Upstream's helper: (q, k, cos, sin), q and k rotated, in new tensors."""
    return *_rope(q, k, *_arguments(q, cos, sin, mrope_section), False), cos, sin


def qwen2vl_mrope_backward(dq, dk, cos, sin, mrope_section):
    """Upstream's helper: (dq, dk) of the inputs, in new tensors."""
    return _rope(dq, dk, *_arguments(dq, cos, sin, mrope_section), True)


def qwen2vl_mrope_ref(q, k, cos, sin, mrope_section, unsqueeze_dim=1):
    def of_sections(table):
        parts = table[..., : q.shape[-1] // 2].split(list(mrope_section), dim=-1)
        return torch.cat([part[i] for i, part in enumerate(parts)], dim=-1).unsqueeze(unsqueeze_dim)

    return rotated_ref(q, k, of_sections(cos), of_sections(sin), False)


def _qwen2vl_mrope(q, k, cos, sin, mrope_section, unsqueeze_dim=1):
    return LigerQwen2VLMRopeFunction.apply(q, k, cos, sin, mrope_section, unsqueeze_dim)


def _sample(b, n_q, n_kv, s, sections, batches=1, width=None, kind="w", id="", **options):
    d = 2 * sum(sections)
    name = f"{b}x{n_q}+{n_kv}x{s}x{d}" + id + "".join(f"-{k}_{v}" for k, v in options.items())
    shape = lambda n: (b, s, n, d) if options.get("unsqueeze_dim") == 2 else (b, n, s, d)  # noqa: E731
    table = T((3, batches, s, width or d), kind, grad=False)
    args = {"q": T(shape(n_q)), "k": T(shape(n_kv)), "cos": table, "sin": table, "mrope_section": sections}
    return Sample(name, {**args, **options})


def _raw(args):
    rest = _arguments(
        args["q"], args["cos"], args["sin"], args["mrope_section"], args.get("unsqueeze_dim", 1)
    )
    return [(_rope, (args["q"], args["k"], *rest, backward)) for backward in (False, True)]


def _case(b, n_q, n_kv, s, sections, id):
    n = b * s * (n_q + n_kv) * 2 * sum(sections)
    return Case(id, _sample(b, n_q, n_kv, s, sections, batches=b, kind="x"), 2 * n, 4 * n)


_base = _sample(2, 4, 2, 5, [8, 8, 8])
SPEC = OpSpec(
    name="qwen2vl_mrope",
    fn=_qwen2vl_mrope,
    ref=qwen2vl_mrope_ref,
    samples=(
        _base,
        _sample(2, 3, 1, 5, [3, 4, 5], batches=2, id="-odd"),  # no section begins at a vector
        _sample(0, 2, 1, 3, [2, 1, 1]),
        _sample(1, 2, 1, 0, [2, 1, 1]),
        _sample(1, 1, 1, 1, [1, 0, 0]),
        _sample(1, 1, 1, 1, [0, 0, 1]),
        _sample(1, 1, 1, 2, [1, 1, 1]),
        _sample(2, 3, 2, 33, [0, 8, 2], batches=2),
        _sample(2, 9, 3, 7, [16, 24, 24], batches=2),
        _sample(1, 2, 1, 3, [16, 0, 1008]),
        _sample(1, 1, 1, 3, [1020, 7, 1000]),  # the CPU kernel takes 1024 columns at once
        _sample(2, 3, 1, 5, [8, 8, 8], batches=2, width=24, id="-half-tables"),
        _sample(2, 3, 1, 5, [8, 8, 8], kind="fp32", id="-tables-fp32"),
        _sample(2, 3, 1, 5, [3, 4, 5], batches=2, unsqueeze_dim=2),
    ),
    options=(
        (_base, _base.with_args("sections", mrope_section=[8, 12, 4])),
        (_base, _base.with_args("time", mrope_section=[12, 4, 8])),
        (
            _sample(1, 3, 3, 3, [3, 4, 5], batches=1),
            _sample(1, 3, 3, 3, [3, 4, 5], batches=1, unsqueeze_dim=2),
        ),
    ),
    raw=_raw,
    errors=(
        (r"mrope_section is \[8, 8\], expected three sizes that add up to 24", {"mrope_section": [8, 8]}),
        (r"mrope_section is \[8, 8, 9\], expected three sizes", {"mrope_section": [8, 8, 9]}),
        (r"mrope_section is \[-8, 24, 8\], expected three sizes", {"mrope_section": [-8, 24, 8]}),
        (r"unsqueeze_dim is 3, expected 1 or 2", {"unsqueeze_dim": 3}),
        (
            r"cos has shape \(1, 5, 48\), expected \(3, 1, seq_len, dim\)",
            {"cos": T((1, 5, 48), grad=False), "sin": T((1, 5, 48), grad=False)},
        ),
        (
            r"cos has shape \(3, 1, 6, 48\), expected",
            {n: T((3, 1, 6, 48), grad=False) for n in ("cos", "sin")},
        ),
        (
            r"cos has shape \(3, 1, 5, 23\), expected at least 24 columns",
            {n: T((3, 1, 5, 23), grad=False) for n in ("cos", "sin")},
        ),
        (r"q has dtype int64, expected float32", {"q": T((2, 4, 5, 48), "index", grad=False, high=9)}),
    ),
    cases={
        "cpu": (_case(2, 28, 4, 1024, [16, 24, 24], "28+4x128"),),
        "cuda": (_case(4, 28, 4, 4096, [16, 24, 24], "28+4x128"),),
    },
    notes="three tables, sections of any size, any strides",
)
