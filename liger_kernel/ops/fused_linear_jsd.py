"""Jensen-Shannon divergence of two linear heads' logits without the logits in memory.

    x = log_softmax(student_input student_weight^T / T),   y = log_softmax(teacher_input teacher_weight^T / T)
    loss = jsd(x, y), see jsd.py;   with g = dloss/dx:  dlogits = (g - e^x sum g) / T

Both heads' logits exist one block of rows at a time, in two buffers that share the memory budget; the row
kernel turns the student's in place into dlogits, and no product is made for the teacher's gradient. Plan of
the blocks: ops/linear_loss.py. Source: arXiv:2306.13649 (GKD).
"""

import torch

from . import _distill as D
from ._divergence import check_impl
from ._saved_grad import scale_saved
from ._spec import Case, OpSpec, Sample, T, accum, upcast
from .jsd import check_beta, jsd_rows, valid_mean
from .linear_loss import DTYPE_CODES

__all__ = ["LigerFusedLinearJSDFunction", "fused_linear_jsd_forward", "fused_linear_jsd_backward"]

_op = torch.ops.liger.fused_linear_jsd.default


@torch.library.register_fake("liger::fused_linear_jsd")
def _(
    student_input,
    student_weight,
    teacher_input,
    teacher_weight,
    student_bias,
    teacher_bias,
    shift_labels,
    dloss,
    beta,
    ignore_index,
    temperature,
    needs_dx,
    needs_dw,
    needs_dbias,
    compute_dtype,
    accum_dtype,
    memory_budget,
):
    bias_like = student_input if student_bias is None else student_bias
    return (
        *D.fake(student_input, student_weight, needs_dx, needs_dw, compute_dtype),
        bias_like.new_empty((student_weight.shape[0],) if needs_dbias and student_bias is not None else (0,)),
    )


def _run_heads(
    x,
    weight,
    bias,
    teacher_x,
    teacher_weight,
    teacher_bias,
    labels,
    dtype,
    accum_code,
    options,
    budget,
    dloss,
    *needs,
):
    tensors = (x, weight, teacher_x, teacher_weight, bias, teacher_bias)
    tensors = [t if t is None else t.detach() for t in tensors]
    dloss = None if dloss is None else dloss.to(D.real_of(dtype))
    return _op(*tensors, labels, dloss, *options, *needs, DTYPE_CODES[dtype], accum_code, budget)


def _run(x, weight, teacher_x, teacher_weight, *rest):
    return _run_heads(x, weight, None, teacher_x, teacher_weight, None, *rest, False)[:3]


def _arguments(
    student_input,
    student_weight,
    teacher_input,
    teacher_weight,
    shift_labels=None,
    jsd_beta=0.5,
    ignore_index=-100,
    temperature=1.0,
    accum_dtype=None,
    jsd_impl=None,
    jsd_mode=None,
    memory_budget=None,
):
    check_beta(jsd_beta, "jsd_beta")
    D.check_temperature(temperature)
    check_impl(jsd_impl=jsd_impl, jsd_mode=jsd_mode)
    tensors = (student_input, student_weight, teacher_input, teacher_weight, shift_labels)
    dtype = D.products_dtype(tensors[:2], tensors[2:4])
    accum_code = D.accum_code(accum_dtype, student_input, student_weight)
    budget = D.budget_of(memory_budget, student_weight, dtype, 2)
    return tensors, (dtype, accum_code, (jsd_beta, ignore_index, temperature), budget)


class LigerFusedLinearJSDFunction(torch.autograd.Function):
    """The mean JSD of two heads' logits over valid rows, differentiable in student_input and student_weight.

    student_input: (n_rows, student_hidden), student_weight: (vocab_size, student_hidden); the teacher's
    likewise, with its own hidden size: float32, bfloat16, float16 (float64 on the CPU) in any mixture and
    with any strides. shift_labels: (n_rows,) int64 or None; rows whose label is ignore_index count nowhere.
    jsd_beta in [0, 1]: 0 is KL(teacher || student), 1 KL(student || teacher). Logits are divided by
    temperature; the loss is not multiplied by its square. The loss is float32 (float64) of shape (), 0 where
    no row is valid; each gradient comes back in its own tensor's dtype, the teacher gets none.

    accum_dtype: what the weight gradient is added up in over the blocks, at least; None lets the plan choose.
    memory_budget: bytes that the blocks of both heads' logits may take together; None:
    `liger_kernel.get_memory_budget()`. jsd_impl, jsd_mode: None, "liger" or "default". Raises RuntimeError
    for a wrong device, dtype or size, ValueError for an option out of its range.
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
        teacher_input,
        teacher_weight,
        shift_labels=None,
        jsd_beta=0.5,
        ignore_index=-100,
        temperature=1.0,
        accum_dtype=None,
        jsd_impl=None,
        jsd_mode=None,
        memory_budget=None,
    ):
        tensors = (student_input, student_weight, teacher_input, teacher_weight, shift_labels)
        options = (jsd_beta, ignore_index, temperature, accum_dtype, jsd_impl, jsd_mode, memory_budget)
        return D.forward(ctx, _run, *_arguments(*tensors, *options))

    @staticmethod
    def backward(ctx, grad_output):
        return D.backward(ctx, grad_output)


def _forward_only(*args):
    tensors, options = _arguments(*args)
    return _run(*tensors, *options, None, False, False)[0]


class _BiasedHeadsFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *args):
        return D.forward(ctx, _run_heads, args[:7], args[7:], 3)

    @staticmethod
    def backward(ctx, grad_output):
        return D.backward(ctx, grad_output)


def fused_linear_jsd_of_biased_heads(
    student_input,
    student_weight,
    student_bias,
    teacher_input,
    teacher_weight,
    teacher_bias,
    shift_labels,
    *options,
    memory_budget=None,
):
    """`LigerFusedLinearJSDFunction` for heads with biases or None, the student's differentiable.

    options: jsd_beta, ignore_index, temperature.
    """
    heads = (student_input, student_weight, teacher_input, teacher_weight, shift_labels)
    _, rest = _arguments(*heads, *options, memory_budget=memory_budget)
    student, teacher = (
        (student_input, student_weight, student_bias),
        (teacher_input, teacher_weight, teacher_bias),
    )
    if D.wants_grad(*student):
        return _BiasedHeadsFunction.apply(*student, *teacher, shift_labels, *rest)
    return _run_heads(*student, *teacher, shift_labels, *rest, None, False, False, False)[0]


def liger_fused_linear_jsd_apply(student_input, student_weight, *args):
    """The Function's `apply`, in a form that torch.compile traces too: no gradient without grad."""
    if D.wants_grad(student_input, student_weight):
        return LigerFusedLinearJSDFunction.apply(student_input, student_weight, *args)
    return _forward_only(student_input, student_weight, *args)


def fused_linear_jsd_forward(
    student_input,
    student_weight,
    teacher_input,
    teacher_weight,
    shift_labels,
    jsd_beta,
    ignore_index,
    has_label,
    temperature,
    jsd_impl=None,
    jsd_mode=None,
    accum_dtype=None,
    memory_budget=None,
):
    """Upstream's helper: (loss, grad_input, grad_weight); a gradient that nobody requires is None."""
    tensors, options = _arguments(
        student_input,
        student_weight,
        teacher_input,
        teacher_weight,
        shift_labels if has_label else None,
        jsd_beta,
        ignore_index,
        temperature,
        accum_dtype,
        jsd_impl,
        jsd_mode,
        memory_budget,
    )
    needs = (student_input.requires_grad, student_weight.requires_grad)
    loss, dx, dw = _run(*tensors, *options, None, *needs)
    return loss, dx if needs[0] else None, dw if needs[1] else None


def fused_linear_jsd_backward(grad_output, grad_input, grad_weight):
    """Upstream's helper: the gradients times grad_output; in place in a backward that frees its graph."""
    return tuple(g if g is None else scale_saved(g, grad_output) for g in (grad_input, grad_weight))


def fused_linear_jsd_ref(
    student_input,
    student_weight,
    teacher_input,
    teacher_weight,
    shift_labels=None,
    jsd_beta=0.5,
    ignore_index=-100,
    temperature=1.0,
    accum_dtype=None,
    memory_budget=None,
):
    """All logits, upcast, then the loss."""
    z, rows = D.logits_ref(student_input, student_weight, memory_budget, 2, accum_dtype)
    zt, _ = D.logits_ref(teacher_input, teacher_weight, memory_budget, 2, block_rows=rows)
    x, y = (torch.log_softmax(upcast(logits) / temperature, -1) for logits in (z, zt))
    return valid_mean(jsd_rows(x, y.to(x.dtype), jsd_beta), shift_labels, ignore_index)


def _spec_entry(
    student_input,
    student_weight,
    teacher_input,
    teacher_weight,
    shift_labels=None,
    jsd_beta=0.5,
    ignore_index=-100,
    temperature=1.0,
    accum_dtype=None,
    memory_budget=None,
):
    tensors = (student_input, student_weight, teacher_input, teacher_weight, shift_labels)
    return liger_fused_linear_jsd_apply(
        *tensors, jsd_beta, ignore_index, temperature, accum_dtype, None, None, memory_budget
    )


def _sample(n, h, v, teacher_h=None, labels=0.0, x_grad=True, w_grad=True, scale=0.3, **options):
    th = teacher_h or h + 3
    name = f"{n}x{h}+{th}x{v}" + "".join(f"-{k}_{o}" for k, o in options.items())
    name += (f"-labels_{labels}" if labels else "") + ("" if x_grad else "-frozen_input")
    args = {
        "student_input": T((n, h), grad=x_grad),
        "student_weight": T((v, h), "w", grad=w_grad, scale=scale),
        "teacher_input": T((n, th), grad=False),
        "teacher_weight": T((v, th), "w", grad=False, scale=scale),
    }
    if labels:
        args["shift_labels"] = T((n,), "index", grad=False, high=5, ignored=labels)
    return Sample(name + ("" if w_grad else "-frozen_weight"), {**args, **options})


_base = _sample(9, 16, 45, labels=0.3)
_few_labels = _sample(29, 16, 5, labels=0.3)
_cut = 2 * 3 * 45 * 8  # a budget of three rows of 45 logits of both heads in float64, six in float32


def _raw(args):
    x, w, tx, tw = (
        args[k].detach() for k in ("student_input", "student_weight", "teacher_input", "teacher_weight")
    )
    code = DTYPE_CODES[torch.promote_types(x.dtype, w.dtype)]
    one, labels = torch.ones((), device=x.device, dtype=accum(x)), args.get("shift_labels")
    bias = torch.zeros(w.shape[0], device=x.device, dtype=w.dtype)
    tail = (code, -1, _cut)
    return [
        (_op, (x, w, tx, tw, None, None, labels, None, 0.5, -100, 1.0, True, True, False, *tail)),
        (_op, (x, w, tx, tw, bias, bias, None, one, 0.0, -100, 2.0, True, True, True, *tail)),
        (_op, (x, w, tx, tw, None, bias, None, None, 1.0, -100, 0.5, False, False, False, *tail)),
    ]


def _case(n, h, th, v):
    forward = 2 * n * v * (h + th)
    return Case(
        "fused_linear_jsd", _sample(n, h, v, th, scale=h**-0.5), flops=(forward, forward + 4 * n * v * h)
    )


SPEC = OpSpec(
    name="fused_linear_jsd",
    fn=_spec_entry,
    ref=fused_linear_jsd_ref,
    big=_sample(9, 64, 1024),  # no row is ignored: a mean divides by all of them
    samples=(
        _base,
        *(_sample(*s) for s in [(0, 16, 45), (1, 1, 1), (1, 8, 33), (7, 3, 2), (5, 24, 2049), (33, 65, 129)]),
        *(_sample(n, 16, 45, labels=0.3, memory_budget=_cut) for n in (12, 13, 50)),
        *(
            _sample(29, 16, 45, labels=0.3, jsd_beta=beta, temperature=0.5, memory_budget=_cut)
            for beta in (0.0, 0.1, 0.9, 1.0)
        ),
        _sample(7, 16, 45, memory_budget=1),  # row by row
        _sample(40, 16, 45, memory_budget=_cut, accum_dtype=torch.float32),
        _sample(29, 16, 45, x_grad=False, memory_budget=_cut),
        _sample(29, 16, 45, w_grad=False, memory_budget=_cut),
        _sample(9, 16, 45, labels=1.0),
    ),
    options=(
        (_base, _base.with_args("beta", jsd_beta=0.1)),
        (_base, _base.with_args("beta_0", jsd_beta=0.0)),
        (_base, _base.with_args("beta_1", jsd_beta=1.0)),
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
        (
            r"teacher_weight has shape \(44, 19\), expected 45 rows",
            {"teacher_weight": T((44, 19), grad=False)},
        ),
        (r"teacher_input has shape \(8, 19\), expected 9 rows", {"teacher_input": T((8, 19), grad=False)}),
        (r"student_input has shape \(3, 3, 16\), expected two dim", {"student_input": T((3, 3, 16))}),
        (r"shift_labels has shape \(8,\), expected \(9,\)", {"shift_labels": T((8,), "index", high=5)}),
        (r"jsd_beta is -0.5, expected a value in \[0, 1\]", {"jsd_beta": -0.5}),
        (r"temperature is 0.0, expected a positive value", {"temperature": 0.0}),
        (r"accum_dtype is torch.int64, expected", {"accum_dtype": torch.int64}),
        (r"memory_budget is 0, expected a number of bytes", {"memory_budget": 0}),
    ),
    cases={"cpu": (_case(512, 512, 768, 32000),), "cuda": (_case(4096, 2048, 4096, 128256),)},
    grad_factor=3.0,
    gemm=True,
    gradcheck=(
        _sample(5, 3, 7, labels=0.3, memory_budget=2 * 2 * 7 * 8, temperature=1.5),
        *(_sample(4, 3, 5, jsd_beta=beta) for beta in (0.0, 1.0)),
    ),
    notes="two heads of any sizes and dtypes; beta, temperature, ignored labels; bounded by the budget",
)
