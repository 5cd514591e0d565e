"""Odds-ratio preference optimisation: likelihood of the chosen answers and the odds ratio to the rejected
ones.

With c and r the mean log-probabilities of a pair and odds(p) = exp(p) / (1 - exp(p)), the loss of a pair is

    -beta log s(log(odds(c) / odds(r)))         plus the chosen half's negative log-likelihood

Source: arXiv:2403.07691.
"""

import torch
import torch.nn.functional as F

from ._loss_module import LossModule
from .fused_linear_preference import LigerFusedLinearPreferenceBase

__all__ = ["LigerFusedLinearORPOLoss"]
FUNCTIONAL = ("liger_fused_linear_orpo",)


def _log_odds(logps):
    """p - log(1 - exp(p)) for p <= 0, with the digits of 1 - exp(p) kept near p = 0."""
    return logps - torch.log(-torch.expm1(logps))


class LigerFusedLinearORPOFunction(LigerFusedLinearPreferenceBase):
    """`apply(_input, weight, target, ...)` gives the loss and the metrics of `LigerFusedLinearORPOLoss`."""

    @staticmethod
    def preference_loss_fn(chosen_logps, rejected_logps, full_target, beta=0.1):
        """(loss, chosen_rewards, rejected_rewards, log_odds_ratio, log_odds_chosen) of mean
        log-probabilities.

        The loss and the last two are sums over the pairs, divided by those of full_target (2 * pairs, ...).
        """
        n_pairs = max(full_target.shape[0] // 2, 1)
        log_odds = _log_odds(chosen_logps) - _log_odds(rejected_logps)
        ratio = F.logsigmoid(log_odds).sum() / n_pairs
        return -beta * ratio, beta * chosen_logps, beta * rejected_logps, ratio, log_odds.sum() / n_pairs

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
        compute_nll_loss=True,
        nll_target=None,
        compiled=True,
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
            bias,
            ignore_index=ignore_index,
            beta=beta,
            compute_nll_loss=compute_nll_loss,
            nll_target=nll_target,
            average_log_prob=True,
            softcap=softcap,
            logit_scale=logit_scale,
            memory_budget=memory_budget,
        )


liger_fused_linear_orpo = LigerFusedLinearORPOFunction.apply


class LigerFusedLinearORPOLoss(LossModule):
    """ORPO of a linear head's hidden states, one pass over the head, logits never in memory.

    Called with the weight first: (lin_weight, _input, target, bias, nll_target): lin_weight (vocab_size,
    hidden_size); _input (2 * pairs, seq_len, hidden_size), the chosen sequences first, already shifted
    against target (2 * pairs, seq_len), int64 ids or ignore_index; bias (vocab_size,) or None; nll_target, of
    target's shape: other labels for the likelihood (the prompt's too, say), of which the chosen half counts.
    float32, bfloat16, float16 (float64 on the CPU). compute_nll_loss: adds the likelihood. softcap,
    logit_scale, memory_budget: see `linear_logprob`. compiled and chunk_size are accepted and change nothing.

    Returns (loss, (chosen_logps, rejected_logps, chosen_logits_mean, rejected_logits_mean, nll_loss,
    chosen_rewards, rejected_rewards, log_odds_ratio, log_odds_chosen)), float32 (float64 for float64). Raises
    ValueError for wrong shapes. Source: arXiv:2403.07691.
    """

    def __init__(
        self,
        ignore_index=-100,
        beta=0.1,
        compute_nll_loss=True,
        compiled=True,
        chunk_size=1,
        softcap=None,
        logit_scale=1.0,
        memory_budget=None,
    ):
        super().__init__(locals())

    def forward(self, lin_weight, _input, target, bias=None, nll_target=None):
        return LigerFusedLinearORPOFunction.forward(
            None, _input, lin_weight, target, bias, nll_target=nll_target, **self.options()
        )
