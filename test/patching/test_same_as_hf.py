"""A patched model computes what Hugging Face's computes: loss, every gradient, evaluation and generation."""

import collections

import pytest
import torch
from tiny_models import apply_to, assert_same_step, batch, make_model, step

from liger_kernel.transformers import patch_report, revert
from liger_kernel.transformers.patching.table import MODELS


def test_everything_is_replaced(row, pair):
    report = patch_report(pair[1])
    assert report.left == {}
    assert set(report.replaced) == {flag for flag, on in row.flags.items() if on}
    norms = [n for n, m in pair[1].named_modules() if "Norm" in type(m).__name__]
    assert report.replaced["rms_norm"] == norms
    assert len(report.replaced["rope"]) == 2


def test_training(pair):
    reference, patched = pair
    assert_same_step(step(patched, batch()), step(reference, batch()))
    assert patched(**batch()).logits is None


@pytest.mark.parametrize("as_tensor", [True, False])
def test_accumulation_of_uneven_lengths(pair, as_tensor):
    reference, patched = pair
    micro = [batch(2, 11, seed=1), batch(3, 5, seed=2)]
    items = sum(int((b["labels"][:, 1:] != -100).sum()) for b in micro)
    micro = [b | {"num_items_in_batch": torch.tensor(items) if as_tensor else items} for b in micro]
    assert_same_step(step(patched, *micro), step(reference, *micro))


def test_shift_labels(pair):
    reference, patched = pair
    call = batch()
    call["shift_labels"] = torch.roll(call["labels"], -1, 1)
    ours = step(patched, call)
    assert_same_step(ours, step(reference, call))
    without_labels = {name: value for name, value in call.items() if name != "labels"}
    assert_same_step(step(patched, without_labels), ours)


def test_all_labels_ignored(pair):
    _, patched = pair
    call = batch()
    call["labels"] = torch.full_like(call["labels"], -100)
    for extra in ({}, {"num_items_in_batch": 7}, {"num_items_in_batch": torch.tensor(0)}):
        losses, gradients = step(patched, call | extra)
        assert losses[0] == 0
        assert all((g == 0).all() for g in gradients.values())


def test_evaluation_is_unchanged(pair):
    reference, patched = (model.eval() for model in pair)
    ours, theirs = patched(**batch()), reference(**batch())
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-6, atol=0)
    assert type(ours) is type(theirs)
    with torch.no_grad():
        skipped = patched(**batch(), skip_logits=True)
    assert skipped.logits is None
    torch.testing.assert_close(skipped.loss, theirs.loss, rtol=1e-6, atol=0)


def test_training_with_logits(pair):
    reference, patched = pair
    call = batch()
    output = patched(**call, skip_logits=False)
    torch.testing.assert_close(output.logits, reference(**call).logits, rtol=1e-5, atol=1e-5)
    assert_same_step(step(patched, call | {"skip_logits": False}), step(reference, call))


def test_generate_is_unchanged(pair):
    reference, patched = pair
    prompt = batch(2, 6)["input_ids"]
    options = dict(max_new_tokens=6, attention_mask=torch.ones_like(prompt))
    for model in pair:
        model.eval()
    for sampling in (dict(do_sample=False), dict(do_sample=False, num_beams=2)):
        expected = reference.generate(prompt, **options, **sampling)
        assert torch.equal(patched.generate(prompt, **options, **sampling), expected)


def test_gradient_checkpointing(pair):
    reference, patched = pair
    for model in pair:
        model.config.use_cache = False
        model.gradient_checkpointing_enable()
    assert_same_step(step(patched, batch()), step(reference, batch()))


def test_return_dict_false(pair):
    reference, patched = pair
    theirs = reference(**batch(), return_dict=False)
    ours = patched(**batch(), return_dict=False, use_cache=False)
    assert isinstance(ours, tuple) and len(ours) == 1  # the loss; no logits, no cache
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-6, atol=0)


def test_hidden_states_and_attentions(pair):
    reference, patched = pair
    call = batch() | dict(output_hidden_states=True, output_attentions=True)
    ours, theirs = patched(**call), reference(**call)
    assert len(ours.hidden_states) == len(theirs.hidden_states) == 3
    assert len(ours.attentions) == len(theirs.attentions) == 2
    torch.testing.assert_close(ours.attentions, theirs.attentions, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("level", ["instance", "class"])
def test_cross_entropy(row, level):
    reference = make_model(row).train()
    flags = dict(cross_entropy=True, fused_linear_cross_entropy=False)
    if level == "class":
        apply_to(row, **flags)
    patched = make_model(row).train()
    if level == "instance":
        apply_to(row, patched, **flags)
    if level == "class":
        expected = step(patched, batch())
        revert(row.name)
        assert_same_step(expected, step(reference, batch()))
        return
    assert patched(**batch()).logits is not None
    items = batch() | {"num_items_in_batch": 30}
    assert_same_step(step(patched, batch(), items), step(reference, batch(), items))


def test_partial_rope():
    row = MODELS["phi3"]
    reference = make_model(row, partial_rotary_factor=0.5).train()
    patched = make_model(row, partial_rotary_factor=0.5).train()
    apply_to(row, patched)
    assert_same_step(step(patched, batch()), step(reference, batch()))


def test_bfloat16_training():
    """Losses and gradients of both against the fp32 model's: ours may not be further off (a tenth for
    luck)."""
    row = MODELS["llama"]
    truth = make_model(row).train()
    reference, patched = (make_model(row).train().bfloat16() for _ in range(2))
    truth.load_state_dict(reference.state_dict())
    apply_to(row, patched)
    (_, true), (_, theirs), (_, ours) = (step(m, batch()) for m in (truth, reference, patched))

    def error(gradients):
        return sum((gradients[n].float() - g).norm() / g.norm() for n, g in true.items()) / len(true)

    assert error(ours) <= 1.1 * error(theirs)


class _Calls(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the operators of ours that run."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "liger":
            self.counts[function._schema.name.removeprefix("liger::")] += 1
        return function(*args, **(kwargs or {}))


def test_kernels_run(row, pair):
    """Every replaced module calls its kernel, once a forward: equal numbers alone would not show it."""
    _, patched = pair
    with torch.no_grad(), _Calls() as calls:
        patched(**batch())
    for flag, names in patch_report(patched).replaced.items():
        ran = sum(count for name, count in calls.counts.items() if name.startswith(flag))
        assert ran == len(names), (flag, calls.counts)
