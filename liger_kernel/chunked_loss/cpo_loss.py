"""Contrastive preference optimisation: DPO without a reference, beside the chosen answers' likelihood.

With h = beta (logp(chosen) - logp(rejected)) and e the label smoothing, the loss of a pair is

    -(1 - e) log s(h) - e log s(-h)         plus alpha times the chosen half's negative log-likelihood

Source: arXiv:2401.08417.
"""

import torch.nn.functional as F

from ._loss_module import LossModule
from .fused_linear_preference import LigerFusedLinearPreferenceBase

__all__ = ["LigerFusedLinearCPOLoss"]
FUNCTIONAL = ("liger_fused_linear_cpo",)


def check_label_smoothing(label_smoothing):
    """Raises ValueError outside [0, 1]."""
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing is {label_smoothing}, expected a number in [0, 1]")


def smoothed_logsigmoid(h, label_smoothing):
    """-(1 - e) log s(h) - e log s(-h)."""
    return -(1 - label_smoothing) * F.logsigmoid(h) - label_smoothing * F.logsigmoid(-h)


class LigerFusedLinearCPOFunction(LigerFusedLinearPreferenceBase):
    """`apply(_input, weight, target, ...)` gives the loss and the metrics of `LigerFusedLinearCPOLoss`."""

    @staticmethod
    def preference_loss_fn(chosen_logps, rejected_logps, full_target, beta=0.1, label_smoothing=0.0):
        """(loss, chosen_rewards, rejected_rewards) of log-probabilities (pairs,).

        The loss is the sum over the pairs, divided by those of full_target (2 * pairs, ...).
        """
        check_label_smoothing(label_smoothing)
        losses = smoothed_logsigmoid(beta * (chosen_logps - rejected_logps), label_smoothing)
        loss = losses.sum() / max(full_target.shape[0] // 2, 1)
        return loss, beta * chosen_logps, beta * rejected_logps

    @classmethod
    def forward(
        cls,
        ctx,
        _input,
        weight,
        target,
        bias=None,
        ignore_index=-100,
        beta=0.1,
        alpha=1.0,
        label_smoothing=0.0,
        compute_nll_loss=True,
        compiled=True,
        average_log_prob=False,
        chunk_size=1,
        softcap=None,
        logit_scale=1.0,
        memory_budget=None,
    ):
        check_label_smoothing(label_smoothing)  # before any work
        return super().forward(
            cls,
            ctx,
            _input,
            weight,
            target,
            bias,
            ignore_index=ignore_index,
            alpha=alpha,
            beta=beta,
            compute_nll_loss=compute_nll_loss,
            average_log_prob=average_log_prob,
            softcap=softcap,
            logit_scale=logit_scale,
            memory_budget=memory_budget,
            label_smoothing=label_smoothing,
        )


liger_fused_linear_cpo = LigerFusedLinearCPOFunction.apply


class LigerFusedLinearCPOLoss(LossModule):
    """CPO of a linear head's hidden states, one pass over the head, logits never in memory.

    Called with the weight first: (lin_weight, _input, target, bias): lin_weight (vocab_size, hidden_size);
    _input (2 * pairs, seq_len, hidden_size), the chosen sequences first, already shifted against target (2 *
    pairs, seq_len), int64 ids or ignore_index; bias (vocab_size,) or None. float32, bfloat16, float16
    (float64 on the CPU). compute_nll_loss: adds alpha times the chosen half's negative log-likelihood.
    average_log_prob: a sequence's log-probability is the mean over its labels, not their sum. softcap,
    logit_scale, memory_budget: see `linear_logprob`. compiled and chunk_size are accepted and change nothing.

    Returns (loss, (chosen_logps, rejected_logps, chosen_logits_mean, rejected_logits_mean, nll_loss,
    chosen_rewards, rejected_rewards)), float32 (float64 for float64). Raises ValueError for wrong shapes or a
    label_smoothing outside [0, 1]. Source: arXiv:2401.08417.
    """

    def __init__(
        self,
        ignore_index=-100,
        beta=0.1,
        alpha=1.0,
        label_smoothing=0.0,
        compute_nll_loss=True,
        compiled=True,
        average_log_prob=False,
        chunk_size=1,
        softcap=None,
        logit_scale=1.0,
        memory_budget=None,
    ):
        super().__init__(locals())
        check_label_smoothing(label_smoothing)

    def forward(self, lin_weight, _input, target, bias=None):
        return LigerFusedLinearCPOFunction.forward(None, _input, lin_weight, target, bias, **self.options())
