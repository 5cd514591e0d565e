"""The terms of the policy-gradient losses: plain functions of log-probabilities, ratios, advantages and
masks.

grpo_loss.py has the equations and puts them together.
"""

import math

import torch
import torch.distributed as dist

_CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
_TOKEN_LEVEL = ("cispo", "sapo", "vespo")
LOSS_TYPES = _CLIPPED + _TOKEN_LEVEL


# what check_grpo_options looks at
CHECKED = (
    *("loss_type", "importance_sampling_level", "max_completion_length", "delta"),
    *("sapo_temperature_pos", "sapo_temperature_neg"),
)


def check_grpo_options(
    loss_type,
    importance_sampling_level,
    max_completion_length,
    delta,
    sapo_temperature_pos,
    sapo_temperature_neg,
):
    """Raises ValueError for an option out of its range and for options that do not go together."""
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"loss_type is {loss_type!r}, expected one of {LOSS_TYPES}")
    if importance_sampling_level not in ("token", "sequence"):
        raise ValueError(
            f"importance_sampling_level is {importance_sampling_level!r}, expected 'token' or 'sequence'"
        )
    if importance_sampling_level == "sequence" and loss_type in _TOKEN_LEVEL:
        raise ValueError(f"importance_sampling_level is 'sequence', expected 'token' for {loss_type!r}")
    if loss_type == "dr_grpo" and not (max_completion_length or 0) > 0:
        raise ValueError(
            f"max_completion_length is {max_completion_length}, expected a number above 0 for 'dr_grpo'"
        )
    if delta is not None and not delta > 0:
        raise ValueError(f"delta is {delta}, expected None or a number above 0")
    if delta is not None and loss_type in _TOKEN_LEVEL:
        raise ValueError(f"delta is {delta}, expected None for {loss_type!r}, which does not clip by it")
    for name, tau in (("pos", sapo_temperature_pos), ("neg", sapo_temperature_neg)):
        if loss_type == "sapo" and not tau > 0:
            raise ValueError(f"sapo_temperature_{name} is {tau}, expected a number above 0")


def k3_loss_fn(log_p, log_q):
    """exp(d) - d - 1 with d = log_p - log_q: over samples of q the mean is KL(q || p), with no negative
    terms.

    Source: http://joschu.net/blog/kl-approx.html.
    """
    d = log_p - log_q
    return torch.expm1(d) - d  # exact for small d, where exp(d) - 1 has lost its digits


def sapo_loss_fn(importance_ratio, temperature):
    """4 / tau s(tau (r - 1)): the soft gate of arXiv:2511.20347, of slope 1 at r = 1."""
    if not isinstance(temperature, torch.Tensor) and not temperature > 0:
        raise ValueError(f"temperature is {temperature}, expected a number above 0")
    return torch.sigmoid(temperature * (importance_ratio - 1)) * 4 / temperature


def clip_coef_fn(coef, epsilon_low, epsilon_high, loss_type):
    """The clipped ratio, and where it was clipped below and above.

    "cispo" takes epsilon_high as the bound itself and has no lower one; "sapo" and "vespo" do not clip.
    """
    nowhere = torch.zeros_like(coef, dtype=torch.bool)
    if loss_type in ("sapo", "vespo"):
        return None, nowhere, nowhere
    if loss_type == "cispo":
        return coef.clamp(max=epsilon_high).detach(), nowhere, coef > epsilon_high
    low, high = 1 - epsilon_low, 1 + epsilon_high
    return coef.clamp(low, high), coef < low, coef > high


@torch.no_grad()
def get_gamma_weights(
    advantages,
    log_ratio_per_token,
    mask,
    importance_sampling_ratio=None,
    k_pos=2.0,
    lambda_pos=3.0,
    k_neg=3.0,
    lambda_neg=2.0,
):
    """vespo's weights phi(w) = exp(lambda) w^k exp(-lambda w), (batch, 1) or the advantages' shape.

    advantages: (batch,), (batch, 1) or (batch, seq_len), whose sign chooses k and lambda;
    log_ratio_per_token, mask: (batch, seq_len); importance_sampling_ratio: the sampler's ratios (batch,),
    (batch, 1), which count once, or (batch, seq_len), summed over the mask.
    """
    floor = math.log(1e-8)
    advantages = per_token(advantages)
    log_w = (log_ratio_per_token.clamp(-20.0, 20.0) * mask).sum(-1, keepdim=True)
    if importance_sampling_ratio is not None:
        log_is = sampler_ratio(importance_sampling_ratio, mask != 0).log()
        log_w = log_w + log_is.clamp(floor, 20.0).sum(-1, keepdim=True)
    log_w = log_w.clamp(floor, 20.0)
    positive = advantages >= 0
    k = choose(positive, k_pos, k_neg, log_w)
    lam = choose(positive, lambda_pos, lambda_neg, log_w).clamp(min=1e-4)
    return (lam + k * log_w - lam * log_w.exp()).exp().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def off_policy_mask(advantages, log_ratio, mask, threshold):
    """1 for a sequence to keep, 0 for one to drop: A < 0 and its mean of -log_ratio above the threshold.

    log_ratio: (batch, seq_len), the policy's log-probability less that of the policy that sampled.
    """
    drift = -(log_ratio * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    return ((advantages >= 0) | (drift <= threshold)).to(log_ratio.dtype)


def per_token(t):
    """(batch,) as (batch, 1), which broadcasts over the tokens."""
    return t.unsqueeze(-1) if t.dim() == 1 else t


def choose(condition, yes, no, like):
    """torch.where of two numbers, in the dtype of `like`: by itself it makes them float32."""
    return torch.where(condition, torch.full((), yes, dtype=like.dtype, device=like.device), no)


def sampler_ratio(vllm_is_ratio, inside):
    """vllm_is_ratio as (batch, 1) or (batch, seq_len), there 1 outside the mask; or ValueError."""
    batch, seq_len = inside.shape
    ratio = per_token(vllm_is_ratio)
    if tuple(ratio.shape) not in ((batch, 1), (batch, seq_len)):
        raise ValueError(
            f"vllm_is_ratio has shape {tuple(vllm_is_ratio.shape)}, expected one per sequence ({batch},) or "
            f"({batch}, 1), or per token ({batch}, {seq_len})"
        )
    return torch.where(inside, ratio, 1.0) if ratio.shape == inside.shape else ratio


def _tokens_per_process(num_items_in_batch, mask):
    """The tokens of all processes, divided by the processes, since their gradients are averaged later."""
    n_processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    n_tokens = num_items_in_batch
    if n_tokens is None:
        n_tokens = mask.sum()
        if n_processes > 1:
            dist.all_reduce(n_tokens)
    at_least_1 = n_tokens.clamp(min=1) if isinstance(n_tokens, torch.Tensor) else max(n_tokens, 1)
    return at_least_1 / n_processes


def reduce_losses(losses, mask, full_mask, loss_type, max_completion_length, num_items_in_batch):
    batch = max(full_mask.shape[0], 1)
    by_sequence = (losses * mask).sum(-1)
    if loss_type in ("grpo", "sapo"):
        return (by_sequence / mask.sum(-1).clamp(min=1)).sum() / batch
    if loss_type == "bnpo":
        return by_sequence.sum() / full_mask.sum().clamp(min=1)
    if loss_type == "dr_grpo":
        return by_sequence.sum() / (batch * max_completion_length)
    if loss_type == "luspo":
        return by_sequence.sum() / batch
    return by_sequence.sum() / _tokens_per_process(num_items_in_batch, full_mask)
