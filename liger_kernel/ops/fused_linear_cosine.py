"""One minus the cosine of the angle between two linear heads' logits without the logits in memory.

    s = student_input student_weight^T + student_bias, t likewise,   A = max(|s|, eps T), B = max(|t|, eps T)
    loss = beta (1 - s . t / (A B)),   ds = beta (cos s / |s| - t / B) / A,   eps = 1e-8

per row, then the mean over the rows whose label is not ignore_index. An angle has no length: the temperature
T moves the floor of the lengths alone. Blocks as in fused_linear_jsd.py, and as there, for `chunked_loss`,
the labels' cross entropy of the student's logits from the same blocks. Source: cosine_similarity of
torch.nn.functional.
"""

import torch
import torch.nn.functional as F

from . import _distill as D
from ._labels import check_labels
from ._spec import Case, OpSpec, Sample, T, accum, upcast
from .jsd import valid_mean
from .linear_loss import DTYPE_CODES

__all__ = ["LigerFusedLinearCosineFunction"]

_op = torch.ops.liger.fused_linear_cosine.default


@torch.library.register_fake("liger::fused_linear_cosine")
def _(student_input, student_weight, teacher_input, teacher_weight, student_bias, *rest):
    soft, hard, *grads = D.fake_both(student_input, student_weight, student_bias, *rest)
    n_classes = rest[3]
    return soft, soft.new_empty((0,)) if n_classes is None else hard, *grads


def _run_soft(*args):
    *tensors, dtype, accum_code, options, budget, dloss, dx, dw, dbias = args
    heads, codes = D.heads_of(tensors, dloss, dtype), (DTYPE_CODES[dtype], accum_code, budget)
    soft, _, *grads = _op(*heads, None, 1.0, 0.0, *options, dx, dw, dbias, *codes)
    return soft, *grads


def _run_both(*args):
    *tensors, dlosses, weights, dtype, accum_code, options, budget, n_classes, dx, dw, dbias = args
    heads, codes = D.heads_of(tensors, dlosses, dtype), (DTYPE_CODES[dtype], accum_code, budget)
    return _op(*heads, n_classes, *weights, *options, dx, dw, dbias, *codes)


def _arguments(tensors, beta=1.0, ignore_index=-100, temperature=1.0, memory_budget=None):
    x, weight, _, teacher_x, teacher_weight, *_ = tensors
    D.check_temperature(temperature)
    dtype = D.products_dtype((x, weight), (teacher_x, teacher_weight))
    budget = D.budget_of(memory_budget, weight, dtype, 2)
    return dtype, D.accum_code(None, x, weight), (beta, ignore_index, temperature), budget


class LigerFusedLinearCosineFunction(torch.autograd.Function):
    """The mean of beta (1 - cosine) of two heads' logits over valid rows, differentiable in the student.

    student_input: (n_rows, student_hidden), student_weight: (vocab_size, student_hidden), student_bias:
    (vocab_size,) or None; the teacher's likewise, with its own hidden size: float32, bfloat16, float16
    (float64 on the CPU) in any mixture and with any strides. shift_labels: (n_rows,) int64 or None; rows
    whose label is ignore_index count nowhere. The loss is float32 (float64) of shape (), 0 where no row is
    valid; each gradient comes back in its own tensor's dtype, the teacher gets none.

    memory_budget: bytes that the blocks of both heads' logits may take together; None:
    `liger_kernel.get_memory_budget()`. Raises RuntimeError for a wrong device, dtype or size, ValueError for
    a temperature that is not positive.
    """

    @staticmethod
    def forward(
        ctx,
        student_input,
        student_weight,
        student_bias,
        teacher_input,
        teacher_weight,
        teacher_bias,
        shift_labels=None,
        beta=1.0,
        ignore_index=-100,
        temperature=1.0,
        memory_budget=None,
    ):
        student = (student_input, student_weight, student_bias)
        tensors = (*student, teacher_input, teacher_weight, teacher_bias, shift_labels)
        options = _arguments(tensors, beta, ignore_index, temperature, memory_budget)
        return D.forward(ctx, _run_soft, tensors, options, 3)

    @staticmethod
    def backward(ctx, grad_output):
        return D.backward(ctx, grad_output)


class _BothLossesFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *args):
        return D.forward_both(ctx, _run_both, args[:7], args[9:], args[7], args[8])

    @staticmethod
    def backward(ctx, *grads):
        return D.backward_both(ctx, *grads)


def liger_fused_linear_cosine_apply(*args):
    """The Function's `apply`, but without grad no gradient is made."""
    # decided here, since inside forward the grad mode is always off and needs_input_grad does not know it
    if D.wants_grad(*args[:3]):
        return LigerFusedLinearCosineFunction.apply(*args)
    return _run_soft(*args[:7], *_arguments(args[:7], *args[7:]), None, False, False, False)[0]


def fused_linear_cosine_with_cross_entropy(
    student, teacher, labels, weights, n_classes, *options, apart=False, memory_budget=None
):
    """As `fused_linear_jsd_with_cross_entropy`; options: beta, ignore_index, temperature."""
    tensors = (*student, *teacher, labels)
    rest = (*_arguments(tensors, *options, memory_budget), n_classes)
    check_labels("fused_linear_cosine", labels, n_classes, options[1], "shift_labels")
    return D.both(_BothLossesFunction, _run_both, tensors, weights, apart, rest)


def fused_linear_cosine_ref(
    student_input,
    student_weight,
    student_bias,
    teacher_input,
    teacher_weight,
    teacher_bias,
    shift_labels=None,
    beta=1.0,
    ignore_index=-100,
    temperature=1.0,
    memory_budget=None,
):
    """All logits, upcast, then the loss."""
    z, rows = D.logits_ref(student_input, student_weight, memory_budget, 2, bias=student_bias)
    zt, _ = D.logits_ref(teacher_input, teacher_weight, memory_budget, 2, block_rows=rows, bias=teacher_bias)
    s, t = upcast(z) / temperature, upcast(zt).to(upcast(z).dtype) / temperature
    return valid_mean(beta * (1 - F.cosine_similarity(s, t, dim=-1)), shift_labels, ignore_index)


def _spec_entry(
    student_input,
    student_weight,
    student_bias,
    teacher_input,
    teacher_weight,
    teacher_bias,
    shift_labels=None,
    beta=1.0,
    ignore_index=-100,
    temperature=1.0,
    memory_budget=None,
):
    heads = (student_input, student_weight, student_bias, teacher_input, teacher_weight, teacher_bias)
    return liger_fused_linear_cosine_apply(
        *heads, shift_labels, beta, ignore_index, temperature, memory_budget
    )


def _sample(n, h, v, labels=0.0, x_grad=True, w_grad=True, biases=True, teacher_h=None, scale=0.3, **options):
    th = teacher_h or h + 3
    name = f"{n}x{h}+{th}x{v}" + "".join(f"-{k}_{o}" for k, o in options.items())
    name += (f"-labels_{labels}" if labels else "") + ("" if x_grad else "-frozen_input")
    args = {
        "student_input": T((n, h), grad=x_grad),
        "student_weight": T((v, h), "w", grad=w_grad, scale=scale),
        "student_bias": T((v,), "w", grad=w_grad, scale=scale) if biases else None,
        "teacher_input": T((n, th), grad=False),
        "teacher_weight": T((v, th), "w", grad=False, scale=scale),
        "teacher_bias": T((v,), "w", grad=False, scale=scale) if biases else None,
        "shift_labels": T((n,), "index", grad=False, high=5, ignored=labels) if labels else None,
    }
    name += ("" if w_grad else "-frozen_weight") + ("" if biases else "-no_biases")
    return Sample(name, {**args, **options})


_base = _sample(9, 16, 45, labels=0.3)
_few_labels = _sample(29, 16, 5, labels=0.3)
_cut = 2 * 3 * 45 * 8  # a budget of three rows of 45 logits of both heads in float64, six in float32


def _raw(args):
    names = ("student_input", "student_weight", "teacher_input", "teacher_weight")
    x, w, tx, tw = heads = [args[k].detach() for k in names]
    v, code = w.shape[0], DTYPE_CODES[torch.promote_types(x.dtype, w.dtype)]
    one, labels = torch.ones((), device=x.device, dtype=accum(x)), args.get("shift_labels")
    bias = torch.zeros(v, device=x.device, dtype=w.dtype)
    ids, two = torch.zeros(x.shape[0], device=x.device, dtype=torch.int64), torch.stack((one, one))
    soft, tail = (None, 1.0, 0.0), (code, -1, _cut)
    return [
        (_op, (*heads, None, bias, labels, None, *soft, 0.5, -100, 1.0, True, True, False, *tail)),
        (_op, (*heads, bias, None, None, one, *soft, 1.0, -100, 2.0, True, True, True, *tail)),
        (
            _op,
            (*heads, bias, bias, ids, two, (v + 1) // 2, 0.5, 2.0, 1.0, -100, 2.0, True, True, True, *tail),
        ),
        (_op, (*heads, None, None, ids, None, v, 1.0, 1.0, 1.0, -100, 1.0, False, False, False, *tail)),
    ]


def _case(n, h, th, v):
    forward = 2 * n * v * (h + th)
    sample = _sample(n, h, v, biases=False, teacher_h=th, scale=h**-0.5)
    return Case("fused_linear_cosine", sample, flops=(forward, forward + 4 * n * v * h))


SPEC = OpSpec(
    name="fused_linear_cosine",
    fn=_spec_entry,
    ref=fused_linear_cosine_ref,
    big=_sample(9, 64, 1024, biases=False),
    samples=(
        _base,
        *(_sample(*s) for s in [(0, 16, 45), (1, 8, 33), (7, 3, 2), (5, 24, 2049), (33, 65, 129)]),
        *(_sample(n, 16, 45, labels=0.3, memory_budget=_cut) for n in (12, 13, 50)),
        _sample(29, 16, 45, labels=0.3, beta=0.3, temperature=0.5, memory_budget=_cut),
        _sample(7, 16, 45, biases=False, memory_budget=1),  # row by row
        _sample(29, 16, 45, x_grad=False, memory_budget=_cut),
        _sample(29, 16, 45, w_grad=False, memory_budget=_cut),
        _sample(9, 16, 45, labels=1.0),
    ),
    options=(
        (_base, _base.with_args("beta", beta=0.1)),
        (_base, _base.with_args("no_labels", shift_labels=None)),
        (_base, _base.with_args("no_bias", student_bias=None)),
        (_few_labels, _few_labels.with_args("ignore_index", ignore_index=3)),
    ),
    raw=_raw,
    errors=(
        (
            r"student_weight has shape \(45, 15\), expected \(vocab_size, 16\)",
            {"student_weight": T((45, 15))},
        ),
        (
            r"teacher_weight has shape \(44, 19\), expected 45 rows",
            {"teacher_weight": T((44, 19), grad=False), "teacher_bias": None},
        ),
        (r"teacher_input has shape \(8, 19\), expected 9 rows", {"teacher_input": T((8, 19), grad=False)}),
        (r"student_bias has shape \(44,\), expected \(45,\)", {"student_bias": T((44,))}),
        (r"shift_labels has shape \(8,\), expected \(9,\)", {"shift_labels": T((8,), "index", high=5)}),
        (r"temperature is 0.0, expected a positive value", {"temperature": 0.0}),
        (r"memory_budget is 0, expected a number of bytes", {"memory_budget": 0}),
    ),
    cases={"cpu": (_case(512, 512, 768, 32000),), "cuda": (_case(4096, 2048, 4096, 128256),)},
    grad_factor=3.0,
    gemm=True,
    gradcheck=(
        _sample(5, 3, 7, labels=0.3, memory_budget=2 * 2 * 7 * 8, temperature=1.5),
        _sample(4, 3, 5, biases=False, beta=0.3),
    ),
    notes="two heads of any sizes and dtypes, biases, ignored labels; bounded by the budget",
)
