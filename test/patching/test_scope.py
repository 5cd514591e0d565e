"""What a patch touches: one model or one modelling module, nothing else, and nothing for good."""

import copy
import importlib
import io

import pytest
import torch
from tiny_models import apply_to, assert_same_step, batch, make_model, step

from liger_kernel.transformers import patch_report, revert
from liger_kernel.transformers.patching.table import MODELS, Head, Layer, Model, Rope


def state_of(model):
    """Everything that a patch could change in a model: classes, their forwards, attributes' identities."""
    return {
        name: (type(m), type(m).forward, {k: id(v) for k, v in vars(m).items()})
        for name, m in model.named_modules()
    }


def globals_of(row):
    """Everything that a patch could change for others."""
    modeling = importlib.import_module(row.modeling)
    classes = [value for value in vars(modeling).values() if isinstance(value, type)]
    shared = [dict(vars(modeling)), *[dict(vars(c)) for c in classes]]
    shared += [dict(vars(torch.nn)), dict(vars(torch.nn.functional)), dict(vars(torch.nn.Linear))]
    import transformers.loss.loss_utils as loss_utils

    return [*shared, dict(vars(loss_utils))]


@pytest.mark.parametrize("fused", [True, False])
def test_instance_patch_is_local_and_undone(row, fused):
    model, bystander = make_model(row), make_model(row)
    step(bystander.train(), batch())
    shared, before, others = globals_of(row), state_of(model), state_of(bystander)
    apply_to(row, model, cross_entropy=not fused, fused_linear_cross_entropy=fused)
    assert globals_of(row) == shared
    assert state_of(bystander) == others
    assert state_of(model) != before
    step(model.train(), batch())
    model.eval()
    changed = type(model.model.norm)
    revert(model.train())
    after = state_of(model)
    assert changed is not type(model.model.norm)
    assert {n: s[:2] for n, s in after.items()} == {n: s[:2] for n, s in before.items()}
    assert {n: s[2].keys() for n, s in after.items()} == {n: s[2].keys() for n, s in before.items()}
    assert globals_of(row) == shared
    assert_same_step(step(model, batch()), step(bystander.train(), batch()))


def test_class_patch_is_undone(row):
    shared = globals_of(row)
    existing = make_model(row)
    apply_to(row)
    assert globals_of(row) != shared
    made = make_model(row).train()
    assert set(patch_report(made).replaced) == {flag for flag, on in row.flags.items() if on}
    assert made(**batch()).logits is None
    ours = step(made, batch())
    revert(row.name)
    assert globals_of(row) == shared
    assert_same_step(ours, step(existing.train(), batch()))
    revert(made)  # made under the patch: its layers keep their classes until now
    assert patch_report(made).replaced == {}
    assert state_of(made).keys() == state_of(existing).keys()
    assert [s[0] for s in state_of(made).values()] == [s[0] for s in state_of(existing).values()]


def test_patching_twice_is_patching_once(row):
    model = make_model(row)
    apply_to(row, model)
    once = state_of(model)
    apply_to(row, model)
    assert state_of(model) == once
    apply_to(row)
    shared = globals_of(row)
    apply_to(row)
    assert globals_of(row) == shared
    apply_to(row, model)  # both levels at once
    reference = make_model(row).train()
    ours = step(model.train(), batch())
    revert()
    revert(model)
    assert_same_step(ours, step(reference, batch()))


def test_cross_entropy_and_fused_head_replace_each_other(row):
    for model in (make_model(row), None):
        apply_to(row, model)
        apply_to(row, model, cross_entropy=True, fused_linear_cross_entropy=False)
        seen = model or make_model(row)
        assert "cross_entropy" in patch_report(seen).replaced
        assert seen.train()(**batch()).logits is not None
        apply_to(row, model)
        assert seen(**batch()).logits is None
    revert()


def test_copies_stay_patched(pair):
    """deepcopy, pickle and nn.DataParallel's replicas: a forward bound to the instance would fail all
    three."""
    reference, patched = pair
    buffer = io.BytesIO()
    torch.save(patched, buffer)
    buffer.seek(0)
    expected = step(reference, batch())
    for copied in (copy.deepcopy(patched), torch.load(buffer, weights_only=False)):
        assert patch_report(copied).replaced == patch_report(patched).replaced
        assert_same_step(step(copied, batch()), expected)
        for mine, theirs in zip(copied.parameters(), patched.parameters(), strict=True):
            assert mine is not theirs
    norm = patched.model.norm
    replica = norm._replicate_for_data_parallel()
    replica.weight = norm.weight.detach() * 2
    x = torch.randn(3, norm.weight.shape[0])
    assert not torch.equal(replica(x), norm(x))


def test_device_map_hooks(pair):
    """accelerate keeps a module's former forward: the patch has to reach it there."""
    hooks = pytest.importorskip("accelerate.hooks")
    reference, patched = pair
    revert(patched)
    for module in patched.modules():
        hooks.add_hook_to_module(module, hooks.ModelHook())
    apply_to(next(row for row in MODELS.values() if row.name == patched.config.model_type), patched)
    assert patch_report(patched).left == {}
    assert patched(**batch()).logits is None
    assert_same_step(step(patched, batch()), step(reference, batch()))
    revert(patched)
    assert patched(**batch()).logits is not None
    assert_same_step(step(patched, batch()), step(reference, batch()))


def test_other_activation_is_left_alone():
    """A Llama with another activation than SiLU keeps its MLP, at both levels; SwiGLU would be wrong."""
    row = MODELS["llama"]
    reference = make_model(row, hidden_act="gelu").train()
    patched = copy.deepcopy(reference)
    apply_to(row, patched)
    left = patch_report(patched).left
    assert {name: reason for name, (_, reason) in left.items()} == {
        f"model.layers.{i}.mlp": "its activation is GELUActivation, the kernel computes SiLU" for i in (0, 1)
    }
    apply_to(row)
    made = make_model(row, hidden_act="gelu").train()
    assert "swiglu" not in patch_report(made).replaced
    assert_same_step(step(made, batch()), step(patched, batch()))
    revert()
    assert_same_step(step(patched, batch()), step(reference, batch()))
    with pytest.raises(ValueError, match="swiglu=True matches nothing in LlamaForCausalLM"):
        apply_to(row, copy.deepcopy(reference), swiglu=True)


def test_own_forward_is_left_alone():
    model = make_model(MODELS["llama"])
    model.model.norm.forward = lambda x: x
    apply_to(MODELS["llama"], model)
    assert patch_report(model).left == {
        "model.norm": ("LlamaRMSNorm", "its forward was replaced by somebody else")
    }
    assert "_liger_base" not in vars(type(model.model.norm))


def test_foreign_class_of_the_same_name_is_left_alone():
    """Remote code likes to keep the names and change the formula."""

    class LlamaRMSNorm(torch.nn.Module):
        def forward(self, x):
            return x

    model = make_model(MODELS["llama"])
    model.model.norm = LlamaRMSNorm()
    apply_to(MODELS["llama"], model)
    assert "its class comes from" in patch_report(model).left["model.norm"][1]


def test_subclass_of_a_users_is_patched(row):
    """A user's subclass that keeps the forward is the same model; isinstance and names stay."""
    base = type(make_model(row))
    mine = type("MyModel", (base,), {"__module__": __name__})
    model = make_model(row)
    model.__class__ = mine
    norm = type(model.model.norm)
    model.model.norm.__class__ = type("MyNorm", (norm,), {"__module__": __name__})
    apply_to(row, model)
    assert "model.norm" in patch_report(model).replaced["rms_norm"]
    assert type(model).__name__ == "MyModel" and isinstance(model, mine)
    assert model.train()(**batch()).logits is None


def test_bias_in_the_mlp_stays():
    row = MODELS["llama"]
    reference, patched = (make_model(row, mlp_bias=True, attention_bias=True).train() for _ in range(2))
    apply_to(row, patched)
    assert_same_step(step(patched, batch()), step(reference, batch()))


def test_a_row_is_all_a_model_needs(monkeypatch):
    """A new model is one row: here OLMo, whose norm has no weight and is not listed."""
    row = Model(
        "olmo",
        layers=(Layer("swiglu", "OlmoMLP", "swiglu:LigerSwiGLUMLP", activations=("SiLU", "SiLUActivation")),),
        rope=Rope("OlmoAttention"),
        head=Head("OlmoForCausalLM"),
    )
    from liger_kernel.transformers.patching import engine

    monkeypatch.setitem(MODELS, "olmo", row)
    reference, patched = (make_model(row).train() for _ in range(2))
    flags = {flag: on for flag, on in row.flags.items()}
    counts = engine.apply(row, flags, patched)
    assert counts == {"rope": 2, "fused_linear_cross_entropy": 1, "swiglu": 2}
    assert_same_step(step(patched, batch()), step(reference, batch()))
