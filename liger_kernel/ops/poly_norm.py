"""Polynomial normalisation: reference, spec, fakes, autograd.

    y  = w0 n(x^3) + w1 n(x^2) + w2 n(x) + b,   n(u) = u r,  r = 1 / sqrt(mean(u^2) + eps)     per row
    dx = sum over k of k x^(k-1) r_k w_k (dy - x^k r_k^2 mean(dy x^k))        w_k: the weight of x^k
    dw = (sum over rows of r_k sum(dy x^k), k = 3, 2, 1);   db = sum(dy)

Source: arXiv:2411.03884.
"""

import torch

from ._spec import Case, OpSpec, Sample, T, accum, upcast

__all__ = ["LigerPolyNormFunction", "poly_norm_forward", "poly_norm_backward"]

_fwd = torch.ops.liger.poly_norm_fwd.default
_bwd = torch.ops.liger.poly_norm_bwd.default


@torch.library.register_fake("liger::poly_norm_fwd")
def _(x, weight, bias, eps):
    n_rows = x.numel() // x.shape[-1] if x.shape[-1] else 0
    return x.new_empty(x.shape), x.new_empty((n_rows, 3), dtype=accum(x))


@torch.library.register_fake("liger::poly_norm_bwd")
def _(dy, x, weight, bias, rstd, needs_dw, needs_db):
    dw, db = weight.new_empty((3 if needs_dw else 0,)), bias.new_empty((1 if needs_db else 0,))
    return x.new_empty(x.shape), dw, db


class LigerPolyNormFunction(torch.autograd.Function):
    """y = w0 n(x^3) + w1 n(x^2) + w2 n(x) + b, differentiable in X, W and B; n divides a row by its root mean
    square.

    X: (..., n_cols), any strides; W: (3,); B: one number, () or (1,); each float32, bfloat16 or float16
    (float64 on the CPU). y has X's dtype, each gradient its own tensor's. Computed in fp32 and rounded once.
    `in_place` is accepted for compatibility: nothing is written in place. Raises RuntimeError for a wrong
    device, dtype or size, naming the argument.
    """

    @staticmethod
    def forward(ctx, X, W, B, eps=1e-6, in_place=True):
        b = B.reshape(1) if B.dim() == 0 else B
        y, rstd = _fwd(X, W, b, eps)
        ctx.save_for_backward(X, W, B, rstd)
        return y

    @staticmethod
    def backward(ctx, grad_output):
        X, W, B, rstd = ctx.saved_tensors
        needs = ctx.needs_input_grad
        dx, dw, db = _bwd(grad_output, X, W, B.reshape(1), rstd, needs[1], needs[2])
        grads = dx, dw if needs[1] else None, db.reshape(B.shape) if needs[2] else None
        return (*grads, *(None,) * (len(needs) - 3))


def poly_norm_forward(X, W, B, eps=1e-6):
    """Upstream's helper: (Y, X as rows, W, RSTD, block size, warps). The two launch numbers are None here."""
    y, rstd = _fwd(X, W, B.reshape(1), eps)
    return y, X.reshape(-1, X.shape[-1]), W, rstd, None, None


def poly_norm_backward(dY, X, W, RSTD, BLOCK_SIZE, num_warps, in_place):
    """Upstream's helper: (dX, dW, dB). `dY` is never written to."""
    dx, dw, db = _bwd(dY, X.reshape(dY.shape), W, W[:1], RSTD, True, True)
    return dx, dw, db.reshape(())


def poly_norm_ref(X, W, B, eps=1e-6, in_place=True):
    x, w = upcast(X), W
    powers = [x**3, x**2, x]
    normed = [u * torch.rsqrt(u.pow(2).mean(-1, keepdim=True) + eps) for u in powers]
    return (sum(w[k] * normed[k] for k in range(3)) + B).to(X.dtype)


def _poly_norm(X, W, B, eps=1e-6, in_place=True):
    return LigerPolyNormFunction.apply(X, W, B, eps, in_place)


def _sample(*shape, **options):
    name = "x".join(map(str, shape)) + "".join(f"-{k}_{v}" for k, v in options.items())
    # of one column n(u) is the sign of u but for eps, and the terms of dX cancel, two for each power
    x, floor = (T(shape, mean=5.0), 3.0) if shape[-1:] == (1,) else (T(shape), 0.0)
    return Sample(name, {"X": x, "W": T((3,), "w"), "B": T((1,), "w"), **options}, floor)


def _raw(args):
    x, w, b, eps = args["X"], args["W"], args["B"].reshape(1), args.get("eps", 1e-6)
    y, rstd = _fwd(x, w, b, eps)
    return [
        (_fwd, (x, w, b, eps)),
        (_bwd, (y, x, w, b, rstd, True, True)),
        (_bwd, (y, x, w, b, rstd, False, False)),
    ]


def _case(n_rows, n_cols):
    n = n_rows * n_cols
    return Case(f"{n_cols}", _sample(n_rows, n_cols), 2 * n, 5 * n)


_base = _sample(4, 5, 48)
_SHAPES = [
    (0, 8),
    (2, 0),
    (1, 1),
    (3, 1),
    (9,),
    (7, 33),
    (40, 127),
    (300, 128),
    (5, 16),
    (3, 8193),
    (2, 16392),
]
SPEC = OpSpec(
    name="poly_norm",
    fn=_poly_norm,
    ref=poly_norm_ref,
    samples=(
        _base,
        *(_sample(*shape) for shape in _SHAPES),
        _sample(9, 72, eps=0.1),
        Sample("one_number", {"X": T((4, 24)), "W": T((3,), "w"), "B": T((), "w")}),
    ),
    options=((_base, _base.with_args("eps", eps=0.1)),),
    raw=_raw,
    errors=(
        (r"weight has shape \(5,\), expected \(3,\)", {"W": T((5,), "w")}),
        (r"bias has shape \(3,\), expected \(1,\)", {"B": T((3,), "w")}),
        (r"x has dtype int64, expected float32", {"X": T((4, 48), "index", grad=False, high=9)}),
    ),
    cases={"cpu": (_case(2048, 2048),), "cuda": (_case(16384, 4096),)},
    reduces=True,
    notes="three powers, each divided by its root mean square",
)
