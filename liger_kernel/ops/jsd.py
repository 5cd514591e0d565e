"""Generalised Jensen-Shannon divergence of log-probabilities: reference, spec, fakes, autograd.

Of the student's log-probabilities X and the teacher's Y, with Q = e^X, P = e^Y, M = beta P + (1 - beta) Q:

    loss = 1/n_valid sum [beta P (Y - ln M) + (1 - beta) Q (X - ln M)]
    dX = (1 - beta) Q (X - ln M) / n_valid
    beta = 0:  loss = 1/n_valid sum P (Y - X), KL(P || Q);    beta = 1:  KL(Q || P)

ln M comes from the logarithms, so nothing under- or overflows; an element of probability 0 adds 0. Source:
arXiv:2306.13649 (GKD).
"""

import torch

from . import _divergence as D
from ._saved_grad import scale_saved
from ._spec import Case, OpSpec, T, accum, upcast

__all__ = ["LigerJSDFunction", "jsd_forward", "jsd_backward"]

_fwd = torch.ops.liger.jsd.default
_bwd = torch.ops.liger.jsd_bwd.default


@torch.library.register_fake("liger::jsd")
def _(x, y, shift_labels, beta, ignore_index, grad):
    return D.fake_fwd(x, grad)


@torch.library.register_fake("liger::jsd_bwd")
def _(dloss, x, y, shift_labels, beta, ignore_index):
    return D.fake_bwd(x)


def check_beta(beta, name="beta"):
    if not 0.0 <= beta <= 1.0:
        raise ValueError(f"{name} is {beta}, expected a value in [0, 1]")


def _arguments(_input, target, shift_labels=None, beta=0.5, ignore_index=-100, jsd_impl=None, jsd_mode=None):
    check_beta(beta)
    D.check_impl(jsd_impl=jsd_impl, jsd_mode=jsd_mode)
    return (*D.same_dtype(_input, target), shift_labels), (beta, ignore_index)


class LigerJSDFunction(torch.autograd.Function):
    """The mean over valid rows of the generalised Jensen-Shannon divergence, differentiable in _input.

    _input, target: (n_rows, n_classes), log-probabilities of the student and the teacher, float32, bfloat16,
    float16 (float64 on the CPU), any strides. shift_labels: (n_rows,) int64 or None; rows whose label is
    ignore_index count nowhere, and if there are no others, loss and gradient are 0. beta in [0, 1]. The loss
    is float32 (float64 for float64) of shape (). The target gets no gradient. jsd_impl, jsd_mode: None,
    "liger" or "default".
    Raises RuntimeError for a wrong device, dtype or size, ValueError for an option out of its range.
    """

    @classmethod
    def apply(cls, _input, *args):
        # decided here, since inside forward the grad mode is always off and needs_input_grad does not know it
        return super().apply(_input, *args) if D.wants_grad(_input) else _forward_only(_input, *args)

    @staticmethod
    def forward(
        ctx,
        _input,
        target,
        shift_labels=None,
        beta=0.5,
        ignore_index=-100,
        jsd_impl=None,
        jsd_mode=None,
    ):
        tensors, options = _arguments(_input, target, shift_labels, beta, ignore_index, jsd_impl, jsd_mode)
        return D.forward(ctx, _fwd, tensors, options, False, _input.dtype)

    @staticmethod
    def backward(ctx, grad_output):
        return D.backward(ctx, _bwd, grad_output)


def _forward_only(*args):
    tensors, options = _arguments(*args)
    return _fwd(*tensors, *options, False)[0]


def liger_jsd_apply(_input, *args):
    """`LigerJSDFunction.apply`, for torch.compile too: no gradient where none is wanted."""
    return LigerJSDFunction.apply(_input, *args) if D.wants_grad(_input) else _forward_only(_input, *args)


def jsd_forward(_input, target, shift_labels, beta, ignore_index, has_label, jsd_impl=None, jsd_mode=None):
    """Upstream's helper: (loss, gradient in _input). The labels count only with has_label."""
    labels = shift_labels if has_label else None
    tensors, options = _arguments(_input, target, labels, beta, ignore_index, jsd_impl, jsd_mode)
    loss, dx = _fwd(*tensors, *options, True)
    return loss, dx.to(_input.dtype)


def jsd_backward(dX, grad_output):
    """Upstream's helper: the forward's gradient times grad_output, one value."""
    return scale_saved(dX, grad_output.to(accum(dX)))


def jsd_rows(x, y, beta):
    """The divergence of each row of log-probabilities, in plain PyTorch."""
    if beta == 0:
        return (y.exp() * (y - x)).sum(-1)
    if beta == 1:
        return (x.exp() * (x - y)).sum(-1)
    log_beta, log_rest = (torch.tensor(v, dtype=x.dtype, device=x.device).log() for v in (beta, 1 - beta))
    m = torch.logaddexp(y + log_beta, x + log_rest)
    return (beta * y.exp() * (y - m) + (1 - beta) * x.exp() * (x - m)).sum(-1)


def valid_mean(rows, shift_labels, ignore_index):
    """The mean of the rows' losses over those whose label is not ignore_index; 0 where there are none."""
    if shift_labels is None:
        return rows.sum() / max(rows.shape[0], 1)
    valid = shift_labels != ignore_index
    return torch.where(valid, rows, 0).sum() / valid.sum().clamp_min(1)


def jsd_ref(_input, target, shift_labels=None, beta=0.5, ignore_index=-100):
    """On fp32 (fp64) log-probabilities: the mean over valid rows."""
    return valid_mean(jsd_rows(upcast(_input), upcast(target), beta), shift_labels, ignore_index)


def _spec_entry(_input, target, shift_labels=None, beta=0.5, ignore_index=-100):
    return liger_jsd_apply(_input, target, shift_labels, beta, ignore_index)


def _raw(args):
    x, y, labels = args["_input"], args["target"], args.get("shift_labels")
    one = torch.ones((), device=x.device, dtype=accum(x))
    y = y.to(x.dtype)
    return [
        (_fwd, (x, y, labels, 0.3, -100, True)),
        (_fwd, (x, y, None, 0.0, -100, False)),
        (_bwd, (one, x, y, labels, 1.0, -100)),
    ]


def _case(n, v):
    return Case("jsd", D.sample(n, v), 2 * n * v, 3 * n * v)


_base = D.sample(9, 45, labels=0.3)
SPEC = OpSpec(
    name="jsd",
    fn=_spec_entry,
    ref=jsd_ref,
    big=D.sample(9, 45),  # no row is ignored: a mean divides by all of them
    samples=(
        _base,
        *(D.sample(*size) for size in D.SIZES),
        *(D.sample(7, 130, labels=0.3, beta=beta) for beta in (0.0, 0.1, 0.9, 1.0)),
        *(D.sample(5, 33, beta=beta) for beta in (0.0, 1e-3, 1.0)),
        D.sample(5, 45, labels=1.0),
        D.sample(5, 45, y_kind="w"),
    ),
    options=(
        (_base, _base.with_args("beta", beta=0.1)),
        (_base, _base.with_args("beta_0", beta=0.0)),
        (_base, _base.with_args("beta_1", beta=1.0)),
        (_base, _base.with_args("no_labels", shift_labels=None)),
        (_base, _base.with_args("ignore_index", ignore_index=3)),
    ),
    raw=_raw,
    errors=(
        (r"y has shape \(9, 44\), expected \(9, 45\)", {"target": T((9, 44), grad=False)}),
        (r"x has shape \(3, 3, 5\), expected two dim", {"_input": T((3, 3, 5))}),
        (r"shift_labels has shape \(8,\), expected \(9,\)", {"shift_labels": T((8,), "index", high=5)}),
        (r"shift_labels has dtype float", {"shift_labels": T((9,), "fp32", grad=False)}),
        (r"beta is 1.5, expected a value in \[0, 1\]", {"beta": 1.5}),
    ),
    cases={"cpu": (_case(512, 32000),), "cuda": (_case(4096, 128256),)},
    gradcheck=(D.sample(3, 5, labels=0.3), *(D.sample(3, 5, beta=beta) for beta in (0.0, 0.7, 1.0))),
    reduces=True,
    notes="of log-probabilities; beta, ignored labels; exact where probabilities vanish",
)
