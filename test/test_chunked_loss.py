"""The losses of liger_kernel.chunked_loss are what the papers say, value and gradient, for every option."""

import warnings

import pytest
import torch
from _dpo_spec import DPO, dpo, dpo_call, dpo_sample
from _grpo_spec import GRPO, grpo_call, grpo_sample
from _pair_specs import CALLS, CPO, KTO, ORPO, SIMPO

from liger_kernel import _check as C
from liger_kernel import chunked_loss
from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss, LigerFusedLinearGRPOLoss, functional
from liger_kernel.chunked_loss import fused_linear_ppo as ppo_module
from liger_kernel.chunked_loss import fused_linear_preference as preference_module
from liger_kernel.chunked_loss.dpo_loss import LigerFusedLinearDPOFunction
from liger_kernel.chunked_loss.fused_linear_preference import LigerFusedLinearPreferenceBase
from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOFunction, get_gamma_weights, k3_loss_fn

SPECS = {s.name: s for s in (DPO, GRPO, ORPO, CPO, SIMPO, KTO)}
CALLS = {"dpo": dpo_call, "grpo": grpo_call, **CALLS}
BASES = [(spec, sample) for spec in SPECS.values() for sample in spec.samples[:2]]


def each(rows):
    return pytest.mark.parametrize("spec, sample", rows, ids=[f"{s.name}-{x.id}" for s, x in rows])


ALL = each([(spec, sample) for spec in SPECS.values() for sample in spec.samples])
SOME = each(BASES)


@pytest.mark.filterwarnings("ignore:memory_budget is 8 bytes")
@ALL
def test_within_eagers_error(spec, sample, device):
    C.check(spec, sample, device, torch.float32)


@pytest.mark.cpu_only
@each([(spec, sample) for spec in SPECS.values() for sample in spec.samples[: 8 if spec is GRPO else 2]])
def test_within_eagers_error_in_fp64(spec, sample):
    C.check(spec, sample, "cpu", torch.float64)


@pytest.mark.parametrize("w", ("bf16", "fp32"))
@SOME
def test_within_eagers_error_in_bf16(spec, sample, w, device):
    C.check(spec, sample, device, torch.bfloat16, C.DTYPES[w])


@SOME
def test_autocast(spec, sample, device):
    C.check(spec, sample, device, torch.float32, autocast=(device, torch.bfloat16))


@pytest.mark.parametrize(
    "spec, base, changed",
    [(s, *pair) for s in SPECS.values() for pair in s.options],
    ids=[f"{s.name}-{a.id}-{b.id}" for s in SPECS.values() for a, b in s.options],
)
def test_option_changes_something(spec, base, changed, device):
    def run(sample):
        args = {k: v for k, v in sample.args.items() if k not in base.args or base.args[k] == v}
        shared = C.draw(base, device)
        own = C.draw(sample, device)
        return C.call(spec.fn, {k: shared[k] if k in args and k in shared else own[k] for k in own})

    a, b = run(base), run(changed)
    assert a.equal(b), "nothing changed"


@pytest.mark.parametrize(
    "spec, match, changes",
    [(s, *row) for s in SPECS.values() for row in s.errors],
    ids=[f"{s.name}-{match[:45]}" for s in SPECS.values() for match, _ in s.errors],
)
def test_error_names_the_argument(spec, match, changes, device):
    base = grpo_sample("error") if spec is GRPO else spec.samples[0]
    args = C.draw(base.with_args("error", **changes), device)
    with pytest.raises(ValueError, match=match):
        spec.fn(**args)


@SOME
def test_second_backward(spec, sample, device):
    args = C.draw(sample, device)
    loss = spec.fn(**args)[0]
    leaves = list(C.leaves(args).values())
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    second = torch.autograd.grad(loss, leaves)
    assert all(C.same_bits(a, b) for a, b in zip(first, second))


@SOME
def test_inputs_are_untouched(spec, sample, device):
    args = C.draw(sample, device)
    before = {k: v.detach().clone() for k, v in C.tensors(args).items()}
    spec.fn(**args)[0].backward()
    assert all(C.same_bits(args[k], v) for k, v in before.items())


@SOME
def test_no_grad_gives_the_same_loss(spec, sample, device):
    args = C.draw(sample, device)
    with_grad = spec.fn(**args)
    with torch.no_grad():
        without = spec.fn(**args)
    assert with_grad[0].requires_grad and not any(o.requires_grad for o in without)
    for a, b in zip(with_grad, without):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("frozen", ("x", "weight", "bias"))
@SOME
def test_frozen_arguments_change_no_other_gradient(spec, sample, frozen, device):
    whole = C.draw(sample, device)
    spec.fn(**whole)[0].backward()
    args = C.draw(sample, device)
    args[frozen] = args[frozen].detach()
    spec.fn(**args)[0].backward()
    assert args[frozen].grad is None
    for name, leaf in C.leaves(args).items():
        torch.testing.assert_close(leaf.grad, whole[name].grad)


@pytest.mark.cpu_only
@SOME
def test_gradcheck(spec, sample):
    args = C.draw(sample, "cpu", torch.float64)
    leaves = C.leaves(args)
    assert torch.autograd.gradcheck(
        lambda *t: spec.fn(**{**args, **dict(zip(leaves, t))})[0], tuple(leaves.values()), fast_mode=True
    )


@SOME
def test_compiles_without_a_graph_break(spec, sample, device):
    call = CALLS[spec.name]
    runs = []
    for compiled in (False, True):
        args = C.draw(sample, device)
        module, positional, keywords = call(**args)
        run = torch.compile(module, fullgraph=True, backend="aot_eager") if compiled else module
        loss, metrics = run(*positional, **keywords)
        loss.backward()
        runs.append([loss, *metrics, *(leaf.grad for leaf in C.leaves(args).values())])
    for a, b in zip(*runs):
        torch.testing.assert_close(a, b)


def test_one_pass_over_the_head_per_model(monkeypatch):
    """The negative log-likelihood, the mean logits and the log-probabilities come from the same pass."""
    calls = []
    for module in (preference_module, ppo_module):
        real = module.linear_logprob

        def counted(hidden, *args, real=real, **kwargs):
            calls.append(tuple(hidden.shape))
            return real(hidden, *args, **kwargs)

        monkeypatch.setattr(module, "linear_logprob", counted)
    for spec, options in (("dpo", {"compute_nll_loss": True}), ("grpo", {"ref": "states"})):
        for budget in (None, 400):
            make = dpo_sample if spec == "dpo" else grpo_sample
            args = C.draw(make("passes", memory_budget=budget, **options))
            calls.clear()
            SPECS[spec].fn(**args)[0].backward()
            assert calls == [tuple(args["x"].shape), tuple(args["ref_input"].shape)]


def test_metrics_are_detached_but_the_nll():
    for spec in SPECS.values():
        outputs = spec.fn(**C.draw(spec.samples[0]))
        assert [o.requires_grad for o in outputs] == [
            i == 0 or (spec not in (GRPO, KTO) and i == 5) for i in range(len(outputs))
        ]
        assert all(o.dtype == torch.float32 for o in outputs)


def test_shapes_and_order_of_the_metrics():
    loss, metrics = LigerFusedLinearDPOLoss()(*_dpo_positional(C.draw(dpo_sample("order", pairs=2))))
    assert [tuple(m.shape) for m in metrics] == [(2,), (2,), (), (), (), (2,), (2,)]
    for beta, n in ((0.04, 2), (0.0, 1)):
        sample = grpo_sample("order", ref="logps" if beta else None, beta=beta)
        assert len(SPECS["grpo"].fn(**C.draw(sample))) == 1 + n


def _dpo_positional(args):
    return [args[k] for k in ("weight", "x", "target", "bias", "ref_input", "ref_weight", "ref_bias")]


def test_function_takes_upstreams_positions():
    args = C.draw(dpo_sample("positions"))
    loss, metrics = LigerFusedLinearDPOLoss(compute_nll_loss=True, alpha=0.5, loss_type="apo_zero")(
        *_dpo_positional(args)
    )
    rest = [args[k] for k in ("x", "weight", "target", "bias", "ref_input", "ref_weight", "ref_bias")]
    options = (-100, 0.1, True, True, True, False, 1, "apo_zero", 0.0, 0.05, 0.5)
    for apply in (functional.liger_fused_linear_dpo, LigerFusedLinearDPOFunction.apply):
        got, same = apply(*rest, *options)
        assert C.same_bits(got, loss) and all(C.same_bits(a, b) for a, b in zip(same, metrics))

    args = C.draw(grpo_sample("positions"))
    mask = (args["mask"] > 0).long()
    first = (args["ids"], mask, args["advantages"], args["bias"], args["ref_logps"], args["old_logps"])
    loss, metrics = LigerFusedLinearGRPOLoss(beta=0.1, epsilon_high=0.3, loss_type="grpo")(
        args["x"], args["weight"], *first
    )
    got, same = functional.liger_fused_linear_grpo(
        args["x"], args["weight"], *first, None, None, None, 0.1, 0.2, 0.3, "grpo"
    )
    assert C.same_bits(got, loss) and all(C.same_bits(a, b) for a, b in zip(same, metrics))


@SOME
def test_compiled_and_chunk_size_change_nothing(spec, sample):
    a = C.call(spec.fn, C.draw(sample))
    b = C.call(spec.fn, {**C.draw(sample), "compiled": False, "chunk_size": 3})
    assert not a.equal(b)


@pytest.mark.parametrize("loss_type", ("dapo", "vespo", "cispo"))
def test_nothing_outside_the_mask_counts(loss_type):
    """Not a NaN of the old policy, the reference or the sampler, nor an id that is none."""
    sample = grpo_sample("outside", loss_type=loss_type, ratio=(4, 6), off_policy_mask_threshold=0.1)
    clean, args = C.draw(sample), C.draw(sample)
    outside = args["mask"] < 0
    assert outside.any() and not outside.all()
    for name in ("old_logps", "ref_logps", "vllm_is_ratio"):
        args[name] = args[name].masked_fill(outside, float("nan"))
    args["ids"] = args["ids"].masked_fill(outside, -1)
    fn = SPECS["grpo"].fn
    assert not C.call(fn, clean).equal(C.call(fn, args))


def test_halves_of_a_batch_add_up():
    """ppo_loss_fn normalises by the mask of the whole batch, so that a caller may cut it."""
    g = torch.Generator().manual_seed(0)
    logps, old = (-torch.rand(4, 6, generator=g) for _ in range(2))
    mask = (torch.rand(4, 6, generator=g) > 0.3).long()
    advantages = torch.randn(4, generator=g)
    for loss_type in ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"):
        options = dict(loss_type=loss_type, max_completion_length=6, beta=0.1)

        def part(rows):
            loss, metrics = LigerFusedLinearGRPOFunction.ppo_loss_fn(
                logps[rows],
                mask[rows],
                advantages[rows],
                mask,
                old[rows],
                old[rows],
                **options,  # noqa: B023
            )
            return torch.stack((loss, *metrics))

        torch.testing.assert_close(part(slice(2)) + part(slice(2, None)), part(slice(None)))


@pytest.mark.parametrize("counted", (True, False))
def test_tokens_of_all_processes(counted, monkeypatch):
    """Gradients are averaged over the processes, so each divides by the tokens per process."""
    from liger_kernel.chunked_loss import _grpo_terms as terms

    args = C.draw(grpo_sample("processes"))
    here = (args["mask"] > 0).sum().item()
    alone = SPECS["grpo"].fn(**args)[0]
    monkeypatch.setattr(terms.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(terms.dist, "get_world_size", lambda: 3)
    monkeypatch.setattr(terms.dist, "all_reduce", lambda t: t.add_(10))
    given = {} if counted else {"num_items_in_batch": torch.tensor(here + 10)}
    loss = SPECS["grpo"].fn(**args, **given)[0]
    torch.testing.assert_close(loss, alone * here * 3 / (here + 10))


def test_k3_keeps_its_digits():
    d = torch.tensor([1e-3, 1e-4, -1e-4])  # exp(d) - d - 1 as it stands gives 4.1e-7, 0 and 0 here
    torch.testing.assert_close(k3_loss_fn(d, torch.zeros(3)), d * d / 2, rtol=5e-3, atol=0)


def test_vespo_weights_are_1_on_policy_and_finite_far_off():
    on = get_gamma_weights(torch.tensor([1.0, -1.0]), torch.zeros(2, 3), torch.ones(2, 3))
    torch.testing.assert_close(on, torch.ones(2, 1))
    far = get_gamma_weights(torch.tensor([1.0, -1.0]), torch.full((2, 3), 1e4), torch.ones(2, 3))
    assert far.isfinite().all()


def test_both_references_warn_and_the_log_probabilities_win():
    args = C.draw(grpo_sample("both"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = SPECS["grpo"].fn(**args)
    states = {
        k: v for k, v in C.draw(grpo_sample("both", ref="states")).items() if k in ("ref_input", "ref_weight")
    }
    with pytest.warns(UserWarning, match="ref_input is not used"):
        both = SPECS["grpo"].fn(**args, **states)
    assert all(C.same_bits(a, b) for a, b in zip(one, both))


def test_a_loss_of_ones_own_on_the_base():
    """Upstream's way to extend: a preference_loss_fn, and forward by super(); here CPO, and ORPO's
    nll_target.
    """

    class Own(LigerFusedLinearPreferenceBase):
        @staticmethod
        def preference_loss_fn(chosen_logps, rejected_logps, full_target, beta=0.1, gamma=0.0):
            h = beta * (chosen_logps - rejected_logps) - gamma
            return -torch.nn.functional.logsigmoid(h).sum() / (full_target.shape[0] // 2), h

        @classmethod
        def forward(cls, ctx, _input, weight, target, bias=None, nll_target=None, gamma=0.0):
            options = dict(nll_target=nll_target, gamma=gamma, average_log_prob=True)
            return super().forward(
                cls=cls, ctx=ctx, _input=_input, weight=weight, target=target, bias=bias, **options
            )

    args = C.draw(dpo_sample("own", ref=None))
    x, weight, target, bias = (args[k] for k in ("x", "weight", "target", "bias"))
    nll_target = torch.where(torch.rand(3, 7) < 0.3, -100, torch.randint(45, (3, 7)))
    loss, metrics = Own.apply(x, weight, target, bias, nll_target, 0.2)
    got = torch.autograd.grad(loss, (x, weight, bias))

    z = torch.nn.functional.linear(x, weight, bias)
    per_token = z.log_softmax(-1).gather(-1, target.clamp(min=0)[..., None])[..., 0]
    mask = target != -100
    chosen, rejected = ((per_token * mask).sum(-1) / mask.sum(-1)).chunk(2)
    nll = torch.nn.functional.cross_entropy(z[:3].flatten(0, 1), nll_target.flatten())
    h = 0.1 * (chosen - rejected) - 0.2
    expected = nll - torch.nn.functional.logsigmoid(h).mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(metrics[4], nll)
    torch.testing.assert_close(metrics[5], h.detach())
    assert len(metrics) == 6
    for a, b in zip(got, torch.autograd.grad(expected, (x, weight, bias))):
        torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match=r"nll_target has shape \(2, 7\), expected .* \(3, 7\)"):
        Own.apply(x, weight, target, bias, target[:2])
    with pytest.raises(NotImplementedError, match="preference_loss_fn"):
        LigerFusedLinearPreferenceBase.forward(Own.__mro__[1], None, x, weight, target)


def test_the_package_exports_its_losses():
    assert {"LigerFusedLinearDPOLoss", "LigerFusedLinearGRPOLoss"} <= set(chunked_loss.__all__)
    assert "loss_type='hinge'" in repr(LigerFusedLinearDPOLoss(loss_type="hinge"))


def test_no_samples():
    args = C.draw(dpo_sample("empty", pairs=0))
    loss = dpo(**args)[0]
    loss.backward()
    assert loss == 0 and not args["weight"].grad.any()
