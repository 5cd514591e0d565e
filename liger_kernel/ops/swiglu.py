"""SwiGLU's elementwise half: reference, spec, fakes, autograd.

    c  = silu(gate_multiplier * a) * b * down_multiplier,      silu(x) = x s(x),  s(x) = 1 / (1 + exp(-x))
    da = dc * b * silu'(gate_multiplier * a) * gate_multiplier * down_multiplier,    silu' = s + x s (1 - s)
    db = dc * silu(gate_multiplier * a) * down_multiplier

Source: arXiv:2002.05202; LlamaMLP in transformers; the multipliers: FalconH1MLP.
"""

import torch

from . import _donate, _glu
from ._spec import OpSpec
from .swiglu_gate_up import (  # noqa: F401  upstream has them here
    LigerFusedGateUpSiLUMulFunction,
    swiglu_fused_gate_up_backward,
    swiglu_fused_gate_up_forward,
)

__all__ = ["LigerSiLUMulFunction", "swiglu_forward", "swiglu_backward"]

_fwd = torch.ops.liger.swiglu_fwd.default
_bwd = torch.ops.liger.swiglu_bwd.default
_bwd_ = torch.ops.liger.swiglu_bwd_.default
torch.library.register_fake("liger::swiglu_fwd", _glu.fake_fwd)
torch.library.register_fake("liger::swiglu_bwd", _glu.fake_bwd)
torch.library.register_fake("liger::swiglu_bwd_", _glu.fake_bwd_)


class LigerSiLUMulFunction(torch.autograd.Function):
    """c = silu(gate_multiplier * a) * b * down_multiplier, differentiable in a and b.

    a, b: one shape, any strides, float32, bfloat16, float16 (float64 on the CPU); c has the dtype that torch
    promotes theirs to, each gradient its input's. Computed in fp32 and rounded once. Only a and b are saved;
    backward writes the gradients over them where nobody can see it, else into new tensors (ops/_donate.py).
    Raises RuntimeError for a wrong device, dtype or shape, naming the argument.
    """

    @staticmethod
    def forward(ctx, a, b, gate_multiplier=1.0, down_multiplier=1.0):
        ctx.save_for_backward(a, b)
        ctx.multipliers = gate_multiplier, down_multiplier
        return _fwd(a, b, gate_multiplier, down_multiplier)

    @staticmethod
    def backward(ctx, dc):
        da, db = _donate.gradients(ctx, dc, _bwd, _bwd_, *ctx.multipliers)
        return (da, db, *(None,) * (len(ctx.needs_input_grad) - 2))


def swiglu_forward(a, b, gate_multiplier=1.0):
    """Upstream's helper: (a, b, c), c = silu(gate_multiplier * a) * b."""
    return a, b, _fwd(a, b, gate_multiplier, 1.0)


def swiglu_backward(a, b, dc, gate_multiplier=1.0):
    """Upstream's helper: (da, db), in new tensors."""
    return _bwd(dc, a, b, gate_multiplier, 1.0)


def swiglu_ref(a, b, gate_multiplier=1.0, down_multiplier=1.0):
    return torch.nn.functional.silu(a * gate_multiplier) * b * down_multiplier


def _swiglu(a, b, gate_multiplier=1.0, down_multiplier=1.0):
    return LigerSiLUMulFunction.apply(a, b, gate_multiplier, down_multiplier)


def _raw(args):
    a, b, m = args["a"], args["b"], (args.get("gate_multiplier", 1.0), args.get("down_multiplier", 1.0))
    c = _fwd(a, b, *m)
    return [(_fwd, (a, b, *m)), (_bwd, (c, a, b, *m)), (_bwd_, (c, a.clone(), b.clone(), *m))]


_base = _glu.BASE
SPEC = OpSpec(
    name="swiglu",
    fn=_swiglu,
    ref=swiglu_ref,
    samples=(*_glu.SAMPLES, _glu.sample(9, 72, gate_multiplier=0.7, down_multiplier=1.5)),
    options=(
        (_base, _base.with_args("gate", gate_multiplier=0.5)),
        (_base, _base.with_args("down", down_multiplier=0.5)),
    ),
    raw=_raw,
    errors=_glu.ERRORS,
    cases=_glu.cases(),
    notes="gate and down multipliers; only the inputs are saved",
)
