"""Direct preference optimisation and its relatives, from the log-probabilities of pairs.

With a = logp(chosen) - ref(chosen), b = logp(rejected) - ref(rejected), s the logistic function, e the label
smoothing and h = beta (a - b), the loss of a pair is

    sigmoid    -(1 - e) log s(h) - e log s(-h)                                              arXiv:2305.18290
    robust     (-(1 - e) log s(h) + e log s(-h)) / (1 - 2 e)                                arXiv:2403.00409
    hinge      max(0, 1 - h)                                                                arXiv:2305.10425
    exo_pair   s(h) (log s(h) - log(1 - e)) + s(-h) (log s(-h) - log e)                     arXiv:2402.00856
    nca_pair   -log s(beta a) - (log s(-beta a) + log s(-beta b)) / 2                       arXiv:2402.05369
    bco_pair   -log s(beta a) - log s(-beta b)                         arXiv:2404.04656, without its shift
    sppo_hard  (a - 1 / (2 beta))^2 + (b + 1 / (2 beta))^2                                  arXiv:2405.00675
    apo_zero   1 - s(beta a) + s(beta b)                                                    arXiv:2408.06266
    apo_down   s(beta a) + 1 - s(h)                                                         arXiv:2408.06266
    discopop   -log s(h) (1 - m) + exp(-h) m,  m = s(h / tau)                               arXiv:2406.08414
"""

import math

import torch.nn.functional as F

from ._loss_module import LossModule
from .fused_linear_preference import LigerFusedLinearPreferenceBase

__all__ = ["LigerFusedLinearDPOLoss"]
FUNCTIONAL = ("liger_fused_linear_dpo",)


# per pair: a, b, beta, label smoothing, tau -> the loss
def _sigmoid(a, b, beta, e, tau):
    h = beta * (a - b)
    return -(1 - e) * F.logsigmoid(h) - e * F.logsigmoid(-h)


def _robust(a, b, beta, e, tau):
    h = beta * (a - b)
    return (-(1 - e) * F.logsigmoid(h) + e * F.logsigmoid(-h)) / (1 - 2 * e)


def _hinge(a, b, beta, e, tau):
    return F.relu(1 - beta * (a - b))


def _exo_pair(a, b, beta, e, tau):
    h = beta * (a - b)
    win = F.logsigmoid(h) - math.log1p(-e)
    return h.sigmoid() * win + (-h).sigmoid() * (F.logsigmoid(-h) - math.log(e))


def _nca_pair(a, b, beta, e, tau):
    a, b = beta * a, beta * b
    return -F.logsigmoid(a) - (F.logsigmoid(-a) + F.logsigmoid(-b)) / 2


def _bco_pair(a, b, beta, e, tau):
    return -F.logsigmoid(beta * a) - F.logsigmoid(-beta * b)


def _sppo_hard(a, b, beta, e, tau):
    return (a - 0.5 / beta) ** 2 + (b + 0.5 / beta) ** 2


def _apo_zero(a, b, beta, e, tau):
    return (-beta * a).sigmoid() + (beta * b).sigmoid()


def _apo_down(a, b, beta, e, tau):
    return (beta * a).sigmoid() + (-beta * (a - b)).sigmoid()


def _discopop(a, b, beta, e, tau):
    h = beta * (a - b)
    mix = (h / tau).sigmoid()
    return -F.logsigmoid(h) * (1 - mix) + (-h).exp() * mix


_LOSSES = {
    "sigmoid": _sigmoid,
    "hinge": _hinge,
    "exo_pair": _exo_pair,
    "nca_pair": _nca_pair,
    "robust": _robust,
    "bco_pair": _bco_pair,
    "sppo_hard": _sppo_hard,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "discopop": _discopop,
}


def check_dpo_options(loss_type, label_smoothing, beta=0.1, discopop_tau=0.05):
    """Raises ValueError for an unknown loss_type, and for what it cannot take."""
    if loss_type not in _LOSSES:
        raise ValueError(f"loss_type is {loss_type!r}, expected one of {sorted(_LOSSES)}")
    e = label_smoothing
    allowed = {
        "sigmoid": (0 <= e <= 1, "a number in [0, 1]"),
        "robust": (0 <= e < 0.5, "a number in [0, 0.5)"),
        "exo_pair": (0 < e < 1, "a number in (0, 1); the paper recommends 1e-3"),
    }
    fine, expected = allowed.get(loss_type, (e == 0, "0: this loss has no label smoothing"))
    if not fine:
        raise ValueError(f"label_smoothing is {e} and loss_type {loss_type!r}, expected {expected}")
    if loss_type == "sppo_hard" and beta == 0:
        raise ValueError("beta is 0 and loss_type 'sppo_hard', expected another number")
    if loss_type == "discopop" and not discopop_tau > 0:
        raise ValueError(f"discopop_tau is {discopop_tau}, expected a number above 0")


class LigerFusedLinearDPOFunction(LigerFusedLinearPreferenceBase):
    """`apply(_input, weight, target, ...)` gives the loss and the metrics of `LigerFusedLinearDPOLoss`."""

    @staticmethod
    def preference_loss_fn(
        chosen_logps,
        rejected_logps,
        full_target,
        ref_chosen_logps=None,
        ref_rejected_logps=None,
        beta=0.1,
        loss_type="sigmoid",
        label_smoothing=0.0,
        discopop_tau=0.05,
    ):
        """(loss, chosen_rewards, rejected_rewards) of log-probabilities (pairs,).

        The loss is the sum over the pairs, divided by those of full_target (2 * pairs, ...). A reward is beta
        times the log-ratio to the reference; without one its log-probabilities count as 0.
        """
        check_dpo_options(loss_type, label_smoothing, beta, discopop_tau)
        a = chosen_logps if ref_chosen_logps is None else chosen_logps - ref_chosen_logps
        b = rejected_logps if ref_rejected_logps is None else rejected_logps - ref_rejected_logps
        losses = _LOSSES[loss_type](a, b, beta, label_smoothing, discopop_tau)
        loss = losses.sum() / max(full_target.shape[0] // 2, 1)
        return loss, beta * a.detach(), beta * b.detach()

    @classmethod
    def forward(
        cls,
        ctx,
        _input,
        weight,
        target,
        bias=None,
        ref_input=None,
        ref_weight=None,
        ref_bias=None,
        ignore_index=-100,
        beta=0.1,
        compute_nll_loss=False,
        compiled=True,
        use_ref_model=True,
        average_log_prob=False,
        chunk_size=1,
        loss_type="sigmoid",
        label_smoothing=0.0,
        discopop_tau=0.05,
        alpha=1.0,
        ref_chosen_logps=None,
        ref_rejected_logps=None,
        softcap=None,
        logit_scale=1.0,
        memory_budget=None,
    ):
        check_dpo_options(loss_type, label_smoothing, beta, discopop_tau)  # before any work
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
            use_ref_model=use_ref_model,
            ref_input=ref_input,
            ref_weight=ref_weight,
            ref_bias=ref_bias,
            average_log_prob=average_log_prob,
            ref_chosen_logps=ref_chosen_logps,
            ref_rejected_logps=ref_rejected_logps,
            softcap=softcap,
            logit_scale=logit_scale,
            memory_budget=memory_budget,
            loss_type=loss_type,
            label_smoothing=label_smoothing,
            discopop_tau=discopop_tau,
        )


liger_fused_linear_dpo = LigerFusedLinearDPOFunction.apply


class LigerFusedLinearDPOLoss(LossModule):
    """DPO of a linear head's hidden states, one pass over the head of each model, logits never in memory.

    Called with the weight first: (lin_weight, _input, target, bias, ref_input, ref_weight, ref_bias), and
    ref_chosen_logps, ref_rejected_logps (pairs,) instead of the reference's states and head. lin_weight:
    (vocab_size, hidden_size); _input: (2 * pairs, seq_len, hidden_size), the chosen sequences first, already
    shifted against target (2 * pairs, seq_len), int64 ids or ignore_index; bias: (vocab_size,) or None.
    float32, bfloat16, float16 (float64 on the CPU).

    loss_type: see the equations of this module. average_log_prob: a sequence's log-probability is the mean
    over its labels, not their sum. compute_nll_loss: adds alpha times the chosen half's negative
    log-likelihood, from the same pass. use_ref_model: False takes the reference's log-probabilities as 0.
    softcap, logit_scale, memory_budget: see `linear_logprob`. compiled and chunk_size are accepted and change
    nothing. Returns (loss, (chosen_logps, rejected_logps, chosen_logits_mean, rejected_logits_mean, nll_loss,
    chosen_rewards, rejected_rewards)), float32 (float64 for float64); the means are over the positions that
    have a label, nll_loss keeps its graph, the others are detached. A sequence without labels has
    log-probability 0.

    Raises ValueError for an unknown loss_type, a label_smoothing that it cannot take, wrong shapes, a missing
    reference, or one that is not to be used. Source: arXiv:2305.18290; the others stand at the equations.
    """

    _SUPPORTED_LOSS_TYPES = set(_LOSSES)

    def __init__(
        self,
        ignore_index=-100,
        beta=0.1,
        alpha=1.0,
        compute_nll_loss=False,
        compiled=True,
        use_ref_model=True,
        average_log_prob=False,
        chunk_size=1,
        loss_type="sigmoid",
        label_smoothing=0.0,
        discopop_tau=0.05,
        softcap=None,
        logit_scale=1.0,
        memory_budget=None,
    ):
        super().__init__(locals())
        check_dpo_options(loss_type, label_smoothing, beta, discopop_tau)

    def forward(
        self,
        lin_weight,
        _input,
        target,
        bias=None,
        ref_input=None,
        ref_weight=None,
        ref_bias=None,
        ref_chosen_logps=None,
        ref_rejected_logps=None,
    ):
        return LigerFusedLinearDPOFunction.forward(
            None,
            _input,
            lin_weight,
            target,
            bias,
            ref_input,
            ref_weight,
            ref_bias,
            ref_chosen_logps=ref_chosen_logps,
            ref_rejected_logps=ref_rejected_logps,
            **self.options(),
        )
