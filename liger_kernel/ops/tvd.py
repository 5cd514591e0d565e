"""Total variation distance of probabilities: reference, spec, fakes, autograd.

    loss_ij = |p - q| / 2,    dp = sign(p - q) / 2, 0 where they are equal

Reduction "batchmean" divides by the number of valid rows, "mean" by that of their elements.
"""

import torch

from . import _divergence as D
from ._saved_grad import scale_saved
from ._spec import Case, OpSpec, T, accum, upcast

__all__ = ["LigerTVDLossFunction"]

_fwd = torch.ops.liger.tvd.default
_bwd = torch.ops.liger.tvd_bwd.default


@torch.library.register_fake("liger::tvd")
def _(x, y, shift_labels, reduction, ignore_index, grad):
    return D.fake_fwd(x, grad, reduction == D.REDUCTION["none"])


@torch.library.register_fake("liger::tvd_bwd")
def _(dloss, x, y, shift_labels, reduction, ignore_index):
    return D.fake_bwd(x)


def _arguments(p, q, shift_labels=None, reduction="batchmean", ignore_index=-100):
    return (*D.same_dtype(p, q), shift_labels), (D.check_reduction(reduction), ignore_index)


class LigerTVDLossFunction(torch.autograd.Function):
    """Half the sum of |p - q|, differentiable in p.

    p, q: (n_rows, n_classes) probabilities, float32, bfloat16, float16 (float64 on the CPU), any strides.
    shift_labels: (n_rows,) int64 or None; rows whose label is ignore_index count nowhere, and if there are no
    others, loss and gradient are 0. reduction: "batchmean", "mean", "sum", or "none" for the elements'
    losses, of p's shape. The loss is float32 (float64 for float64). q gets no gradient; at a tie p's is 0.
    Raises RuntimeError for a wrong device, dtype or size, ValueError for an unknown reduction.
    """

    @classmethod
    def apply(cls, p, *args):
        # decided here, since inside forward the grad mode is always off and needs_input_grad does not know it
        return super().apply(p, *args) if D.wants_grad(p) else _forward_only(p, *args)

    @staticmethod
    def forward(ctx, p, q, shift_labels=None, reduction="batchmean", ignore_index=-100):
        tensors, options = _arguments(p, q, shift_labels, reduction, ignore_index)
        return D.forward(ctx, _fwd, tensors, options, reduction == "none", p.dtype)

    @staticmethod
    def backward(ctx, grad_output):
        return D.backward(ctx, _bwd, grad_output)


def _forward_only(*args):
    tensors, options = _arguments(*args)
    return _fwd(*tensors, *options, False)[0]


def liger_tvd_apply(p, *args):
    """`LigerTVDLossFunction.apply`, for torch.compile too: no gradient where none is wanted."""
    return LigerTVDLossFunction.apply(p, *args) if D.wants_grad(p) else _forward_only(p, *args)


def tv_distance_forward_triton(p, q, shift_labels, reduction, ignore_index, has_label):
    """Upstream's helper, by its name: (loss, gradient in p)."""
    tensors, options = _arguments(p, q, shift_labels if has_label else None, reduction, ignore_index)
    loss, dp = _fwd(*tensors, *options, True)
    return loss, dp.to(p.dtype)


def tvd_backward_triton(grad_output, grads):
    """Upstream's helper, by its name: the forward's gradient times grad_output, () or one per element."""
    if grad_output.dim() == 0:
        return scale_saved(grads, grad_output.to(accum(grads)))
    return grads * grad_output


def tvd_ref(p, q, shift_labels=None, reduction="batchmean", ignore_index=-100):
    """On fp32 (fp64) values."""
    elements = (upcast(p) - upcast(q)).abs() / 2
    n_rows, n_cols = elements.shape
    n_valid = elements.new_tensor(n_rows)
    if shift_labels is not None:
        valid = shift_labels != ignore_index
        elements, n_valid = torch.where(valid[:, None], elements, 0), valid.sum()
    if reduction == "none":
        return elements
    n = {"sum": 1, "batchmean": n_valid, "mean": n_valid * n_cols}[reduction]
    return elements.sum() / (n if reduction == "sum" else n.clamp_min(1))


def _spec_entry(p, q, shift_labels=None, reduction="batchmean", ignore_index=-100):
    return liger_tvd_apply(p, q, shift_labels, reduction, ignore_index)


def _sample(n, v, **options):
    return D.sample(n, v, ("p", "q"), kind="p", **options)


def _raw(args):
    x, y, labels = args["p"], args["q"], args.get("shift_labels")
    y = y.to(x.dtype)
    one, each = torch.ones((), device=x.device, dtype=accum(x)), torch.ones_like(x, dtype=accum(x))
    return [
        (_fwd, (x, y, labels, 3, -100, True)),
        (_fwd, (x, y, None, 0, -100, False)),
        (_bwd, (one, x, y, labels, 1, -100)),
        (_bwd, (each, x, y, labels, 0, -100)),
    ]


def _case(n, v):
    return Case("tvd", _sample(n, v), 2 * n * v, 3 * n * v)


_base = _sample(9, 45, labels=0.3)
SPEC = OpSpec(
    name="tvd",
    fn=_spec_entry,
    ref=tvd_ref,
    samples=(
        _base,
        *(_sample(*size) for size in D.SIZES),
        *(_sample(7, 130, labels=0.3, reduction=r) for r in D.REDUCTION),
        *(_sample(5, 33, reduction=r) for r in D.REDUCTION),
        *(_sample(5, 45, labels=1.0, reduction=r) for r in D.REDUCTION),
        _sample(5, 45, y_kind="w"),
    ),
    options=(
        (_base, _base.with_args("mean", reduction="mean")),
        (_base, _base.with_args("sum", reduction="sum")),
        (_base, _base.with_args("none", reduction="none")),
        (_base, _base.with_args("no_labels", shift_labels=None)),
        (_base, _base.with_args("ignore_index", ignore_index=3)),
    ),
    raw=_raw,
    errors=(
        (r"y has shape \(9, 44\), expected \(9, 45\)", {"q": T((9, 44), grad=False)}),
        (r"x has shape \(3, 3, 5\), expected two dim", {"p": T((3, 3, 5))}),
        (r"shift_labels has shape \(8,\), expected \(9,\)", {"shift_labels": T((8,), "index", high=5)}),
        (r"reduction is 'max', expected 'none', 'mean', 'sum' or 'batchmean'", {"reduction": "max"}),
    ),
    cases={"cpu": (_case(512, 32000),), "cuda": (_case(4096, 128256),)},
    gradcheck=(_sample(3, 5, labels=0.3), _sample(3, 5, reduction="none"), _sample(3, 5, reduction="mean")),
    big=_sample(9, 45, labels=0.3, reduction="sum"),
    reduces=True,
    notes="of probabilities; every reduction, ignored labels; 0 gradient at ties",
)
