"""The functions that users and trainers call: signatures, flags, errors, warnings, Auto, Trainer."""

import importlib
import inspect
import subprocess
import sys

import pytest
import torch
import transformers
from tiny_models import apply_to, batch, make_model

import liger_kernel.transformers as liger
from liger_kernel.transformers import monkey_patch, patch_report
from liger_kernel.transformers.patching.table import MODELS

LLAMA = MODELS["llama"]


def test_signatures():
    """As upstream has them for these models, in names, order and defaults."""
    for name in MODELS:
        mlp = "geglu" if name.startswith("gemma") else "swiglu"
        expected = dict(rope=True, cross_entropy=False, fused_linear_cross_entropy=True, rms_norm=True)
        expected |= {mlp: True, "model": None}
        function = getattr(liger, f"apply_liger_kernel_to_{name}")
        assert inspect.isfunction(function) and function.__name__ == f"apply_liger_kernel_to_{name}"
        parameters = inspect.signature(function).parameters
        assert {n: p.default for n, p in parameters.items()} == expected
        assert list(parameters) == list(expected)
        assert monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN[name] is function


def test_arguments_are_checked():
    with pytest.raises(TypeError, match="geglu"):
        liger.apply_liger_kernel_to_llama(geglu=True)
    with pytest.raises(ValueError, match="cross_entropy and fused_linear_cross_entropy"):
        liger.apply_liger_kernel_to_llama(cross_entropy=True)
    with pytest.raises(ValueError, match="target is 'lama'"):
        liger.revert("lama")


def test_positional_flags_and_none(row):
    """None means False (axolotl passes it); positions are upstream's."""
    function = getattr(liger, f"apply_liger_kernel_to_{row.name}")
    model = make_model(row)
    function(None, None, False, True, model=model)
    assert set(patch_report(model).replaced) == {"rms_norm", [*row.flags][-1]}


def test_flag_that_matches_nothing(warnings_logged):
    classifier = transformers.LlamaForSequenceClassification(make_model(LLAMA).config)
    before = [type(m) for m in classifier.modules()]
    with pytest.raises(ValueError, match="fused_linear_cross_entropy=True matches nothing in LlamaForSeq"):
        liger.apply_liger_kernel_to_llama(fused_linear_cross_entropy=True, model=classifier)
    assert [type(m) for m in classifier.modules()] == before  # all or nothing
    assert warnings_logged() == []
    liger._apply_liger_kernel_to_instance(classifier, fused_linear_cross_entropy=True, swiglu=True)
    (warning,) = warnings_logged()
    assert "LlamaForSequenceClassification: fused_linear_cross_entropy matched nothing" in warning
    assert set(patch_report(classifier).replaced) == {"rope", "rms_norm", "swiglu"}
    classifier(batch()["input_ids"][:1])


def test_missing_class_at_class_level(monkeypatch, warnings_logged):
    modeling = importlib.import_module(LLAMA.modeling)
    monkeypatch.delattr(modeling, "LlamaMLP")
    with pytest.raises(ValueError, match="swiglu=True matches nothing in transformers.models.llama"):
        liger.apply_liger_kernel_to_llama(swiglu=True)
    assert "_liger_base" not in vars(modeling.LlamaRMSNorm)
    liger._apply_liger_kernel("llama")
    assert ["swiglu matched nothing" in text for text in warnings_logged()] == [True]
    liger.revert("llama")


def test_unknown_model_is_untouched(warnings_logged):
    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50)
    model = transformers.GPT2LMHeadModel(config)
    before = [(type(m), m.forward) for m in model.modules()]
    liger._apply_liger_kernel_to_instance(model=model, rms_norm=True)
    assert [(type(m), m.forward) for m in model.modules()] == before
    assert ["'gpt2'" in text for text in warnings_logged()] == [True]
    liger._apply_liger_kernel("gpt2")
    liger._apply_liger_kernel("")
    assert len(warnings_logged()) == 3
    report = patch_report(model)
    assert report.replaced == {} and "no row in the table" in str(report)


def test_unknown_keywords_are_dropped():
    """verl passes swiglu=True to every model, HF Trainer whatever the user's dictionary holds."""
    model = make_model(MODELS["gemma"])
    liger._apply_liger_kernel_to_instance(model=model, fused_linear_cross_entropy=False, swiglu=True, foo=1)
    assert set(patch_report(model).replaced) == {"rope", "rms_norm", "geglu"}


def test_function_put_into_the_dictionary(monkeypatch):
    calls = []
    monkeypatch.setitem(
        monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN,
        "llama",
        lambda rope=True, model=None: calls.append((rope, model)),
    )
    liger._apply_liger_kernel("llama", rope=False, swiglu=True)
    assert calls == [(False, None)]


def test_auto_model(tmp_path, row, warnings_logged):
    saved = make_model(row)
    saved.save_pretrained(tmp_path)
    auto = liger.AutoLigerKernelForCausalLM
    model = auto.from_pretrained(tmp_path, rope=False, attn_implementation="eager").train()
    assert set(patch_report(model).replaced) == {"fused_linear_cross_entropy", "rms_norm", [*row.flags][-1]}
    torch.testing.assert_close(model(**batch()).loss, saved.train()(**batch()).loss, rtol=1e-6, atol=0)
    made = auto.from_config(saved.config, fused_linear_cross_entropy=False)
    assert "fused_linear_cross_entropy" not in patch_report(made).replaced
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert patch_report(plain).replaced == {}
    assert warnings_logged() == []
    again = tmp_path / "again"
    model.save_pretrained(again)
    assert transformers.AutoConfig.from_pretrained(again).architectures == [row.head.cls]


def test_auto_model_of_unknown_type(tmp_path, warnings_logged):
    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    model = liger.AutoLigerKernelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert type(model).__name__ == "GPT2LMHeadModel" and len(warnings_logged()) == 1
    assert liger.AutoLigerKernelForCausalLM.from_config(config) is not None


def test_import_is_lazy_and_survives_without_transformers():
    code = """
import sys
import liger_kernel.transformers as t
assert "transformers" not in sys.modules
assert callable(t.LigerRMSNorm) and "apply_liger_kernel_to_llama" in dir(t)
sys.modules["transformers"] = None
import importlib.util
importlib.util.find_spec = lambda name: None
for name in ("apply_liger_kernel_to_llama", "AutoLigerKernelForCausalLM", "_apply_liger_kernel"):
    try:
        getattr(t, name)
    except ImportError as error:
        assert "pip install transformers" in str(error), error
    else:
        raise AssertionError(name)
assert not hasattr(t, "no_such_name")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


class _Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, i):
        item = batch(1, 9, seed=i)
        length = 5 + i % 4  # uneven: num_items_in_batch matters
        item["labels"][:, length:] = -100
        return {name: value[0] for name, value in item.items()}


def run_trainer(tmp_path, monkeypatch, **arguments):
    import transformers.trainer as trainer_module

    for place in (trainer_module, sys.modules.get("transformers.integrations.liger")):
        if hasattr(place, "is_liger_kernel_available"):  # a source tree has no distribution metadata
            monkeypatch.setattr(place, "is_liger_kernel_available", lambda *a, **k: True)
    options = dict(
        output_dir=str(tmp_path),
        max_steps=3,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        logging_steps=1,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        prediction_loss_only=True,
        seed=1,
        disable_tqdm=True,
    )
    model = make_model(LLAMA)
    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(**options | arguments),
        train_dataset=_Rows(),
        eval_dataset=_Rows(),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return model, losses, trainer.evaluate()["eval_loss"]


def test_trainer(tmp_path, monkeypatch):
    plain, losses, eval_loss = run_trainer(tmp_path, monkeypatch)
    model, our_losses, our_eval_loss = run_trainer(tmp_path, monkeypatch, use_liger_kernel=True)
    assert patch_report(model).left == {} and len(losses) == 3
    assert our_losses == pytest.approx(losses, rel=1e-4)  # the Trainer logs four digits
    assert our_eval_loss == pytest.approx(eval_loss, rel=1e-5)
    for (name, mine), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        # Adam divides by the gradient's size: where that is rounding noise, so is the step
        assert (mine - theirs).norm() <= 1e-3 * theirs.norm(), name


def test_trainer_config(tmp_path, monkeypatch):
    config = {"rms_norm": False, "cross_entropy": True, "fused_linear_cross_entropy": False}
    arguments = dict(use_liger_kernel=True, liger_kernel_config=config, max_steps=1)
    model, _, _ = run_trainer(tmp_path, monkeypatch, **arguments)
    assert set(patch_report(model).replaced) == {"rope", "swiglu", "cross_entropy"}


def test_report_text():
    model = make_model(LLAMA)
    apply_to(LLAMA, model, swiglu=False)
    text = str(patch_report(model))
    assert text.splitlines()[0] == "LlamaForCausalLM: fused_linear_cross_entropy 1, rope 2, rms_norm 5"
    assert "left alone: LlamaMLP (model.layers.0.mlp and 1 more): not asked for" in text
