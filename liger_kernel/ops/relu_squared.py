"""Squared ReLU: y = max(x, 0)^2, dx = dy 2 max(x, 0).

Source: arXiv:2109.08668; ReLUSquaredActivation in transformers.
"""

import torch

from ._spec import Case, OpSpec, Sample, T

__all__ = ["LigerReLUSquaredFunction", "relu_squared_forward", "relu_squared_backward"]

_fwd = torch.ops.liger.relu_squared_fwd.default
_bwd = torch.ops.liger.relu_squared_bwd.default


@torch.library.register_fake("liger::relu_squared_fwd")
def _(x):
    return x.new_empty(x.shape)


@torch.library.register_fake("liger::relu_squared_bwd")
def _(dy, x):
    return x.new_empty(x.shape)


class LigerReLUSquaredFunction(torch.autograd.Function):
    """y = max(x, 0)^2, elementwise, differentiable in x.

    X: any shape and strides, float32, bfloat16, float16 (float64 on the CPU); the result has its dtype.
    Computed in fp32 and rounded once. Only X is saved. Raises RuntimeError for a wrong device or dtype,
    naming the argument.
    """

    @staticmethod
    def forward(ctx, X):
        ctx.save_for_backward(X)
        return _fwd(X)

    @staticmethod
    def backward(ctx, dY):
        return _bwd(dY, *ctx.saved_tensors)


def relu_squared_forward(X):
    """Upstream's helper: max(X, 0)^2."""
    return _fwd(X)


def relu_squared_backward(X, dY):
    """Upstream's helper: dX, in a new tensor."""
    return _bwd(dY, X)


def relu_squared_ref(X):
    return torch.square(torch.nn.functional.relu(X))


def _relu_squared(X):
    return LigerReLUSquaredFunction.apply(X)


def _sample(*shape):
    return Sample("x".join(map(str, shape)), {"X": T(shape)})


def _case(n_rows, n_cols):
    n = n_rows * n_cols
    return Case(f"{n_cols}", _sample(n_rows, n_cols), 2 * n, 5 * n)


_SHAPES = [(0, 8), (2, 0), (1, 1), (7,), (7, 33), (2, 1023), (3, 1024), (2, 1025), (5, 4099), (2, 3, 5, 16)]
SPEC = OpSpec(
    name="relu_squared",
    fn=_relu_squared,
    ref=relu_squared_ref,
    samples=(
        _sample(3, 5, 48),
        *(_sample(*shape) for shape in _SHAPES),
        Sample("large", {"X": T((4, 257), scale=100.0)}),
    ),
    raw=lambda args: [(_fwd, (args["X"],)), (_bwd, (_fwd(args["X"]), args["X"]))],
    errors=((r"x has dtype int64, expected float32", {"X": T((3, 5, 48), "index", grad=False, high=9)}),),
    cases={"cpu": (_case(2048, 5632),), "cuda": (_case(16384, 14336),)},
    notes="only the input is saved",
)
