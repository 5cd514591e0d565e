"""RMS normalisation with a scale and a shift for groups of rows (adaptive norms): reference, spec, fakes,
autograd.

    y      = xhat * m + shift,   m = (w + offset) * (1 + scale),   xhat = x / sqrt(mean(x^2) + eps)    per row
    dx     = rstd * (g - xhat * mean(g * xhat)),   g = dy * m
    dscale = (w + offset) * G,   dshift = sum of dy,   G = sum of dy * xhat, over the rows of a modulation
    dw     = sum over modulations of (1 + scale) * G

Source: arXiv:2212.09748 (adaLN), arXiv:1910.07467.
"""

import torch

from ._spec import Case, OpSpec, Sample, T, accum
from .rms_norm import _casting_code, rms_norm_ref

__all__ = [
    "LigerModulatedRMSNormFunction",
    "modulated_rms_norm_backward",
    "modulated_rms_norm_forward",
]

_fwd = torch.ops.liger.modulated_rms_norm_fwd.default
_bwd = torch.ops.liger.modulated_rms_norm_bwd.default


@torch.library.register_fake("liger::modulated_rms_norm_fwd")
def _(x, weight, scale, shift, eps, offset, casting):
    n_rows = x.numel() // x.shape[-1] if x.shape[-1] else 0
    return x.new_empty(x.shape), x.new_empty((n_rows,), dtype=accum(x))


@torch.library.register_fake("liger::modulated_rms_norm_bwd")
def _(dy, x, weight, scale, shift, rstd, offset, needs_dw, needs_dscale, needs_dshift):
    needs_dw, needs_dshift = needs_dw and weight is not None, needs_dshift and shift is not None
    dw = (x if weight is None else weight).new_empty((x.shape[-1] if needs_dw else 0,))
    dscale = scale.new_empty(scale.shape if needs_dscale else (0,))
    dshift = (scale if shift is None else shift).new_empty(scale.shape if needs_dshift else (0,))
    return x.new_empty(x.shape), dw, dscale, dshift


class LigerModulatedRMSNormFunction(torch.autograd.Function):
    """y = rms_norm(x) (w + offset) (1 + scale) + shift, differentiable in all four.

    X: (..., n_cols), any strides. W: (n_cols,) or None. scale: (..., n_cols), its number of rows a divisor of
    X's: row r has modulation r // (rows of X / rows of scale). shift: the same shape, or None. Each float32,
    bfloat16 or float16 (float64 on the CPU); y has X's dtype, each gradient its own tensor's. casting_mode:
    "llama" rounds the normalised row to X's dtype first, "gemma" and "none" round once, at the end.
    `in_place` is accepted for compatibility: nothing is written in place. Raises RuntimeError for a wrong
    device, dtype or size, naming the argument, ValueError for an unknown casting_mode.
    """

    @staticmethod
    def forward(ctx, X, W, scale, shift, eps, offset=0.0, casting_mode="llama", in_place=True):
        y, rstd = _fwd(X, W, scale, shift, eps, offset, _casting_code(casting_mode))
        ctx.save_for_backward(X, W, scale, shift, rstd)
        ctx.offset = offset
        return y

    @staticmethod
    def backward(ctx, dY):
        X, W, scale, shift, rstd = ctx.saved_tensors
        needs = ctx.needs_input_grad
        dx, *grads = _bwd(dY, X, W, scale, shift, rstd, ctx.offset, *needs[1:4])
        grads = (grad if need else None for grad, need in zip(grads, needs[1:4]))
        return (dx, *grads, *(None,) * (len(needs) - 4))


def modulated_rms_norm_forward(X, W, scale, shift, eps, offset, casting_mode):
    """Upstream's helper: (Y, X as rows, RSTD, block size, warps, rows per modulation, casting mode). The two
    launch numbers are None here."""
    code = _casting_code(casting_mode)
    y, rstd = _fwd(X, W, scale, shift, eps, offset, code)
    rows = X.reshape(-1, X.shape[-1])
    n_modulations = scale.numel() // scale.shape[-1]
    return y, rows, rstd, None, None, rows.shape[0] // max(n_modulations, 1), {0: -1, 1: 0, 2: 1}[code]


def modulated_rms_norm_backward(
    dY,
    X,
    W,
    scale,
    shift,
    RSTD,
    offset,
    casting_mode,
    BLOCK_SIZE,
    num_warps,
    rows_per_modulation,
    in_place,
):
    """Upstream's helper: (dX, dW, dscale, dshift), None for what is not there. `dY` is never written to."""
    there = W is not None, True, shift is not None
    dx, *grads = _bwd(dY, X.reshape(dY.shape), W, scale, shift, RSTD, offset, *there)
    return (dx, *(grad if has else None for grad, has in zip(grads, there)))


def modulated_rms_norm_ref(
    X, W, scale, shift=None, eps=1e-6, offset=0.0, casting_mode="llama", in_place=True
):
    n_rows, n_modulations = X.shape[:-1].numel(), scale.shape[:-1].numel()
    each = n_rows // max(n_modulations, 1)
    one_for_each = lambda t: t.reshape(n_modulations, X.shape[-1]).repeat_interleave(each, 0).reshape(X.shape)
    y = rms_norm_ref(X, W, eps, offset, casting_mode) * (1 + one_for_each(scale))
    return (y if shift is None else y + one_for_each(shift)).to(X.dtype)


def _modulated_rms_norm(X, W, scale, shift=None, eps=1e-6, offset=0.0, casting_mode="llama", in_place=True):
    return LigerModulatedRMSNormFunction.apply(X, W, scale, shift, eps, offset, casting_mode, in_place)


def _sample(shape, modulations, weight=True, shift=True, **options):
    name = "-".join("x".join(map(str, s)) for s in (shape, modulations))
    name += "".join(f"-{v}" for v in options.values())
    name += ("" if weight else "-no_weight") + ("" if shift else "-no_shift")
    one = shape[-1:] == (1,)  # as in rms_norm: of one column the terms of dX cancel but for eps
    x, floor = T(shape, mean=5.0 if one else 0.0), 2.0 if one else 0.0
    args = {"X": x, "W": T(shape[-1:], "w") if weight else None, "scale": T(modulations, "w")}
    return Sample(name, {**args, "shift": T(modulations, "w") if shift else None, **options}, floor)


def _raw(args):
    given = args["X"], args["W"], args["scale"], args["shift"]
    y, rstd = _fwd(*given, 1e-6, 0.5, 1)
    return [
        (_fwd, (*given, 1e-6, 0.5, 1)),
        (_bwd, (y, *given, rstd, 0.5, True, True, True)),
        (_bwd, (y, *given, rstd, 0.5, False, False, False)),
    ]


def _case(batch, tokens, n_cols):
    n = batch * tokens * n_cols
    return Case(f"{n_cols}", _sample((batch, tokens, n_cols), (batch, 1, n_cols)), 2 * n, 5 * n)


_base = _sample((3, 5, 48), (3, 1, 48))
SPEC = OpSpec(
    name="modulated_rms_norm",
    fn=_modulated_rms_norm,
    ref=modulated_rms_norm_ref,
    samples=(
        _base,
        _sample((3, 5, 48), (3, 1, 48), weight=False, shift=False),
        _sample((3, 5, 48), (48,)),  # one modulation for all
        _sample((3, 5, 48), (3, 5, 48)),  # one for each row
        *(_sample((9, 72), (3, 72), casting_mode=mode, offset=1.0) for mode in ("llama", "gemma", "none")),
        *(
            _sample(shape, modulations)
            for shape, modulations in [
                ((0, 8), (1, 8)),
                ((2, 0), (1, 0)),
                ((3, 1), (1, 1)),
                ((7, 33), (1, 33)),
                ((200, 40), (2, 40)),
                ((3000, 40), (2, 40)),  # more rows of a modulation than a GPU has pieces for: unequal ones
                ((150, 16), (75, 16)),
                ((4, 8193), (2, 8193)),
                ((4, 16392), (4, 16392)),
            ]
        ),
    ),
    options=(
        (_base, _base.with_args("eps", eps=1e-1)),
        (_base, _base.with_args("offset", offset=1.0)),
        (_base, _base.with_args("gemma", casting_mode="gemma")),  # differs in bf16 alone
        (_base, _base.with_args("no_shift", shift=None)),
    ),
    raw=_raw,
    errors=(
        (r"weight has shape \(5,\), expected \(48,\)", {"W": T((5,), "w")}),
        (r"scale has shape \(2, 48\), which is 2 rows", {"scale": T((2, 48), "w")}),
        (r"scale has shape \(3, 5\), expected a last size of 48", {"scale": T((3, 5), "w")}),
        (r"shift has shape \(1, 48\), expected \(3, 1, 48\)", {"shift": T((1, 48), "w")}),
        (r"casting_mode is 'bert', expected", {"casting_mode": "bert"}),
        (r"x has dtype int64, expected float32", {"X": T((3, 48), "index", grad=False, high=9)}),
    ),
    dynamic=tuple(_sample((n, 5, 48), (n, 1, 48)) for n in (3, 4, 7)),
    big=_sample((3, 48), (48,)),
    cases={"cpu": (_case(4, 512, 2048),), "cuda": (_case(16, 1024, 4096),)},
    reduces=True,
    notes="a scale and a shift for groups of rows; casting modes llama, gemma, none",
)
