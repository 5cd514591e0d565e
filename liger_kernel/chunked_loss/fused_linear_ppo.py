"""What the policy-gradient losses share: log-probabilities of sampled tokens from one pass over the head."""

import warnings

import torch

from ..ops.linear_logprob import linear_logprob
from .fused_linear_preference import Applied, check_heads

IGNORED = -100


def check_completions(_input, selected_token_ids, attention_mask, advantages):
    """Raises ValueError where the shapes do not belong to one batch of completions."""
    if _input.dim() != 3:
        raise ValueError(f"_input has shape {tuple(_input.shape)}, expected (batch, seq_len, hidden_size)")
    shape = tuple(_input.shape[:2])
    for name, t in (("selected_token_ids", selected_token_ids), ("attention_mask", attention_mask)):
        if tuple(t.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(t.shape)}, expected {shape} as _input")
    if tuple(advantages.shape) not in ((shape[0],), (shape[0], 1), shape):
        raise ValueError(
            f"advantages has shape {tuple(advantages.shape)}, expected one per sequence ({shape[0]},) "
            f"or per token {shape}"
        )


def _takes_states(use_ref_model, ref_per_token_logps, ref_input, ref_weight):
    """Whether the reference's log-probabilities are still to be made, from its states and head."""
    by_logps, by_states = ref_per_token_logps is not None, ref_input is not None
    if not use_ref_model and (by_logps or by_states):
        raise ValueError("a reference model is given and use_ref_model is False")
    if use_ref_model and not by_logps and (ref_input is None or ref_weight is None):
        raise ValueError(
            "use_ref_model is True and beta is not 0: expected ref_per_token_logps, "
            "or ref_input and ref_weight"
        )
    if by_logps and by_states:
        warnings.warn("ref_per_token_logps and ref_input are given: ref_input is not used", stacklevel=4)
    return by_states and not by_logps


class LigerFusedLinearPPOBase(Applied):
    """To be subclassed: the subclass says in `ppo_loss_fn` what the loss of the log-probabilities is.

    `forward` returns (loss, tuple of metrics), both as `ppo_loss_fn` gave them.
    """

    @staticmethod
    def ppo_loss_fn(*args, **kwargs):
        """(per_token_logps, attention_mask, advantages, full_attention_mask, ...) by keyword.

        Returns the loss and a list of metrics. full_attention_mask is the mask of the whole batch, by which
        the loss is normalised; here the two are the same tensor.
        """
        raise NotImplementedError("ppo_loss_fn: a subclass of LigerFusedLinearPPOBase defines it")

    @staticmethod
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
        epsilon_low=0.2,
        epsilon_high=0.2,
        beta=0.04,
        loss_type="dapo",
        max_completion_length=None,
        importance_sampling_level="token",
        temperature=1.0,
        compiled=True,
        use_ref_model=False,
        chunk_size=1,
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
        softcap=None,
        logit_scale=1.0,
        memory_budget=None,
        **loss_kwargs,
    ):
        """The subclass's loss of the log-probabilities of selected_token_ids, and its metrics.

        _input: (batch, seq_len, hidden_size), the states that predict selected_token_ids (batch, seq_len);
        weight: (vocab_size, hidden_size); bias: (vocab_size,) or None; attention_mask: (batch, seq_len), 0
        where a token does not count, and there nothing of it is read. The logits are scaled by logit_scale,
        capped at softcap and divided by temperature, the reference's too. With use_ref_model the reference is
        given by ref_per_token_logps (batch, seq_len), or by ref_input and ref_weight (its states and head,
        which get no gradient); it is needed only where beta is not 0. compiled and chunk_size are accepted
        and change nothing. softcap, logit_scale, memory_budget: see `linear_logprob`.
        """
        check_completions(_input, selected_token_ids, attention_mask, advantages)
        check_heads(weight, ref_weight)
        ids = selected_token_ids.masked_fill(attention_mask == 0, IGNORED)
        options = dict(
            temperature=temperature,
            softcap=softcap,
            logit_scale=logit_scale,
            ignore_index=IGNORED,
            memory_budget=memory_budget,
        )
        # the reference first: its logits are gone before those of the policy are kept
        if beta != 0 and _takes_states(use_ref_model, ref_per_token_logps, ref_input, ref_weight):
            with torch.no_grad():
                ref_per_token_logps = linear_logprob(ref_input, ref_weight, ids, ref_bias, **options).logprob
        per_token_logps = linear_logprob(_input, weight, ids, bias, **options).logprob
        loss, metrics = cls.ppo_loss_fn(
            per_token_logps=per_token_logps,
            attention_mask=attention_mask,
            advantages=advantages,
            full_attention_mask=attention_mask,
            ref_per_token_logps=ref_per_token_logps,
            old_per_token_logps=old_per_token_logps,
            epsilon_low=epsilon_low,
            epsilon_high=epsilon_high,
            beta=beta,
            loss_type=loss_type,
            max_completion_length=max_completion_length,
            importance_sampling_level=importance_sampling_level,
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
            **loss_kwargs,
        )
        return loss, tuple(metrics)
