"""Benchmark cases of the preference, policy and distillation losses of `liger_kernel.chunked_loss`, and of
cross entropy over its own logits' memory, which are no operators and so have no `OpSpec` among the
operators'; and `specs`, everything that can be measured.

The references are the losses as their papers write them, on all logits at once, as a trainer without us
would run them: arXiv:2305.18290 (DPO), 2403.07691 (ORPO), 2402.03300 and 2503.14476 (GRPO, per token),
2306.13649 (distillation).
"""

from dataclasses import replace

import torch
import torch.nn.functional as F

from liger_kernel import chunked_loss
from liger_kernel.ops import SPECS
from liger_kernel.ops._spec import Case, OpSpec, Sample, T
from liger_kernel.transformers.functional import liger_cross_entropy

from . import baselines


def _logps(x, weight, ids):
    return (x @ weight.t()).float().log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def dpo_eager(_input, weight, target, ref_input, ref_weight):
    chosen, rejected = _logps(_input, weight, target).sum(-1).chunk(2)
    with torch.no_grad():
        ref_chosen, ref_rejected = _logps(ref_input, ref_weight, target).sum(-1).chunk(2)
    return -F.logsigmoid(0.1 * (chosen - rejected - ref_chosen + ref_rejected)).mean()


def orpo_eager(_input, weight, target):
    per_token = _logps(_input, weight, target)
    chosen, rejected = per_token.mean(-1).chunk(2)
    odds = chosen - rejected - torch.log1p(-chosen.exp()) + torch.log1p(-rejected.exp())
    return -per_token[: len(chosen)].mean() - 0.1 * F.logsigmoid(odds).mean()


def grpo_eager(_input, weight, ids, mask, advantages):
    logps, a = _logps(_input, weight, ids), advantages[:, None]
    ratio = torch.exp(logps - logps.detach())
    per_token = -torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a)
    return (per_token * mask).sum() / mask.sum()


def distillation_eager(student_input, student_weight, teacher_input, teacher_weight, target):
    z = (student_input @ student_weight.t()).float()
    with torch.no_grad():
        log_p = (teacher_input @ teacher_weight.t()).float().log_softmax(-1)
    return 0.5 * F.cross_entropy(z, target) + 0.5 * baselines.jsd(z.log_softmax(-1), log_p)


def _distillation(student_input, student_weight, teacher_input, teacher_weight, target):
    heads = (student_input, student_weight, teacher_input, teacher_weight)
    return chunked_loss.LigerFusedLinearJSDLoss()(*heads, target)


def _dpo(_input, weight, target, ref_input, ref_weight):
    loss = chunked_loss.LigerFusedLinearDPOLoss()
    return loss(weight, _input, target, ref_input=ref_input, ref_weight=ref_weight)[0]


def _orpo(_input, weight, target):
    return chunked_loss.LigerFusedLinearORPOLoss()(weight, _input, target)[0]


def _grpo(_input, weight, ids, mask, advantages):
    loss = chunked_loss.LigerFusedLinearGRPOLoss(use_ref_model=False, beta=0.0)
    return loss(_input, weight, ids, mask, advantages)[0]


def _ce_in_place(_input, target, weight):
    # A leaf is never overwritten, and every call needs fresh logits: a copy stands for the head's product.
    return liger_cross_entropy(_input.clone(), target, weight, in_place=True)


def _ce_eager(_input, target, weight):
    return F.cross_entropy(_input.clone().float(), target, weight)


def _ce_spec():
    """The floor is the copy's (2 passes over the logits), and the loss's, read and overwritten."""
    spec = SPECS["cross_entropy"]

    def case(plain):
        n = plain.fwd_elements
        return replace(plain, id="after_a_copy", fwd_elements=3 * n, full_elements=4 * n)

    cases = {device: tuple(map(case, given)) for device, given in spec.cases.items()}
    return OpSpec("cross_entropy_in_place", _ce_in_place, _ce_eager, samples=(), cases=cases)


def _head(b, t, h, v, prefix="", grad=True):
    # logits of .1: sums over sequences stay where sigmoids have a slope that two roundings agree on
    weight = T((v, h), "w", grad=grad, scale=0.1 * h**-0.5)
    return {f"{prefix or '_'}input": T((b, t, h), grad=grad), f"{prefix}weight": weight}


def _case(name, b, t, h, v):
    id = f"{b}x{t}x{h}x{v}"
    args, n = _head(b, t, h, v), 2 * b * t * h * v
    labels = T((b, t), "index", grad=False, high=v)
    if name == "dpo":
        args = {**args, "target": labels, **_head(b, t, h, v, "ref_", grad=False)}
        return Case(id, Sample(id, args), flops=(2 * n, 4 * n))
    if name == "orpo":
        return Case(id, Sample(id, {**args, "target": labels}), flops=(n, 3 * n))
    args |= {"ids": labels, "mask": T((b, t), "index", grad=False, low=1, high=2)}
    return Case(id, Sample(id, {**args, "advantages": T((b,), "fp32", grad=False)}), flops=(n, 3 * n))


def _spec(name, fn, ref, b, t):
    cases = {"cpu": (_case(name, 4, 128, 512, 16384),), "cuda": (_case(name, b, t, 4096, 128256),)}
    return OpSpec(name, fn, ref, samples=(), cases=cases, gemm=True)


def _distillation_spec():
    """JSD and cross entropy in equal parts; the floor: student, teacher, dX, dW."""

    def case(n, h, th, v):
        id, forward = f"{n}x{h}+{th}x{v}", 2 * n * v * (h + th)
        args = {
            "student_input": T((n, h)),
            "student_weight": T((v, h), "w", scale=h**-0.5),
            "teacher_input": T((n, th), grad=False),
            "teacher_weight": T((v, th), "w", grad=False, scale=th**-0.5),
            "target": T((n,), "index", grad=False, high=v),
        }
        return Case(id, Sample(id, args), flops=(forward, forward + 4 * n * v * h))

    cases = {"cpu": (case(512, 512, 512, 16000),), "cuda": (case(4096, 2048, 4096, 128256),)}
    return OpSpec("distillation", _distillation, distillation_eager, samples=(), cases=cases, gemm=True)


LOSSES = {
    spec.name: spec
    for spec in (
        _spec("dpo", _dpo, dpo_eager, 4, 2048),
        _spec("orpo", _orpo, orpo_eager, 4, 2048),
        _spec("grpo", _grpo, grpo_eager, 8, 1024),
        _distillation_spec(),
    )
}
IN_PLACE = _ce_spec()


def specs():
    """{name: OpSpec} of all that `benchmark.run` measures."""
    return {**SPECS, **LOSSES, IN_PLACE.name: IN_PLACE}
