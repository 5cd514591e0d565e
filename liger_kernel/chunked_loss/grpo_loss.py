"""Group-relative policy optimisation and its relatives, from the log-probabilities of sampled tokens.

Per token, with p the policy's log-probability, A the advantage, m the mask, n = sum_t m the length of a
sequence and

    r = exp(p - old)                       importance_sampling_level "token"
    r = exp(sum_t m (p - old) / n)         "sequence": one ratio for all tokens of a sequence

    grpo, bnpo, dr_grpo, dapo, luspo   l = -min(min(r, delta) A, clip(r, 1 - eps_low, 1 + eps_high) A)
    cispo                              l = -min(r, eps_high) A p                   the ratio as a constant
    sapo                               l = -4 / tau s(tau (r - 1)) A               tau by the sign of A
    vespo                              l = -phi(w) A p                             the weight as a constant
        w = exp(sum_t m (p - old)) times the sampler's ratios,  phi(w) = exp(lambda) w^k exp(-lambda w)

then l <- l * keep * vllm_is_ratio + beta * kl, where keep drops sequences that are off policy, kl = exp(d) -
d - 1 with d = ref - p, times r if its bias is corrected. The loss is

    grpo, sapo              mean over the sequences of sum_t m l / n
    bnpo                    sum m l / sum m
    dr_grpo                 sum m l / (batch * max_completion_length)
    luspo                   mean over the sequences of sum_t m l
    dapo, cispo, vespo      sum m l / (tokens of all processes / processes)

Sources: arXiv:2402.03300 (grpo, kl), 2503.20783 (dr_grpo), 2503.14476 (dapo), 2507.18071 (sequence level),
2506.13585 (cispo), 2511.20347 (sapo), 2602.05261 (luspo), 2602.10693 (vespo), 2505.07291 (delta), 2512.02556
(bias-corrected kl, off-policy mask).
"""

import torch

from ._grpo_terms import (
    CHECKED,
    check_grpo_options,
    choose,
    clip_coef_fn,
    get_gamma_weights,
    k3_loss_fn,
    off_policy_mask,
    per_token,
    reduce_losses,
    sampler_ratio,
    sapo_loss_fn,
)
from ._loss_module import LossModule
from .fused_linear_ppo import LigerFusedLinearPPOBase

__all__ = ["LigerFusedLinearGRPOLoss"]
FUNCTIONAL = ("liger_fused_linear_grpo",)


class LigerFusedLinearGRPOFunction(LigerFusedLinearPPOBase):
    """`apply(_input, weight, selected_token_ids, ...)` gives what `LigerFusedLinearGRPOLoss` gives."""

    @staticmethod
    def ppo_loss_fn(
        per_token_logps,
        attention_mask,
        advantages,
        full_attention_mask,
        ref_per_token_logps=None,
        old_per_token_logps=None,
        epsilon_low=0.2,
        epsilon_high=0.2,
        beta=0.04,
        loss_type="dapo",
        max_completion_length=None,
        importance_sampling_level="token",
        sapo_temperature_pos=1.0,
        sapo_temperature_neg=1.05,
        vllm_is_ratio=None,
        delta=None,
        use_bias_correction_kl=False,
        vespo_k_pos=2.0,
        vespo_lambda_pos=3.0,
        vespo_k_neg=3.0,
        vespo_lambda_neg=2.0,
        num_items_in_batch=None,
        off_policy_mask_threshold=None,
        sampling_per_token_logps=None,
        **kwargs,
    ):
        """(loss, [mean KL, if beta is not 0, clip ratio]) of log-probabilities (batch, seq_len).

        attention_mask is these sequences' mask, full_attention_mask that of the whole batch, by which the
        loss and the metrics are normalised. Where the mask is 0 nothing else counts, not even a NaN.
        """
        check_grpo_options(
            loss_type,
            importance_sampling_level,
            max_completion_length,
            delta,
            sapo_temperature_pos,
            sapo_temperature_neg,
        )
        inside = attention_mask != 0
        per_token_logps = torch.where(inside, per_token_logps, 0.0)
        mask, full_mask = (m.to(per_token_logps.dtype) for m in (attention_mask, full_attention_mask))

        def log_ratio_to(other):
            """p - other, 0 outside the mask; None stands for p itself, as a constant."""
            other = per_token_logps if other is None else other
            return torch.where(inside, per_token_logps - other.detach(), 0.0)

        advantages = per_token(advantages).to(per_token_logps.dtype)
        log_ratio = log_ratio_to(old_per_token_logps)
        if importance_sampling_level == "sequence":
            mean = (log_ratio * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
            ratio = mean.exp()
        else:
            ratio = log_ratio.exp()

        clipped, too_low, too_high = clip_coef_fn(ratio, epsilon_low, epsilon_high, loss_type)
        if loss_type == "cispo":
            losses = -clipped * advantages * per_token_logps
        elif loss_type == "sapo":
            tau = choose(advantages > 0, sapo_temperature_pos, sapo_temperature_neg, ratio)
            losses = -sapo_loss_fn(ratio, tau) * advantages
        elif loss_type == "vespo":
            gamma = (vespo_k_pos, vespo_lambda_pos, vespo_k_neg, vespo_lambda_neg)
            phi = get_gamma_weights(advantages, log_ratio, mask, vllm_is_ratio, *gamma)
            losses = -phi * advantages * per_token_logps
        else:
            bounded = ratio if delta is None else ratio.clamp(max=delta)
            losses = -torch.min(bounded * advantages, clipped * advantages)

        if off_policy_mask_threshold is not None:
            sampled = old_per_token_logps if sampling_per_token_logps is None else sampling_per_token_logps
            drift = log_ratio_to(sampled).detach()
            losses = losses * off_policy_mask(advantages, drift, mask, off_policy_mask_threshold)
        if vllm_is_ratio is not None and loss_type != "vespo":
            losses = losses * sampler_ratio(vllm_is_ratio, inside)

        metrics = []
        n_tokens = full_mask.sum().clamp(min=1)
        if beta != 0:
            kl = k3_loss_fn(-log_ratio_to(ref_per_token_logps), 0.0)
            if use_bias_correction_kl:
                kl = kl * ratio
            losses = losses + beta * kl
            metrics.append((kl.detach() * mask).sum() / n_tokens)
        hit = (too_low & (advantages < 0)) | (too_high & (advantages > 0))
        metrics.append((hit * mask).sum() / n_tokens)
        loss = reduce_losses(losses, mask, full_mask, loss_type, max_completion_length, num_items_in_batch)
        return loss, metrics

    @classmethod
    def forward(
        cls,
        ctx,
        _input,
        weight,
        selected_token_ids,
        attention_mask,
        advantages,
        bias=None,
        ref_per_token_logps=None,
        old_per_token_logps=None,
        ref_input=None,
        ref_weight=None,
        ref_bias=None,
        beta=0.04,
        epsilon_low=0.2,
        epsilon_high=0.2,
        loss_type="dapo",
        max_completion_length=None,
        importance_sampling_level="token",
        sapo_temperature_pos=1.0,
        sapo_temperature_neg=1.05,
        temperature=1.0,
        compiled=True,
        use_ref_model=True,
        chunk_size=1,
        vllm_is_ratio=None,
        delta=None,
        use_bias_correction_kl=False,
        vespo_k_pos=2.0,
        vespo_lambda_pos=3.0,
        vespo_k_neg=3.0,
        vespo_lambda_neg=2.0,
        num_items_in_batch=None,
        off_policy_mask_threshold=None,
        sampling_per_token_logps=None,
        softcap=None,
        logit_scale=1.0,
        memory_budget=None,
    ):
        check_grpo_options(  # before any work
            loss_type,
            importance_sampling_level,
            max_completion_length,
            delta,
            sapo_temperature_pos,
            sapo_temperature_neg,
        )
        return LigerFusedLinearPPOBase.forward(
            cls,
            ctx,
            _input,
            weight,
            selected_token_ids,
            attention_mask,
            advantages,
            bias,
            ref_per_token_logps,
            old_per_token_logps,
            ref_input,
            ref_weight,
            ref_bias,
            epsilon_low,
            epsilon_high,
            beta,
            loss_type,
            max_completion_length,
            importance_sampling_level,
            temperature,
            use_ref_model=use_ref_model,
            sapo_temperature_pos=sapo_temperature_pos,
            sapo_temperature_neg=sapo_temperature_neg,
            vllm_is_ratio=vllm_is_ratio,
            delta=delta,
            use_bias_correction_kl=use_bias_correction_kl,
            vespo_k_pos=vespo_k_pos,
            vespo_lambda_pos=vespo_lambda_pos,
            vespo_k_neg=vespo_k_neg,
            vespo_lambda_neg=vespo_lambda_neg,
            num_items_in_batch=num_items_in_batch,
            off_policy_mask_threshold=off_policy_mask_threshold,
            sampling_per_token_logps=sampling_per_token_logps,
            softcap=softcap,
            logit_scale=logit_scale,
            memory_budget=memory_budget,
        )


liger_fused_linear_grpo = LigerFusedLinearGRPOFunction.apply


class LigerFusedLinearGRPOLoss(LossModule):
    """GRPO of a linear head's hidden states, one pass over the head of each model, logits never in memory.

    Called with _input (batch, seq_len, hidden_size), the states that predict selected_token_ids (batch,
    seq_len); lin_weight (vocab_size, hidden_size); attention_mask (batch, seq_len), 0 where a token does not
    count; advantages (batch,), or per token; bias (vocab_size,) or None; old_per_token_logps (batch,
    seq_len), None where the policy has not moved since it sampled; the reference by ref_per_token_logps, or
    by ref_input, ref_weight and ref_bias; vllm_is_ratio (batch,), (batch, 1) or (batch, seq_len);
    num_items_in_batch, the tokens of all processes for dapo, cispo and vespo (None: counted, with an
    all-reduce where torch.distributed runs). float32, bfloat16, float16 (float64 on the CPU).

    The options are those of the equations of this module, with their names there. temperature divides the
    logits of both models. beta: the weight of the KL term; without use_ref_model that term is 0.
    off_policy_mask_threshold: drops sequences of negative advantage whose mean of sampling_per_token_logps
    (else old_per_token_logps) less p is above it. softcap, logit_scale, memory_budget: see `linear_logprob`.
    compiled and chunk_size are accepted and change nothing.

    Returns (loss, (mean KL, if beta is not 0, clip ratio)), float32 (float64 for float64); the metrics are
    means over the tokens of the mask and detached. An empty mask gives 0. Raises ValueError for an unknown or
    contradictory option, wrong shapes, a missing reference, or one that is not to be used. Source:
    arXiv:2402.03300; the others stand at the equations.
    """

    def __init__(
        self,
        beta=0.04,
        compiled=True,
        use_ref_model=True,
        chunk_size=1,
        epsilon_low=0.2,
        epsilon_high=0.2,
        loss_type="dapo",
        max_completion_length=None,
        importance_sampling_level="token",
        sapo_temperature_pos=1.0,
        sapo_temperature_neg=1.05,
        temperature=1.0,
        delta=None,
        use_bias_correction_kl=False,
        vespo_k_pos=2.0,
        vespo_lambda_pos=3.0,
        vespo_k_neg=3.0,
        vespo_lambda_neg=2.0,
        off_policy_mask_threshold=None,
        softcap=None,
        logit_scale=1.0,
        memory_budget=None,
    ):
        super().__init__(locals())
        check_grpo_options(**{name: getattr(self, name) for name in CHECKED})

    def forward(
        self,
        _input,
        lin_weight,
        selected_token_ids,
        attention_mask,
        advantages,
        bias=None,
        ref_per_token_logps=None,
        old_per_token_logps=None,
        ref_input=None,
        ref_weight=None,
        ref_bias=None,
        vllm_is_ratio=None,
        num_items_in_batch=None,
        sampling_per_token_logps=None,
    ):
        return LigerFusedLinearGRPOFunction.forward(
            None,
            _input,
            lin_weight,
            selected_token_ids,
            attention_mask,
            advantages,
            bias,
            ref_per_token_logps,
            old_per_token_logps,
            ref_input,
            ref_weight,
            ref_bias,
            vllm_is_ratio=vllm_is_ratio,
            num_items_in_batch=num_items_in_batch,
            sampling_per_token_logps=sampling_per_token_logps,
            **self.options(),
        )
