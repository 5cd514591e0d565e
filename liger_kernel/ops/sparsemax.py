"""Sparsemax, the Euclidean projection onto the simplex: reference, spec, fakes, autograd.

    y  = max(x - tau, 0) with tau such that sum(y) = 1
    dx = dy - mean of dy over y > 0, where y > 0; else 0

Source: arXiv:1602.02068.
"""

import torch

from ._spec import Case, OpSpec, Sample, T, upcast

__all__ = ["LigerSparsemaxFunction"]

_fwd = torch.ops.liger.sparsemax_fwd.default
_bwd = torch.ops.liger.sparsemax_bwd.default


@torch.library.register_fake("liger::sparsemax_fwd")
def _(x):
    return x.new_empty(x.shape)


@torch.library.register_fake("liger::sparsemax_bwd")
def _(dy, y):
    return y.new_empty(y.shape)


class LigerSparsemaxFunction(torch.autograd.Function):
    """y = max(x - tau, 0) with tau such that sum(y) = 1, over dimension `dim`, differentiable in x.

    x: at least one dimension, any strides and sizes, float32, bfloat16, float16 (float64 on the CPU); y has
    its shape and dtype. tau is exact up to the rounding of one sum in fp32: no iteration is cut short, and
    equal elements are treated alike. A row with a NaN or +inf in it, or of -inf alone, is NaN. Saved: y.
    Raises RuntimeError for a wrong device, dtype or rank, IndexError for a wrong `dim`.
    """

    @staticmethod
    def forward(ctx, x, dim):
        y = _fwd(x.movedim(dim, -1) if x.dim() > 1 else x)
        ctx.save_for_backward(y)
        ctx.dim = dim
        return y.movedim(-1, dim) if x.dim() > 1 else y

    @staticmethod
    def backward(ctx, grad_out):
        (y,) = ctx.saved_tensors
        many = y.dim() > 1
        dx = _bwd(grad_out.movedim(ctx.dim, -1) if many else grad_out, y)
        return (dx.movedim(-1, ctx.dim) if many else dx, *(None,) * (len(ctx.needs_input_grad) - 1))


def sparsemax_ref(x, dim=-1):
    z = upcast(x).movedim(dim, -1)
    z = z - z.detach().amax(-1, keepdim=True) if z.numel() else z
    ordered = z.sort(-1, descending=True).values
    sums = ordered.cumsum(-1)
    rank = torch.arange(1, z.shape[-1] + 1, device=z.device)
    n = (1 + rank * ordered > sums).sum(-1, keepdim=True)
    tau = (sums.gather(-1, n - 1) - 1) / n if z.numel() else z
    return torch.relu(z - tau).movedim(-1, dim).to(x.dtype)


def _sparsemax(x, dim=-1):
    return LigerSparsemaxFunction.apply(x, dim)


def _sample(*shape, scale=1.0, **options):
    name = "x".join(map(str, shape)) + "".join(f"-{k}{v}" for k, v in options.items())
    return Sample(f"{name}-scale{scale:g}", {"x": T(shape, scale=scale), **options})


def _raw(args):
    y = _fwd(args["x"])
    return [(_fwd, (args["x"],)), (_bwd, (y, y))]


def _case(n_rows, n_cols):
    n = n_rows * n_cols
    return Case(f"{n_cols}", _sample(n_rows, n_cols), 2 * n, 5 * n)


_base = _sample(3, 5, 48)
SPEC = OpSpec(
    name="sparsemax",
    fn=_sparsemax,
    ref=sparsemax_ref,
    samples=(
        _base,
        *(_sample(*s) for s in [(0, 8), (2, 0), (1, 1), (9, 1), (7, 33), (40, 127), (5,), (3, 4099)]),
        # around what registers and the CPU's buffer hold
        *(_sample(2, n, scale=0.05) for n in (8192, 8193, 65536, 65544, 262144)),
        _sample(9, 72, scale=0.1),  # most elements are in the support
        _sample(9, 72, scale=30.0),  # one is
        *(_sample(*s, dim=0) for s in [(48, 5), (9, 3, 70)]),
        _sample(2, 33, 12, dim=1),
        _sample(4, 3, 5, 8, dim=-2),
    ),
    options=((_base, _base.with_args("dim0", dim=0)),),
    raw=_raw,
    errors=(
        (r"x has dtype int64, expected float32", {"x": T((3, 48), "index", grad=False, high=9)}),
        (r"x has no dimension", {"x": T(())}),
        (r"[Dd]imension out of range", {"dim": 3}),
    ),
    cases={"cpu": (_case(2048, 8192),), "cuda": (_case(16384, 32768),)},
    reduces=True,
    notes="any dimension; rows of any width; no sort",
)
