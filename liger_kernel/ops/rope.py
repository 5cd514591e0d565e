"""Rotary position embedding, halves or interleaved layout.

Of each head's vector x, with h = rotary_dim / 2 and the cosines c and sines s of the token's position:

    y_p = x_p c_i - x_r s_i,   y_r = x_r c_i + x_p s_i   (i < h),   y_j = x_j   (j >= rotary_dim)

(p, r) = (i, i + h), halves, or (2 i, 2 i + 1), interleaved. Backward is the same map with s negated. Source:
arXiv:2104.09864; apply_rotary_pos_emb in transformers' modeling_llama.py and modeling_gptj.py.
"""

from dataclasses import replace

import torch

from ._spec import Case, OpSpec, Sample, T

__all__ = ["LigerRopeFunction", "rope_forward", "rope_backward"]

_rope = torch.ops.liger.rope.default
NO_SECTIONS = (-1, -1)  # one table; M-RoPE says here where the columns of its second and third begin


@torch.library.register_fake("liger::rope")
def _(q, k, cos, sin, position_ids, unsqueeze_dim, rotary_dim, interleaved, section_2, section_3, backward):
    def out(x):  # dense, in the memory order of x: the glue decides by the same comparison
        seq, head = 3 - unsqueeze_dim, unsqueeze_dim
        tokens_outside = True if x.stride(seq) >= x.stride(head) else False  # a bool, not a symbolic one
        if tokens_outside == (seq < head):
            return x.new_empty(x.shape)
        return x.new_empty(x.transpose(1, 2).shape).transpose(1, 2)

    return out(q), out(k)


def _table(t, unsqueeze_dim):
    """A 4-D table without its heads dimension of size 1: at unsqueeze_dim, else at 1, else anywhere."""
    if t.dim() != 4:
        return t
    for dim in (unsqueeze_dim, 1):
        if t.shape[dim] == 1:
            return t.squeeze(dim)
    return t.squeeze()


def _heads_dim(unsqueeze_dim):
    if unsqueeze_dim not in (1, 2, -3, -2):
        raise ValueError(
            f"unsqueeze_dim is {unsqueeze_dim!r}, expected 1 or 2: the dimension of the heads in q and k"
        )
    return unsqueeze_dim % 4


def _arguments(q, cos, sin, position_ids, unsqueeze_dim, rotary_dim):
    """What the raw op takes, from what callers pass: (cos, sin, position_ids, unsqueeze_dim, rotary_dim)."""
    if isinstance(position_ids, int):  # transformers 5.23 passes unsqueeze_dim in this place
        position_ids, unsqueeze_dim = None, position_ids
    unsqueeze_dim = _heads_dim(unsqueeze_dim)
    if rotary_dim is not None:
        if rotary_dim <= 0 or rotary_dim % 2 or rotary_dim > q.shape[-1]:
            raise ValueError(
                f"rotary_dim is {rotary_dim}, expected an even number from 2 to head_dim, {q.shape[-1]}"
            )
        if cos.shape[-1] < rotary_dim // 2:
            raise ValueError(
                f"cos has {cos.shape[-1]} columns, expected at least {rotary_dim // 2}, half of rotary_dim"
            )
    cos, sin = _table(cos, unsqueeze_dim), _table(sin, unsqueeze_dim)
    if position_ids is not None:
        position_ids = (
            None if cos.dim() == 3 else position_ids.long()
        )  # tables of 3 dimensions are gathered already
    return cos, sin, position_ids, unsqueeze_dim, rotary_dim or 0


class LigerRopeFunction(torch.autograd.Function):
    """(q, k) rotated by their tokens' angles in the first rotary_dim columns; differentiable in q and k.

    q: (batch, n_q_heads, seq_len, head_dim), k: the same with n_kv_heads; with unsqueeze_dim=2 the heads
    come after seq_len. Any strides; the results are dense in the memory order of their inputs. float32,
    bfloat16, float16 (float64 on the CPU), computed in fp32.
    cos, sin: (T, w), (1, seq_len, w), (batch, seq_len, w), or 4-D with a heads dimension of 1; any of these
    dtypes, no gradient. Only the first rotary_dim / 2 columns are read (transformers' tables hold the same
    twice). position_ids: (batch, seq_len), (1, seq_len) or (seq_len,), rows of a (T, w) table, which
    otherwise is read from row 0 on; unused with other tables. An int there is unsqueeze_dim.
    rotary_dim: even, in (0, head_dim]; None: the smaller of w and head_dim.
    interleaved: neighbours turn together, as in GPT-J, GLM, Cohere and Llama 4. The tables are read as in the
    halves layout; for tables that repeat each angle at once (Cohere) pass cos[..., ::2], which is not copied.
    Raises ValueError for unsqueeze_dim and rotary_dim outside these, RuntimeError for a wrong device, dtype
    or shape and, on the CPU, for a position outside the table (on a GPU that token is NaN).
    """

    @staticmethod
    def forward(ctx, q, k, cos, sin, position_ids=None, unsqueeze_dim=1, rotary_dim=None, interleaved=False):
        cos, sin, position_ids, *options = _arguments(q, cos, sin, position_ids, unsqueeze_dim, rotary_dim)
        options += interleaved, *NO_SECTIONS
        ctx.save_for_backward(cos, sin, position_ids)
        ctx.options = options
        return _rope(q, k, cos, sin, position_ids, *options, False)

    @staticmethod
    def backward(ctx, dq, dk):
        dq, dk = _rope(dq, dk, *ctx.saved_tensors, *ctx.options, True)
        return (dq, dk, *(None,) * (len(ctx.needs_input_grad) - 2))


def rope_forward(q, k, cos, sin, position_ids=None, unsqueeze_dim=1, rotary_dim=None):
    """Upstream's helper: (q, k, cos, sin), q and k rotated, in new tensors."""
    arguments = _arguments(q, cos, sin, position_ids, unsqueeze_dim, rotary_dim)
    return *_rope(q, k, *arguments, False, *NO_SECTIONS, False), cos, sin


def rope_backward(dq, dk, cos, sin, position_ids=None, unsqueeze_dim=1, rotary_dim=None):
    """Upstream's helper: (dq, dk) of the inputs, in new tensors."""
    arguments = _arguments(dq, cos, sin, position_ids, unsqueeze_dim, rotary_dim)
    return _rope(dq, dk, *arguments, False, *NO_SECTIONS, True)


def rotated_ref(q, k, cos, sin, interleaved):
    """q and k turned as Hugging Face writes it; cos, sin: half as wide as what turns, with q's dimensions."""
    r = 2 * cos.shape[-1]
    cos, sin = (t.repeat_interleave(2, -1) if interleaved else t.tile(2) for t in (cos, sin))

    def rotate(x):
        turned, rest = x[..., :r], x[..., r:]
        if interleaved:
            partner = torch.stack([-turned[..., 1::2], turned[..., ::2]], -1).flatten(-2)
        else:
            lo, hi = turned.chunk(2, dim=-1)
            partner = torch.cat([-hi, lo], -1)
        return torch.cat([(turned * cos + partner * sin).to(x.dtype), rest], -1)

    return rotate(q), rotate(k)


def rope_ref(q, k, cos, sin, position_ids=None, unsqueeze_dim=1, rotary_dim=None, interleaved=False):
    cos, sin, position_ids, unsqueeze_dim, r = _arguments(
        q, cos, sin, position_ids, unsqueeze_dim, rotary_dim
    )
    r = r or min(cos.shape[-1], q.shape[-1])
    if position_ids is not None:
        cos, sin = cos[position_ids], sin[position_ids]
    seq_len = q.shape[3 - unsqueeze_dim]
    cos, sin = (t[..., :seq_len, : r // 2] for t in (cos, sin))
    if cos.dim() == 2:
        cos, sin = cos[None], sin[None]
    return rotated_ref(q, k, cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim), interleaved)


def _fn(q, k, cos, sin, position_ids=None, unsqueeze_dim=1, rotary_dim=None, interleaved=False):
    return LigerRopeFunction.apply(q, k, cos, sin, position_ids, unsqueeze_dim, rotary_dim, interleaved)


def _sample(b, n_q, n_kv, s, d, table=None, width=None, kind="w", id=None, **options):
    name = id or f"{b}x{n_q}+{n_kv}x{s}x{d}" + "".join(f"-{k}_{v}" for k, v in options.items())
    shape = lambda n: (b, s, n, d) if options.get("unsqueeze_dim") == 2 else (b, n, s, d)  # noqa: E731
    t = T((*(table or (1, s)), width or d), kind, grad=False)
    return Sample(name, {"q": T(shape(n_q)), "k": T(shape(n_kv)), "cos": t, "sin": t, **options})


_HEADS_INSIDE = (0, 2, 1, 3)  # how a projection leaves q and k: dense (batch, seq_len, heads, head_dim)


def _transposed(id, sample):
    """The sample with q and k as Hugging Face's attention has them, views of (batch, seq_len, heads, d)."""
    return sample.with_args(id, **{n: replace(sample.args[n], memory=_HEADS_INSIDE) for n in "qk"})


def _ids(*shape, high):
    return T(shape, "index", grad=False, high=high, layouts=False)


def _raw(args):
    q, k = args["q"], args["k"]
    options = (("position_ids", None), ("unsqueeze_dim", 1), ("rotary_dim", None))
    rest = _arguments(q, args["cos"], args["sin"], *(args.get(name, default) for name, default in options))
    rest += args.get("interleaved", False), *NO_SECTIONS
    return [(_rope, (q, k, *rest, False)), (_rope, (q, k, *rest, True))]


def _cases(b, n_q, n_kv, s, d):
    """As models call it, and on q and k that are contiguous as (batch, heads, seq_len, head_dim)."""
    n, id = 2 * b * s * (n_q + n_kv) * d, f"{n_q}+{n_kv}x{d}"
    dense = _sample(b, n_q, n_kv, s, d, kind="x")
    return Case(id, _transposed("transposed", dense), n, 2 * n), Case(f"{id}-contiguous", dense, n, 2 * n)


_base = _sample(2, 4, 2, 5, 16)
SPEC = OpSpec(
    name="rope",
    fn=_fn,
    ref=rope_ref,
    samples=(
        _base,
        _transposed("transposed", _base),
        _transposed("transposed", _sample(1, 5, 3, 37, 64)),
        *(
            _sample(*shape)
            for shape in [
                (0, 2, 1, 3, 8),
                (1, 2, 1, 0, 8),
                (1, 1, 1, 1, 2),
                (1, 3, 1, 7, 6),
                (2, 3, 2, 33, 20),
            ]
        ),
        *(
            _sample(*shape)
            for shape in [
                (1, 9, 3, 37, 64),
                (1, 5, 1, 3, 128),
                (1, 1, 1, 300, 258),  # more tokens than the angles that the CPU kernel holds
                (1, 2, 1, 3, 2050),
                (1, 1, 1, 2, 4100),
                (1, 12, 2, 2, 2048),  # more heads than the threads of a GPU block take at once
            ]
        ),
        _sample(2, 3, 1, 5, 16, table=(5,), id="table-S"),
        _sample(2, 3, 1, 5, 16, table=(2, 5), id="table-BS"),
        _sample(2, 3, 1, 5, 16, table=(2, 1, 5), id="table-4d"),
        _sample(2, 3, 1, 5, 16, table=(2, 5, 1), unsqueeze_dim=2, id="table-4d-unsqueeze_2"),
        _sample(2, 3, 1, 5, 16, unsqueeze_dim=2),
        _sample(2, 3, 1, 5, 16, kind="fp32", id="table-fp32"),
        _sample(2, 3, 1, 5, 24, width=8, id="partial-table"),
        _sample(2, 3, 1, 5, 24, rotary_dim=12),
        _sample(2, 3, 1, 5, 24, width=12, rotary_dim=24),
        _sample(2, 3, 1, 5, 2100, width=2060, id="partial-table-wide"),
        _sample(2, 3, 1, 5, 16, position_ids=2, id="position_ids-as-unsqueeze_dim").with_args(
            "2", q=T((2, 5, 3, 16)), k=T((2, 5, 1, 16))
        ),
        _sample(2, 3, 1, 5, 16, table=(11,), position_ids=_ids(2, 5, high=11), id="position_ids"),
        _sample(2, 3, 1, 5, 16, table=(11,), position_ids=_ids(1, 5, high=11), id="position_ids-1S"),
        _sample(2, 3, 1, 5, 16, table=(2, 5), position_ids=_ids(2, 5, high=1000), id="position_ids-unused"),
        *(
            _sample(*shape, interleaved=True)
            for shape in [
                (2, 4, 2, 5, 16),
                (1, 1, 1, 1, 2),
                (1, 3, 1, 7, 6),
                (2, 3, 2, 33, 20),
                (1, 9, 3, 37, 64),
                (1, 2, 1, 3, 2050),
            ]
        ),
        _sample(2, 3, 1, 5, 40, width=16, rotary_dim=32, interleaved=True),
        _sample(2, 3, 1, 5, 25, width=6, table=(11,), position_ids=_ids(2, 5, high=11), interleaved=True),
        _sample(2, 3, 1, 5, 16, interleaved=True, unsqueeze_dim=2),
    ),
    options=(
        (_base, _base.with_args("rotary_dim", rotary_dim=8)),
        (_base, _base.with_args("interleaved", interleaved=True)),
        (
            _sample(1, 3, 1, 5, 16, table=(11,)),
            _sample(1, 3, 1, 5, 16, table=(11,), position_ids=_ids(5, high=11)),
        ),
        (_sample(1, 3, 3, 3, 16), _sample(1, 3, 3, 3, 16, unsqueeze_dim=2)),
    ),
    raw=_raw,
    errors=(
        (
            r"k has shape \(2, 2, 5, 8\), expected \(batch, heads, seq_len, head_dim\) as q",
            {"k": T((2, 2, 5, 8))},
        ),
        (r"cos has shape \(3, 5, 16\), expected", {"cos": T((3, 5, 16), grad=False)}),
        (r"sin has shape \(1, 5, 8\), expected \(1, 5, 16\), as cos", {"sin": T((1, 5, 8), grad=False)}),
        (r"rotary_dim is 7, expected an even number", {"rotary_dim": 7}),
        (r"rotary_dim is 18, expected an even number", {"rotary_dim": 18}),
        (r"unsqueeze_dim is 3, expected 1 or 2", {"unsqueeze_dim": 3}),
        (r"q has dtype int64, expected float32", {"q": T((2, 4, 5, 16), "index", grad=False, high=9)}),
        (
            r"position_ids has shape \(3, 5\), expected",
            {
                "cos": T((5, 16), grad=False),
                "sin": T((5, 16), grad=False),
                "position_ids": _ids(3, 5, high=5),
            },
        ),
    ),
    cases={
        "cpu": _cases(2, 32, 8, 1024, 64),
        "cuda": _cases(4, 32, 8, 4096, 128),
    },
    notes="halves or interleaved, rotary_dim, partial tables, position_ids, any strides",
)
