"""Softmax over any dimension: reference, spec, fakes, autograd.

    y  = exp(x - max(x)) / sum(exp(x - max(x)))
    dx = y (dy - sum(dy y))

Source: torch.softmax; the maximum and the sum in one pass: arXiv:1805.02867.
"""

import torch

from ._spec import Case, OpSpec, Sample, T

__all__ = ["LigerSoftmaxFunction"]

_fwd = torch.ops.liger.softmax_fwd.default
_bwd = torch.ops.liger.softmax_bwd.default


@torch.library.register_fake("liger::softmax_fwd")
def _(x, dim):
    return x.new_empty(x.shape)


@torch.library.register_fake("liger::softmax_bwd")
def _(dy, y, dim):
    return y.new_empty(y.shape)


class LigerSoftmaxFunction(torch.autograd.Function):
    """y = exp(x - max(x)) / sum(exp(x - max(x))) over dimension `dim`, differentiable in x.

    input_: at least one dimension, any strides and sizes, float32, bfloat16, float16 (float64 on the CPU); y
    has its shape and dtype. Computed in fp32 and rounded once. A row of -inf alone, or with a NaN or +inf in
    it, is NaN, as in torch. Saved for backward: y.
    Raises RuntimeError for a wrong device, dtype, rank or `dim`, naming the argument.
    """

    @staticmethod
    def forward(ctx, input_, dim=-1):
        y = _fwd(input_, dim)
        ctx.save_for_backward(y)
        ctx.dim = dim
        return y

    @staticmethod
    def backward(ctx, grad_output):
        (y,) = ctx.saved_tensors
        return (_bwd(grad_output, y, ctx.dim), *(None,) * (len(ctx.needs_input_grad) - 1))


def softmax_ref(input_, dim=-1):
    if input_.dtype != torch.float64 or input_.numel() == 0:
        return torch.softmax(input_, dim)
    # as truth: torch.sum adds up in pairs, torch.softmax one after the other
    e = (input_ - input_.detach().amax(dim, keepdim=True)).exp()
    return e / e.sum(dim, keepdim=True)


def _softmax(input_, dim=-1):
    return LigerSoftmaxFunction.apply(input_, dim)


def _sample(*shape, scale=1.0, **options):
    name = "x".join(map(str, shape)) + "".join(f"-{k}{v}" for k, v in options.items())
    name += f"-scale{scale:g}" if scale != 1 else ""
    return Sample(name, {"input_": T(shape, scale=scale), **options})


def _raw(args):
    x, dim = args["input_"], args.get("dim", -1)
    y = _fwd(x, dim)
    return [(_fwd, (x, dim)), (_bwd, (y, y, dim))]


def _case(n_rows, n_cols):
    n = n_rows * n_cols
    return Case(f"{n_cols}", _sample(n_rows, n_cols), 2 * n, 5 * n)


_base = _sample(3, 5, 48)
SPEC = OpSpec(
    name="softmax",
    fn=_softmax,
    ref=softmax_ref,
    samples=(
        _base,
        *(
            _sample(*shape)
            for shape in [(0, 8), (2, 0), (1, 1), (9, 1), (7, 33), (40, 127), (33, 264), (3, 8192), (3, 8193)]
        ),
        # around what a block's registers, a cluster and the CPU's buffer hold
        *(_sample(2, n) for n in (4104, 16384, 32768, 65544, 131072, 262144, 262152, 524304)),
        *(_sample(*shape, dim=0) for shape in [(5,), (48, 5), (9, 3, 70), (1, 130), (600, 3)]),
        *(_sample(*shape, dim=1) for shape in [(3, 7, 2), (2, 33, 129), (2, 0, 4), (2, 1, 40), (1, 2500, 9)]),
        _sample(4, 3, 5, 8, dim=-2),
        _sample(12, 257, scale=40.0),  # one-hot rows
        _sample(6, 24, 33, scale=40.0, dim=1),
    ),
    options=((_base, _base.with_args("dim0", dim=0)), (_base, _base.with_args("dim1", dim=1))),
    raw=_raw,
    errors=(
        (r"dim is 3, expected -3 to 2 for x of shape \(3, 5, 48\)", {"dim": 3}),
        (r"x has dtype int64, expected float32", {"input_": T((3, 48), "index", grad=False, high=9)}),
        (r"x has no dimension", {"input_": T(())}),
    ),
    cases={"cpu": (_case(2048, 8192),), "cuda": (_case(16384, 32768),)},
    reduces=True,
    notes="any dimension; rows of any width",
)
