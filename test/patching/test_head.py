"""The fused head: its options, what it declines and says, PEFT around it, and what programs replace in it."""

import copy
import inspect

import pytest
import torch
from tiny_models import VOCAB, apply_to, assert_same_step, batch, make_model, step

from liger_kernel.transformers import functional, patch_report, revert
from liger_kernel.transformers.model import loss_utils
from liger_kernel.transformers.patching import leaf
from liger_kernel.transformers.patching.table import MODELS

LLAMA, GEMMA2 = MODELS["llama"], MODELS["gemma2"]


@pytest.fixture(params=["llama", "gemma2"])  # without and with a softcap
def models(request):
    row = MODELS[request.param]
    reference = make_model(row).train()
    patched = copy.deepcopy(reference)
    apply_to(row, patched)
    return reference, patched


def targets_of(call):
    return torch.nn.functional.pad(call["labels"], (0, 1), value=-100)[:, 1:].reshape(-1)


@pytest.mark.parametrize("training", [True, False])
def test_token_metrics(models, training):
    reference, patched = (model.train(training) for model in models)
    call = batch(3, 13)
    logits, target = reference(**call).logits.reshape(-1, VOCAB), targets_of(call)
    predicted = logits.argmax(-1).masked_fill(target == -100, -1)
    call["labels"][0, 5] = predicted[4]  # one hit at least
    target = targets_of(call)
    accuracy = (predicted == target)[target != -100].float().mean()
    output = patched(**call, return_token_accuracy=True, return_predicted_tokens=True)
    assert (output.logits is None) == training
    assert accuracy > 0
    torch.testing.assert_close(output.token_accuracy.float(), accuracy)
    assert torch.equal(output.predicted_tokens, predicted.masked_fill(target == -100, -1))
    as_tuple = patched(**call, return_token_accuracy=True, return_dict=False, use_cache=False)
    torch.testing.assert_close(as_tuple[-1].float(), accuracy)
    assert patched(**call).get("token_accuracy") is None


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("items", [None, 30])
def test_token_scaling(models, training, items):
    """Each token's loss times its own detached probability; the denominator stays."""
    reference, patched = (model.train(training) for model in models)
    call, extra = batch(), {} if items is None else {"num_items_in_batch": items}
    target = targets_of(call)
    nll = torch.nn.functional.cross_entropy(
        reference(**call).logits.reshape(-1, VOCAB), target, ignore_index=-100, reduction="none"
    )
    loss = (nll * torch.exp(-nll.detach())).sum() / (items or (target != -100).sum())
    loss.backward()
    theirs = [loss.detach()], {n: p.grad.clone() for n, p in reference.named_parameters()}
    assert_same_step(step(patched, call | extra | {"use_token_scaling": True}), theirs)
    output = patched(**call, use_token_scaling=True)
    assert (output.logits is None) == training


def test_other_loss_options(models):
    """What liger_fused_linear_cross_entropy knows reaches it from the model's keywords."""
    reference, patched = models
    call = batch()
    logits, target = reference(**call).logits.reshape(-1, VOCAB), targets_of(call)
    for theirs, ours in (("label_smoothing", "label_smoothing"), ("weight", "ce_weight")):
        option = 0.1 if theirs == "label_smoothing" else torch.rand(VOCAB) + 0.5
        loss = torch.nn.functional.cross_entropy(logits, target, **{theirs: option})
        torch.testing.assert_close(patched(**call, **{ours: option}).loss, loss, rtol=2e-6, atol=0)
    plain = torch.nn.functional.cross_entropy(logits, target)
    lse = torch.logsumexp(logits, -1)[target != -100]
    loss = patched(**call, lse_square_scale=0.1).loss
    torch.testing.assert_close(loss, plain + 0.1 * (lse**2).mean(), rtol=2e-6, atol=0)
    call["labels"] = call["labels"].masked_fill(call["labels"] == -100, 5)
    loss = reference(**call, ignore_index=5).loss
    torch.testing.assert_close(patched(**call, ignore_index=5).loss, loss, rtol=2e-6, atol=0)


def test_skip_logits_needs_labels(models):
    for model in (models[1].train(), models[1].eval()):
        with pytest.raises(ValueError, match="skip_logits=True needs labels or shift_labels"):
            model(batch()["input_ids"], skip_logits=True)


def test_positional_arguments(models):
    reference, patched = models
    call = batch()
    names = list(inspect.signature(reference.forward).parameters)
    values = [call.get(name) for name in names[: names.index("labels") + 1]]
    torch.testing.assert_close(patched(*values).loss, reference(*values).loss, rtol=1e-6, atol=0)


def test_forward_takes_what_hf_takes(models):
    reference, patched = models
    assert inspect.signature(patched.forward) == inspect.signature(reference.forward)


def test_logits_to_keep(models, warnings_logged):
    reference, patched = models
    call = batch()
    few = patched(input_ids=call["input_ids"], logits_to_keep=3).logits
    torch.testing.assert_close(few, reference(**call).logits[:, -3:], rtol=1e-5, atol=1e-5)
    call["shift_labels"] = call["labels"][:, -3:].contiguous()
    expected = step(reference, call | {"logits_to_keep": 3})
    assert_same_step(step(patched, call | {"logits_to_keep": 3}), expected)
    assert warnings_logged() == []
    del call["shift_labels"]
    with pytest.raises(ValueError, match="batch_size"):  # Hugging Face's own error: rows and labels differ
        patched(**call, logits_to_keep=3)


def test_tied_head():
    reference = make_model(LLAMA, tie_word_embeddings=True).train()
    patched = copy.deepcopy(reference)
    apply_to(LLAMA, patched)
    assert_same_step(step(patched, batch()), step(reference, batch()))


def test_head_with_bias_and_resized_embeddings():
    reference = make_model(LLAMA).train()
    patched = copy.deepcopy(reference)
    apply_to(LLAMA, patched)
    for model in (reference, patched):
        torch.manual_seed(3)
        model.resize_token_embeddings(VOCAB + 6)  # makes a new head, after the patch
        head = torch.nn.Linear(model.lm_head.in_features, model.lm_head.out_features, bias=True)
        with torch.no_grad():
            head.weight.copy_(model.lm_head.weight)
        model.set_output_embeddings(head)
    assert patched(**batch()).logits is None
    assert_same_step(step(patched, batch()), step(reference, batch()))


def test_frozen_head_and_frozen_body(models):
    reference, patched = models
    for frozen in ("lm_head", "model"):
        for model in (reference, patched):
            model.requires_grad_(True)
            getattr(model, frozen).requires_grad_(False)
            if frozen == "model":
                model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        assert_same_step(step(patched, batch()), step(reference, batch()))


def test_autocast(models):
    """Under bf16 autocast both round; the losses agree to bf16's precision."""
    reference, patched = models
    with torch.autocast("cpu", dtype=torch.bfloat16):
        theirs, ours = reference(**batch()).loss, patched(**batch()).loss
    assert abs(ours - theirs) <= 2**-7 * abs(theirs)


# What declines


def lora(model, **config):
    peft = pytest.importorskip("peft")
    torch.manual_seed(5)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, **config))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:  # zero at the start, which would hide a forgotten adapter
                parameter.normal_()
    return wrapped.train()


@pytest.mark.parametrize("patched_first", [True, False])
def test_lora_on_the_head_declines(patched_first, warnings_logged):
    targets = dict(target_modules=["q_proj", "lm_head"])
    reference = lora(make_model(LLAMA), **targets)
    model = make_model(LLAMA)
    if patched_first:
        apply_to(LLAMA, model)
    patched = lora(model, **targets)
    if not patched_first:
        apply_to(LLAMA, patched.get_base_model())
    ours = step(patched, batch(), batch())
    assert_same_step(ours, step(reference, batch(), batch()))
    assert patched(**batch()).logits is not None
    (warning,) = warnings_logged()
    assert "peft.tuners.lora" in warning and "not a plain nn.Linear" in warning
    report = patch_report(patched.get_base_model())
    assert "rms_norm" in report.replaced and "not a plain nn.Linear" in str(report)
    output = patched(**batch(), return_token_accuracy=True)
    assert 0 <= output.token_accuracy <= 1
    with pytest.raises(ValueError, match="use_token_scaling needs the fused head, .*not a plain nn.Linear"):
        patched(**batch(), use_token_scaling=True)


@pytest.mark.parametrize("patched_first", [True, False])
def test_modules_to_save_is_fused(patched_first, warnings_logged):
    config = dict(target_modules=["q_proj", "gate_proj"], modules_to_save=["lm_head", "norm"])
    reference = lora(make_model(LLAMA), **config)
    model = make_model(LLAMA)
    if patched_first:
        apply_to(LLAMA, model)
    patched = lora(model, **config)
    if not patched_first:
        apply_to(LLAMA, patched.get_base_model())
    for wrapped in (reference, patched):
        with torch.no_grad():  # so that the saved copy and the original differ
            wrapped.get_base_model().lm_head.modules_to_save["default"].weight.mul_(1.5)
    expected = step(reference, batch())
    assert any("modules_to_save" in name and "lm_head" in name for name in expected[1])
    assert_same_step(step(patched, batch()), expected)
    assert patched(**batch()).logits is None
    with patched.disable_adapter(), reference.disable_adapter():
        theirs, ours = reference(**batch()).loss, patched(**batch()).loss
    assert ours != expected[0][0]
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    assert warnings_logged() == []


def test_replaced_loss_function_declines(models, warnings_logged):
    _, patched = models

    def my_loss(logits, labels, vocab_size, **kwargs):
        return logits.mean()

    patched.loss_function = my_loss
    output = patched(**batch())
    torch.testing.assert_close(output.loss, output.logits.mean())
    assert ["my_loss" in text for text in warnings_logged()] == [True]


def test_unplain_head_and_weight_decline(models, warnings_logged):
    reference, patched = models

    class Scaled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    class Marked(torch.Tensor):
        pass

    for model in models:
        model.lm_head.__class__ = Scaled
    assert_same_step(step(patched, batch()), step(reference, batch()))
    apply_to(MODELS[patched.config.model_type], patched)
    for model in models:
        model.lm_head.__class__ = torch.nn.Linear
    patched.lm_head.weight = torch.nn.Parameter(patched.lm_head.weight.detach().as_subclass(Marked))
    assert patched(**batch()).logits is not None
    assert [("Scaled" in t, "Marked" in t) for t in warnings_logged()] == [(True, False), (False, True)]


@pytest.mark.parametrize("shape", [(0, 32), (17,)])
def test_sharded_weight_is_named(models, shape):
    _, patched = models
    patched.lm_head.weight = torch.nn.Parameter(torch.zeros(shape))
    with pytest.raises(ValueError, match="sharded"):
        patched(**batch())


def test_head_called_twice_in_one_forward():
    """The first call is the loss's; another (a draft head's, say) gets logits."""
    head, hidden = leaf.LigerHead(8, VOCAB), torch.randn(1, 4, 8)
    head._liger_request = request = leaf.Request(torch.tensor([[1, 2, 3, 4]]), {}, keep_logits=False)
    head.register_forward_hook(request.passed)
    loss = head(hidden)
    assert loss.shape == () and head(hidden).shape == (1, 4, VOCAB) and request.loss is loss


def test_failure_inside_leaves_no_request(models):
    _, patched = models
    with pytest.raises(Exception):  # noqa: B017  (whatever the embedding raises)
        patched(input_ids=torch.tensor([[VOCAB + 5]]), labels=torch.tensor([[1]]))
    assert patched(input_ids=batch()["input_ids"]).logits is not None
    assert patched.lm_head._liger_request is None


# What programs replace


def test_functional_is_looked_up_at_call_time(models, monkeypatch):
    """axolotl's way: a wrapper of (*args, **kwargs) that switches an option on."""
    _, patched = models
    original, seen = functional.liger_fused_linear_cross_entropy, []

    def wrapper(*args, **kwargs):
        seen.append(kwargs)
        return original(*args, **kwargs | {"use_token_scaling": True})

    expected = patched(**batch(), use_token_scaling=True).loss
    monkeypatch.setattr(functional, "liger_fused_linear_cross_entropy", wrapper)
    assert torch.equal(patched(**batch(), label_smoothing=0.0, output_router_logits=None).loss, expected)
    assert seen[0]["label_smoothing"] == 0.0 and "output_router_logits" not in seen[0]

    def narrow(input, weight, target, bias=None, ignore_index=-100, reduction="mean", **rest):
        raise AssertionError("not called")

    monkeypatch.setattr(functional, "liger_fused_linear_cross_entropy", narrow)
    with pytest.raises(AssertionError, match="not called"):
        patched(**batch())


def test_loss_is_looked_up_at_call_time(models, monkeypatch):
    """ms-swift's way: LigerForCausalLMLoss replaced by a function of (hidden_states, *args, **kwargs)."""
    _, patched = models
    original, seen = loss_utils.LigerForCausalLMLoss, []

    def wrapper(hidden_states, *args, **kwargs):
        seen.append(hidden_states.shape)
        return original(hidden_states.contiguous(), *args, **kwargs)

    expected = patched(**batch()).loss
    monkeypatch.setattr(loss_utils, "LigerForCausalLMLoss", wrapper)
    assert torch.equal(patched(**batch()).loss, expected)
    assert seen == [(2, 11, 32)]


def test_loss_by_itself():
    """axolotl calls LigerForCausalLMLoss with keywords."""
    torch.manual_seed(0)
    hidden, weight, labels = torch.randn(2, 5, 8), torch.randn(VOCAB, 8), torch.randint(VOCAB, (2, 5))
    loss = loss_utils.LigerForCausalLMLoss(
        hidden_states=hidden, lm_head_weight=weight, labels=labels, hidden_size=8, some_other_keyword=1
    )
    logits = (hidden @ weight.T)[:, :-1].reshape(-1, VOCAB)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, labels[:, 1:].reshape(-1)))


# Compilation


@pytest.mark.parametrize("level", ["instance", "class"])
def test_compile_fullgraph(level):
    row = GEMMA2 if level == "class" else LLAMA
    reference = make_model(row).train()
    if level == "class":
        apply_to(row)
    patched = make_model(row).train()
    if level == "instance":
        apply_to(row, patched)
    eager = step(patched, batch())
    torch._dynamo.reset()
    compiled = torch.compile(patched, backend="aot_eager", fullgraph=True)
    assert_same_step(step(patched, batch()), eager)
    call = batch()
    patched.zero_grad()
    output = compiled(**call)
    assert output.logits is None
    output.loss.backward()
    gradients = {n: p.grad.clone() for n, p in patched.named_parameters()}
    assert_same_step(([output.loss.detach()], gradients), eager)
    revert()
    if level == "instance":
        assert_same_step(eager, step(reference, call))


def test_accuracy_from_logits_of_an_all_ignored_batch_is_zero():
    from liger_kernel.transformers.model.loss_utils import token_metrics

    share, predicted = token_metrics(torch.randn(2, 3, 5), True, True, torch.full((2, 3), -100))
    assert share == 0 and (predicted == -1).all()


class _Recorded(torch.autograd.Function):
    """Another tensor of the same value, whose backward says that it came: as DeepSpeed's hooks have it."""

    @staticmethod
    def forward(ctx, x, events):
        ctx.events = events
        return x.detach()

    @staticmethod
    def backward(ctx, grad):
        ctx.events.append("backward of what the hook gave back")
        return grad, None


def test_loss_passes_through_the_heads_hooks(models):
    """ZeRO-3 gathers the head's weight in the backward of what its hook gave back, before its gradient."""
    reference, patched = models
    events = []
    hook = patched.lm_head.register_forward_hook(lambda _, args, out: _Recorded.apply(out, events))
    weight = patched.lm_head.weight
    weight.register_post_accumulate_grad_hook(lambda _: events.append("gradient of the weight"))
    assert_same_step(step(patched, batch()), step(reference, batch()))
    assert events == ["backward of what the hook gave back", "gradient of the weight"]
    assert list(patched.lm_head._forward_hooks) == [hook.id]  # ours was there for the call alone


def test_logits_beside_the_loss_are_left_to_hugging_face_under_zero_3(models):
    reference, patched = models
    patched.lm_head.weight.ds_id = 0  # what DeepSpeed marks its shards with
    call = batch() | {"skip_logits": False, "label_smoothing": 0.1}
    with pytest.raises(ValueError, match="label_smoothing needs the fused head.*DeepSpeed ZeRO-3"):
        patched(**call)
    with torch.no_grad():
        assert patched(**call).logits is not None
    assert_same_step(step(patched, batch()), step(reference, batch()))
