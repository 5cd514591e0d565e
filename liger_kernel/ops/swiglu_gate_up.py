"""SwiGLU's elementwise half from one tensor with gate and up side by side, as a fused projection gives it.

    (gate, up) = the halves of the last dimension of y
    c  = silu(gate) * up,      silu(x) = x s(x),  s(x) = 1 / (1 + exp(-x))
    dy = (dc * up * silu'(gate), dc * silu(gate)),      silu' = s + x s (1 - s)

The kernels are swiglu's: both halves are read where they lie, and both gradients are written into one tensor.
Source: arXiv:2002.05202; Phi3MLP in transformers.
"""

import torch

from . import _donate
from ._spec import Case, OpSpec, Sample, T

__all__ = ["LigerFusedGateUpSiLUMulFunction"]

_fwd = torch.ops.liger.swiglu_gate_up_fwd.default
_bwd = torch.ops.liger.swiglu_gate_up_bwd.default
_bwd_ = torch.ops.liger.swiglu_gate_up_bwd_.default


@torch.library.register_fake("liger::swiglu_gate_up_fwd")
def _(y):
    return y.new_empty((*y.shape[:-1], y.shape[-1] // 2))


@torch.library.register_fake("liger::swiglu_gate_up_bwd")
def _(dc, y):
    return y.new_empty(y.shape)


@torch.library.register_fake("liger::swiglu_gate_up_bwd_")
def _(dc, y):
    return None


class LigerFusedGateUpSiLUMulFunction(torch.autograd.Function):
    """c = silu(gate) * up with (gate, up) = y.chunk(2, dim=-1), differentiable in y.

    y: (..., 2 I), any strides, float32, bfloat16, float16 (float64 on the CPU); c: (..., I) in its dtype.
    Computed in fp32 and rounded once. Only y is saved; backward writes the gradient over it where nobody can
    see it, else into a new tensor (ops/_donate.py), whatever `in_place` says. Raises ValueError for an odd
    last size, RuntimeError for a wrong device or dtype, naming the argument.
    """

    @staticmethod
    def forward(ctx, y, in_place=False):
        if y.dim() < 1 or y.shape[-1] % 2:
            shape = tuple(y.shape)
            raise ValueError(f"y has shape {shape}, expected an even last size: gate and up side by side")
        ctx.save_for_backward(y)
        return _fwd(y)

    @staticmethod
    def backward(ctx, dc):
        (dy,) = _donate.gradients(ctx, dc, _bwd, _bwd_)
        return (dy, *(None,) * (len(ctx.needs_input_grad) - 1))


def swiglu_fused_gate_up_forward(y):
    """Upstream's helper: (y, c), c = silu(gate) * up."""
    return y, _fwd(y)


def swiglu_fused_gate_up_backward(y, dc, in_place=False):
    """Upstream's helper: dy, in a new tensor."""
    return _bwd(dc, y)


def swiglu_gate_up_ref(y):
    gate, up = y.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def _swiglu_gate_up(y):
    return LigerFusedGateUpSiLUMulFunction.apply(y)


def _raw(args):
    y = args["y"]
    c = _fwd(y)
    return [(_fwd, (y,)), (_bwd, (c, y)), (_bwd_, (c, y.clone()))]


def _sample(*shape):
    return Sample("x".join(map(str, shape)), {"y": T(shape)})


def _case(n_rows, inner):
    n = n_rows * inner
    return Case(f"{inner}", _sample(n_rows, 2 * inner), 3 * n, 8 * n)


_SHAPES = [(0, 8), (2, 0), (1, 2), (3, 2), (14,), (7, 66), (2, 2046), (3, 2048), (2, 2050), (5, 8198)]
SPEC = OpSpec(
    name="swiglu_gate_up",
    fn=_swiglu_gate_up,
    ref=swiglu_gate_up_ref,
    samples=(
        _sample(3, 5, 48),
        *(_sample(*shape) for shape in _SHAPES),
        _sample(2, 3, 5, 32),
        Sample("large", {"y": T((4, 514), scale=20.0)}),
    ),
    raw=_raw,
    errors=(
        (r"y has shape \(5, 47\), expected an even last size", {"y": T((5, 47))}),
        (r"y has dtype int64, expected float32", {"y": T((3, 5, 48), "index", grad=False, high=9)}),
    ),
    cases={"cpu": (_case(2048, 5632),), "cuda": (_case(16384, 14336),)},
    notes="gate and up as halves of one tensor; only it is saved",
)
