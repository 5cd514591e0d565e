"""KL divergence of a linear head's logits from given probabilities without the logits in memory.

    x = log_softmax(student_input student_weight^T / T),   q = target, which need not add up to 1
    loss = c sum q (ln max(q, eps) - x),   dlogits = c (e^x sum q - q) / T

c is 1/n_valid for "batchmean", 1/(n_valid vocab_size) for "mean", 1 for "sum". The logits exist one block of
rows at a time. Plan of the blocks: ops/linear_loss.py.
"""

import torch

from . import _distill as D
from ._divergence import REDUCTION
from ._saved_grad import scale_saved
from ._spec import Case, OpSpec, Sample, T, accum, upcast
from .kl_div import kl_elements
from .linear_loss import DTYPE_CODES

__all__ = [
    "LigerFusedLinearKLDivFunction",
    "fused_linear_kl_div_forward",
    "fused_linear_kl_div_backward",
]

_op = torch.ops.liger.fused_linear_kl_div.default


@torch.library.register_fake("liger::fused_linear_kl_div")
def _(
    student_input,
    student_weight,
    target,
    shift_labels,
    dloss,
    reduction,
    ignore_index,
    temperature,
    eps,
    needs_dx,
    needs_dw,
    compute_dtype,
    accum_dtype,
    memory_budget,
):
    return D.fake(student_input, student_weight, needs_dx, needs_dw, compute_dtype)


def _run(x, weight, target, labels, dtype, accum_code, options, budget, dloss, needs_dx, needs_dw):
    dloss = None if dloss is None else dloss.to(D.real_of(dtype))
    tensors = (x.detach(), weight.detach(), target.detach(), labels, dloss)
    return _op(*tensors, *options, needs_dx, needs_dw, DTYPE_CODES[dtype], accum_code, budget)


def _arguments(
    student_input,
    student_weight,
    target,
    shift_labels=None,
    reduction="batchmean",
    ignore_index=-100,
    temperature=1.0,
    eps=1e-10,
    accum_dtype=None,
    memory_budget=None,
):
    if reduction not in ("mean", "sum", "batchmean"):
        raise ValueError(f"reduction is {reduction!r}, expected 'mean', 'sum' or 'batchmean'")
    D.check_temperature(temperature)
    dtype = D.products_dtype((student_input, student_weight))
    accum_code = D.accum_code(accum_dtype, student_input, student_weight)
    options = (REDUCTION[reduction], ignore_index, temperature, eps)
    budget = D.budget_of(memory_budget, student_weight, dtype, 1)
    return (student_input, student_weight, target, shift_labels), (dtype, accum_code, options, budget)


class LigerFusedLinearKLDivFunction(torch.autograd.Function):
    """KL(target || softmax of a head's logits), differentiable in student_input and student_weight.

    student_input: (n_rows, hidden_size), student_weight: (vocab_size, hidden_size), target: (n_rows,
    vocab_size) probabilities: float32, bfloat16, float16 (float64 on the CPU) in any mixture and with any
    strides. shift_labels: (n_rows,) int64 or None; rows whose label is ignore_index count nowhere. reduction:
    "batchmean" over valid rows, "mean" over their elements, "sum". Logits are divided by temperature; the
    loss is not multiplied by its square. eps: what a probability's logarithm is taken of at least. The loss
    is float32 (float64) of shape (), 0 where no row is valid; each gradient comes back in its own tensor's
    dtype, the target gets none.

    accum_dtype: what the weight gradient is added up in over the blocks, at least; None lets the plan choose.
    memory_budget: bytes that a block of logits may take; None: `liger_kernel.get_memory_budget()`. Raises
    RuntimeError for a wrong device, dtype or size, ValueError for an option out of its range.
    """

    @classmethod
    def apply(cls, student_input, student_weight, *args):
        # decided here, since inside forward the grad mode is always off and needs_input_grad does not know it
        if D.wants_grad(student_input, student_weight):
            return super().apply(student_input, student_weight, *args)
        return _forward_only(student_input, student_weight, *args)

    @staticmethod
    def forward(
        ctx,
        student_input,
        student_weight,
        target,
        shift_labels=None,
        reduction="batchmean",
        ignore_index=-100,
        temperature=1.0,
        eps=1e-10,
        accum_dtype=None,
        memory_budget=None,
    ):
        tensors = (student_input, student_weight, target, shift_labels)
        options = (reduction, ignore_index, temperature, eps, accum_dtype, memory_budget)
        return D.forward(ctx, _run, *_arguments(*tensors, *options))

    @staticmethod
    def backward(ctx, grad_output):
        return D.backward(ctx, grad_output)


def _forward_only(*args):
    tensors, options = _arguments(*args)
    return _run(*tensors, *options, None, False, False)[0]


def liger_fused_linear_kl_div_apply(student_input, student_weight, *args):
    """The Function's `apply`, in a form that torch.compile traces too: no gradient without grad."""
    if D.wants_grad(student_input, student_weight):
        return LigerFusedLinearKLDivFunction.apply(student_input, student_weight, *args)
    return _forward_only(student_input, student_weight, *args)


def fused_linear_kl_div_forward(
    student_input,
    student_weight,
    target,
    shift_labels,
    reduction,
    ignore_index,
    has_label,
    temperature,
    eps,
    accum_dtype=None,
    memory_budget=None,
):
    """Upstream's helper: (loss, grad_input, grad_weight); a gradient that nobody requires is None."""
    labels = shift_labels if has_label else None
    options = (reduction, ignore_index, temperature, eps, accum_dtype, memory_budget)
    tensors, options = _arguments(student_input, student_weight, target, labels, *options)
    needs = (student_input.requires_grad, student_weight.requires_grad)
    loss, dx, dw = _run(*tensors, *options, None, *needs)
    return loss, dx if needs[0] else None, dw if needs[1] else None


def fused_linear_kl_div_backward(grad_output, grad_input, grad_weight):
    """Upstream's helper: the gradients times grad_output; in place in a backward that frees its graph."""
    return tuple(g if g is None else scale_saved(g, grad_output) for g in (grad_input, grad_weight))


def fused_linear_kl_div_ref(
    student_input,
    student_weight,
    target,
    shift_labels=None,
    reduction="batchmean",
    ignore_index=-100,
    temperature=1.0,
    eps=1e-10,
    accum_dtype=None,
    memory_budget=None,
):
    """All logits, upcast, then the loss."""
    z, _ = D.logits_ref(student_input, student_weight, memory_budget, 1, accum_dtype)
    x = torch.log_softmax(upcast(z) / temperature, -1)
    rows = kl_elements(x, upcast(target).to(x.dtype), False, eps).sum(-1)
    n_valid = rows.new_tensor(rows.shape[0])
    if shift_labels is not None:
        valid = shift_labels != ignore_index
        rows, n_valid = torch.where(valid, rows, 0), valid.sum()
    n = {"sum": 1, "batchmean": n_valid, "mean": n_valid * z.shape[1]}[reduction]
    return rows.sum() / (n if reduction == "sum" else n.clamp_min(1))


def _spec_entry(
    student_input,
    student_weight,
    target,
    shift_labels=None,
    reduction="batchmean",
    ignore_index=-100,
    temperature=1.0,
    eps=1e-10,
    accum_dtype=None,
    memory_budget=None,
):
    tensors = (student_input, student_weight, target, shift_labels)
    options = (reduction, ignore_index, temperature, eps, accum_dtype, memory_budget)
    return liger_fused_linear_kl_div_apply(*tensors, *options)


def _sample(n, h, v, labels=0.0, x_grad=True, w_grad=True, scale=0.3, kind="x", **options):
    name = f"{n}x{h}x{v}" + "".join(f"-{k}_{o}" for k, o in options.items())
    name += (f"-labels_{labels}" if labels else "") + ("" if x_grad else "-frozen_input")
    args = {
        "student_input": T((n, h), grad=x_grad),
        "student_weight": T((v, h), "w", grad=w_grad, scale=scale),
        "target": T((n, v), kind, grad=False, positive=True, scale=0.1),
    }
    if labels:
        args["shift_labels"] = T((n,), "index", grad=False, high=5, ignored=labels)
    name += ("" if w_grad else "-frozen_weight") + ("" if kind == "x" else f"-target_{kind}")
    return Sample(name, {**args, **options})


_base = _sample(9, 16, 45, labels=0.3)
_few_labels = _sample(29, 16, 5, labels=0.3)
_cut = 3 * 45 * 8  # a budget of three rows of 45 logits in float64, six in float32, twelve in 16 bits


def _raw(args):
    x, w, target = (args[k].detach() for k in ("student_input", "student_weight", "target"))
    code = DTYPE_CODES[torch.promote_types(x.dtype, w.dtype)]
    one, labels = torch.ones((), device=x.device, dtype=accum(x)), args.get("shift_labels")
    tail = (code, -1, _cut)
    return [
        (_op, (x, w, target, labels, None, 3, -100, 1.0, 1e-10, True, True, *tail)),
        (_op, (x, w, target, None, one, 2, -100, 2.0, 1e-10, True, False, *tail)),
        (_op, (x, w, target, labels, None, 1, -100, 0.5, 1e-10, False, False, *tail)),
    ]


def _case(n, h, v):
    flops = 2 * n * h * v
    return Case("fused_linear_kl_div", _sample(n, h, v, scale=h**-0.5), flops=(flops, 3 * flops))


SPEC = OpSpec(
    name="fused_linear_kl_div",
    fn=_spec_entry,
    ref=fused_linear_kl_div_ref,
    samples=(
        _base,
        *(_sample(*s) for s in [(0, 16, 45), (1, 1, 1), (1, 8, 33), (7, 3, 2), (5, 24, 2049), (33, 65, 129)]),
        *(_sample(n, 16, 45, labels=0.3, memory_budget=_cut) for n in (12, 15, 50)),
        *(
            _sample(29, 16, 45, labels=0.3, reduction=r, temperature=2.0, memory_budget=_cut)
            for r in ("mean", "sum", "batchmean")
        ),
        *(_sample(9, 16, 45, kind=kind) for kind in ("w", "fp32")),
        _sample(7, 16, 45, memory_budget=1),  # row by row
        _sample(40, 16, 45, memory_budget=_cut, accum_dtype=torch.float32),
        _sample(29, 16, 45, x_grad=False, memory_budget=_cut),
        _sample(29, 16, 45, w_grad=False, memory_budget=_cut),
        *(_sample(9, 16, 45, labels=1.0, reduction=r) for r in ("mean", "batchmean")),
    ),
    options=(
        (_base, _base.with_args("mean", reduction="mean")),
        (_base, _base.with_args("sum", reduction="sum")),
        (_base, _base.with_args("eps", eps=0.1)),
        (_base, _base.with_args("temperature", temperature=2.0)),
        (_base, _base.with_args("no_labels", shift_labels=None)),
        (_few_labels, _few_labels.with_args("ignore_index", ignore_index=3)),
    ),
    raw=_raw,
    errors=(
        (
            r"student_weight has shape \(45, 15\), expected \(vocab_size, 16\)",
            {"student_weight": T((45, 15))},
        ),
        (r"target has shape \(9, 44\), expected \(9, 45\)", {"target": T((9, 44), grad=False)}),
        (r"target has dtype int64, expected float32", {"target": T((9, 45), "index", grad=False)}),
        (r"student_input has shape \(3, 3, 16\), expected two dim", {"student_input": T((3, 3, 16))}),
        (r"shift_labels has shape \(8,\), expected \(9,\)", {"shift_labels": T((8,), "index", high=5)}),
        (r"reduction is 'none', expected 'mean', 'sum' or 'batchmean'", {"reduction": "none"}),
        (r"temperature is -1.0, expected a positive value", {"temperature": -1.0}),
        (r"accum_dtype is torch.int64, expected", {"accum_dtype": torch.int64}),
        (r"memory_budget is 0, expected a number of bytes", {"memory_budget": 0}),
    ),
    cases={"cpu": (_case(512, 768, 32000),), "cuda": (_case(4096, 2048, 128256),)},
    grad_factor=3.0,
    big=_sample(9, 64, 1024, labels=0.3, reduction="sum"),
    gemm=True,
    gradcheck=(
        _sample(5, 3, 7, labels=0.3, memory_budget=2 * 7 * 8, temperature=1.5),
        _sample(4, 3, 5, reduction="mean"),
    ),
    notes="target probabilities of any dtype; temperature, ignored labels; bounded by the budget",
)
