"""Jensen-Shannon divergence of two linear heads' logits without the logits in memory.

    x = log_softmax(student_input student_weight^T / T),   y = log_softmax(teacher_input teacher_weight^T / T)
    loss = jsd(x, y), see jsd.py;   with g = dloss/dx:  dlogits = (g - e^x sum g) / T

Both heads' logits exist one block of rows at a time, in two buffers that share the memory budget; the row
kernel turns the student's in place into dlogits, and no product is made for the teacher's gradient. Plan of
the blocks: ops/linear_loss.py. Source: arXiv:2306.13649 (GKD).

Beside it, for `chunked_loss`, the labels' cross entropy of the student's logits, from the same blocks.
"""

import torch

from . import _distill as D
from ._divergence import check_impl
from ._fused_linear_jsd_spec import SPEC_FIELDS
from ._labels import check_labels
from ._saved_grad import scale_saved
from ._spec import OpSpec
from .jsd import check_beta
from .linear_loss import DTYPE_CODES

__all__ = ["LigerFusedLinearJSDFunction", "fused_linear_jsd_forward", "fused_linear_jsd_backward"]

_op = torch.ops.liger.fused_linear_jsd.default
_op_ce = torch.ops.liger.fused_linear_jsd_ce.default


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


@torch.library.register_fake("liger::fused_linear_jsd_ce")
def _(student_input, student_weight, teacher_input, teacher_weight, student_bias, *rest):
    return D.fake_both(student_input, student_weight, student_bias, *rest)


def _run_heads(*args):
    *tensors, dtype, accum_code, options, budget, dloss, dx, dw, dbias = args
    codes = (DTYPE_CODES[dtype], accum_code, budget)
    return _op(*D.heads_of(tensors, dloss, dtype), *options, dx, dw, dbias, *codes)


def _run_both(*args):
    *tensors, dlosses, weights, dtype, accum_code, options, budget, n_classes, dx, dw, dbias = args
    heads, codes = D.heads_of(tensors, dlosses, dtype), (DTYPE_CODES[dtype], accum_code, budget)
    return _op_ce(*heads, n_classes, *weights, *options, dx, dw, dbias, *codes)


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


class _BothLossesFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *args):
        return D.forward_both(ctx, _run_both, args[:7], args[9:], args[7], args[8])

    @staticmethod
    def backward(ctx, *grads):
        return D.backward_both(ctx, *grads)


def fused_linear_jsd_with_cross_entropy(
    student, teacher, labels, weights, n_classes, *options, apart=False, memory_budget=None
):
    """(weights[0] * soft + weights[1] * hard, soft, hard) of two heads (hidden states, weight, bias or None).

    soft: `fused_linear_jsd_of_biased_heads`, whose options these are; hard: the mean cross entropy of the
    student's logits of the first n_classes classes, before the temperature. No weight is 0. Differentiable in
    the student; soft and hard by themselves too with `apart`, which costs the products again in backward.
    """
    _, rest = _arguments(*student[:2], *teacher[:2], labels, *options, memory_budget=memory_budget)
    check_labels("fused_linear_jsd_ce", labels, n_classes, options[1], "shift_labels")
    tensors, rest = (*student, *teacher, labels), (*rest, n_classes)
    return D.both(_BothLossesFunction, _run_both, tensors, weights, apart, rest)


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


SPEC = OpSpec(fn=_spec_entry, **SPEC_FIELDS)
