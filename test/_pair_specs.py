"""ORPO, CPO, SimPO and KTO in plain PyTorch, as the papers write them. See _dpo_spec.py."""

import torch
import torch.nn.functional as F
from _dpo_spec import logits_of, logps_of, mean_where

from liger_kernel import chunked_loss
from liger_kernel.ops._spec import OpSpec, Sample, T


def sequences(x, weight, target, bias, average, ignore_index=-100, softcap=None, logit_scale=1.0):
    """(logits, their labels' log-probabilities, those of the sequences, mask)."""
    mask = target != ignore_index
    z = logits_of(x, weight, bias, 1.0, softcap, logit_scale)
    per_token = logps_of(z, torch.where(mask, target, 0))
    sums = (per_token * mask).sum(-1)
    return z, per_token, sums / mask.sum(-1).clamp(min=1) if average else sums, mask


def pair_ref(losses_of):
    """The reference of a loss on pairs: losses_of(chosen, rejected, options) -> (losses, more metrics)."""

    def ref(
        x,
        weight,
        target,
        bias=None,
        nll_target=None,
        beta=0.1,
        alpha=1.0,
        compute_nll_loss=True,
        average_log_prob=False,
        ignore_index=-100,
        softcap=None,
        logit_scale=1.0,
        memory_budget=None,
        **options,
    ):
        average = average_log_prob or losses_of is not cpo_losses
        z, per_token, logps, mask = sequences(
            x, weight, target, bias, average, ignore_index, softcap, logit_scale
        )
        n = len(target) // 2
        labels = target if nll_target is None else nll_target
        counted = labels[:n] != ignore_index
        nll = -mean_where(logps_of(z[:n], torch.where(counted, labels[:n], 0)), counted)
        c, r = logps.split(n)
        losses, more = losses_of(c, r, beta, **options)
        means = (mean_where(z.detach().mean(-1)[h], mask[h]) for h in (slice(n), slice(n, None)))
        metrics = (beta * c.detach(), beta * r.detach(), *(m.detach() for m in more))
        return losses.mean() + alpha * nll * compute_nll_loss, c.detach(), r.detach(), *means, nll, *metrics

    return ref


def orpo_losses(c, r, beta):
    odds = torch.log(c.exp() / (1 - c.exp())) - torch.log(r.exp() / (1 - r.exp()))
    ratio = F.logsigmoid(odds)
    return -beta * ratio, (ratio.mean(), odds.mean())


def cpo_losses(c, r, beta, label_smoothing=0.0):
    h, e = beta * (c - r), label_smoothing
    return -(1 - e) * F.logsigmoid(h) - e * F.logsigmoid(-h), ()


def simpo_losses(c, r, beta, label_smoothing=0.0, gamma=0.5):
    h, e = beta * (c - r) - gamma, label_smoothing
    return -(1 - e) * F.logsigmoid(h) - e * F.logsigmoid(-h), ()


def kto_ref(
    x,
    weight,
    target,
    bias=None,
    labels=None,
    ref_input=None,
    ref_weight=None,
    ref_bias=None,
    kl=None,
    beta=0.1,
    use_ref_model=False,
    average_log_prob=False,
    ignore_index=-100,
    softcap=None,
    logit_scale=1.0,
    memory_budget=None,
):
    options = average_log_prob, ignore_index, softcap, logit_scale
    z, _, logps, mask = sequences(x, weight, target, bias, *options)
    ratio = logps
    if ref_input is not None:
        with torch.no_grad():
            ref_logps = sequences(ref_input, ref_weight, target, ref_bias, *options)[2]
        ratio = logps - ref_logps
    good, k = labels > 0, 0 if kl is None else kl
    values = torch.where(good, torch.sigmoid(beta * (ratio - k)), torch.sigmoid(beta * (k - ratio)))
    logits = (z.sum(-1) * mask).sum(-1)
    sums = ((t.detach() * h).sum() for t in (logps, logits, beta * ratio) for h in (good, ~good))
    return (1 - values).mean(), *sums


def call_of(module):
    """(module, positional, keywords) of the call that a sample describes."""

    def call(x, weight, target, bias=None, nll_target=None, **options):
        given = {} if nll_target is None else {"nll_target": nll_target}
        return module(**options), (weight, x, target, bias), given

    return call


def kto_call(x, weight, target, bias=None, labels=None, **options):
    names = ("ref_input", "ref_weight", "ref_bias", "kl")
    given = {k: options.pop(k) for k in names if k in options}
    labels = labels > 0 if labels is not None else None
    return chunked_loss.LigerFusedLinearKTOLoss(**options), (x, weight, target, bias, labels), given


CALLS = {
    "orpo": call_of(chunked_loss.LigerFusedLinearORPOLoss),
    "cpo": call_of(chunked_loss.LigerFusedLinearCPOLoss),
    "simpo": call_of(chunked_loss.LigerFusedLinearSimPOLoss),
    "kto": kto_call,
}


def runner(name):
    def fn(**args):
        module, positional, keywords = CALLS[name](**args)
        loss, metrics = module(*positional, **keywords)
        return loss, *metrics

    return fn


def sample(name, pairs=3, seq_len=7, h=16, v=45, ignored=0.3, bias=True, nll_target=False, **options):
    args = {
        "x": T((2 * pairs, seq_len, h)),
        "weight": T((v, h), "w", scale=0.3),
        "target": T((2 * pairs, seq_len), "index", grad=False, high=v, ignored=ignored),
        "bias": T((v,), "w", scale=0.3, mean=0.5) if bias else None,
    }
    if nll_target:
        args["nll_target"] = T((2 * pairs, seq_len), "index", grad=False, high=v, ignored=0.4)
    return Sample(name, {**args, **options})


def kto_sample(name, batch=6, seq_len=7, h=16, v=45, ref=True, kl=True, **options):
    args = sample(name, batch // 2, seq_len, h, v).args | {
        "labels": T((batch,), "index", grad=False, low=1, high=2, ignored=0.5)  # 1 is good, -100 is not
    }
    if ref:
        args |= {
            "ref_input": T((batch, seq_len, h), grad=False),
            "ref_weight": T((v, h), "w", grad=False, scale=0.3),
            "ref_bias": T((v,), "w", grad=False, scale=0.3),
        }
    if kl:
        args["kl"] = T((1,), "fp32", grad=False, positive=True)
    return Sample(name, {**args, **options})


def _common(**needs):
    return (
        sample("base", **needs),
        sample("no_nll", compute_nll_loss=False, beta=0.4),
        sample("softcap", softcap=1.5, logit_scale=0.7),
        sample("one_row_at_a_time", memory_budget=8),
        sample("all_ignored", ignored=1.0, compute_nll_loss=True),
        sample("no_bias", pairs=1, seq_len=33, bias=False),
    )


def _pair_spec(name, losses_of, samples, options, errors=()):
    base = sample("base")
    ref = pair_ref(losses_of)
    if name == "orpo":  # a sequence without labels has p = 1 and no finite odds, in the paper as here
        samples = tuple(s for s in samples if s.id != "all_ignored")
    return OpSpec(
        name=name,
        fn=runner(name),
        ref=ref,
        samples=samples,
        options=tuple((base, base.with_args(k, **{k: v})) for k, v in options.items()),
        errors=(
            (r"_input has shape \(5, 7, 16\), expected \(2 \* pairs", {"x": T((5, 7, 16))}),
            (r"target has shape \(6, 8\), expected \(6, 7\)", {"target": T((6, 8), "index", False, high=45)}),
            *errors,
        ),
        gemm=True,
        grad_factor=3.0,
    )


_general = dict(beta=0.3, compute_nll_loss=False, softcap=1.0, logit_scale=0.5)
_bad_smoothing = ((r"label_smoothing is 1.5, expected a number in \[0, 1\]", {"label_smoothing": 1.5}),)
ORPO = _pair_spec("orpo", orpo_losses, (*_common(), sample("nll_target", nll_target=True)), _general)
CPO = _pair_spec(
    "cpo",
    cpo_losses,
    (*_common(), sample("average", average_log_prob=True, alpha=0.6, label_smoothing=0.2)),
    {**_general, "alpha": 0.5, "label_smoothing": 0.1, "average_log_prob": True},
    _bad_smoothing,
)
SIMPO = _pair_spec(
    "simpo",
    simpo_losses,
    (*_common(), sample("margin", gamma=0.9, alpha=0.6, label_smoothing=0.2)),
    {**_general, "alpha": 0.5, "label_smoothing": 0.1, "gamma": 1.0},
    _bad_smoothing,
)
_kto = kto_sample("base")
KTO = OpSpec(
    name="kto",
    fn=runner("kto"),
    ref=kto_ref,
    samples=(
        _kto,
        kto_sample("no_reference", ref=False, kl=False),
        kto_sample("average", average_log_prob=True, use_ref_model=True),
        kto_sample("softcap", softcap=1.5, logit_scale=0.7),
        kto_sample("one_row_at_a_time", memory_budget=8),
        kto_sample("long", batch=4, seq_len=33),
    ),
    options=tuple(
        (_kto, _kto.with_args(k, **{k: v}))
        for k, v in dict(beta=0.3, average_log_prob=True, softcap=1.0, logit_scale=0.5, kl=None).items()
    ),
    errors=(
        (r"^weight has shape \(0, 16\), expected .* sharded head", {"weight": T((0, 16), "w")}),
        (r"^ref_weight has shape \(720,\), expected .* sharded", {"ref_weight": T((720,), "w", False)}),
        (r"_input has shape \(42, 16\), expected \(batch", {"x": T((42, 16))}),
        (r"target has shape \(6, 8\), expected \(6, 7\)", {"target": T((6, 8), "index", False, high=45)}),
        (r"preference_labels is missing, expected one per sequence \(6,\)", {"labels": None}),
        (r"preference_labels is of shape \(3,\), expected", {"labels": T((3,), "index", False, high=1)}),
        (
            r"use_ref_model is True: expected both",
            {"use_ref_model": True, "ref_input": None, "ref_weight": None},
        ),
    ),
    gemm=True,
    grad_factor=3.0,
)
