"""Simple preference optimisation: SimPO on mean log-probabilities, with a margin.

With h = beta (c - r) - gamma, c and r the mean log-probabilities of a pair and e the label smoothing, the
loss of a pair is

    -(1 - e) log s(h) - e log s(-h)         plus alpha times the chosen half's negative log-likelihood

Source: arXiv:2405.14734.
"""

from ._loss_module import LossModule
from .cpo_loss import check_label_smoothing, smoothed_logsigmoid
from .fused_linear_preference import LigerFusedLinearPreferenceBase

__all__ = ["LigerFusedLinearSimPOLoss"]
FUNCTIONAL = ("liger_fused_linear_simpo",)


class LigerFusedLinearSimPOFunction(LigerFusedLinearPreferenceBase):
    """`apply(_input, weight, target, ...)` gives the loss and the metrics of `LigerFusedLinearSimPOLoss`."""

    @staticmethod
    def preference_loss_fn(
        chosen_logps, rejected_logps, full_target, beta=0.1, gamma=0.5, label_smoothing=0.0
    ):
        """(loss, chosen_rewards, rejected_rewards) of mean log-probabilities (pairs,).

        The loss is the sum over the pairs, divided by those of full_target (2 * pairs, ...).
        """
        check_label_smoothing(label_smoothing)
        losses = smoothed_logsigmoid(beta * (chosen_logps - rejected_logps) - gamma, label_smoothing)
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
        compute_nll_loss=False,
        compiled=True,
        gamma=0.5,
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
            average_log_prob=True,
            softcap=softcap,
            logit_scale=logit_scale,
            memory_budget=memory_budget,
            gamma=gamma,
            label_smoothing=label_smoothing,
        )


liger_fused_linear_simpo = LigerFusedLinearSimPOFunction.apply


class LigerFusedLinearSimPOLoss(LossModule):
    """SimPO of a linear head's hidden states, one pass over the head, logits never in memory.

    Called with the weight first: (lin_weight, _input, target, bias): lin_weight (vocab_size, hidden_size);
    _input (2 * pairs, seq_len, hidden_size), the chosen sequences first, already shifted against target (2 *
    pairs, seq_len), int64 ids or ignore_index; bias (vocab_size,) or None. float32, bfloat16, float16
    (float64 on the CPU). compute_nll_loss: adds alpha times the chosen half's negative log-likelihood.
    gamma: the margin of h. softcap,
    logit_scale, memory_budget: see `linear_logprob`. compiled and chunk_size are accepted and change nothing.

    Returns (loss, (chosen_logps, rejected_logps, chosen_logits_mean, rejected_logits_mean, nll_loss,
    chosen_rewards, rejected_rewards)), float32 (float64 for float64). Raises ValueError for wrong shapes or a
    label_smoothing outside [0, 1]. Source: arXiv:2405.14734.
    """

    def __init__(
        self,
        ignore_index=-100,
        beta=0.1,
        alpha=1.0,
        label_smoothing=0.0,
        compute_nll_loss=True,
        compiled=True,
        gamma=0.5,
        chunk_size=1,
        softcap=None,
        logit_scale=1.0,
        memory_budget=None,
    ):
        super().__init__(locals())
        check_label_smoothing(label_smoothing)

    def forward(self, lin_weight, _input, target, bias=None):
        return LigerFusedLinearSimPOFunction.forward(None, _input, lin_weight, target, bias, **self.options())
