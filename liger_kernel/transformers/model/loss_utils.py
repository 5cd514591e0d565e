"""Losses of causal language models, on hidden states (the head fused with its loss) and on logits.

The operators are looked up in `liger_kernel.transformers.functional` at call time: programs replace them
there.
"""

import inspect

import torch
from torch.nn.functional import pad

from .. import functional
from ..fused_linear_cross_entropy import liger_fused_linear_cross_entropy as _original

_OPTIONS = frozenset(inspect.signature(_original).parameters)


def unpack_cross_entropy_result(result):
    """(loss, z_loss, token_accuracy, predicted_tokens) of a bare loss or a CrossEntropyOutput; what there is
    none of is None."""
    if isinstance(result, torch.Tensor):
        return result, None, None, None
    return result.loss, result.z_loss, result.token_accuracy, result.predicted_tokens


def fixed_fused_linear_cross_entropy(
    hidden_states,
    lm_head_weight,
    target,
    num_items_in_batch=None,
    ignore_index=-100,
    final_logit_softcapping=None,
    accum_dtype=None,
    return_token_accuracy=False,
    return_predicted_tokens=False,
    **kwargs,
):
    """Mean loss per valid token, or the sum divided by `num_items_in_batch` where that is given (gradient
    accumulation).

    hidden_states: (BT, H); lm_head_weight: (V, H); target: (BT,), `ignore_index` where there is nothing to
    predict. Other keywords reach `functional.liger_fused_linear_cross_entropy` if it knows them; a
    replacement that takes **kwargs gets what the original knows. Returns the loss, or a CrossEntropyOutput if
    a `return_*` option is set.
    """
    fused = functional.liger_fused_linear_cross_entropy
    known = _OPTIONS if fused is _original else _known_options(fused)
    options = {name: value for name, value in kwargs.items() if name in known}
    result = fused(
        hidden_states,
        lm_head_weight,
        target,
        reduction="mean" if num_items_in_batch is None else "sum",
        ignore_index=ignore_index,
        softcap=final_logit_softcapping,
        accum_dtype=accum_dtype,
        return_token_accuracy=return_token_accuracy,
        return_predicted_tokens=return_predicted_tokens,
        **options,
    )
    if num_items_in_batch is None:
        return result
    if isinstance(result, torch.Tensor):
        return _per_item(result, num_items_in_batch)
    z_loss = None if result.z_loss is None else _per_item(result.z_loss, num_items_in_batch)
    return type(result)(
        loss=_per_item(result.loss, num_items_in_batch),
        z_loss=z_loss,
        token_accuracy=result.token_accuracy,
        predicted_tokens=result.predicted_tokens,
    )


def _known_options(function):
    parameters = inspect.signature(function).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return _OPTIONS if takes_any else frozenset(parameters)


def _per_item(total, num_items_in_batch):
    """total / num_items_in_batch; a batch without items has a total of 0, and 0 is the answer."""
    if isinstance(num_items_in_batch, torch.Tensor):
        items = num_items_in_batch.to(total.device)
        return total / items.masked_fill(items == 0, 1)
    return total / (num_items_in_batch or 1)


def _shifted(labels, shift_labels, ignore_index):
    """(BT,) targets: the given ones, or labels moved so that position t predicts label t + 1."""
    if shift_labels is None:
        shift_labels = pad(labels, (0, 1), value=ignore_index)[..., 1:]
    return shift_labels.reshape(-1)


def LigerForCausalLMLoss(
    hidden_states,
    lm_head_weight,
    labels,
    hidden_size,
    num_items_in_batch=None,
    ignore_index=-100,
    shift_labels=None,
    final_logit_softcapping=None,
    return_token_accuracy=False,
    return_predicted_tokens=False,
    **kwargs,
):
    """The loss of a causal language model from its last hidden states, without its logits.

    hidden_states: (..., H); lm_head_weight: (V, H), and `bias` (V,) among the keywords; labels: (B, T), or
    `shift_labels` (B, T) that are moved already. Formula, other keywords and result: see
    `fixed_fused_linear_cross_entropy`.
    Source: ForCausalLMLoss in transformers; if every label is ignored, this loss is 0 where that one is NaN.
    """
    target = _shifted(labels, shift_labels, ignore_index).to(hidden_states.device)
    return fixed_fused_linear_cross_entropy(
        hidden_states.reshape(-1, hidden_size),
        lm_head_weight,
        target,
        num_items_in_batch,
        ignore_index,
        final_logit_softcapping,
        return_token_accuracy=return_token_accuracy,
        return_predicted_tokens=return_predicted_tokens,
        **kwargs,
    )


def liger_causal_lm_loss_from_logits(
    logits, labels, vocab_size, num_items_in_batch=None, ignore_index=-100, shift_labels=None, **kwargs
):
    """ForCausalLMLoss of transformers with our cross entropy: `cross_entropy=True` puts it in that one's
    place.

    logits: (..., V) in any dtype (the loss is computed in fp32 without a copy of them); labels, shift_labels:
    (B, T).
    """
    target = _shifted(labels, shift_labels, ignore_index).to(logits.device)
    reduction = "mean" if num_items_in_batch is None else "sum"
    logits = logits.reshape(-1, vocab_size)
    loss = functional.liger_cross_entropy(logits, target, ignore_index=ignore_index, reduction=reduction)
    return loss if num_items_in_batch is None else _per_item(loss, num_items_in_batch)


def token_metrics(logits, accuracy, predictions, labels, shift_labels=None, ignore_index=-100):
    """(share of the valid tokens that the logits predict, (BT,) argmax, -1 where ignored), None where not
    asked for."""
    target = _shifted(labels, shift_labels, ignore_index).to(logits.device)
    valid = target != ignore_index
    predicted = logits.detach().reshape(-1, logits.shape[-1]).argmax(-1).masked_fill(~valid, -1)
    right = (predicted == target).logical_and(valid).sum()
    share = right / valid.sum().clamp(min=1) if accuracy else None  # nothing valid: 0, as in the kernels
    return share, predicted if predictions else None
