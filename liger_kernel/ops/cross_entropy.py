"""Cross entropy over the last dimension, with the gradient made in forward: fakes, autograd.

Per row, with z = softcap * tanh(x / softcap) or x, p = softmax(z), lse = logsumexp(z), y = target,
a = label_smoothing:

    ce   = (1 - a) w_y (lse - z_y) + a/V sum_i w_i (lse - z_i)
    loss = ce + lse_square_scale lse^2
    dz_i = (1 - a) w_y (p_i - [i = y]) + a/V (w_sum p_i - w_i) + 2 lse_square_scale lse p_i
    dx_i = dz_i (1 - (z_i / softcap)^2)

Reduction "mean" divides ce by the sum of the valid targets' weights and the z-loss by their number. Sources:
label smoothing arXiv:1512.00567, z-loss arXiv:2204.02311, softcap arXiv:2408.00118. Reference and spec:
_cross_entropy_spec.py.
"""

import torch

from ._cross_entropy_spec import SPEC_FIELDS, mask_columns, only_wanted
from ._labels import check_labels
from ._saved_grad import may_overwrite_saved, scale_saved
from ._spec import OpSpec, accum

__all__ = ["LigerCrossEntropyFunction", "cross_entropy_forward", "cross_entropy_backward"]

_op = torch.ops.liger.cross_entropy.default
_op_ = torch.ops.liger.cross_entropy_.default
_bwd = torch.ops.liger.cross_entropy_bwd.default
_bwd_ = torch.ops.liger.cross_entropy_bwd_.default
REDUCTION = {"none": 0, "mean": 1, "sum": 2}


def _fake_outputs(x, reduction, z_loss, accuracy, predicted):
    n, real = x.shape[0], accum(x)
    shape = (n,) if reduction == 0 else ()
    return (
        x.new_empty(shape, dtype=real),
        x.new_empty(shape if z_loss else (0,), dtype=real),
        x.new_empty(shape if accuracy else (0,), dtype=real),
        x.new_empty((n,) if predicted else (0,), dtype=torch.int64),
    )


@torch.library.register_fake("liger::cross_entropy")
def _(
    x,
    target,
    weight,
    ignore_index,
    lse_square_scale,
    label_smoothing,
    reduction,
    softcap,
    z_loss,
    accuracy,
    predicted,
    grad,
):
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if grad else x.new_empty((0,))
    return *_fake_outputs(x, reduction, z_loss, accuracy, predicted), dx


@torch.library.register_fake("liger::cross_entropy_")
def _(
    x,
    target,
    weight,
    ignore_index,
    lse_square_scale,
    label_smoothing,
    reduction,
    softcap,
    z_loss,
    accuracy,
    predicted,
):
    return _fake_outputs(x, reduction, z_loss, accuracy, predicted)


@torch.library.register_fake("liger::cross_entropy_bwd")
def _(dloss, x, target, weight, ignore_index, lse_square_scale, label_smoothing, reduction, softcap):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.register_fake("liger::cross_entropy_bwd_")
def _(x, dloss, target, weight, ignore_index, lse_square_scale, label_smoothing, reduction, softcap):
    return None


def check_options(reduction, label_smoothing, softcap):
    """Raises ValueError for an option outside its range; the modules call it at construction too."""
    if reduction not in REDUCTION:
        raise ValueError(f"reduction is {reduction!r}, expected 'none', 'mean' or 'sum'")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing is {label_smoothing}, expected a value in [0, 1]")
    if softcap is not None and not softcap > 0.0:
        raise ValueError(f"softcap is {softcap}, expected a positive value or None")


def _raw_options(x, target, weight, ignore_index, lse_square_scale, label_smoothing, reduction, softcap):
    """The arguments that every raw operator takes after x, checked."""
    check_options(reduction, label_smoothing, softcap)
    if x.dim() == 2:  # else the operator says so
        check_labels("cross_entropy", target, x.shape[1], ignore_index)
    if weight is not None:
        if not weight.is_floating_point():
            raise ValueError(f"weight has dtype {weight.dtype}, expected a floating-point dtype")
        weight = weight.detach().to(accum(x))
    return (
        target,
        weight,
        ignore_index,
        lse_square_scale,
        label_smoothing,
        REDUCTION[reduction],
        softcap or 0.0,
    )


def _may_write(x):
    """Whether in_place=True can be honoured for x: a result that only autograd holds, in memory of its own.

    A leaf's value belongs to the caller (it may be a parameter), and under torch.compile memory is the
    compiler's business.
    """
    owns_rows = x.dim() == 2 and x.stride(1) == 1 and x.stride(0) >= x.shape[1]
    return not torch.compiler.is_compiling() and not x.is_leaf and owns_rows


class LigerCrossEntropyFunction(torch.autograd.Function):
    """(loss, z_loss, token_accuracy, predicted_tokens), None where not asked for; the loss has a gradient.

    _input: (n_rows, n_classes), float32, bfloat16, float16 (float64 on the CPU), any strides. target:
    (n_rows,) int64, class indices or ignore_index. weight: (n_classes,) or None. loss and z_loss are float32
    (float64 for float64 logits): () for "mean" and "sum", (n_rows,) for "none". token_accuracy: the same
    shape, for "sum" also the mean over valid rows. predicted_tokens: (n_rows,), -1 in ignored rows.
    Rows whose target is ignore_index count nowhere; if there are no others, loss and gradient are 0.

    For "mean" and "sum" the gradient is made in forward. For "none", and for float16, whose range the
    incoming gradient (a loss scale) must reach before the rounding, it is made in backward.
    in_place=True permits writing the gradient over `_input`'s memory, which then holds no logits any more. It
    is not made use of without grad, for a leaf, or under torch.compile. Autograd is told, so that another
    operator that saved these logits raises.
    Raises RuntimeError for a wrong device, dtype or size and, on the CPU, for a label out of range (on a GPU
    its loss is NaN, or an error under LIGER_DEBUG=1); ValueError for an option out of its range.
    """

    @classmethod
    def apply(cls, _input, *args):
        # decided here, since inside forward the grad mode is always off and needs_input_grad does not know it
        if torch.is_grad_enabled() and _input.requires_grad:
            return super().apply(_input, *args)
        return _forward_only(_input, *args)

    @staticmethod
    def forward(
        ctx,
        _input,
        target,
        weight,
        ignore_index=-100,
        lse_square_scale=0.0,
        label_smoothing=0.0,
        reduction="mean",
        softcap=None,
        return_z_loss=False,
        return_token_accuracy=False,
        return_predicted_tokens=False,
        in_place=False,
    ):
        options = _raw_options(
            _input, target, weight, ignore_index, lse_square_scale, label_smoothing, reduction, softcap
        )
        want = (return_z_loss, return_token_accuracy, return_predicted_tokens)
        in_place = in_place and _may_write(_input)
        ctx.deferred = reduction == "none" or _input.dtype == torch.float16
        ctx.in_place = in_place
        ctx.options = options[2:]
        if ctx.deferred:
            *outputs, _ = _op(_input, *options, *want, False)
            ctx.save_for_backward(_input, target, options[1])
        elif in_place:
            outputs = _op_(_input, *options, *want)
            torch.autograd.graph.increment_version(_input)
            ctx.save_for_backward(_input)
        else:
            *outputs, dx = _op(_input, *options, *want, True)
            ctx.save_for_backward(dx)
        loss, *rest = (o if w else None for o, w in zip(outputs, (True, *want)))
        ctx.mark_non_differentiable(*(o for o in rest if o is not None))
        return loss, *rest

    @staticmethod
    def backward(ctx, grad_output, grad_output2, grad_output3, grad_output4):
        nones = (None,) * (len(ctx.needs_input_grad) - 1)
        if not ctx.deferred:
            (dx,) = ctx.saved_tensors
            return scale_saved(dx, grad_output), *nones
        x, target, weight = ctx.saved_tensors
        if not (ctx.in_place and may_overwrite_saved()):
            return _bwd(grad_output, x, target, weight, *ctx.options), *nones
        _bwd_(x, grad_output, target, weight, *ctx.options)
        torch.autograd.graph.increment_version(x)
        return x.detach(), *nones


def _forward_only(
    _input,
    target,
    weight,
    ignore_index=-100,
    lse_square_scale=0.0,
    label_smoothing=0.0,
    reduction="mean",
    softcap=None,
    return_z_loss=False,
    return_token_accuracy=False,
    return_predicted_tokens=False,
    in_place=False,
):
    options = _raw_options(
        _input, target, weight, ignore_index, lse_square_scale, label_smoothing, reduction, softcap
    )
    want = (return_z_loss, return_token_accuracy, return_predicted_tokens)
    outputs = _op(_input.detach(), *options, *want, False)
    return tuple(o if w else None for o, w in zip(outputs, (True, *want)))


def liger_cross_entropy_apply(_input, target, weight=None, *args):
    """`LigerCrossEntropyFunction.apply`, for torch.compile too: no gradient where none is wanted."""
    if torch.is_grad_enabled() and _input.requires_grad:
        return LigerCrossEntropyFunction.apply(_input, target, weight, *args)
    return _forward_only(_input, target, weight, *args)


def cross_entropy_forward(
    _input,
    target,
    weight,
    ignore_index,
    lse_square_scale,
    label_smoothing,
    reduction,
    softcap,
    return_z_loss,
    return_token_accuracy=False,
    return_predicted_tokens=False,
):
    """Upstream's helper: (loss, z_loss, token_accuracy, predicted_tokens, gradient). The gradient is a new
    tensor here, `_input` itself where it requires none."""
    options = _raw_options(
        _input, target, weight, ignore_index, lse_square_scale, label_smoothing, reduction, softcap
    )
    want = (return_z_loss, return_token_accuracy, return_predicted_tokens)
    *outputs, dx = _op(_input.detach(), *options, *want, _input.requires_grad)
    outputs = (o if w else None for o, w in zip(outputs, (True, *want)))
    return *outputs, dx if _input.requires_grad else _input


def cross_entropy_backward(_input, grad_output):
    """Upstream's helper: the forward's gradient times grad_output, one value or one per row; a new tensor."""
    return torch.ops.liger.scale_grad(_input, grad_output.to(accum(_input)))


def _spec_entry(
    _input,
    target,
    weight=None,
    ignore_index=-100,
    lse_square_scale=0.0,
    label_smoothing=0.0,
    reduction="mean",
    softcap=None,
    return_z_loss=False,
    return_token_accuracy=False,
    return_predicted_tokens=False,
    in_place=False,
    masked=0,
):
    wanted = (return_z_loss, return_token_accuracy, return_predicted_tokens)
    options = (ignore_index, lse_square_scale, label_smoothing, reduction, softcap)
    return only_wanted(
        liger_cross_entropy_apply(mask_columns(_input, masked), target, weight, *options, *wanted, in_place)
    )


SPEC = OpSpec(fn=_spec_entry, **SPEC_FIELDS)
