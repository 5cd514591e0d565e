"""GEGLU's elementwise half: reference, spec, fakes, autograd.

    c  = gelu(a) * b,      gelu(x) = x (1 + tanh u) / 2,  u = sqrt(2 / pi) (x + .044715 x^3)
    da = dc * b * gelu'(a),      gelu'(x) = s + 2 x s (1 - s) u',  s = (1 + tanh u) / 2
    db = dc * gelu(a)

Source: arXiv:1606.08415, arXiv:2002.05202; GemmaMLP in transformers.
"""

import torch

from . import _glu
from ._spec import OpSpec

__all__ = ["LigerGELUMulFunction", "geglu_forward", "geglu_backward"]

_fwd = torch.ops.liger.geglu_fwd.default
_bwd = torch.ops.liger.geglu_bwd.default
torch.library.register_fake("liger::geglu_fwd", _glu.fake_fwd)
torch.library.register_fake("liger::geglu_bwd", _glu.fake_bwd)


class LigerGELUMulFunction(torch.autograd.Function):
    """c = gelu(a) * b with the tanh form of gelu, differentiable in a and b.

    a, b: one shape, any strides, float32, bfloat16, float16 (float64 on the CPU); c has the dtype that torch
    promotes theirs to, each gradient its input's. Computed in fp32 and rounded once. Only a and b are saved,
    and nothing is written over them.
    Raises RuntimeError for a wrong device, dtype or shape, naming the argument.
    """

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return _fwd(a, b)

    @staticmethod
    def backward(ctx, dc):
        return _bwd(dc, *ctx.saved_tensors)


def geglu_forward(a, b):
    """Upstream's helper: (a, b, c), c = gelu(a) * b."""
    return a, b, _fwd(a, b)


def geglu_backward(a, b, dc):
    """Upstream's helper: (da, db), in new tensors."""
    return _bwd(dc, a, b)


def geglu_ref(a, b):
    return torch.nn.functional.gelu(a, approximate="tanh") * b


def _geglu(a, b):
    return LigerGELUMulFunction.apply(a, b)


def _raw(args):
    a, b = args["a"], args["b"]
    return [(_fwd, (a, b)), (_bwd, (_fwd(a, b), a, b))]


SPEC = OpSpec(
    name="geglu",
    fn=_geglu,
    ref=geglu_ref,
    samples=_glu.SAMPLES,
    raw=_raw,
    errors=_glu.ERRORS,
    cases=_glu.cases(),
    notes="tanh form; only the inputs are saved",
)
