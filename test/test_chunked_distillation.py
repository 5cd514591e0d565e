"""The distillation losses of liger_kernel.chunked_loss are their equations, value and gradient."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from liger_kernel import _check as C
from liger_kernel.chunked_loss import (
    LigerFusedLinearCosineSimilarityLoss,
    LigerFusedLinearJSDLoss,
    functional,
)
from liger_kernel.chunked_loss import fused_linear_distillation as base_module
from liger_kernel.chunked_loss.cosine_similarity_loss import LigerFusedLinearCosineSimilarityFunction
from liger_kernel.chunked_loss.fused_linear_distillation import LigerFusedLinearDistillationBase
from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDFunction
from liger_kernel.ops import fused_linear_cosine as cosine_module
from liger_kernel.ops import fused_linear_jsd as jsd_module
from liger_kernel.ops._spec import OpSpec, Sample, T, upcast

LOSSES = {"jsd": LigerFusedLinearJSDLoss, "cosine": LigerFusedLinearCosineSimilarityLoss}
FUNCTIONS = {"jsd": LigerFusedLinearJSDFunction, "cosine": LigerFusedLinearCosineSimilarityFunction}
TENSORS = ("x", "weight", "teacher_x", "teacher_weight", "labels", "bias", "teacher_bias")


def divergence(kind, s, t, beta):
    if kind == "cosine":
        return beta * (1 - F.cosine_similarity(s, t, dim=-1))
    x, y = s.log_softmax(-1), t.log_softmax(-1)
    if beta == 0:
        return (y.exp() * (y - x)).sum(-1)
    if beta == 1:
        return (x.exp() * (x - y)).sum(-1)
    m = (beta * y.exp() + (1 - beta) * x.exp()).log()
    return (beta * y.exp() * (y - m) + (1 - beta) * x.exp() * (x - m)).sum(-1)


def logits_of(x, weight, bias):
    dtype = torch.promote_types(x.dtype, weight.dtype)
    return upcast(F.linear(*(t if t is None else t.to(dtype) for t in (x, weight, bias))))


def reference(kind):
    def ref(
        x,
        weight,
        teacher_x,
        teacher_weight,
        labels,
        bias=None,
        teacher_bias=None,
        weight_hard_loss=0.5,
        weight_soft_loss=0.5,
        beta=0.5,
        ignore_index=-100,
        temperature=1.0,
        chunk_size=1024,
        memory_budget=None,
    ):
        s, t = logits_of(x, weight, bias), logits_of(teacher_x, teacher_weight, teacher_bias)
        s, t, labels = s.flatten(0, -2), t.flatten(0, -2), labels.flatten()
        valid = labels != ignore_index
        n = valid.sum().clamp(min=1)
        hard = F.cross_entropy(s, labels, ignore_index=ignore_index, reduction="sum") / n
        s = F.pad(s, (0, t.shape[-1] - s.shape[-1]))
        soft = divergence(kind, s / temperature, t / temperature, beta)[valid].sum() / n
        return weight_hard_loss * hard + weight_soft_loss * soft, soft, hard

    return ref


def entry(kind, apart=True):
    def call(memory_budget=None, **args):
        tensors = [args.pop(name, None) for name in TENSORS]
        return LOSSES[kind](return_soft_hard_loss=apart, memory_budget=memory_budget, **args)(*tensors)

    return call


def sample(name, n=(9,), h=16, th=11, v=45, more=0, biases=True, ignored=0.3, **options):
    args = {
        "x": T((*n, h)),
        "weight": T((v, h), "w", scale=0.3),
        "teacher_x": T((*n, th), grad=False),
        "teacher_weight": T((v + more, th), "w", grad=False, scale=0.3),
        "labels": T(n, "index", grad=False, high=v, ignored=ignored),
    }
    if biases:
        args["bias"] = T((v,), "w", scale=0.3)
        args["teacher_bias"] = T((v + more,), "w", grad=False, scale=0.3)
    return Sample(name, {**args, **options})


def spec_of(kind):
    betas = (0.0, 0.1, 1.0) if kind == "jsd" else (0.2,)
    samples = (
        sample("base"),
        sample("sequences", n=(2, 5), biases=False),
        *(sample(f"beta_{beta}", beta=beta, temperature=2.0) for beta in betas),
        sample("weights", weight_hard_loss=2.0, weight_soft_loss=0.3),
        sample("larger_teacher", more=4),
        sample("larger_teacher_temperature", more=4, temperature=0.5, weight_hard_loss=3.0),
        sample("blocks", n=(29,), chunk_size=4, memory_budget=2 * 4 * 45 * 4),
        sample("no_labels", ignored=1.0),
    )
    return OpSpec(
        name=kind, fn=entry(kind), ref=reference(kind), samples=samples, ulps=8.0, grad_factor=3.0, gemm=True
    )


SPECS = {kind: spec_of(kind) for kind in LOSSES}
# the sum alone: its gradient is made in forward, where the three losses' waits for backward
SUMS = {
    k: replace(s, fn=entry(k, False), ref=lambda k=k, **a: reference(k)(**a)[0]) for k, s in SPECS.items()
}
RUNS = [
    (spec, x, f"{spec.name}-{x.id}{what}")
    for specs, what in ((SPECS, ""), (SUMS, "-sum"))
    for spec in specs.values()
    for x in spec.samples
]
ALL = pytest.mark.parametrize("spec, sample", [r[:2] for r in RUNS], ids=[r[2] for r in RUNS])
BOTH = pytest.mark.parametrize("kind", LOSSES)


@ALL
def test_within_eagers_error(spec, sample, device):
    C.check(spec, sample, device, torch.float32)


@pytest.mark.cpu_only
@ALL
def test_within_eagers_error_in_fp64(spec, sample):
    C.check(spec, sample, "cpu", torch.float64)


@pytest.mark.parametrize("x, w", (("bf16", "bf16"), ("fp16", "fp16"), ("bf16", "fp32")))
@BOTH
def test_within_eagers_error_in_16_bits(kind, x, w, device):
    samples = SPECS[kind].samples
    for chosen in (samples[0], *(s for s in samples if s.id.startswith(("larger", "beta")))):
        C.check(SPECS[kind], chosen, device, C.DTYPES[x], C.DTYPES[w])
        C.check(SUMS[kind], chosen, device, C.DTYPES[x], C.DTYPES[w])


# expanded: the classes are one class, and dx a sum that cancels to nothing but roundings
@pytest.mark.parametrize("layout", [name for name in C.LAYOUTS if name != "expanded"])
@BOTH
def test_any_layout(kind, layout, device):
    C.check(SPECS[kind], SPECS[kind].samples[0], device, torch.float32, layout=layout)
    C.check(SUMS[kind], SPECS[kind].samples[0], device, torch.float32, layout=layout)


@pytest.mark.cpu_only
@BOTH
def test_gradcheck(kind):
    args = C.draw(sample("grad", n=(4,), h=3, th=4, v=5), "cpu", torch.float64)
    leaves = C.leaves(args)
    f = entry(kind)
    assert torch.autograd.gradcheck(lambda *t: f(**{**args, **dict(zip(leaves, t))}), tuple(leaves.values()))


@BOTH
def test_frozen_arguments_change_no_other_gradient(kind, device):
    whole = C.draw(SPECS[kind].samples[0], device)
    entry(kind)(**whole)[0].backward()
    for frozen in ("x", "weight", "bias"):
        args = C.draw(SPECS[kind].samples[0], device)
        args[frozen] = args[frozen].detach()
        entry(kind)(**args)[0].backward()
        for name, leaf in C.leaves(args).items():
            torch.testing.assert_close(leaf.grad, whole[name].grad)


@BOTH
def test_no_grad_gives_the_same_loss(kind, device):
    args = C.draw(SPECS[kind].samples[0], device)
    with_grad = entry(kind)(**args)
    with torch.no_grad():
        without = entry(kind)(**args)
    assert with_grad[0].requires_grad and not any(o.requires_grad for o in without)
    torch.testing.assert_close(with_grad, without)


@BOTH
def test_function_takes_upstreams_positions(kind, device):
    args = C.draw(SPECS[kind].samples[0], device)
    tensors = [args[name] for name in TENSORS]
    loss = LOSSES[kind](0.3, 0.7, 0.4, -100, 2.0)(*tensors)
    for apply in (FUNCTIONS[kind].apply, getattr(functional, f"liger_fused_linear_{kind}")):
        assert C.same_bits(apply(*tensors, 0.3, 0.7, 0.4, -100, 2.0, False, 1024, False), loss)
    keywords = ("student_input", "student_weight", "teacher_input", "teacher_weight", "true_labels")
    by_name = dict(zip((*keywords, "student_bias", "teacher_bias"), tensors))
    assert C.same_bits(LOSSES[kind](0.3, 0.7, 0.4, temperature=2.0, compiled=False)(**by_name), loss)


@BOTH
def test_a_loss_of_weight_0_is_not_computed(kind, monkeypatch, device):
    """So that TRL's purely soft loss pays for no cross entropy, and no NaN of it leaks."""
    args = C.draw(SPECS[kind].samples[0], device)
    tensors = [args[name] for name in TENSORS]
    _, soft, hard = LOSSES[kind](return_soft_hard_loss=True)(*tensors)
    calls = []
    real = base_module.liger_fused_linear_cross_entropy_apply
    monkeypatch.setattr(
        base_module, "liger_fused_linear_cross_entropy_apply", lambda *a: calls.append(1) or real(*a)
    )
    torch.testing.assert_close(LOSSES[kind](0.0, 1.0)(*tensors), soft)
    assert not calls
    torch.testing.assert_close(LOSSES[kind](1.0, 0.0)(*tensors), hard)
    whole, got_soft, got_hard = LOSSES[kind](0.0, 1.0, return_soft_hard_loss=True)(*tensors)
    torch.testing.assert_close((whole, got_soft, got_hard), (soft, soft, hard))
    assert got_soft.requires_grad and not got_hard.requires_grad
    nothing = LOSSES[kind](0.0, 0.0)(*tensors)
    nothing.backward()
    assert nothing == 0 and not args["x"].grad.any()


@pytest.mark.parametrize("apart", (False, True))
@BOTH
def test_compiles_without_a_graph_break(kind, apart, device):
    runs = []
    for compiled in (False, True):
        args = C.draw(SPECS[kind].samples[0], device)
        module = LOSSES[kind](return_soft_hard_loss=apart)
        run = torch.compile(module, fullgraph=True, backend="aot_eager") if compiled else module
        loss = run(*(args[name] for name in TENSORS))
        loss = 2 * loss[0] + 3 * loss[1] - loss[2] if apart else loss
        loss.backward()
        runs.append([loss, *(leaf.grad for leaf in C.leaves(args).values())])
    for a, b in zip(*runs):
        torch.testing.assert_close(a, b)


@BOTH
def test_two_losses_multiply_the_students_head_once(kind, monkeypatch, device):
    """Whoever asks for the sum or for a gradient of the sum alone gets both from one call of one operator."""
    calls = []
    module, name = {"jsd": (jsd_module, "_op_ce"), "cosine": (cosine_module, "_op")}[kind]
    real = getattr(module, name)
    monkeypatch.setattr(base_module, "liger_fused_linear_cross_entropy_apply", None)
    monkeypatch.setattr(module, name, lambda *a: calls.append(1) or real(*a))
    for apart in (False, True):
        args = C.draw(SPECS[kind].samples[0], device)
        loss = entry(kind, apart)(**args)
        (loss[0] if apart else loss).backward()
        assert len(calls) == 1
        calls.clear()
    entry(kind)(**args)[2].backward()
    assert len(calls) == 2


@BOTH
def test_backward_again_and_of_the_losses_apart(kind, device):
    """The second gradient is the first one's; those of the soft and the hard loss make up that of the sum."""
    args = C.draw(SPECS[kind].samples[0], device)
    leaves = list(C.leaves(args).values())
    loss = entry(kind, False)(**args)
    first = torch.autograd.grad(3 * loss, leaves, retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(3 * loss, leaves)):
        assert C.same_bits(a, b)
    whole, soft, hard = entry(kind)(**args, weight_soft_loss=0.3)
    apart = [torch.autograd.grad(o, leaves, retain_graph=True) for o in (whole, soft, hard)]
    for of_sum, of_soft, of_hard in zip(*apart):
        torch.testing.assert_close(0.3 * of_soft + 0.5 * of_hard, of_sum, rtol=1e-4, atol=1e-6)


@BOTH
def test_a_nan_of_the_teacher_is_in_the_soft_loss_alone(kind, device):
    args = C.draw(SPECS[kind].samples[0], device)
    args["teacher_x"] = args["teacher_x"].clone()
    args["teacher_x"][args["labels"] >= 0] = torch.nan
    whole, soft, hard = entry(kind)(**args)
    assert whole.isnan() and soft.isnan() and hard.isfinite()
    leaves = list(C.leaves(args).values())
    assert all(g.isfinite().all() for g in torch.autograd.grad(hard, leaves, retain_graph=True))
    assert torch.autograd.grad(soft, leaves)[0].isnan().any()


@BOTH
def test_a_label_that_is_no_class(kind, device):
    """Of a larger teacher's classes too: an error that names it, or NaN where that would wait for a GPU."""
    args = C.draw(sample("classes", more=4), device)
    args["labels"][3] = 46
    if device == "cpu":
        with pytest.raises(RuntimeError, match=r"labels\[3\] is 46, expected a value in \[0, 45\)"):
            entry(kind)(**args)
        return
    loss = entry(kind, False)(**args)
    assert loss.isnan() and torch.autograd.grad(loss, args["x"])[0][3].isnan().all()


@BOTH
def test_distillation_loss_fn_is_a_sum_over_rows(kind, device):
    s, t = (torch.randn(6, 9, generator=torch.Generator().manual_seed(i)).to(device) for i in (1, 2))
    target = torch.tensor([1, 2, -100, 3, -100, 0], device=device)
    rows = divergence(kind, s.double(), t.double(), 0.3).float()
    fn = FUNCTIONS[kind].distillation_loss_fn
    torch.testing.assert_close(fn(s, t, beta=0.3), rows.sum())
    torch.testing.assert_close(fn(s, t, beta=0.3, target=target, ignore_index=-100), rows[target >= 0].sum())


def test_a_loss_of_ones_own_on_the_base(device):
    """Upstream's way to extend: a distillation_loss_fn, and forward by super()."""

    class Own(LigerFusedLinearDistillationBase):
        @staticmethod
        def distillation_loss_fn(
            student_logits, teacher_logits, target=None, ignore_index=None, beta=1.0, p=2
        ):
            rows = (student_logits - teacher_logits).abs().pow(p).sum(-1)
            return beta * rows[target != ignore_index].sum()

        @classmethod
        def forward(cls, ctx, *tensors, p=2):
            return super().forward(cls, ctx, *tensors, chunk_size=4, temperature=2.0, p=p)

    args = C.draw(SPECS["jsd"].samples[0], device)
    tensors = [args[name] for name in TENSORS]
    loss = Own.apply(*tensors, p=3)
    got = torch.autograd.grad(loss, list(C.leaves(args).values()))
    s, t = F.linear(args["x"], args["weight"], args["bias"]), F.linear(*(tensors[i] for i in (2, 3, 6)))
    valid = args["labels"] != -100
    soft = 0.5 * ((s - t) / 2).abs().pow(3).sum(-1)[valid].mean()
    expected = 0.5 * F.cross_entropy(s, args["labels"]) + 0.5 * soft
    torch.testing.assert_close(loss, expected)
    for a, b in zip(got, torch.autograd.grad(expected, list(C.leaves(args).values()))):
        torch.testing.assert_close(a, b)

    class Softer(LigerFusedLinearJSDFunction):
        @staticmethod
        def distillation_loss_fn(student_logits, teacher_logits, beta=0.5, target=None, ignore_index=-100):
            return 0.0 * student_logits.sum()

    torch.testing.assert_close(Softer.apply(*tensors), 0.5 * F.cross_entropy(s, args["labels"]))
    with pytest.raises(NotImplementedError, match="distillation_loss_fn"):
        LigerFusedLinearDistillationBase.distillation_loss_fn(s, t)


@BOTH
def test_errors_name_the_argument(kind):
    args = C.draw(SPECS[kind].samples[0])
    tensors = [args[name] for name in TENSORS]
    with pytest.raises(ValueError, match="temperature is 0.0, expected a positive value"):
        LOSSES[kind](temperature=0.0)
    with pytest.raises(ValueError, match=r"student_input has shape \(9, 16\).*target \(8,\), expected"):
        LOSSES[kind]()(*tensors[:4], tensors[4][:8])
    with pytest.raises(ValueError, match=r"teacher_weight has shape \(40, 11\), expected at least 45 rows"):
        LOSSES[kind]()(*tensors[:3], tensors[3][:40], tensors[4])
    if kind == "jsd":
        with pytest.raises(ValueError, match=r"beta is 2.0, expected a value in \[0, 1\]"):
            LOSSES[kind](beta=2.0)
