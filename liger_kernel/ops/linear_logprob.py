"""Per-token log-probabilities of a linear head, and what else a loss asks of its logits, without them.

    z = (hidden W^T + b) logit_scale; z = softcap tanh(z / softcap) if there is one; z = z / temperature
    lse = log sum_j e^z_j,  p_j = e^(z_j - lse)
    logprob = z_y - lse              dlogprob / dz_j = [j = y] - p_j
    lse                              dlse / dz_j     = p_j
    entropy = -sum_j p_j log p_j     dentropy / dz_j = -p_j (log p_j + entropy)
    mean_logit = sum_j z_j / V       dmean / dz_j    = 1 / V
    extra_k = z_{e_k} - lse          dextra_k / dz_j = [j = e_k] - p_j
    dz / d(hidden W^T + b) = logit_scale / temperature (1 - (z temperature / softcap)^2)

with the logits one block at a time in one reused buffer, as in ops/linear_loss.py. Forward keeps m,
sum e^(z-m) and sum p (z-m) of every row: 12 bytes. Backward computes a block's logits again, turns it in
place into dlogits and multiplies: 8 n H V operations in all (a gradient made in forward takes 6). It goes
backwards: forward keeps its buffer, in which the logits of the last block are still, and backward writes its
dlogits over them, so that of b blocks (8 - 2 / b) n H V operations are left, 6 where the budget holds all
logits. The buffer, at most the budget, lives from forward to backward, once for every call that waits for its
backward. A compiled graph, in which nothing may be written over, keeps all logits or none (`keeps_logits`).
On Hopper forward takes logprob and lse of 16-bit rows inside the product, but for the last block where it
is kept: nothing is written there, and logits are rounded all the same, since backward reads rounded ones.
On the CPU ignored rows take no part in the products, but where all logits are kept. Reference and spec:
_linear_logprob_spec.py.
"""

from dataclasses import dataclass

import torch

from ._labels import check_labels
from ._linear_logprob_spec import SPEC_FIELDS
from ._spec import OpSpec
from .linear_loss import DTYPE_CODES, plan, products_dtype_of, resolve_budget

# not `linear_logprob` itself: in the package that name is this module
__all__ = ["LigerLinearLogprobFunction", "LinearLogprob"]

_fwd = torch.ops.liger.linear_logprob_fwd.default
_bwd = torch.ops.liger.linear_logprob_bwd.default
_bwd_ = torch.ops.liger.linear_logprob_bwd_.default
_STATS = 3  # LIGER_LOGPROB_STATS in csrc/liger.h


def _real(compute_dtype):
    return torch.float64 if compute_dtype == DTYPE_CODES[torch.float64] else torch.float32


@torch.library.register_fake("liger::linear_logprob_fwd")
def _(
    hidden,
    weight,
    ids,
    bias,
    extra_ids,
    logit_scale,
    softcap,
    temperature,
    ignore_index,
    lse,
    entropy,
    mean_logit,
    argmax,
    stats,
    keep,
    compute_dtype,
    memory_budget,
):
    n, real = hidden.shape[0], _real(compute_dtype)
    logits_dtype = next(dtype for dtype, code in DTYPE_CODES.items() if code == compute_dtype)
    # sizes that are symbols are a compiled graph's, which keeps all logits or none; no plan takes them
    symbols = any(isinstance(size, torch.SymInt) for size in (*hidden.shape, *weight.shape))
    rows = n if symbols or not keep else _block_rows(hidden, weight, logits_dtype, memory_budget)
    return (
        hidden.new_empty((n,), dtype=real),
        *(hidden.new_empty((n,) if want else (0,), dtype=real) for want in (lse, entropy, mean_logit)),
        hidden.new_empty((n,) if argmax else (0,), dtype=torch.int64),
        hidden.new_empty((n, 0 if extra_ids is None else extra_ids.shape[1]), dtype=real),
        hidden.new_empty((n if stats else 0, _STATS), dtype=real),
        hidden.new_empty((rows, weight.shape[0]), dtype=logits_dtype) if keep else hidden.new_empty((0,)),
    )


@torch.library.register_fake("liger::linear_logprob_bwd")
def _fake_bwd(
    hidden,
    weight,
    ids,
    bias,
    extra_ids,
    stats,
    logits,
    dlogprob,
    dlse,
    dentropy,
    dmean_logit,
    dextra,
    logit_scale,
    softcap,
    temperature,
    ignore_index,
    needs_dx,
    needs_dw,
    needs_dbias,
    compute_dtype,
    memory_budget,
):
    dbias_like = hidden if bias is None else bias
    return (
        hidden.new_empty(hidden.shape if needs_dx else (0,)),
        weight.new_empty(weight.shape if needs_dw else (0,)),
        dbias_like.new_empty((weight.shape[0],) if needs_dbias and bias is not None else (0,)),
    )


@torch.library.register_fake("liger::linear_logprob_bwd_")
def _(hidden, weight, ids, bias, extra_ids, stats, logits, spent, *rest):
    return _fake_bwd(hidden, weight, ids, bias, extra_ids, stats, logits, *rest)


def _block_rows(hidden, weight, dtype, budget):
    sizes = (*hidden.shape, weight.shape[0])
    return plan(*sizes, dtype, memory_budget=budget, device=hidden.device, loop_order="token").block_rows


@dataclass
class LinearLogprob:
    """What `linear_logprob` returns: float32 (float64 for float64) but for argmax; None where not asked for.

    logprob, lse, entropy, argmax (int64), mean_logit have the shape of ids, extra_logprob one dimension more.
    Rows whose id is ignore_index hold 0 in every field.
    """

    logprob: torch.Tensor
    lse: torch.Tensor | None = None
    entropy: torch.Tensor | None = None
    argmax: torch.Tensor | None = None
    mean_logit: torch.Tensor | None = None
    extra_logprob: torch.Tensor | None = None


def keeps_logits(n_rows, vocab_size, dtype, budget):
    """Whether forward keeps all its logits for backward: they fit the budget.

    Backward writes their gradient over them; a second backward computes them again in the same memory. A
    compiled graph, in which nothing may be written over, holds both at once: there twice their bytes must
    fit.
    """
    copies = 2 if torch.compiler.is_compiling() else 1
    return copies * n_rows * vocab_size * dtype.itemsize <= budget


def _run(hidden, weight, ids, bias, extra_ids, numbers, want, gradients, memory_budget):
    """(outputs in the dataclass's order, None where not wanted; what backward needs)."""
    dtype = products_dtype_of(hidden, weight)
    if dtype not in DTYPE_CODES:
        raise ValueError(
            f"hidden has dtype {hidden.dtype} and weight {weight.dtype}, "
            "expected float32, bfloat16, float16 or float64"
        )
    budget = resolve_budget(memory_budget, weight.shape[0] * dtype.itemsize)
    keep = gradients and (
        not torch.compiler.is_compiling() or keeps_logits(hidden.shape[0], weight.shape[0], dtype, budget)
    )
    logprob, lse, entropy, mean_logit, argmax, extra, stats, logits = _fwd(
        hidden.detach(),
        weight.detach(),
        ids,
        None if bias is None else bias.detach(),
        extra_ids,
        *numbers,
        want[0],
        # the entropy's gradient needs a statistic that is made with it alone
        *(want[1], want[3], want[2]),
        *(gradients, keep, DTYPE_CODES[dtype], budget),
    )
    outputs = (logprob, lse, entropy, argmax, mean_logit, extra)
    wanted = (True, *want, extra_ids is not None)
    outputs = tuple(o if w else None for o, w in zip(outputs, wanted))
    # none in spite of keep: on a CPU, where most rows were ignored
    keep = keep and logits.dim() == 2
    return outputs, (stats, logits if keep else None, DTYPE_CODES[dtype], budget)


class LigerLinearLogprobFunction(torch.autograd.Function):
    """(logprob, lse, entropy, argmax, mean_logit, extra_logprob); None where not asked for.

    The operator on rows: hidden (n_rows, hidden_size), weight (vocab_size, hidden_size), ids (n_rows,), bias
    (vocab_size,) or None, extra_ids (n_rows, K) or None. All outputs but argmax are differentiable in hidden,
    weight and bias. Users call `linear_logprob`, which takes any shape; it has the dtypes and errors.
    """

    @staticmethod
    def forward(
        ctx,
        hidden,
        weight,
        ids,
        bias=None,
        extra_ids=None,
        temperature=1.0,
        logit_scale=1.0,
        softcap=None,
        ignore_index=-100,
        return_lse=False,
        return_entropy=False,
        return_argmax=False,
        return_mean_logit=False,
        memory_budget=None,
    ):
        numbers = (float(logit_scale), float(softcap or 0.0), float(temperature), ignore_index)
        want = (return_lse, return_entropy, return_argmax, return_mean_logit)
        outputs, saved = _run(hidden, weight, ids, bias, extra_ids, numbers, want, True, memory_budget)
        stats, logits, *ctx.plan = saved
        ctx.save_for_backward(hidden, weight, ids, bias, extra_ids, stats, logits)
        ctx.numbers, ctx.spent = numbers, False
        ctx.set_materialize_grads(False)
        if return_argmax:
            ctx.mark_non_differentiable(outputs[3])
        return outputs

    @staticmethod
    def backward(ctx, dlogprob, dlse, dentropy, dargmax, dmean_logit, dextra):
        hidden, weight, ids, bias, extra_ids, stats, logits = ctx.saved_tensors
        needs = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[3])
        incoming = (dlogprob, dlse, dentropy, dmean_logit, dextra)
        rest = (None,) * (len(ctx.needs_input_grad) - 4)
        if all(g is None for g in incoming):
            return (None, None, None, None, *rest)
        saved, last = (hidden, weight, ids, bias, extra_ids, stats), (*ctx.numbers, *needs, *ctx.plan)
        if logits is None or torch.compiler.is_compiling():
            # logits that an uncompiled forward kept are not all, or leave no room for their gradient
            room = logits is not None and logits.shape[0] == hidden.shape[0]
            room = room and keeps_logits(*logits.shape, logits.dtype, ctx.plan[1])
            gradients = _bwd(*saved, logits if room and not ctx.spent else None, *incoming, *last)
        else:
            gradients = _bwd_(*saved, logits, ctx.spent, *incoming, *last)
            ctx.spent = True
        dx, dw, db = (g if need else None for g, need in zip(gradients, needs))
        return (dx, dw, None, db, *rest)


def _check_call(hidden, weight, ids, extra_ids, temperature, softcap, ignore_index):
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature!r}, expected a positive number")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap is {softcap!r}, expected None or a positive number")
    if hidden.dim() < 1 or ids.shape != hidden.shape[:-1]:
        raise ValueError(
            f"ids has shape {tuple(ids.shape)}, expected {tuple(hidden.shape[:-1])}: "
            f"one id per row of hidden {tuple(hidden.shape)}"
        )
    if extra_ids is not None and extra_ids.shape[:-1] not in (torch.Size(()), ids.shape):
        raise ValueError(
            f"extra_ids has shape {tuple(extra_ids.shape)}, expected (K,) or {(*ids.shape, 'K')}: "
            "the same ids for every row, or K of its own for each"
        )
    if weight.dim() == 2:  # else the operator says so
        check_labels("linear_logprob", ids.reshape(-1), weight.shape[0], ignore_index, "ids")
        if extra_ids is not None:
            check_labels("linear_logprob", extra_ids.reshape(-1), weight.shape[0], ignore_index, "extra_ids")


def linear_logprob(
    hidden,
    weight,
    ids,
    bias=None,
    *,
    temperature=1.0,
    logit_scale=1.0,
    softcap=None,
    ignore_index=-100,
    return_lse=False,
    return_entropy=False,
    return_argmax=False,
    return_mean_logit=False,
    extra_ids=None,
    memory_budget=None,
):
    """`LinearLogprob` of the logits hidden W^T + bias; see the module for the equations.

    hidden: (..., hidden_size), weight: (vocab_size, hidden_size), bias: (vocab_size,) or None: float32,
    bfloat16, float16 (float64 on the CPU) in any mixture and with any strides; each gradient comes back in
    its own tensor's dtype, also under autocast. ids: (...,) int64, token ids or ignore_index. extra_ids:
    (K,), the same for every row, or (..., K), int64; ids may repeat, and an ignore_index among them gives 0
    and no gradient. Meant for a few hundred: the time for their gradient grows with K^2.

    All fields but argmax are differentiable in hidden, weight and bias; nothing is kept for a backward that
    nobody can ask for. memory_budget: bytes that logits and their gradient may take; None:
    `liger_kernel.get_memory_budget()`.

    Raises ValueError for an option or shape out of its range; RuntimeError for a wrong device, dtype or size
    and, on the CPU, for an id out of range (on a GPU the row's, or the extra id's, outputs are NaN and its
    gradients 0, or an error under LIGER_DEBUG=1).
    """
    _check_call(hidden, weight, ids, extra_ids, temperature, softcap, ignore_index)
    shape, n_rows = ids.shape, ids.numel()
    extra = None
    if extra_ids is not None:
        k = extra_ids.shape[-1]
        extra = extra_ids.expand(n_rows, k) if extra_ids.dim() == 1 else extra_ids.reshape(n_rows, k)
    rows = (hidden.reshape(n_rows, hidden.shape[-1]), weight, ids.reshape(n_rows), bias, extra)
    want = (return_lse, return_entropy, return_argmax, return_mean_logit)
    tensors = (hidden, weight) if bias is None else (hidden, weight, bias)
    # decided here, since inside a Function's forward the grad mode is always off
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        options = (temperature, logit_scale, softcap, ignore_index)
        outputs = LigerLinearLogprobFunction.apply(*rows, *options, *want, memory_budget)
    else:
        numbers = (float(logit_scale), float(softcap or 0.0), float(temperature), ignore_index)
        outputs, _ = _run(*rows, numbers, want, False, memory_budget)
    *outputs, extra = (None if o is None else o.reshape((*shape, *o.shape[1:])) for o in outputs)
    return LinearLogprob(*outputs, extra)


def _spec_entry(**args):
    result = linear_logprob(**args)
    return tuple(getattr(result, name) for name in LinearLogprob.__dataclass_fields__)


SPEC = OpSpec(fn=_spec_entry, **SPEC_FIELDS)
