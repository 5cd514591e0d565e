"""Kullback-Leibler divergence of log-probabilities from a target: reference, spec, fakes, autograd.

    loss_ij = y (ln max(y, eps) - x),  dx = -y;      log_target:  loss_ij = e^y (y - x),  dx = -e^y

An element of probability 0 adds 0, whatever x is. Reduction "mean" divides by the number of elements,
"batchmean" by that of rows. Source: torch.nn.KLDivLoss.
"""

import torch

from . import _divergence as D
from ._spec import Case, OpSpec, T, accum, upcast

__all__ = ["LigerKLDivLossFunction"]

_fwd = torch.ops.liger.kl_div.default
_bwd = torch.ops.liger.kl_div_bwd.default


@torch.library.register_fake("liger::kl_div")
def _(x, y, reduction, log_target, eps, grad):
    return D.fake_fwd(x, grad, reduction == D.REDUCTION["none"])


@torch.library.register_fake("liger::kl_div_bwd")
def _(dloss, x, y, reduction, log_target, eps):
    return D.fake_bwd(x)


def _arguments(y_pred, y_true, reduction="batchmean", log_target=False, eps=1e-10):
    return D.same_dtype(y_pred, y_true), (D.check_reduction(reduction), bool(log_target), eps)


class LigerKLDivLossFunction(torch.autograd.Function):
    """KL(y_true || exp(y_pred)), differentiable in y_pred.

    y_pred: (n_rows, n_classes) log-probabilities; y_true: the same shape, probabilities, or
    log-probabilities with log_target; float32, bfloat16, float16 (float64 on the CPU), any strides.
    reduction: "batchmean", "mean", "sum", or "none" for the elements' losses, of y_pred's shape. eps: what a
    probability's logarithm is taken of at least. The loss is float32 (float64 for float64). y_true gets no
    gradient.
    Raises RuntimeError for a wrong device, dtype or size, ValueError for an unknown reduction.
    """

    @classmethod
    def apply(cls, y_pred, *args):
        # decided here, since inside forward the grad mode is always off and needs_input_grad does not know it
        return super().apply(y_pred, *args) if D.wants_grad(y_pred) else _forward_only(y_pred, *args)

    @staticmethod
    def forward(ctx, y_pred, y_true, reduction="batchmean", log_target=False, eps=1e-10):
        tensors, options = _arguments(y_pred, y_true, reduction, log_target, eps)
        return D.forward(ctx, _fwd, tensors, options, reduction == "none", y_pred.dtype)

    @staticmethod
    def backward(ctx, grad_output):
        return D.backward(ctx, _bwd, grad_output)


def _forward_only(*args):
    tensors, options = _arguments(*args)
    return _fwd(*tensors, *options, False)[0]


def liger_kl_div_apply(y_pred, *args):
    """`LigerKLDivLossFunction.apply`, for torch.compile too: no gradient where none is wanted."""
    return (
        LigerKLDivLossFunction.apply(y_pred, *args) if D.wants_grad(y_pred) else _forward_only(y_pred, *args)
    )


def kldiv_forward_triton(y_pred, y_true, log_target, reduction, eps):
    """Upstream's helper, by its name: the loss."""
    return _forward_only(y_pred, y_true, reduction, log_target, eps)


def kldiv_backward_triton(target, grad_output, new_grads, log_target):
    """Upstream's helper, by its name: -target (or -e^target) times grad_output, one value; a new tensor.

    new_grads, upstream's buffer for the result, is not written to.
    """
    grad = grad_output.to(accum(target)).reshape(())
    return _bwd(grad, target, target, D.REDUCTION["sum"], bool(log_target), 0.0).to(new_grads.dtype)


def kl_elements(x, y, log_target, eps):
    """The loss of each element in plain PyTorch."""
    return y.exp() * (y - x) if log_target else y * (y.clamp_min(eps).log() - x)


def reduced(elements, reduction):
    if reduction == "none":
        return elements
    n = {"mean": elements.numel(), "batchmean": elements.shape[0], "sum": 1}[reduction]
    return elements.sum() / max(n, 1)


def kl_div_ref(y_pred, y_true, reduction="batchmean", log_target=False, eps=1e-10):
    """On fp32 (fp64) values."""
    return reduced(kl_elements(upcast(y_pred), upcast(y_true), log_target, eps), reduction)


def _spec_entry(y_pred, y_true, reduction="batchmean", log_target=False, eps=1e-10):
    return liger_kl_div_apply(y_pred, y_true, reduction, log_target, eps)


def _sample(n, v, **options):
    kind = "log" if options.get("log_target") else "mixed"
    return D.sample(n, v, ("y_pred", "y_true"), kind=kind, **options)


def _raw(args):
    x, y = args["y_pred"], args["y_true"]
    y = y.to(x.dtype)
    one, each = torch.ones((), device=x.device, dtype=accum(x)), torch.ones_like(x, dtype=accum(x))
    return [
        (_fwd, (x, y, 3, False, 1e-10, True)),
        (_fwd, (x, y, 0, True, 1e-10, False)),
        (_bwd, (one, x, y, 1, True, 1e-10)),
        (_bwd, (each, x, y, 0, False, 1e-10)),
    ]


def _case(n, v):
    return Case("kl_div", _sample(n, v), 2 * n * v, 3 * n * v)


_base = _sample(9, 45)
SPEC = OpSpec(
    name="kl_div",
    fn=_spec_entry,
    ref=kl_div_ref,
    samples=(
        _base,
        *(_sample(*size) for size in D.SIZES),
        *(
            _sample(7, 130, reduction=r, log_target=log_target)
            for r in D.REDUCTION
            for log_target in (False, True)
        ),
        _sample(2, 8201, reduction="none"),
        _sample(5, 45, y_kind="w"),
    ),
    options=(
        (_base, _base.with_args("mean", reduction="mean")),
        (_base, _base.with_args("sum", reduction="sum")),
        (_base, _base.with_args("none", reduction="none")),
        (_base, _base.with_args("log_target", log_target=True)),
        (_base, _base.with_args("eps", eps=0.3)),
    ),
    raw=_raw,
    errors=(
        (r"y has shape \(9, 44\), expected \(9, 45\)", {"y_true": T((9, 44), grad=False)}),
        (r"x has shape \(3, 3, 5\), expected two dim", {"y_pred": T((3, 3, 5))}),
        (r"reduction is 'max', expected 'none', 'mean', 'sum' or 'batchmean'", {"reduction": "max"}),
    ),
    cases={"cpu": (_case(512, 32000),), "cuda": (_case(4096, 128256),)},
    gradcheck=(
        _sample(3, 5),
        _sample(3, 5, reduction="none", log_target=True),
        _sample(3, 5, reduction="mean"),
    ),
    big=_sample(9, 45, reduction="sum"),
    reduces=True,
    notes="of log-probabilities; log_target, eps, every reduction of torch's",
)
