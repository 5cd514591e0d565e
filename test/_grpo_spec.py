"""GRPO in plain PyTorch, as the papers write it, and the samples on which ours is held to it.

The references make all logits, take log_softmax, and loop over nothing clever: sums and means as defined. In
float64 they are the truth, in the tested dtype the bar (liger_kernel/_check.py).
"""

import math

import torch
from _dpo_spec import logits_of, logps_of

from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss
from liger_kernel.ops._spec import OpSpec, Sample, T


def grpo_ref(
    x,
    weight,
    ids,
    mask,
    advantages,
    bias=None,
    ref_logps=None,
    old_logps=None,
    ref_input=None,
    ref_weight=None,
    ref_bias=None,
    vllm_is_ratio=None,
    num_items_in_batch=None,
    sampling_logps=None,
    beta=0.04,
    use_ref_model=True,
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
    """As TRL's _compute_loss (1.12) writes it, with the reduction of each paper."""
    how = temperature, softcap, logit_scale
    p = logps_of(logits_of(x, weight, bias, *how), ids)
    if ref_input is not None:
        with torch.no_grad():
            ref_logps = logps_of(logits_of(ref_input, ref_weight, ref_bias, *how), ids)
    a = advantages[:, None] if advantages.dim() == 1 else advantages
    m = (mask > 0).to(p.dtype)  # a drawn mask is 1 or -100
    lengths = m.sum(-1, keepdim=True).clamp(min=1)
    old = p.detach() if old_logps is None else old_logps
    is_ratio = None if vllm_is_ratio is None else vllm_is_ratio.reshape(len(x), -1)
    r = torch.exp(p - old)
    if importance_sampling_level == "sequence":
        r = torch.exp(((p - old) * m).sum(-1, keepdim=True) / lengths)
    hit = torch.zeros_like(p)
    if loss_type == "cispo":
        loss = -torch.clamp(r, max=epsilon_high).detach() * a * p
        hit = (r > epsilon_high) & (a > 0)
    elif loss_type == "sapo":
        tau = sapo_temperature_neg + (sapo_temperature_pos - sapo_temperature_neg) * (a > 0).to(p.dtype)
        loss = -(4 / tau) * torch.sigmoid(tau * (r - 1)) * a
    elif loss_type == "vespo":
        with torch.no_grad():
            log_w = ((p - old) * m).sum(-1, keepdim=True)
            if is_ratio is not None:
                weights = is_ratio.log() * m if is_ratio.shape == m.shape else is_ratio.log()
                log_w = log_w + weights.sum(-1, keepdim=True)
            log_w = log_w.clamp(math.log(1e-8), 20.0)
            up = (a >= 0).to(p.dtype)
            k = up * vespo_k_pos + (1 - up) * vespo_k_neg
            lam = up * vespo_lambda_pos + (1 - up) * vespo_lambda_neg
            phi = torch.exp(lam + k * log_w - lam * torch.exp(log_w))
        loss = -phi * a * p
    else:
        clipped = torch.clamp(r, 1 - epsilon_low, 1 + epsilon_high)
        bounded = r if delta is None else torch.clamp(r, max=delta)
        loss = -torch.minimum(bounded * a, clipped * a)
        hit = ((r < 1 - epsilon_low) & (a < 0)) | ((r > 1 + epsilon_high) & (a > 0))
    if off_policy_mask_threshold is not None:
        sampled = old if sampling_logps is None else sampling_logps
        drift = ((sampled - p.detach()) * m).sum(-1, keepdim=True) / lengths
        loss = loss * ((a >= 0) | (drift <= off_policy_mask_threshold))
    if is_ratio is not None and loss_type != "vespo":
        loss = loss * is_ratio
    metrics = []
    if beta != 0:
        gap = (p.detach() - p) + (0 if ref_logps is None else ref_logps - p.detach())
        kl = torch.exp(gap) - gap - 1
        kl = kl * r if use_bias_correction_kl else kl
        loss = loss + beta * kl
        metrics.append((kl.detach() * m).sum() / m.sum().clamp(min=1))
    metrics.append((hit * m).sum() / m.sum().clamp(min=1))
    if loss_type in ("grpo", "sapo"):
        value = ((loss * m).sum(-1) / lengths[:, 0]).mean()
    elif loss_type == "luspo":
        value = (loss * m).sum(-1).mean()
    elif loss_type == "dr_grpo":
        value = (loss * m).sum() / (len(x) * max_completion_length)
    else:
        count = m.sum() if num_items_in_batch is None or loss_type == "bnpo" else num_items_in_batch
        value = (loss * m).sum() / max(count, 1)
    return value, *metrics


def grpo_call(x, weight, ids, mask, advantages, bias=None, ref_logps=None, old_logps=None, **options):
    """(module, positional, keywords) of the call that a sample describes. A drawn mask is 1 or -100."""
    calls = ("ref_input", "ref_weight", "ref_bias", "vllm_is_ratio", "num_items_in_batch")
    given = {k: options.pop(k) for k in calls if k in options}
    given["sampling_per_token_logps"] = options.pop("sampling_logps", None)
    module = LigerFusedLinearGRPOLoss(**options)
    mask = (mask > 0).long()
    return module, (x, weight, ids, mask, advantages, bias, ref_logps, old_logps), given


def grpo(**args):
    module, positional, keywords = grpo_call(**args)
    loss, metrics = module(*positional, **keywords)
    return loss, *metrics


def grpo_sample(name, batch=4, seq_len=6, h=16, v=45, ref="logps", old=True, ratio=(), masked=0.3, **options):
    near = dict(kind="fp32", grad=False, scale=0.4, mean=-math.log(v))
    args = {
        "x": T((batch, seq_len, h)),
        "weight": T((v, h), "w", scale=0.1),
        "ids": T((batch, seq_len), "index", grad=False, high=v),
        "mask": T((batch, seq_len), "index", grad=False, low=1, high=2, ignored=masked),
        "advantages": T((batch,), "fp32", grad=False),
        "bias": T((v,), "w", scale=0.1),
        "old_logps": T((batch, seq_len), **near) if old else None,
    }
    if ref == "states":
        args |= {
            "ref_input": T((batch, seq_len, h), grad=False),
            "ref_weight": T((v, h), "w", grad=False, scale=0.1),
            "ref_bias": T((v,), "w", grad=False, scale=0.1),
        }
    elif ref == "logps":
        args["ref_logps"] = T((batch, seq_len), **near)
    if ratio:
        args["vllm_is_ratio"] = T(ratio, "fp32", grad=False, scale=0.2, mean=1.0, positive=True)
    return Sample(name, {**args, **options})


ALL = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo")
CLIPPED = ALL[:5]
_length = {"max_completion_length": 9}
_grpo = grpo_sample("base")


def _of(kind, name, **options):
    return grpo_sample(f"{kind}-{name}", loss_type=kind, **(_length if kind == "dr_grpo" else {}), **options)


GRPO = OpSpec(
    name="grpo",
    fn=grpo,
    ref=grpo_ref,
    samples=(
        *(_of(t, "plain") for t in ALL),
        *(_of(t, "on_policy", old=False, ratio=(4,)) for t in ALL),
        *(_of(t, "no_kl", ref=None, beta=0.0, ratio=(4, 6)) for t in ALL),
        *(_of(t, "ref_states", ref="states", use_bias_correction_kl=True, ratio=(4, 1)) for t in ALL),
        *(_of(t, "no_ref", ref=None, use_ref_model=False) for t in ("dapo", "grpo")),
        *(_of(t, "sequence", importance_sampling_level="sequence", ratio=(4, 6)) for t in CLIPPED),
        *(
            _of(
                t,
                "sequence-delta",
                importance_sampling_level="sequence",
                delta=1.1,
                use_bias_correction_kl=True,
            )
            for t in CLIPPED
        ),
        *(_of(t, "delta", delta=1.1, epsilon_low=0.1, epsilon_high=0.28) for t in CLIPPED),
        _of("sapo", "temperatures", sapo_temperature_pos=0.5, sapo_temperature_neg=2.0),
        _of("vespo", "gammas", vespo_k_pos=1.0, vespo_lambda_pos=2.0, vespo_k_neg=2.5, vespo_lambda_neg=1.5),
        _of("cispo", "high", epsilon_high=0.9, num_items_in_batch=40),
        *(_of(t, "off_policy", off_policy_mask_threshold=0.05) for t in ALL),
        _of("grpo", "sampler", off_policy_mask_threshold=0.0, sampling_logps=_grpo.args["old_logps"]),
        grpo_sample("num_items", num_items_in_batch=31),
        grpo_sample("temperature", temperature=0.7, ref="states", beta=0.5),
        grpo_sample("softcap", softcap=0.3, logit_scale=1.7, ref="states"),
        grpo_sample("one_row_at_a_time", memory_budget=8, ref="states"),
        *(_of(t, "all_masked", masked=1.0, ratio=(4, 6)) for t in ALL),
        grpo_sample("per_token_advantages", advantages=T((4, 6), "fp32", grad=False)),
        grpo_sample("one_token", batch=1, seq_len=1, masked=0.0),
        grpo_sample("wide", batch=3, seq_len=33, h=24, v=1001),
    ),
    options=tuple(
        (grpo_sample(f"{k}", batch=8, **base), grpo_sample(f"{k}", batch=8, **{**base, **changed}))
        for k, (base, changed) in enumerate(
            [({}, {k: v}) for k, v in dict(beta=0.1, epsilon_low=0.05, epsilon_high=0.05, delta=0.9).items()]
            + [({}, {k: v}) for k, v in dict(temperature=0.5, softcap=0.3, logit_scale=0.5).items()]
            + [({}, {"loss_type": t}) for t in ("grpo", "cispo", "sapo", "vespo", "luspo")]
            + [({}, {"importance_sampling_level": "sequence"}), ({}, {"use_bias_correction_kl": True})]
            + [
                ({}, {"num_items_in_batch": 50}),
                ({}, {"off_policy_mask_threshold": 0.0}),
                ({}, {"ratio": (8,)}),
            ]
            + [
                ({}, {"old": False}),
                ({"ref": None, "use_ref_model": False}, {"use_ref_model": True, "ref": "states"}),
            ]
            + [({"loss_type": "sapo"}, {f"sapo_temperature_{s}": 3.0}) for s in ("pos", "neg")]
            + [
                ({"loss_type": "vespo"}, {f"vespo_{k}_{s}": 0.5})
                for k in ("k", "lambda")
                for s in ("pos", "neg")
            ]
            + [({"loss_type": "dr_grpo", **_length}, {"max_completion_length": 12})]
        )
    ),
    errors=(
        (r"^weight has shape \(0, 16\), expected .* sharded head", {"weight": T((0, 16), "w")}),
        (r"loss_type is 'ppo', expected one of", {"loss_type": "ppo"}),
        (r"importance_sampling_level is 'word', expected 'token'", {"importance_sampling_level": "word"}),
        *(
            (
                rf"importance_sampling_level is 'sequence', expected 'token' for '{t}'",
                {"loss_type": t, "importance_sampling_level": "sequence"},
            )
            for t in ("cispo", "sapo", "vespo")
        ),
        (r"max_completion_length is None, expected a number above 0 for 'dr_grpo'", {"loss_type": "dr_grpo"}),
        (r"delta is 0, expected None or a number above 0", {"delta": 0}),
        (r"delta is 2.0, expected None for 'cispo'", {"delta": 2.0, "loss_type": "cispo"}),
        (r"sapo_temperature_neg is 0, expected", {"loss_type": "sapo", "sapo_temperature_neg": 0}),
        (r"_input has shape \(24, 16\), expected \(batch", {"x": T((24, 16))}),
        (
            r"selected_token_ids has shape \(4, 7\), expected \(4, 6\)",
            {"ids": T((4, 7), "index", False, high=45)},
        ),
        (
            r"attention_mask has shape \(4, 7\), expected \(4, 6\)",
            {"mask": T((4, 7), "index", False, high=2)},
        ),
        (
            r"advantages has shape \(6,\), expected one per sequence \(4,\)",
            {"advantages": T((6,), "fp32", False)},
        ),
        (
            r"vllm_is_ratio has shape \(4, 5\), expected one per sequence",
            {"vllm_is_ratio": T((4, 5), "fp32", False)},
        ),
        (r"use_ref_model is True and beta is not 0: expected ref_per_token_logps", {"ref_logps": None}),
        (r"reference model is given and use_ref_model is False", {"use_ref_model": False}),
    ),
    gemm=True,
    grad_factor=3.0,
    ulps=8.0,  # a ratio is e to a difference of numbers near -4: one unit of theirs is four of the ratio's
)
