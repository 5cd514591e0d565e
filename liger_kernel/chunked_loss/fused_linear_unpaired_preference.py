"""What the losses on single answers, each labelled as good or bad, share. See fused_linear_preference.py."""

import torch

from ..ops.linear_logprob import linear_logprob
from .fused_linear_preference import Applied, check_heads


class LigerFusedLinearUnpairedPreferenceBase(Applied):
    """To be subclassed: the subclass says in `preference_loss_fn` what the loss of the log-probabilities is.

    `forward` returns (loss, (chosen_logps_sum, rejected_logps_sum, chosen_logits_sum, rejected_logits_sum,
    *rewards)): sums over the sequences whose label is True, and over the others, of the log-probabilities and
    of the logits at the positions that have a label, and whatever the loss function returned beside its loss.
    The metrics are detached.
    """

    @staticmethod
    def preference_loss_fn(*args, **kwargs):
        """(log_prob_chunk, preference_labels_chunk, full_target, [ref_log_prob_chunk,] ...).

        Returns the loss, or a tuple of the loss and metrics.
        """
        raise NotImplementedError(
            "preference_loss_fn: a subclass of LigerFusedLinearUnpairedPreferenceBase defines it"
        )

    @staticmethod
    def forward(
        cls,
        ctx,
        _input,
        weight,
        target,
        preference_labels,
        bias=None,
        chunk_size=1,
        ignore_index=-100,
        compiled=True,
        use_ref_model=False,
        ref_input=None,
        ref_weight=None,
        ref_bias=None,
        average_log_prob=False,
        softcap=None,
        logit_scale=1.0,
        memory_budget=None,
        **loss_kwargs,
    ):
        """The subclass's loss, and the metrics.

        _input: (batch, seq_len, hidden_size); weight: (vocab_size, hidden_size); target: (batch, seq_len),
        ids already shifted, or ignore_index; preference_labels: (batch,), True for a good answer; bias:
        (vocab_size,) or None. ref_input, ref_weight: the reference's states and head, which get no gradient:
        needed with use_ref_model, used wherever they are given. compiled and chunk_size are accepted and
        change nothing. softcap, logit_scale, memory_budget: see `linear_logprob`.
        """
        _check(_input, target, preference_labels)
        check_heads(weight, ref_weight)
        options = dict(
            ignore_index=ignore_index, softcap=softcap, logit_scale=logit_scale, memory_budget=memory_budget
        )
        good = preference_labels.bool()
        valid = target != ignore_index
        lengths = valid.sum(-1).clamp(min=1) if average_log_prob else 1
        out = linear_logprob(_input, weight, target, bias, return_mean_logit=True, **options)
        logps = out.logprob.sum(-1) / lengths
        if (ref_input is None) != (ref_weight is None) or (use_ref_model and ref_input is None):
            raise ValueError(f"use_ref_model is {use_ref_model}: expected both ref_input and ref_weight")
        if ref_input is not None:
            with torch.no_grad():
                ref = linear_logprob(ref_input, ref_weight, target, ref_bias, **options)
                loss_kwargs["ref_log_prob_chunk"] = ref.logprob.sum(-1) / lengths
        result = cls.preference_loss_fn(logps, good, target, **loss_kwargs)
        loss, *metrics = result if isinstance(result, tuple) else (result,)
        logits = out.mean_logit.detach().sum(-1) * weight.shape[0]
        sums = ((t.detach() * half).sum() for t in (logps, logits) for half in (good, ~good))
        return loss, (*sums, *(m.detach() if isinstance(m, torch.Tensor) else m for m in metrics))


def _check(_input, target, preference_labels):
    if _input.dim() != 3:
        raise ValueError(f"_input has shape {tuple(_input.shape)}, expected (batch, seq_len, hidden_size)")
    if target.shape != _input.shape[:2]:
        shape = tuple(_input.shape[:2])
        raise ValueError(f"target has shape {tuple(target.shape)}, expected {shape} as _input")
    if preference_labels is None or preference_labels.shape != target.shape[:1]:
        came = "missing" if preference_labels is None else f"of shape {tuple(preference_labels.shape)}"
        raise ValueError(f"preference_labels is {came}, expected one per sequence ({target.shape[0]},)")
