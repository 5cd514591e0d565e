"""Layer normalisation: reference, spec, fakes, autograd.

    xhat = (x - mean(x)) / sqrt(var(x) + eps)        per row of the last dimension, var the biased one
    y    = xhat * w + b
    dx   = rstd * (m - mean(m) - xhat * mean(m * xhat)),   m = dy * w
    dw   = sum over rows of dy * xhat,   db = sum over rows of dy

Source: arXiv:1607.06450; torch.nn.LayerNorm.
"""

import torch
import torch.nn.functional as F

from ._spec import Case, OpSpec, Sample, T, accum, upcast

__all__ = ["LigerLayerNormFunction", "layer_norm_forward", "layer_norm_backward"]

_fwd = torch.ops.liger.layer_norm_fwd.default
_bwd = torch.ops.liger.layer_norm_bwd.default


@torch.library.register_fake("liger::layer_norm_fwd")
def _(x, weight, bias, eps):
    n_rows = x.numel() // x.shape[-1] if x.shape[-1] else 0
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return y, x.new_empty((n_rows,), dtype=accum(x)), x.new_empty((n_rows,), dtype=accum(x))


@torch.library.register_fake("liger::layer_norm_bwd")
def _(dy, x, weight, bias, mean, rstd, needs_dw, needs_db):
    grads = ((weight, needs_dw), (bias, needs_db))
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    return dx, *(
        x.new_empty((0,)) if p is None else p.new_empty((p.shape[0] if wanted else 0,)) for p, wanted in grads
    )


class LigerLayerNormFunction(torch.autograd.Function):
    """y = (x - mean) / sqrt(var + eps) * w + b over the last dimension, differentiable in x, w and b.

    X: (..., n_cols), float32, bfloat16, float16 (float64 on the CPU), any strides. W, B: (n_cols,) of any of
    these dtypes, or None. Statistics are fp32 (fp64 for float64) and of two passes, so a large mean costs no
    digits of the variance. Raises RuntimeError for a wrong device, dtype or size, naming the argument.
    """

    @staticmethod
    def forward(ctx, X, W, B, eps):
        y, mean, rstd = _fwd(X, W, B, eps)
        ctx.save_for_backward(X, W, B, mean, rstd)
        return y

    @staticmethod
    def backward(ctx, dY):
        X, W, B, mean, rstd = ctx.saved_tensors
        needs = ctx.needs_input_grad
        dx, dw, db = _bwd(dY, X, W, B, mean, rstd, needs[1], needs[2])
        return (dx, dw if needs[1] else None, db if needs[2] else None, *(None,) * (len(needs) - 3))


def layer_norm_forward(X, W, B, eps):
    """Upstream's helper: (Y, X as rows, mean, rstd, block size, warps). The two launch numbers are None."""
    y, mean, rstd = _fwd(X, W, B, eps)
    return y, X.reshape(-1, X.shape[-1]), mean, rstd, None, None


def layer_norm_backward(dY, X, W, B, Mean, RSTD, needs_dw=None, needs_db=None):
    """Upstream's helper: (dX, dW, dB), None for a gradient that is not needed."""
    wants = W is not None and needs_dw is not False, B is not None and needs_db is not False
    dx, dw, db = _bwd(dY.reshape(X.shape), X, W, B, Mean, RSTD, *wants)
    return dx.reshape(dY.shape), dw if wants[0] else None, db if wants[1] else None


def layer_norm_ref(X, W, B=None, eps=1e-6):
    w, b = (p if p is None else upcast(p) for p in (W, B))
    return F.layer_norm(upcast(X), X.shape[-1:], w, b, eps).to(X.dtype)


def _layer_norm(X, W, B=None, eps=1e-6):
    return LigerLayerNormFunction.apply(X, W, B, eps)


def _sample(*shape, weight=True, bias=True, id="", **x):
    name = "x".join(map(str, shape)) + ("" if weight else "-no_weight") + ("" if bias else "-no_bias")
    vector = T(shape[-1:], "w")
    args = {"X": T(shape, **x), "W": vector if weight else None, "B": vector if bias else None, "eps": 1e-6}
    # one column: the terms of dX, rstd * m with rstd = 1000, cancel entirely
    return Sample(id or name, args, 1e3 if shape[-1:] == (1,) else 0.0)


def _raw(args):
    x, w, b, eps = args["X"], args["W"], args["B"], args["eps"]
    y, mean, rstd = _fwd(x, w, b, eps)
    return [
        (_fwd, (x, w, b, eps)),
        (_bwd, (y, x, w, b, mean, rstd, w is not None, b is not None)),
        (_bwd, (y, x, w, b, mean, rstd, False, False)),
    ]


def _case(n_rows, n_cols):
    n = n_rows * n_cols
    return Case(f"{n_cols}", _sample(n_rows, n_cols), 2 * n, 5 * n)


_base = _sample(3, 5, 48)
SPEC = OpSpec(
    name="layer_norm",
    fn=_layer_norm,
    ref=layer_norm_ref,
    samples=(
        _base,
        _sample(7, 33, bias=False),
        *(
            _sample(*shape)
            for shape in [(0, 8), (1, 1), (3, 1), (2, 0), (7, 3), (40, 127), (300, 128), (2, 3, 2500)]
        ),
        # around what registers and buffers hold
        *(_sample(*s) for s in [(2, 8192), (3, 8193), (3, 16384), (2, 16392), (1, 1_000_003)]),
        _sample(9, 72, weight=False),
        _sample(9, 72, weight=False, bias=False),
        _sample(6, 129, mean=1e3, id="mean-1000"),
        _sample(3, 4096, mean=1e3, id="mean-1000-wide"),
        _sample(2, 20000, mean=1e3, id="mean-1000-tiles"),
    ),
    options=(
        (_base, _base.with_args("eps", eps=1e-1)),
        (_base, _base.with_args("no_weight", W=None)),
        (_base, _base.with_args("no_bias", B=None)),
    ),
    raw=_raw,
    errors=(
        (r"weight has shape \(5,\), expected \(48,\)", {"W": T((5,), "w")}),
        (r"bias has shape \(47,\), expected \(48,\)", {"B": T((47,), "w")}),
        (r"x has dtype int64, expected float32", {"X": T((4, 48), "index", grad=False, high=9)}),
    ),
    cases={"cpu": (_case(2048, 2048),), "cuda": (*(_case(16384, h) for h in (1024, 4096, 8192)),)},
    reduces=True,
    notes="with and without weight and bias",
)
