"""Kahneman-Tversky optimisation: single answers, each labelled as good or bad.

With l = logp - ref(logp) of a sequence and kl a common estimate of the policy's distance, the loss is the
mean of

    1 - s(beta (l - kl))     of a good answer,     1 - s(beta (kl - l))     of a bad one

Source: arXiv:2402.01306.
"""

import torch

from ._loss_module import LossModule
from .fused_linear_unpaired_preference import LigerFusedLinearUnpairedPreferenceBase

__all__ = ["LigerFusedLinearKTOLoss"]
FUNCTIONAL = ("liger_fused_linear_kto",)


class LigerFusedLinearKTOFunction(LigerFusedLinearUnpairedPreferenceBase):
    """`apply(_input, weight, target, preference_labels, ...)` gives what `LigerFusedLinearKTOLoss` gives."""

    @staticmethod
    def preference_loss_fn(
        log_prob_chunk, preference_labels_chunk, full_target, ref_log_prob_chunk=None, beta=0.1, kl=None
    ):
        """(loss, chosen_rewards_sum, rejected_rewards_sum) of log-probabilities (batch,).

        The loss is the sum over the sequences, divided by those of full_target (batch, ...).
        """
        good = preference_labels_chunk.bool()
        ratio = log_prob_chunk if ref_log_prob_chunk is None else log_prob_chunk - ref_log_prob_chunk
        gain = beta * (ratio if kl is None else ratio - kl)
        losses = torch.where(good, -gain, gain).sigmoid()  # 1 - s(z) = s(-z)
        rewards = beta * ratio.detach()
        return losses.sum() / max(full_target.shape[0], 1), (rewards * good).sum(), (rewards * ~good).sum()

    @classmethod
    def forward(
        cls,
        ctx,
        _input,
        weight,
        target,
        preference_labels,
        bias=None,
        ref_input=None,
        ref_weight=None,
        ref_bias=None,
        kl=None,
        ignore_index=-100,
        beta=0.1,
        compiled=True,
        use_ref_model=True,
        average_log_prob=False,
        chunk_size=1,
        softcap=None,
        logit_scale=1.0,
        memory_budget=None,
    ):
        return super().forward(
            cls,
            ctx,
            _input,
            weight,
            target,
            preference_labels,
            bias,
            ignore_index=ignore_index,
            use_ref_model=use_ref_model,
            ref_input=ref_input,
            ref_weight=ref_weight,
            ref_bias=ref_bias,
            average_log_prob=average_log_prob,
            softcap=softcap,
            logit_scale=logit_scale,
            memory_budget=memory_budget,
            beta=beta,
            kl=kl,
        )


liger_fused_linear_kto = LigerFusedLinearKTOFunction.apply


class LigerFusedLinearKTOLoss(LossModule):
    """KTO of a linear head's hidden states, one pass over the head of each model, logits never in memory.

    Called with _input (batch, seq_len, hidden_size); lin_weight (vocab_size, hidden_size); target (batch,
    seq_len), int64 ids already shifted, or ignore_index; bias (vocab_size,) or None; preference_labels
    (batch,), True for a good answer; ref_input, ref_weight, ref_bias: the reference's states and head, needed
    with use_ref_model and used wherever they are given (TRL passes them for adapters without setting the
    option); kl: one number, as a tensor, or None for 0. float32, bfloat16, float16 (float64 on the CPU).
    average_log_prob: a sequence's log-probability is the mean over its labels, not their sum. softcap,
    logit_scale, memory_budget: see `linear_logprob`. compiled and chunk_size are accepted and change nothing.

    Returns (loss, (chosen_logps_sum, rejected_logps_sum, chosen_logits_sum, rejected_logits_sum,
    chosen_rewards_sum, rejected_rewards_sum)), float32 (float64 for float64); the logits are those at
    positions that have a label. Raises ValueError for wrong shapes, missing labels or a missing reference.
    Source: arXiv:2402.01306.
    """

    def __init__(
        self,
        ignore_index=-100,
        beta=0.1,
        compiled=True,
        use_ref_model=False,
        average_log_prob=False,
        chunk_size=1,
        softcap=None,
        logit_scale=1.0,
        memory_budget=None,
    ):
        super().__init__(locals())

    def forward(
        self,
        _input,
        lin_weight,
        target,
        bias=None,
        preference_labels=None,
        ref_input=None,
        ref_weight=None,
        ref_bias=None,
        kl=None,
    ):
        return LigerFusedLinearKTOFunction.forward(
            None,
            _input,
            lin_weight,
            target,
            preference_labels,
            bias,
            ref_input,
            ref_weight,
            ref_bias,
            kl,
            **self.options(),
        )
