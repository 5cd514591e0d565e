"""Dynamic tanh, a norm's replacement without statistics: reference, spec, fakes, autograd.

    y      = gamma * t + beta,   t = tanh(alpha * x)          alpha: one number; gamma, beta: one per column
    dx     = u * alpha,   u = dy * gamma * (1 - t^2);   dalpha = sum(u * x)
    dgamma = sum over rows of dy * t;   dbeta = sum over rows of dy

Source: arXiv:2503.10622.
"""

import torch

from ._spec import Case, OpSpec, Sample, T

__all__ = ["LigerDyTFunction"]

_fwd = torch.ops.liger.dyt_fwd.default
_bwd = torch.ops.liger.dyt_bwd.default


@torch.library.register_fake("liger::dyt_fwd")
def _(x, alpha, gamma, beta):
    return x.new_empty(x.shape)


@torch.library.register_fake("liger::dyt_bwd")
def _(dy, x, alpha, gamma, beta, needs_dalpha, needs_dgamma, needs_dbeta):
    n_cols = x.shape[-1]
    dbeta = x.new_empty((0,)) if beta is None else beta.new_empty((n_cols if needs_dbeta else 0,))
    dgamma = gamma.new_empty((n_cols if needs_dgamma else 0,))
    return x.new_empty(x.shape), alpha.new_empty((1 if needs_dalpha else 0,)), dgamma, dbeta


class LigerDyTFunction(torch.autograd.Function):
    """y = gamma * tanh(alpha * x) + beta, differentiable in all four.

    x: (..., n_cols), any strides; alpha: (1,); gamma: (n_cols,); beta: (n_cols,) or None; each float32,
    bfloat16 or float16 (float64 on the CPU). y has x's dtype, each gradient its own tensor's. Only the inputs
    are saved; the gradient of a frozen parameter costs nothing. Raises RuntimeError for a wrong device, dtype
    or size, naming the argument.
    """

    @staticmethod
    def forward(ctx, x, alpha, gamma, beta):
        ctx.save_for_backward(x, alpha, gamma, beta)
        return _fwd(x, alpha, gamma, beta)

    @staticmethod
    def backward(ctx, dy):
        needs = ctx.needs_input_grad
        dx, *grads = _bwd(dy, *ctx.saved_tensors, *needs[1:4])
        return (dx, *(grad if need else None for grad, need in zip(grads, needs[1:4])))


def liger_dyt_fwd(x, alpha, gamma, beta):
    """Upstream's helper: y."""
    return _fwd(x, alpha, gamma, beta)


def liger_dyt_bwd(dy, x, alpha, gamma, beta):
    """Upstream's helper: (dx, dalpha, dgamma, dbeta), dbeta None without a beta."""
    dx, dalpha, dgamma, dbeta = _bwd(dy, x, alpha, gamma, beta, True, True, beta is not None)
    return dx, dalpha, dgamma, None if beta is None else dbeta


def dyt_ref(x, alpha, gamma, beta=None):
    y = torch.tanh(alpha * x) * gamma
    return (y if beta is None else y + beta).to(x.dtype)


def _dyt(x, alpha, gamma, beta=None):
    return LigerDyTFunction.apply(x, alpha, gamma, beta)


def _sample(*shape, beta=True, scale=1.0):
    name = "x".join(map(str, shape)) + ("" if beta else "-no_beta") + ("" if scale == 1 else f"-scale{scale}")
    column = T(shape[-1:], "w")
    args = {"x": T(shape, scale=scale), "alpha": T((1,), "w", mean=1.0, scale=0.1), "gamma": column}
    return Sample(name, {**args, "beta": column if beta else None})


def _raw(args):
    x, alpha, gamma, beta = args["x"], args["alpha"], args["gamma"], args["beta"]
    y = _fwd(x, alpha, gamma, beta)
    return [
        (_fwd, (x, alpha, gamma, beta)),
        (_bwd, (y, x, alpha, gamma, beta, True, True, beta is not None)),
        (_bwd, (y, x, alpha, gamma, beta, False, False, False)),
    ]


def _case(n_rows, n_cols):
    n = n_rows * n_cols
    return Case(f"{n_cols}", _sample(n_rows, n_cols), 2 * n, 5 * n)


_base = _sample(3, 5, 48)
_SHAPES = [(0, 8), (2, 0), (1, 1), (3, 1), (9,), (7, 33), (40, 127), (300, 128), (5, 16), (2, 1, 1025)]
SPEC = OpSpec(
    name="dyt",
    fn=_dyt,
    ref=dyt_ref,
    samples=(
        _base,
        _sample(3, 5, 48, beta=False),
        *(_sample(*shape) for shape in [*_SHAPES, (67, 2056), (1100, 40)]),
        _sample(6, 129, scale=8.0),  # tanh saturated
        _sample(6, 129, scale=0.01),  # and nearly linear
    ),
    options=((_base, _base.with_args("no_beta", beta=None)),),
    raw=_raw,
    errors=(
        (r"alpha has shape \(2,\), expected \(1,\)", {"alpha": T((2,), "w")}),
        (r"gamma has shape \(5,\), expected \(48,\)", {"gamma": T((5,), "w")}),
        (r"beta has shape \(5,\), expected \(48,\)", {"beta": T((5,), "w")}),
        (r"x has dtype int64, expected float32", {"x": T((4, 48), "index", grad=False, high=9)}),
    ),
    cases={"cpu": (_case(2048, 2048),), "cuda": (_case(16384, 4096),)},
    reduces=True,
    notes="scalar alpha; beta optional; only the inputs are saved",
)
