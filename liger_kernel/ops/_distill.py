"""What the fused distillation losses share in Python: dtypes, checks, autograd of one loss and of a soft
with a hard one, the reference's logits.
"""

import torch
import torch.nn.functional as F

from ._saved_grad import scale_saved
from .linear_loss import AUTO, DTYPE_CODES, plan, products_dtype_of, resolve_budget


def check_temperature(temperature):
    if not temperature > 0.0:
        raise ValueError(f"temperature is {temperature}, expected a positive value")


def products_dtype(*heads):
    """What all heads' products are computed in; heads: pairs of hidden states and weight."""
    dtype = products_dtype_of(*heads[0])
    for x, w in heads[1:]:
        dtype = torch.promote_types(dtype, products_dtype_of(x, w))
    if dtype not in DTYPE_CODES:
        raise ValueError(f"the products' dtype is {dtype}, expected float32, bfloat16, float16 or float64")
    return dtype


def accum_code(accum_dtype, x, weight):
    if accum_dtype not in (None, torch.float32, x.dtype, weight.dtype):
        raise ValueError(
            f"accum_dtype is {accum_dtype}, expected None, torch.float32 "
            f"or the dtype of student_input ({x.dtype}) or student_weight ({weight.dtype})"
        )
    return AUTO if accum_dtype is None else DTYPE_CODES[accum_dtype]


def budget_of(memory_budget, weight, dtype, n_heads):
    return resolve_budget(memory_budget, n_heads * weight.shape[0] * dtype.itemsize)


def real_of(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def fake(x, weight, needs_dx, needs_dw, compute_dtype):
    real = torch.float64 if compute_dtype == DTYPE_CODES[torch.float64] else torch.float32
    return (
        x.new_empty((), dtype=real),
        x.new_empty(x.shape if needs_dx else (0,)),
        weight.new_empty(weight.shape if needs_dw else (0,)),
    )


def fake_both(x, weight, bias, *rest):
    """(soft, hard, dx, dweight, dbias); rest ends with needs_dx, needs_dw, needs_dbias and three numbers."""
    needs_dx, needs_dw, needs_dbias, compute_dtype = rest[-6:-2]
    soft, *grads = fake(x, weight, needs_dx, needs_dw, compute_dtype)
    bias_like, n_bias = (x, 0) if bias is None else (bias, weight.shape[0] if needs_dbias else 0)
    return soft, soft.new_empty(()), *grads, bias_like.new_empty((n_bias,))


def heads_of(tensors, dlosses, dtype):
    """The operators' tensors: of (hidden states, weight, bias) of student and teacher, and the labels."""
    x, weight, bias, teacher_x, teacher_weight, teacher_bias = (
        t if t is None else t.detach() for t in tensors[:6]
    )
    dlosses = None if dlosses is None else dlosses.to(real_of(dtype))
    return x, weight, teacher_x, teacher_weight, bias, teacher_bias, tensors[6], dlosses


def wants_grad(*tensors):
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def forward(ctx, run, tensors, options, n_grads=2):
    """A Function's forward: run(*tensors, *options, dloss, *needs) -> (loss, *gradients).

    The first n_grads tensors are the student's: hidden states, weight, bias or None. The gradients are made
    in forward, and in backward where one is float16, whose range the incoming gradient (a loss scale) must
    reach before the rounding.
    """
    student = [t for t in tensors[:n_grads] if t is not None]
    ctx.needs, ctx.run, ctx.options = ctx.needs_input_grad[:n_grads], run, options
    ctx.deferred = torch.float16 in (options[0], *(t.dtype for t in student))
    needs = (False,) * n_grads if ctx.deferred else ctx.needs
    loss, *grads = run(*tensors, *options, None, *needs)
    ctx.save_for_backward(*(tensors if ctx.deferred else grads))
    return loss


def backward(ctx, dloss):
    """The gradients of all arguments of that Function."""
    if ctx.deferred:
        _, *grads = ctx.run(*ctx.saved_tensors, *ctx.options, dloss, *ctx.needs)
    else:
        grads = [scale_saved(g, dloss) if need else g for g, need in zip(ctx.saved_tensors, ctx.needs)]
    nones = (None,) * (len(ctx.needs_input_grad) - len(ctx.needs))
    return *(g if need else None for g, need in zip(grads, ctx.needs)), *nones


def forward_both(ctx, run, tensors, options, weights, apart):
    """`forward` of weights[0] * soft + weights[1] * hard, and of the two: (sum, soft, hard).

    run(*tensors, dlosses, weights, *options, *needs) -> (soft, hard, *gradients). apart: whether soft and
    hard are differentiable too. Of theirs no gradient is made in forward, since one buffer holds that of the
    sum: backward runs again if there is one.
    """
    student = [t for t in tensors[:3] if t is not None]
    ctx.needs, ctx.run, ctx.options = ctx.needs_input_grad[:3], run, options
    ctx.weights, ctx.apart = weights, apart
    ctx.deferred = torch.float16 in (options[0], *(t.dtype for t in student))
    needs = (False,) * 3 if ctx.deferred else ctx.needs
    soft, hard, *grads = run(*tensors, None, weights, *options, *needs)
    ctx.set_materialize_grads(False)  # so that backward sees whose gradient there is
    if not apart:
        ctx.mark_non_differentiable(soft, hard)
    ctx.save_for_backward(*grads, *(tensors if apart or ctx.deferred else ()))
    return weights[0] * soft + weights[1] * hard, soft, hard


def backward_both(ctx, dloss, dsoft, dhard):
    """The gradients of all arguments of that Function."""
    grads, tensors = ctx.saved_tensors[:3], ctx.saved_tensors[3:]
    nones = (None,) * (len(ctx.needs_input_grad) - 3)
    if dloss is dsoft is dhard is None:
        return None, None, None, *nones
    if not ctx.apart:
        dsoft = dhard = None  # torch.compile gives zeros here
    if ctx.deferred or dsoft is not None or dhard is not None:
        some = next(d for d in (dloss, dsoft, dhard) if d is not None)

        def total(weight, d):
            of_sum = torch.zeros_like(some) if dloss is None else weight * dloss
            return of_sum if d is None else of_sum + d

        dlosses = torch.stack([total(w, d) for w, d in zip(ctx.weights, (dsoft, dhard))])
        _, _, *grads = ctx.run(*tensors, dlosses, (1.0, 1.0), *ctx.options, *ctx.needs)
    else:
        grads = [scale_saved(g, dloss) if need else g for g, need in zip(grads, ctx.needs)]
    return *(g if need else None for g, need in zip(grads, ctx.needs)), *nones


def both(function, run, tensors, weights, apart, rest):
    """(sum, soft, hard) by the Function that calls forward_both with run, or by run alone without grad."""
    if wants_grad(*tensors[:3]):
        return function.apply(*tensors, weights, apart, *rest)
    soft, hard = run(*tensors, None, weights, *rest, False, False, False)[:2]
    return weights[0] * soft + weights[1] * hard, soft, hard


def logits_ref(x, weight, memory_budget, n_heads=1, accum_dtype=None, block_rows=None, bias=None):
    """(x W^T, rows of a block) by one product; under a budget of its own the values are those of the blocks'.

    Why: see _fused_linear_cross_entropy_spec.py. block_rows: that of another head, whose blocks this one has.
    """
    dtype = torch.promote_types(x.dtype, weight.dtype)
    x, weight, bias = (t if t is None else t.to(dtype) for t in (x, weight, bias))
    logits = F.linear(x, weight, bias)
    if memory_budget is None:
        return logits, None
    sizes, budget = (*x.shape, weight.shape[0]), memory_budget // n_heads
    if block_rows is None:
        options = dict(accum_dtype=accum_dtype, memory_budget=budget, device=x.device)
        block_rows = plan(*sizes, dtype, weight.dtype, loop_order="token", **options).block_rows or 1
    with torch.no_grad():
        for first in range(0, x.shape[0], block_rows):
            logits[first : first + block_rows] = F.linear(x[first : first + block_rows], weight, bias)
    return logits, block_rows
