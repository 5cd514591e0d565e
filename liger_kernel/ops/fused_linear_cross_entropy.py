"""Cross entropy of x W^T + b without the logits in memory: fakes, autograd, helpers that others wrap.

The rows' loss is cross_entropy's (ops/cross_entropy.py has the equations), on logits that exist one block at
a time:

    logits_b = x_b W^T + b        block b of rows, in one reused buffer, bounded by the memory budget
    logits_b -> dlogits_b         loss and gradient of the rows, in place
    dx_b = dlogits_b W,   dW += dlogits_b^T x_b,   db += column sums of dlogits_b

or, where the plan finds it cheaper, one part of the vocabulary at a time, over all rows: statistics of the
rows first, then the logits again and the gradients, dw exact part by part and dx added up in float32;

for reduction "mean" and "sum" in forward, whose gradients backward scales; for "none", and where a gradient
is float16, whose range the incoming gradient (a loss scale) must reach before the rounding, in backward, from
recomputed logits. The loss alone of bf16 and fp16 rows on Hopper, without smoothing, softcap, accuracy and
predictions, has its statistics taken inside the product, and no logits. The loop is one operator. Its plan:
ops/linear_loss.py. Reference and spec: _fused_linear_cross_entropy_spec.py.
"""

import torch

from ._cross_entropy_spec import only_wanted
from ._fused_linear_cross_entropy_spec import DEFAULTS, SPEC_FIELDS
from ._labels import check_labels
from ._saved_grad import scale_saved
from ._spec import OpSpec
from .cross_entropy import REDUCTION, check_options
from .linear_loss import AUTO, DTYPE_CODES, forced_loop_order, products_dtype_of, resolve_budget

__all__ = [
    "LigerFusedLinearCrossEntropyFunction",
    "fused_linear_cross_entropy_forward",
    "fused_linear_cross_entropy_backward",
]

_op = torch.ops.liger.fused_linear_cross_entropy.default
_CHUNK_MEM_CONST = 1


@torch.library.register_fake("liger::fused_linear_cross_entropy")
def _(
    x,
    weight,
    target,
    bias,
    ce_weight,
    dloss,
    ignore_index,
    lse_square_scale,
    label_smoothing,
    reduction,
    softcap,
    token_scaling,
    z_loss,
    accuracy,
    predicted,
    needs_dx,
    needs_dw,
    needs_dbias,
    compute_dtype,
    accum_dtype,
    chunk_mem_const,
    loop_order,
    memory_budget,
):
    n, real = x.shape[0], torch.float64 if compute_dtype == DTYPE_CODES[torch.float64] else torch.float32
    shape = (n,) if reduction == REDUCTION["none"] else ()
    dbias_like = x if bias is None else bias
    return (
        x.new_empty(shape, dtype=real),
        x.new_empty(shape if z_loss else (0,), dtype=real),
        x.new_empty(shape if accuracy else (0,), dtype=real),
        x.new_empty((n,) if predicted else (0,), dtype=torch.int64),
        x.new_empty(x.shape if needs_dx else (0,)),
        weight.new_empty(weight.shape if needs_dw else (0,)),
        dbias_like.new_empty((weight.shape[0],) if needs_dbias and bias is not None else (0,)),
    )


def _check_call(x, weight, target, ignore_index, accum_dtype, ce_impl, ce_mode, chunk_mem_const):
    for name, value in (("ce_impl", ce_impl), ("ce_mode", ce_mode)):
        if value not in (None, "liger", "default"):
            raise ValueError(
                f"{name} is {value!r}, expected None, 'liger' or 'default': there is one implementation here"
            )
    if isinstance(chunk_mem_const, bool) or not isinstance(chunk_mem_const, int) or chunk_mem_const < 1:
        raise ValueError(f"chunk_mem_const is {chunk_mem_const!r}, expected an int, at least 1")
    if accum_dtype not in (None, torch.float32, x.dtype, weight.dtype):
        raise ValueError(
            f"accum_dtype is {accum_dtype}, expected None, torch.float32 "
            f"or the dtype of _input ({x.dtype}) or weight ({weight.dtype})"
        )
    if weight.dim() == 2:  # else the operator says so
        check_labels("fused_linear_cross_entropy", target, weight.shape[0], ignore_index)


def fused_linear_cross_entropy_forward(
    _input,
    weight,
    target,
    ce_weight=None,
    bias=None,
    ignore_index=-100,
    lse_square_scale=0.0,
    label_smoothing=0.0,
    reduction="mean",
    softcap=None,
    return_z_loss=False,
    accum_dtype=None,
    use_token_scaling=False,
    return_token_accuracy=False,
    return_predicted_tokens=False,
    ce_impl=None,
    ce_mode=None,
    token_grad_output=None,
    compute_gradients=None,
    weight_requires_grad=None,
    chunk_mem_const=_CHUNK_MEM_CONST,
    memory_budget=None,
    input_requires_grad=None,
    bias_requires_grad=None,
    products_dtype=None,
    skip_ignored=False,
):
    """As upstream's: (loss, z_loss, token_accuracy, predicted_tokens, grad_input, grad_weight, grad_bias).

    None stands where something is not wanted.

    compute_gradients: None makes the gradients that the tensors' requires_grad asks for, False none; the
    *_requires_grad override the tensors' own. token_grad_output: the incoming gradient, one value or one per
    row; None is 1. The gradients are functional results: nothing is written to an argument. products_dtype:
    what the products are computed in; None: see `linear_loss.products_dtype_of`. skip_ignored: see
    `LigerFusedLinearCrossEntropyFunction`.
    """
    check_options(reduction, label_smoothing, softcap)
    _check_call(_input, weight, target, ignore_index, accum_dtype, ce_impl, ce_mode, chunk_mem_const)
    dtype = products_dtype or products_dtype_of(_input, weight)
    if dtype not in DTYPE_CODES:
        raise ValueError(
            f"_input has dtype {_input.dtype} and weight {weight.dtype}, "
            "expected float32, bfloat16, float16 or float64"
        )
    real = torch.float64 if dtype == torch.float64 else torch.float32
    if ce_weight is not None:
        if not ce_weight.is_floating_point():
            raise ValueError(f"ce_weight has dtype {ce_weight.dtype}, expected a floating-point dtype")
        ce_weight = ce_weight.detach().to(real)
    if compute_gradients is False:
        needs = (False, False, False)
    else:
        needs = (
            _input.requires_grad if input_requires_grad is None else input_requires_grad,
            weight.requires_grad if weight_requires_grad is None else weight_requires_grad,
            bias is not None and (bias.requires_grad if bias_requires_grad is None else bias_requires_grad),
        )
    want = (return_z_loss, return_token_accuracy, return_predicted_tokens)
    x, y = _input.detach(), target
    dloss = None if token_grad_output is None else token_grad_output.to(real)
    live = _live_rows(x, target, ignore_index) if skip_ignored else None
    if live is not None:
        x, y = x.index_select(0, live), target.index_select(0, live)
        dloss = dloss.index_select(0, live) if dloss is not None and dloss.dim() else dloss
    outputs = _op(
        x,
        weight.detach(),
        y,
        None if bias is None else bias.detach(),
        ce_weight,
        dloss,
        ignore_index,
        lse_square_scale,
        label_smoothing,
        REDUCTION[reduction],
        softcap or 0.0,
        use_token_scaling,
        *want,
        *needs,
        DTYPE_CODES[dtype],
        AUTO if accum_dtype is None else DTYPE_CODES[accum_dtype],
        min(chunk_mem_const, 2**31),
        forced_loop_order(),
        resolve_budget(memory_budget, weight.shape[0] * dtype.itemsize),
    )
    outputs = [o if w else None for o, w in zip(outputs, (True, *want, *needs))]
    if live is not None:
        per_row = (0, 1, 2, 3, 4) if reduction == "none" else (3, 4)  # beside the predictions, -1, zeros
        for i in per_row:
            if outputs[i] is not None:
                whole = outputs[i].new_full((len(target), *outputs[i].shape[1:]), -1 if i == 3 else 0)
                outputs[i] = whole.index_copy_(0, live, outputs[i])
    return tuple(outputs)


def _live_rows(x, target, ignore_index):
    """The rows on a GPU whose label counts, after waiting for them; None where skipping gains nothing.

    On the CPU the operator itself passes over ignored rows.
    """
    if torch.compiler.is_compiling() or x.device.type == "cpu" or target.device != x.device:
        return None
    if x.dim() != 2 or target.shape != x.shape[:1]:
        return None  # the operator says so
    live = (target != ignore_index).nonzero()[:, 0]
    return live if 16 * len(live) <= 15 * len(target) else None


def fused_linear_cross_entropy_backward(grad_output, grad_input, grad_weight, grad_bias):
    """As upstream's: the gradients times grad_output; in place in a backward that frees its graph."""
    return tuple(
        g if g is None else scale_saved(g, grad_output) for g in (grad_input, grad_weight, grad_bias)
    )


class LigerFusedLinearCrossEntropyFunction(torch.autograd.Function):
    """(loss, z_loss, token_accuracy, predicted_tokens), differentiable in _input, weight and bias.

    None stands where something is not asked for.

    _input: (n_rows, hidden_size), weight: (vocab_size, hidden_size), bias: (vocab_size,) or None: float32,
    bfloat16, float16 (float64 on the CPU) in any mixture and with any strides; each gradient comes back in
    its own tensor's dtype, also under autocast. target: (n_rows,) int64, class indices or ignore_index.
    ce_weight: (vocab_size,) class weights, or None. The outputs are those of `LigerCrossEntropyFunction` on
    the logits; use_token_scaling multiplies a row's loss by its target's detached probability.

    accum_dtype: what the weight gradient is added up in over the blocks, at least; None lets the plan choose.
    memory_budget: bytes that a block of logits may take; None: `liger_kernel.get_memory_budget()`.
    chunk_mem_const above 1 asks for blocks of about that many times _input's size, within the budget; 1
    leaves the size to the plan. skip_ignored=True takes ignored rows out of the products on a GPU, for one
    synchronisation (so not in a CUDA graph, and without effect under torch.compile): worth it where many are
    ignored. On the CPU they are always passed over. ce_impl, ce_mode: None, "liger" or "default". Raises
    RuntimeError for a wrong device, dtype or size and, on the CPU, for a label out of range (on a GPU its
    loss is NaN, or an error under LIGER_DEBUG=1); ValueError for an option out of its range.
    """

    supports_inner_impl_dispatch = (
        True  # `liger_fused_linear_cross_entropy` and its callers pass chunk_mem_const on
    )

    @classmethod
    def apply(cls, _input, weight, target, bias=None, *args):
        # decided here, since inside forward the grad mode is always off and needs_input_grad does not know it
        if _wants_grad(_input, weight, bias):
            return super().apply(_input, weight, target, bias, *args)
        return _forward_only(_input, weight, target, bias, *args)

    @staticmethod
    def forward(
        ctx,
        _input,
        weight,
        target,
        bias=None,
        ce_weight=None,
        ignore_index=-100,
        lse_square_scale=0.0,
        label_smoothing=0.0,
        reduction="mean",
        softcap=None,
        return_z_loss=False,
        accum_dtype=None,
        use_token_scaling=False,
        return_token_accuracy=False,
        return_predicted_tokens=False,
        ce_impl=None,
        ce_mode=None,
        chunk_mem_const=_CHUNK_MEM_CONST,
        memory_budget=None,
        skip_ignored=False,
    ):
        products_dtype = products_dtype_of(_input, weight)
        half = torch.float16 in (
            products_dtype,
            _input.dtype,
            weight.dtype,
            *(() if bias is None else (bias.dtype,)),
        )
        ctx.deferred = reduction == "none" or half
        needs = ctx.needs_input_grad
        ctx.options = dict(
            ignore_index=ignore_index,
            lse_square_scale=lse_square_scale,
            label_smoothing=label_smoothing,
            reduction=reduction,
            softcap=softcap,
            accum_dtype=accum_dtype,
            use_token_scaling=use_token_scaling,
            ce_impl=ce_impl,
            ce_mode=ce_mode,
            chunk_mem_const=chunk_mem_const,
            memory_budget=memory_budget,
            input_requires_grad=needs[0],
            weight_requires_grad=needs[1],
            bias_requires_grad=bias is not None and needs[3],
            products_dtype=products_dtype,
            skip_ignored=skip_ignored,
        )
        *outputs, dx, dw, db = fused_linear_cross_entropy_forward(
            _input=_input,
            weight=weight,
            target=target,
            ce_weight=ce_weight,
            bias=bias,
            return_z_loss=return_z_loss,
            return_token_accuracy=return_token_accuracy,
            return_predicted_tokens=return_predicted_tokens,
            compute_gradients=not ctx.deferred,
            **ctx.options,
        )
        if ctx.deferred:
            ctx.save_for_backward(_input, weight, target, bias, ce_weight)
        else:
            ctx.save_for_backward(dx, dw, db)
        ctx.mark_non_differentiable(*(o for o in outputs[1:] if o is not None))
        return tuple(outputs)

    @staticmethod
    def backward(ctx, grad_output, grad_output2, grad_output3, grad_output4):
        if ctx.deferred:
            _input, weight, target, bias, ce_weight = ctx.saved_tensors
            *_, dx, dw, db = fused_linear_cross_entropy_forward(
                _input=_input,
                weight=weight,
                target=target,
                ce_weight=ce_weight,
                bias=bias,
                token_grad_output=grad_output,
                compute_gradients=True,
                **ctx.options,
            )
        else:
            dx, dw, db = fused_linear_cross_entropy_backward(grad_output, *ctx.saved_tensors)
        return (dx, dw, None, db, *(None,) * (len(ctx.needs_input_grad) - 4))


def _wants_grad(_input, weight, bias):
    return torch.is_grad_enabled() and (
        _input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    )


def _forward_only(
    _input,
    weight,
    target,
    bias=None,
    ce_weight=None,
    ignore_index=-100,
    lse_square_scale=0.0,
    label_smoothing=0.0,
    reduction="mean",
    softcap=None,
    return_z_loss=False,
    accum_dtype=None,
    use_token_scaling=False,
    return_token_accuracy=False,
    return_predicted_tokens=False,
    ce_impl=None,
    ce_mode=None,
    chunk_mem_const=_CHUNK_MEM_CONST,
    memory_budget=None,
    skip_ignored=False,
):
    return fused_linear_cross_entropy_forward(
        _input=_input,
        weight=weight,
        target=target,
        ce_weight=ce_weight,
        bias=bias,
        ignore_index=ignore_index,
        lse_square_scale=lse_square_scale,
        label_smoothing=label_smoothing,
        reduction=reduction,
        softcap=softcap,
        return_z_loss=return_z_loss,
        accum_dtype=accum_dtype,
        use_token_scaling=use_token_scaling,
        return_token_accuracy=return_token_accuracy,
        return_predicted_tokens=return_predicted_tokens,
        ce_impl=ce_impl,
        ce_mode=ce_mode,
        compute_gradients=False,
        chunk_mem_const=chunk_mem_const,
        memory_budget=memory_budget,
        skip_ignored=skip_ignored,
    )[:4]


def liger_fused_linear_cross_entropy_apply(_input, weight, target, bias=None, *args):
    """The Function's `apply`, in a form that torch.compile traces too: no gradient without grad."""
    if _wants_grad(_input, weight, bias):
        return LigerFusedLinearCrossEntropyFunction.apply(_input, weight, target, bias, *args)
    return _forward_only(_input, weight, target, bias, *args)


def _spec_entry(**args):
    return only_wanted(liger_fused_linear_cross_entropy_apply(*{**DEFAULTS, **args}.values()))


SPEC = OpSpec(fn=_spec_entry, **SPEC_FIELDS)
