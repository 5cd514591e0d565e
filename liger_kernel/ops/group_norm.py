"""Group normalisation: reference, spec, fakes, autograd.

    xhat = (x - mean) / sqrt(var + eps)      mean and the biased var of num_channels / num_groups channels
                                             of one batch entry, all positions
    y    = xhat * w + b                      w, b: a value per channel
    dx   = rstd * (m - mean(m) - xhat * mean(m * xhat)),   m = dy * w
    dw   = sum over batch and positions of dy * xhat,   db = the same of dy

Source: arXiv:1803.08494; torch.nn.GroupNorm.
"""

import torch

from ._spec import Case, OpSpec, Sample, T, accum, upcast

__all__ = ["LigerGroupNormFunction", "group_norm_forward", "group_norm_backward"]

_fwd = torch.ops.liger.group_norm_fwd.default
_bwd = torch.ops.liger.group_norm_bwd.default


@torch.library.register_fake("liger::group_norm_fwd")
def _(x, weight, bias, num_groups, eps):
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return y, *(x.new_empty((x.shape[0], num_groups), dtype=accum(x)) for _ in range(2))


@torch.library.register_fake("liger::group_norm_bwd")
def _(dy, x, weight, bias, mean, rstd, num_groups, needs_dw, needs_db):
    grads = ((weight, needs_dw), (bias, needs_db))
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    return dx, *(
        x.new_empty((0,)) if p is None else p.new_empty((p.shape[0] if wanted else 0,)) for p, wanted in grads
    )


def _check_channels(X, num_channels):
    if X.dim() > 1 and X.shape[1] != num_channels:
        raise ValueError(f"X has {X.shape[1]} channels (dimension 1), expected num_channels, {num_channels}")


class LigerGroupNormFunction(torch.autograd.Function):
    """y = (x - mean) / sqrt(var + eps) * w + b, statistics per group of channels; differentiable in x, w, b.

    X: (batch, num_channels, ...), three or more dimensions, float32, bfloat16, float16 (float64 on the CPU),
    any strides. affine_scaling_weight, affine_shifting_bias: (num_channels,) of any of these dtypes, or None.
    num_groups divides num_channels. Statistics are fp32 (fp64 for float64). Raises ValueError if X has not
    num_channels channels, RuntimeError for a wrong device, dtype, rank or size, naming the argument.
    """

    @staticmethod
    def forward(ctx, X, affine_scaling_weight, affine_shifting_bias, num_channels, num_groups, eps):
        _check_channels(X, num_channels)
        y, mean, rstd = _fwd(X, affine_scaling_weight, affine_shifting_bias, num_groups, eps)
        ctx.save_for_backward(X, affine_scaling_weight, affine_shifting_bias, mean, rstd)
        ctx.num_groups = num_groups
        return y

    @staticmethod
    def backward(ctx, dY):
        needs = ctx.needs_input_grad
        dx, dw, db = _bwd(dY, *ctx.saved_tensors, ctx.num_groups, needs[1], needs[2])
        return (dx, dw if needs[1] else None, db if needs[2] else None, *(None,) * (len(needs) - 3))


def group_norm_forward(X, num_channels, num_groups, W, B, eps):
    """Upstream's helper: (Y, X, mean, rstd, block size). The launch number is None."""
    _check_channels(X, num_channels)
    y, mean, rstd = _fwd(X, W, B, num_groups, eps)
    return y, X, mean, rstd, None


def group_norm_backward(dY, X, W, B, Mean, RSTD, num_channels, num_groups):
    """Upstream's helper: (dX, dW, dB), None for an absent parameter."""
    _check_channels(X, num_channels)
    dx, dw, db = _bwd(dY.reshape(X.shape), X, W, B, Mean, RSTD, num_groups, W is not None, B is not None)
    return dx, None if W is None else dw, None if B is None else db


def group_norm_ref(X, affine_scaling_weight, affine_shifting_bias, num_channels, num_groups, eps):
    x = upcast(X)
    w, b = (p if p is None else upcast(p) for p in (affine_scaling_weight, affine_shifting_bias))
    # torch's own has no backward without a weight or without elements; as truth it is not exact enough, since
    # it adds up a channel in one go
    if w is not None and X.numel() and X.dtype != torch.float64:
        return torch.group_norm(x, num_groups, w, b, eps).to(X.dtype)
    groups = x.reshape(X.shape[0], num_groups, num_channels // num_groups * torch.Size(X.shape[2:]).numel())
    centred = groups - groups.mean(-1, keepdim=True)
    y = (centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + eps)).reshape(X.shape)
    per_channel = (num_channels, *(1,) * (X.dim() - 2))
    y = y if w is None else y * w.view(per_channel)
    return (y if b is None else y + b.view(per_channel)).to(X.dtype)


def _group_norm(X, affine_scaling_weight, affine_shifting_bias, num_channels, num_groups, eps):
    return LigerGroupNormFunction.apply(
        X, affine_scaling_weight, affine_shifting_bias, num_channels, num_groups, eps
    )


def _sample(*shape, groups, weight=True, bias=True, id="", **x):
    name = "x".join(map(str, shape)) + f"-{groups}_groups"
    name += ("" if weight else "-no_weight") + ("" if bias else "-no_bias")
    vector = T(shape[1:2], "w")
    args = {
        "X": T(shape, **x),
        "affine_scaling_weight": vector if weight else None,
        "affine_shifting_bias": vector if bias else None,
        "num_channels": shape[1],
        "num_groups": groups,
        "eps": 1e-6,
    }
    # a group of one element: the terms of dX, rstd * m with rstd = 1000, cancel entirely
    alone = torch.Size(shape[1:]).numel() == groups
    return Sample(id or name, args, 1e3 if alone else 0.0)


def _raw(args):
    x, w, b, _, groups, eps = args.values()
    y, mean, rstd = _fwd(x, w, b, groups, eps)
    return [
        (_fwd, (x, w, b, groups, eps)),
        (_bwd, (y, x, w, b, mean, rstd, groups, w is not None, b is not None)),
        (_bwd, (y, x, w, b, mean, rstd, groups, False, False)),
    ]


def _case(*shape, groups):
    n = torch.Size(shape).numel()
    return Case("x".join(map(str, shape)), _sample(*shape, groups=groups), 2 * n, 5 * n)


_base = _sample(3, 8, 5, 4, groups=4)
SPEC = OpSpec(
    name="group_norm",
    fn=_group_norm,
    ref=group_norm_ref,
    samples=(
        _base,
        _sample(2, 6, 35, groups=3),
        _sample(0, 4, 3, groups=2),
        _sample(2, 4, 0, groups=2),
        _sample(2, 4, 1, groups=4),
        _sample(5, 12, 1, groups=3),
        _sample(2, 7, 9, groups=7),
        _sample(3, 10, 2, 3, 4, groups=1),
        _sample(2, 64, 8, 8, groups=32),
        # around what a buffer and a slice hold: channels, groups, slices of a group
        _sample(1, 3, 8193, groups=3),
        _sample(1, 4, 4096, groups=1),
        _sample(2, 6, 66, 62, groups=2),
        _sample(1, 8, 130, 131, groups=2),
        _sample(1, 6, 20_001, groups=3),
        _sample(1, 6, 160, 128, groups=2),
        # around what a block holds: vectors of a lane, channels, lanes without a vector
        _sample(3, 8, 9, 24, groups=2),
        _sample(2, 16, 25, 40, groups=1),
        _sample(3, 4, 40, 40, groups=4),
        _sample(2, 6, 20, 24, groups=2),
        # around what a cluster of blocks holds: channels of a block, turns of a channel, its tail
        _sample(1, 16, 3128, groups=2),
        _sample(1, 16, 6400, groups=1),
        _sample(3, 8, 5, groups=2, weight=False),
        _sample(3, 8, 5, groups=2, bias=False),
        _sample(3, 8, 5, groups=2, weight=False, bias=False),
        _sample(2, 6, 64, groups=3, mean=1e3, id="mean-1000"),
        _sample(2, 8, 20, 24, groups=4, mean=1e3, id="mean-1000-block"),
        _sample(1, 4, 128, 96, groups=2, mean=1e3, id="mean-1000-slices"),
    ),
    options=(
        (_base, _base.with_args("eps", eps=1e-1)),
        (_base, _base.with_args("groups", num_groups=2)),
        (_base, _base.with_args("no_weight", affine_scaling_weight=None)),
        (_base, _base.with_args("no_bias", affine_shifting_bias=None)),
    ),
    raw=_raw,
    errors=(
        (r"weight has shape \(5,\), expected \(8,\)", {"affine_scaling_weight": T((5,), "w")}),
        (r"bias has shape \(7,\), expected \(8,\)", {"affine_shifting_bias": T((7,), "w")}),
        (r"num_groups is 3, expected a divisor of the 8 channels", {"num_groups": 3}),
        (r"X has 8 channels \(dimension 1\), expected num_channels, 6", {"num_channels": 6}),
        (r"x has shape \(3, 8\), expected at least three", {"X": T((3, 8))}),
        (r"x has dtype int64, expected float32", {"X": T((3, 8, 5, 4), "index", grad=False, high=9)}),
    ),
    cases={
        "cpu": (_case(4, 128, 64, 64, groups=32),),
        "cuda": (_case(16, 512, 128, 128, groups=32), _case(64, 256, 32, 32, groups=32)),
    },
    reduces=True,
    notes="three or more dimensions, any number of channels in a group; with and without weight and bias",
)
