"""DPO in plain PyTorch, as the papers write it, and the samples on which ours is held to it.

The references make all logits, take log_softmax, and loop over nothing clever: sums and means as defined. In
float64 they are the truth, in the tested dtype the bar (liger_kernel/_check.py).
"""

import torch
import torch.nn.functional as F

from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss
from liger_kernel.ops._spec import OpSpec, Sample, T, upcast


def logits_of(x, weight, bias, temperature=1.0, softcap=None, logit_scale=1.0):
    dtype = torch.promote_types(x.dtype, weight.dtype)
    z = F.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
    z = upcast(z) * logit_scale
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    return z / temperature


def logps_of(z, ids):
    return z.log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def mean_where(values, mask):
    return (values * mask).sum() / mask.sum() if mask.sum() > 0 else (values * mask).sum()


def dpo_pairs(kind, chosen, rejected, ref_chosen, ref_rejected, beta, e, tau):
    log_s = F.logsigmoid
    ratio, ref_ratio = chosen - rejected, ref_chosen - ref_rejected
    h = beta * (ratio - ref_ratio)
    reward_w, reward_l = beta * (chosen - ref_chosen), beta * (rejected - ref_rejected)
    if kind == "sigmoid":
        return -log_s(h) * (1 - e) - log_s(-h) * e
    if kind == "robust":
        return (-log_s(h) * (1 - e) + log_s(-h) * e) / (1 - 2 * e)
    if kind == "hinge":
        return torch.clamp(1 - h, min=0)
    if kind == "exo_pair":
        p = torch.stack((h, torch.zeros_like(h))).log_softmax(0)
        target = torch.tensor([1 - e, e], dtype=h.dtype, device=h.device).log()[:, None]
        return (p.exp() * (p - target)).sum(0)  # KL(p || target) of two answers
    if kind == "nca_pair":
        return -log_s(reward_w) - 0.5 * log_s(-reward_w) - 0.5 * log_s(-reward_l)
    if kind == "bco_pair":
        return -log_s(reward_w) - log_s(-reward_l)
    if kind == "sppo_hard":
        return (reward_w / beta - 1 / (2 * beta)) ** 2 + (reward_l / beta + 1 / (2 * beta)) ** 2
    if kind == "apo_zero":
        return 1 - torch.sigmoid(reward_w) + torch.sigmoid(reward_l)
    if kind == "apo_down":
        return torch.sigmoid(reward_w) + 1 - torch.sigmoid(h)
    mix = torch.sigmoid(h / tau)
    return (1 - mix) * -log_s(h) + mix * torch.exp(-h)


def dpo_ref(
    x,
    weight,
    target,
    bias=None,
    ref_input=None,
    ref_weight=None,
    ref_bias=None,
    ref_chosen_logps=None,
    ref_rejected_logps=None,
    ignore_index=-100,
    beta=0.1,
    alpha=1.0,
    compute_nll_loss=False,
    use_ref_model=True,
    average_log_prob=False,
    loss_type="sigmoid",
    label_smoothing=0.0,
    discopop_tau=0.05,
    softcap=None,
    logit_scale=1.0,
    memory_budget=None,
):
    n = len(target) // 2
    mask = target != ignore_index
    ids = torch.where(mask, target, 0)

    def sequences(x, weight, bias):
        z = logits_of(x, weight, bias, 1.0, softcap, logit_scale)
        per_token = logps_of(z, ids)
        sums = (per_token * mask).sum(-1)
        return z, per_token, sums / mask.sum(-1).clamp(min=1) if average_log_prob else sums

    z, per_token, logps = sequences(x, weight, bias)
    zero = torch.zeros(n, dtype=z.dtype, device=z.device)
    ref = (ref_chosen_logps, ref_rejected_logps) if ref_chosen_logps is not None else (zero, zero)
    if ref_input is not None:
        with torch.no_grad():
            ref = sequences(ref_input, ref_weight, ref_bias)[2].split(n)
    chosen, rejected = logps.split(n)
    losses = dpo_pairs(loss_type, chosen, rejected, *ref, beta, label_smoothing, discopop_tau)
    nll = -mean_where(per_token[:n], mask[:n])
    loss = losses.mean() + (alpha * nll if compute_nll_loss else 0)
    means = (mean_where(z.detach().mean(-1)[h], mask[h]) for h in (slice(n), slice(n, None)))
    rewards = beta * (chosen - ref[0]).detach(), beta * (rejected - ref[1]).detach()
    return loss, chosen.detach(), rejected.detach(), *means, nll, *rewards


def dpo_call(x, weight, target, bias=None, ref_input=None, ref_weight=None, ref_bias=None, **options):
    """(module, positional, keywords) of the call that a sample describes."""
    given = {k: options.pop(k) for k in ("ref_chosen_logps", "ref_rejected_logps") if k in options}
    module = LigerFusedLinearDPOLoss(**options)
    return module, (weight, x, target, bias, ref_input, ref_weight, ref_bias), given


def dpo(**args):
    module, positional, keywords = dpo_call(**args)
    loss, metrics = module(*positional, **keywords)
    return loss, *metrics


def dpo_sample(name, pairs=3, seq_len=7, h=16, v=45, ref="states", ignored=0.3, bias=True, **options):
    args = {
        "x": T((2 * pairs, seq_len, h)),
        "weight": T((v, h), "w", scale=0.3),
        "target": T((2 * pairs, seq_len), "index", grad=False, high=v, ignored=ignored),
        "bias": T((v,), "w", scale=0.3, mean=0.5) if bias else None,  # so that the mean logit does not cancel
    }
    if ref == "states":
        args |= {
            "ref_input": T((2 * pairs, seq_len, h), grad=False),
            "ref_weight": T((v, h), "w", grad=False, scale=0.3),
            "ref_bias": T((v,), "w", grad=False, scale=0.3),
        }
    elif ref == "logps":
        args |= {f"ref_{k}_logps": T((pairs,), "fp32", False, 2.0, -15.0) for k in ("chosen", "rejected")}
    return Sample(name, {**args, **options})


_dpo = dpo_sample("base")
_smooth = {"exo_pair": 1e-3, "robust": 0.1}
DPO = OpSpec(
    name="dpo",
    fn=dpo,
    ref=dpo_ref,
    samples=(
        _dpo,
        *(
            dpo_sample(t, loss_type=t, label_smoothing=_smooth.get(t, 0.0))
            for t in sorted(LigerFusedLinearDPOLoss._SUPPORTED_LOSS_TYPES)
        ),
        dpo_sample("smoothed", label_smoothing=0.2, beta=0.7),
        dpo_sample("nll", compute_nll_loss=True, alpha=0.6, loss_type="apo_zero"),
        dpo_sample("average", average_log_prob=True, loss_type="nca_pair", compute_nll_loss=True),
        dpo_sample("given_logps", ref="logps", loss_type="sppo_hard"),
        dpo_sample("no_reference", ref=None, use_ref_model=False, loss_type="apo_down"),
        dpo_sample("tau", loss_type="discopop", discopop_tau=0.5),
        dpo_sample("softcap", softcap=1.5, logit_scale=0.7, compute_nll_loss=True),
        dpo_sample("one_row_at_a_time", memory_budget=8, compute_nll_loss=True),
        dpo_sample("all_ignored", ignored=1.0, compute_nll_loss=True),
        dpo_sample("one_token", pairs=1, seq_len=1, ignored=0.0, bias=False),
        dpo_sample("wide", pairs=2, seq_len=33, h=24, v=1001),
    ),
    options=tuple(
        (_dpo, _dpo.with_args(k, **{k: value}))
        for k, value in dict(
            beta=0.3,
            loss_type="hinge",
            compute_nll_loss=True,
            average_log_prob=True,
            label_smoothing=0.1,
            softcap=1.0,
            logit_scale=0.5,
        ).items()
    )
    + (
        (dpo_sample("ignore", v=5, ignored=0.0), dpo_sample("ignore", v=5, ignored=0.0, ignore_index=3)),
        (dpo_sample("nll", compute_nll_loss=True), dpo_sample("nll", compute_nll_loss=True, alpha=0.5)),
        (dpo_sample("tau", loss_type="discopop"), dpo_sample("tau", loss_type="discopop", discopop_tau=0.5)),
    ),
    errors=(
        (r"^weight has shape \(0, 16\), expected .* sharded head", {"weight": T((0, 16), "w")}),
        (r"^ref_weight has shape \(720,\), expected .* sharded", {"ref_weight": T((720,), "w", False)}),
        (r"loss_type is 'ipo', expected one of .*apo_zero", {"loss_type": "ipo"}),
        (
            r"label_smoothing is 0.1 and loss_type 'hinge', expected 0",
            {"loss_type": "hinge", "label_smoothing": 0.1},
        ),
        (r"label_smoothing is 0.0 and loss_type 'exo_pair'", {"loss_type": "exo_pair"}),
        (r"label_smoothing is 0.5 and loss_type 'robust'", {"loss_type": "robust", "label_smoothing": 0.5}),
        (r"beta is 0 and loss_type 'sppo_hard'", {"loss_type": "sppo_hard", "beta": 0}),
        (r"discopop_tau is 0, expected a number above 0", {"loss_type": "discopop", "discopop_tau": 0}),
        (r"_input has shape \(5, 7, 16\), expected \(2 \* pairs", {"x": T((5, 7, 16))}),
        (r"_input has shape \(42, 16\), expected", {"x": T((42, 16))}),
        (r"target has shape \(6, 8\), expected \(6, 7\)", {"target": T((6, 8), "index", False, high=45)}),
        (r"use_ref_model is True: expected either ref_input", {"ref_input": None, "ref_weight": None}),
        (r"use_ref_model is True: expected either", {"ref_chosen_logps": T((3,), "fp32", False)}),
        (r"reference model is given and use_ref_model is False", {"use_ref_model": False}),
    ),
    gemm=True,
    grad_factor=3.0,
)
