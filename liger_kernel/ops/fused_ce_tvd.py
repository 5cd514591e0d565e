"""Cross entropy of a student's logits and total variation distance from a teacher's, per row.

    p = softmax(student), q = softmax(teacher)
    ce = lse(student) - student_y,   tvd = sum |p - q| / 2
    dstudent = g_ce (p - onehot_y) + g_tvd p (s - sigma) / 2,   s = sign(p - q), 0 at a tie,  sigma = sum p s

Both logits are saved, and five numbers a row; the gradient is made in backward.
"""

import torch
import torch.nn.functional as F

from ._divergence import same_dtype
from ._labels import check_labels
from ._spec import Case, OpSpec, Sample, T, accum, upcast

__all__ = ["LigerFusedCETVDFunction", "fused_ce_tvd_forward", "fused_ce_tvd_backward"]

_fwd = torch.ops.liger.fused_ce_tvd.default
_bwd = torch.ops.liger.fused_ce_tvd_bwd.default


@torch.library.register_fake("liger::fused_ce_tvd")
def _(student_logits, teacher_logits, target, ignore_index):
    n, real = student_logits.shape[0], accum(student_logits)
    return tuple(student_logits.new_empty(shape, dtype=real) for shape in ((n,), (n,), (5, n)))


@torch.library.register_fake("liger::fused_ce_tvd_bwd")
def _(grad_ce, grad_tvd, student_logits, teacher_logits, target, stats, ignore_index):
    return torch.empty_like(student_logits, memory_format=torch.contiguous_format)


def _checked(student_logits, teacher_logits, target, ignore_index):
    for name, t in (("student_logits", student_logits), ("teacher_logits", teacher_logits)):
        if t.dim() != 2:
            raise ValueError(f"{name} has shape {tuple(t.shape)}, expected two dimensions")
    if teacher_logits.shape != student_logits.shape:
        raise ValueError(
            f"teacher_logits has shape {tuple(teacher_logits.shape)}, expected "
            f"{tuple(student_logits.shape)}, as student_logits"
        )
    if target.shape != student_logits.shape[:1]:
        raise ValueError(
            f"target has shape {tuple(target.shape)}, expected ({student_logits.shape[0]},), one a row"
        )
    check_labels("fused_ce_tvd", target, student_logits.shape[1], ignore_index)
    return same_dtype(student_logits, teacher_logits)


class LigerFusedCETVDFunction(torch.autograd.Function):
    """(ce, tvd) of every row, differentiable in student_logits.

    student_logits, teacher_logits: (n_rows, n_classes), float32, bfloat16, float16 (float64 on the CPU), any
    strides. target: (n_rows,) int64, class indices or ignore_index; rows with the latter are 0 in both losses
    and in the gradient. ce, tvd: (n_rows,) float32 (float64 for float64). The teacher gets no gradient;
    logits are not written to. Raises ValueError for a wrong shape, RuntimeError for a wrong device or dtype
    and, on the CPU, for a label out of range (on a GPU its row is NaN, or an error under LIGER_DEBUG=1).
    """

    @staticmethod
    def forward(ctx, student_logits, teacher_logits, target, ignore_index=-100):
        x, y = _checked(student_logits, teacher_logits, target, ignore_index)
        ce, tvd, stats = _fwd(x, y, target, ignore_index)
        ctx.save_for_backward(x, y, target, stats)
        ctx.ignore_index, ctx.dtype = ignore_index, student_logits.dtype
        return ce, tvd

    @staticmethod
    def backward(ctx, grad_ce, grad_tvd):
        dx = _bwd(grad_ce, grad_tvd, *ctx.saved_tensors, ctx.ignore_index)
        return (dx.to(ctx.dtype), *(None,) * (len(ctx.needs_input_grad) - 1))


def fused_ce_tvd_forward(student_logits, teacher_logits, target, ignore_index):
    """Upstream's helper: (ce, tvd, student_lse, teacher_lse, sigma)."""
    x, y = _checked(student_logits, teacher_logits, target, ignore_index)
    ce, tvd, stats = _fwd(x, y, target, ignore_index)
    return ce, tvd, stats[0] + stats[1], stats[2] + stats[3], stats[4]


def fused_ce_tvd_backward(
    grad_ce,
    grad_tvd,
    student_logits,
    teacher_logits,
    target,
    student_lse,
    teacher_lse,
    sigma,
    ignore_index,
):
    """Upstream's helper: the gradient in student_logits. The Function keeps maximum and log-sum apart
    instead.
    """
    x, y = _checked(student_logits, teacher_logits, target, ignore_index)
    zero = torch.zeros_like(sigma)
    stats = torch.stack((student_lse, zero, teacher_lse, zero, sigma))
    return _bwd(grad_ce, grad_tvd, x, y, target, stats, ignore_index).to(student_logits.dtype)


def fused_ce_tvd_ref(student_logits, teacher_logits, target, ignore_index=-100):
    x, y = upcast(student_logits), upcast(teacher_logits)
    ce = F.cross_entropy(x, target, ignore_index=ignore_index, reduction="none")
    tvd = (torch.softmax(x, -1) - torch.softmax(y, -1)).abs().sum(-1) / 2
    return ce, torch.where(target == ignore_index, 0, tvd)


def _spec_entry(student_logits, teacher_logits, target, ignore_index=-100):
    return LigerFusedCETVDFunction.apply(student_logits, teacher_logits, target, ignore_index)


def _sample(n, v, ignored=0.0, scale=1.0, kind="x", labels=None, **options):
    name = (
        f"{n}x{v}" + "".join(f"-{k}_{o}" for k, o in options.items()) + f"-ignored_{ignored}" * bool(ignored)
    )
    args = {
        "student_logits": T((n, v), scale=scale),
        "teacher_logits": T((n, v), kind, grad=False, scale=scale),
        "target": T((n,), "index", grad=False, high=labels or v, ignored=ignored),
        **options,
    }
    return Sample(name + (f"-scale_{scale}" if scale != 1 else "") + ("-mixed" if kind == "w" else ""), args)


def _raw(args):
    x, y, target = (args[k].detach() for k in ("student_logits", "teacher_logits", "target"))
    y = y.to(x.dtype)
    ce, tvd, stats = _fwd(x, y, target, -100)
    return [(_fwd, (x, y, target, -100)), (_bwd, (ce, tvd, x, y, target, stats, -100))]


def _case(n, v):
    return Case("fused_ce_tvd", _sample(n, v), 2 * n * v, 5 * n * v)


_base = _sample(9, 45, ignored=0.3)
_few = _sample(29, 5)
SPEC = OpSpec(
    name="fused_ce_tvd",
    fn=_spec_entry,
    ref=fused_ce_tvd_ref,
    big=_sample(9, 45),  # no row is ignored: a mean divides by all of them
    samples=(
        _base,
        *(_sample(*s) for s in ((0, 8), (1, 1), (3, 1), (2, 7), (33, 127), (3, 1025), (2, 2049), (2, 16393))),
        _sample(5, 45, ignored=1.0),
        _sample(7, 130, scale=100.0),
        _sample(5, 45, kind="w"),
    ),
    options=((_few, _few.with_args("ignore_index", ignore_index=3)),),
    raw=_raw,
    errors=(
        (
            r"teacher_logits has shape \(9, 44\), expected \(9, 45\)",
            {"teacher_logits": T((9, 44), grad=False)},
        ),
        (r"student_logits has shape \(3, 3, 5\), expected two dim", {"student_logits": T((3, 3, 5))}),
        (r"target has shape \(8,\), expected \(9,\)", {"target": T((8,), "index", grad=False, high=45)}),
        (r"target has dtype float", {"target": T((9,), "fp32", grad=False)}),
        (
            r"target\[\d\] is \d+, expected a value in \[0, 45\)",
            {"target": T((9,), "index", grad=False, low=45, high=99)},
        ),
    ),
    cases={"cpu": (_case(512, 32000),), "cuda": (_case(4096, 128256),)},
    gradcheck=(_sample(4, 7, ignored=0.3),),
    reduces=True,
    notes="both losses of each row in one pass over two rows of logits; ignored labels; 0 gradient at ties",
)
