"""GEGLU's elementwise half: reference, spec, fakes, autograd.

    c  = gelu(a) * b,    da = dc * b * gelu'(a),    db = dc * gelu(a)

and gelu(x), by `approximate`, is

    "tanh"   x (1 + tanh(u)) / 2,  u = sqrt(2 / pi) (x + .044715 x^3)
    "none"   x P(x),  P(x) = (1 + erf(x / sqrt(2))) / 2
    "quick"  x / (1 + exp(-1.702 x))

Source: arXiv:1606.08415, arXiv:2002.05202; GemmaMLP, GELUActivation, QuickGELUActivation in transformers.
"""

import torch

from . import _donate, _glu
from ._spec import OpSpec

__all__ = ["LigerGELUMulFunction", "geglu_forward", "geglu_backward"]

_fwd = torch.ops.liger.geglu_fwd.default
_bwd = torch.ops.liger.geglu_bwd.default
_bwd_ = torch.ops.liger.geglu_bwd_.default
torch.library.register_fake("liger::geglu_fwd", _glu.fake_fwd)
torch.library.register_fake("liger::geglu_bwd", _glu.fake_bwd)
torch.library.register_fake("liger::geglu_bwd_", _glu.fake_bwd_)
_GELU = {"tanh": 0, "none": 1, "quick": 2}


class LigerGELUMulFunction(torch.autograd.Function):
    """c = gelu(a) * b, differentiable in a and b.

    a, b: one shape, any strides, float32, bfloat16, float16 (float64 on the CPU); c has the dtype that torch
    promotes theirs to, each gradient its input's. approximate: "tanh", "none" (the exact gelu, as torch names
    it) or "quick". Computed in fp32 and rounded once. Only a and b are saved; backward writes the gradients
    over them where nobody can see it, else into new tensors (ops/_donate.py). Raises RuntimeError for a wrong
    device, dtype or shape, naming the argument, ValueError for an unknown `approximate`.
    """

    @staticmethod
    def forward(ctx, a, b, approximate="tanh"):
        if approximate not in _GELU:
            raise ValueError(f"approximate is {approximate!r}, expected 'tanh', 'none' or 'quick'")
        ctx.save_for_backward(a, b)
        ctx.gelu = _GELU[approximate]
        return _fwd(a, b, ctx.gelu)

    @staticmethod
    def backward(ctx, dc):
        da, db = _donate.gradients(ctx, dc, _bwd, _bwd_, ctx.gelu)
        return (da, db, *(None,) * (len(ctx.needs_input_grad) - 2))


def geglu_forward(a, b):
    """Upstream's helper: (a, b, c), c = gelu(a) * b with the tanh form."""
    return a, b, _fwd(a, b, 0)


def geglu_backward(a, b, dc):
    """Upstream's helper: (da, db), in new tensors."""
    return _bwd(dc, a, b, 0)


def geglu_ref(a, b, approximate="tanh"):
    if approximate == "quick":
        return a * torch.sigmoid(1.702 * a) * b
    return torch.nn.functional.gelu(a, approximate=approximate) * b


def _geglu(a, b, approximate="tanh"):
    return LigerGELUMulFunction.apply(a, b, approximate)


def _raw(args):
    a, b, gelu = args["a"], args["b"], _GELU[args.get("approximate", "tanh")]
    c = _fwd(a, b, gelu)
    return [(_fwd, (a, b, gelu)), (_bwd, (c, a, b, gelu)), (_bwd_, (c, a.clone(), b.clone(), gelu))]


_base, *_others = _glu.SAMPLES
_large = next(sample for sample in _others if sample.id == "large")
_forms = [
    sample.with_args(form, approximate=form) for form in ("none", "quick") for sample in (_base, _large)
]
SPEC = OpSpec(
    name="geglu",
    fn=_geglu,
    ref=geglu_ref,
    samples=(_base, *_others, *_forms, _glu.sample(7, 1, approximate="none")),
    options=(
        (_base, _base.with_args("none", approximate="none")),
        (_base, _base.with_args("quick", approximate="quick")),
    ),
    raw=_raw,
    errors=(*_glu.ERRORS, (r"approximate is 'erf', expected", {"approximate": "erf"})),
    cases=_glu.cases(),
    notes="tanh, exact and quick gelu; only the inputs are saved",
)
