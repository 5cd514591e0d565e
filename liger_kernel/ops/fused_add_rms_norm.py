"""Residual add and RMSNorm in one pass: reference, spec, fakes, autograd.

    s    = x + r, rounded to their dtype
    rstd = 1 / sqrt(mean(s^2) + eps)            per row of the last dimension
    y    = s * rstd * (w + offset)
    dx   = dr = rstd * (m - s * rstd^2 * mean(m * s)) + ds,   m = dy * (w + offset)
    dw   = sum over rows of dy * s * rstd

Source: arXiv:1910.07467; the residual adds of LlamaDecoderLayer in transformers.
"""

import torch

from ._spec import Case, OpSpec, Sample, T, accum
from .rms_norm import _casting_code, rms_norm_ref

__all__ = ["LigerFusedAddRMSNormFunction", "fused_add_rms_norm_forward", "fused_add_rms_norm_backward"]

_fwd = torch.ops.liger.fused_add_rms_norm_fwd.default
_bwd = torch.ops.liger.fused_add_rms_norm_bwd.default


@torch.library.register_fake("liger::fused_add_rms_norm_fwd")
def _(x, residual, weight, eps, offset, casting):
    n_rows = x.numel() // x.shape[-1] if x.shape[-1] else 0
    y, s = (torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(2))
    return y, s, x.new_empty((n_rows,), dtype=accum(x))


@torch.library.register_fake("liger::fused_add_rms_norm_bwd")
def _(dy, ds, s, weight, rstd, offset, needs_dw):
    dx = torch.empty_like(s, memory_format=torch.contiguous_format)
    if weight is None:
        return dx, s.new_empty((0,))
    return dx, weight.new_empty((weight.shape[0] if needs_dw else 0,))


def _same_dtype(X, R):
    """x and r in the dtype of their sum, as `+` promotes them."""
    if X.dtype == R.dtype or not (X.is_floating_point() and R.is_floating_point()):
        return X, R
    dtype = torch.promote_types(X.dtype, R.dtype)
    return X.to(dtype), R.to(dtype)


class LigerFusedAddRMSNormFunction(torch.autograd.Function):
    """(y, s) with s = x + r, y = rms_norm(s) * (w + offset); differentiable in x, r and w.

    X, R: (..., n_cols), float32, bfloat16, float16 (float64 on the CPU), any strides; two dtypes are promoted
    as by `+`, and y and s have that dtype. W: (n_cols,) of any of these dtypes, or None. casting_mode: see
    LigerRMSNormFunction. The gradient that comes in through s is added in the same pass. `in_place` is
    accepted as a permission; nothing is written in place. Raises RuntimeError for a wrong device, dtype or
    size (naming the argument), ValueError for an unknown casting_mode.
    """

    @staticmethod
    def forward(ctx, X, R, W, eps, offset=0.0, casting_mode="llama", in_place=False):
        ctx.dtypes = X.dtype, R.dtype
        X, R = _same_dtype(X, R)
        y, s, rstd = _fwd(X, R, W, eps, offset, _casting_code(casting_mode))
        ctx.save_for_backward(s, W, rstd)
        ctx.offset = offset
        return y, s

    @staticmethod
    def backward(ctx, dY, dS_out):
        s, W, rstd = ctx.saved_tensors
        needs = ctx.needs_input_grad
        dx, dw = _bwd(dY, dS_out, s, W, rstd, ctx.offset, needs[2])
        x_dtype, r_dtype = ctx.dtypes
        rest = (None,) * (len(needs) - 3)
        return (dx.to(x_dtype), dx.to(r_dtype), dw if needs[2] else None, *rest)


def fused_add_rms_norm_forward(X, R, W, eps, offset, casting_mode):
    """Upstream's helper: (Y, S as rows, RSTD, block size, warps, stages, casting mode). The three launch
    numbers are None here.
    """
    code = _casting_code(casting_mode)
    y, s, rstd = _fwd(*_same_dtype(X, R), W, eps, offset, code)
    return y, s.reshape(-1, s.shape[-1]), rstd, None, None, None, {0: -1, 1: 0, 2: 1}[code]


def fused_add_rms_norm_backward(
    dY,
    dS_out,
    S,
    W,
    RSTD,
    offset,
    casting_mode,
    BLOCK_SIZE,
    num_warps,
    num_stages,
    in_place,
    needs_dw=None,
):
    """Upstream's helper: (dX, dR, dW): dX and dR are one tensor, dW is None where it is not needed."""
    needs = W is not None and needs_dw is not False
    ds = None if dS_out is None else dS_out.reshape(S.shape)
    dx, dw = _bwd(dY.reshape(S.shape), ds, S, W, RSTD, offset, needs)
    dx = dx.reshape(dY.shape)
    return dx, dx, dw if needs else None


def fused_add_rms_norm_ref(X, R, W, eps=1e-6, offset=0.0, casting_mode="llama", in_place=False):
    s = X + R
    return rms_norm_ref(s, W, eps, offset, casting_mode), s


def _fused_add_rms_norm(X, R, W, eps=1e-6, offset=0.0, casting_mode="llama", in_place=False):
    return LigerFusedAddRMSNormFunction.apply(X, R, W, eps, offset, casting_mode, in_place)


def _sample(*shape, weight=True, id="", x=None, r=None, **options):
    name = "x".join(map(str, shape)) + "".join(f"-{v}" for v in options.values())
    one = shape[-1:] == (1,)  # the two terms of the norm's gradient cancel but for eps
    x, r = x or T(shape, mean=5.0 if one else 0.0), r or T(shape)
    args = {"X": x, "R": r, "W": T(shape[-1:], "w") if weight else None, "eps": 1e-6, **options}
    return Sample(id or name + ("" if weight else "-no_weight"), args, 1.0 if one else 0.0)


def _raw(args):
    x, r, w, eps, offset = args["X"], args["R"], args["W"], args["eps"], args.get("offset", 0.0)
    y, s, rstd = _fwd(*_same_dtype(x, r), w, eps, offset, 1)
    return [
        (_fwd, (*_same_dtype(x, r), w, eps, offset, 1)),
        (_bwd, (y, s, s, w, rstd, offset, w is not None)),
        (_bwd, (y, None, s, w, rstd, offset, False)),
    ]


def _case(n_rows, n_cols):
    n = n_rows * n_cols
    return Case(f"{n_cols}", _sample(n_rows, n_cols), 4 * n, 8 * n)


_base = _sample(3, 5, 48)
SPEC = OpSpec(
    name="fused_add_rms_norm",
    fn=_fused_add_rms_norm,
    ref=fused_add_rms_norm_ref,
    samples=(
        _base,
        *(
            _sample(*shape)
            for shape in [(7, 33), (0, 8), (1, 1), (3, 1), (2, 0), (40, 127), (300, 128), (2, 3, 2500)]
        ),
        # around what registers and buffers hold
        *(_sample(*s) for s in [(3, 8193), (3, 16384), (2, 16392), (2, 40000)]),
        *(
            _sample(9, 72, casting_mode=mode, offset=offset)
            for mode in ("llama", "gemma", "none")
            for offset in (0.0, 1.0)
        ),
        _sample(9, 72, in_place=True),
        _sample(9, 72, weight=False),
        _sample(9, 72, x=T((9, 72)), r=T((9, 72), "fp32"), id="fp32-residual"),
        _sample(6, 129, r=T((6, 129), mean=1e3), id="mean-1000"),
    ),
    options=(
        (_base, _base.with_args("eps", eps=1e-1)),
        (_base, _base.with_args("offset", offset=1.0)),
        (_base, _base.with_args("gemma", casting_mode="gemma")),  # differs in bf16 alone
        (_base, _base.with_args("no_weight", W=None)),
    ),
    raw=_raw,
    errors=(
        (r"weight has shape \(5,\), expected \(48,\)", {"W": T((5,), "w")}),
        (r"residual has shape \(5, 48\), expected \(3, 5, 48\), as x", {"R": T((5, 48))}),
        (r"casting_mode is 'bert', expected", {"casting_mode": "bert"}),
        (r"x has dtype int64, expected float32", {"X": T((3, 5, 48), "index", grad=False, high=9)}),
    ),
    cases={"cpu": (_case(2048, 2048),), "cuda": (*(_case(16384, h) for h in (2048, 4096, 8192)),)},
    grad_factor=1.1,  # the rounding of s is in eager's error and in ours, by equal size and not by equal luck
    reduces=True,
    notes="casting modes llama, gemma, none; offset; no weight; residual output",
)
