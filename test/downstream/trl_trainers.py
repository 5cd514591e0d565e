"""TRL's own DPO, KTO and GRPO trainers, with our losses and without: the same seeds, losses and gradients.

Run by `make test-downstream` in an environment of its own, once with TRL 0.24 (`use_liger_loss`) and once
with TRL 1.12 (`use_liger_kernel`, which patches the layers too). Every run trains a tiny random model on the
CPU for a few steps. The losses of all steps must agree to 1e-5 relatively or 1e-6 absolutely (GRPO's first
loss cancels to about 0), and the gradient of every parameter in the first step to 1e-5 of its norm.
"""

# ruff: noqa: E402
import argparse
import dataclasses
import os
import random
import sys
import tempfile
import time
import warnings

os.environ.update(
    HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TQDM_DISABLE="1", TRL_EXPERIMENTAL_SILENCE="1"
)
warnings.filterwarnings("ignore")

import torch
import transformers
import trl
from datasets import Dataset, disable_progress_bars
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
)

disable_progress_bars()
OLD = trl.__version__.startswith("0.")
SWITCH = "use_liger_loss" if OLD else "use_liger_kernel"
STEPS = 3
LOSS_RTOL, LOSS_ATOL, GRAD_RTOL = 1e-5, 1e-6, 1e-5
WORDS = [f"w{i}" for i in range(12)]


def tokenizer():
    vocab = {w: i for i, w in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


def model(seed, tokens):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=tokens.pad_token_id,
        eos_token_id=tokens.eos_token_id,
        bos_token_id=None,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config)


def text(rng, low, high):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))


def pairs(n=24):
    rng = random.Random(1)
    rows = [
        {"prompt": text(rng, 2, 6) + " ", "chosen": text(rng, 1, 9), "rejected": text(rng, 1, 9)}
        for _ in range(n)
    ]
    return Dataset.from_list(rows)


def singles(n=24):
    rng = random.Random(4)
    rows = [{"prompt": text(rng, 2, 6) + " ", "completion": text(rng, 1, 9)} for _ in range(n)]
    return Dataset.from_list([{**row, "label": i % 3 > 0} for i, row in enumerate(rows)])


def prompts(n=16):
    rng = random.Random(2)
    return Dataset.from_list([{"prompt": text(rng, 2, 6)} for _ in range(n)])


def reward(completions, **kwargs):
    """Some number that differs between completions."""
    return [sum(map(ord, c)) % 17 / 7.0 - len(c.split()) % 3 for c in completions]


class Recorder(TrainerCallback):
    """The gradients of the first step, before the optimizer takes them."""

    def __init__(self):
        self.gradients = None

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.gradients is None:
            self.gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def only_known(config, options):
    """The options that this TRL's config has; what a run is about is checked by the caller."""
    known = {f.name for f in dataclasses.fields(config)}
    return {k: v for k, v in options.items() if k in known}


def train(kind, liger, folder, **options):
    """(losses of the steps, gradients of the first) of one run."""
    tokens = tokenizer()
    common = dict(
        output_dir=folder,
        max_steps=STEPS,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        max_grad_norm=0.0,
        optim="sgd",
        lr_scheduler_type="constant",
        report_to=[],
        use_cpu=True,
        bf16=False,
        fp16=False,
        seed=3,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        gradient_checkpointing=False,
        disable_dropout=True,
    )
    recorder, losses = Recorder(), []
    base, config = (getattr(trl, kind.upper() + part) for part in ("Trainer", "Config"))
    if kind == "grpo":
        common |= dict(num_generations=4, max_completion_length=12, temperature=0.9)
    unknown = set(options) - {f.name for f in dataclasses.fields(config)}
    assert not unknown, f"{config.__name__} of TRL {trl.__version__} has no {unknown}"

    class Recorded(base):
        def training_step(self, *args, **kwargs):
            loss = super().training_step(*args, **kwargs)
            losses.append(loss.item())
            return loss

    given = dict(
        model=model(0, tokens),
        args=config(**only_known(config, common), **options, **{SWITCH: liger}),
        processing_class=tokens,
        callbacks=[recorder],
    )
    if kind in ("dpo", "kto"):
        data = pairs() if kind == "dpo" else singles()
        given |= dict(train_dataset=data, ref_model=model(1, tokens))
    else:
        given |= dict(train_dataset=prompts(), reward_funcs=reward)
        given["model"].save_pretrained(folder)  # the trainer loads its reference by the model's name
        given["model"] = LlamaForCausalLM.from_pretrained(folder)
    trainer = Recorded(**given)
    trainer.remove_callback(PrinterCallback)
    if kind == "grpo" and trainer.ref_model is not None:
        moved = model(1, tokens).state_dict()
        with torch.no_grad():
            for name, p in trainer.ref_model.named_parameters():
                p.add_(moved[name], alpha=0.1)  # a reference other than the policy, so that KL counts at once
    trainer.train()
    return losses, recorder.gradients


def difference(kind, folder, **options):
    """The worst loss and the worst gradient, in units of what is allowed, and the losses."""
    (ours, our_grads), (theirs, their_grads) = (train(kind, on, folder, **options) for on in (True, False))
    assert len(ours) == len(theirs) > 0 and our_grads.keys() == their_grads.keys() and our_grads
    loss = max(abs(a - b) / max(LOSS_RTOL * abs(b), LOSS_ATOL) for a, b in zip(ours, theirs))
    grad = max(
        ((our_grads[n] - g).norm() / (GRAD_RTOL * g.norm()).clamp(min=1e-30)).item()
        for n, g in their_grads.items()
    )
    return loss, grad, ours, theirs


def runs():
    """(kind, options) of every run that this TRL can make with and without our loss."""
    if OLD:
        for loss in ("sigmoid", "apo_zero", "apo_down", "sppo_hard", "nca_pair"):
            yield "dpo", dict(loss_type=loss)
        yield "dpo", dict(loss_type="sigmoid", beta=0.5, reference_free=True)
        yield "dpo", dict(loss_type="sigmoid", rpo_alpha=0.7)
    else:
        kinds = (
            "sigmoid",
            "hinge",
            "nca_pair",
            "bco_pair",
            "sppo_hard",
            "apo_zero",
            "apo_down",
            "discopop",
            "robust",
        )
        for loss in kinds:
            yield "dpo", dict(loss_type=loss)
        yield "dpo", dict(loss_type="sigmoid", beta=0.5, gradient_accumulation_steps=2)
    yield "kto", dict(loss_type="kto", beta=0.3)
    # two updates per generation: in the second the policy has moved, so that ratios and clipping count
    moved = dict(num_iterations=2, epsilon=0.01)
    types = (
        ("grpo", "bnpo", "dr_grpo", "dapo")
        if OLD
        else ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo")
    )
    for loss in types:
        yield "grpo", dict(loss_type=loss, beta=0.0)
        yield "grpo", dict(loss_type=loss, beta=0.1, **moved, epsilon_high=0.02)
    if not OLD:
        for loss in types[:5]:
            yield "grpo", dict(loss_type=loss, beta=0.1, importance_sampling_level="sequence", **moved)
        yield "grpo", dict(loss_type="dapo", beta=0.1, delta=1.01, use_bias_correction_kl=True, **moved)
        yield (
            "grpo",
            dict(loss_type="sapo", beta=0.0, sapo_temperature_pos=0.5, sapo_temperature_neg=2.0, **moved),
        )
        yield "grpo", dict(loss_type="dapo", beta=0.1, gradient_accumulation_steps=2, **moved)


def numbers(losses):
    return ", ".join(f"{loss:.7g}" for loss in losses)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="run only what contains this text")
    only = parser.parse_args().only
    import liger_kernel

    torch.set_num_threads(1)
    versions = {m.__name__: m.__version__ for m in (trl, transformers, torch, liger_kernel)}
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    failed = 0
    for kind, options in runs():
        name = f"{kind} " + " ".join(f"{k}={v}" for k, v in options.items())
        if only not in name:
            continue
        start = time.time()
        with tempfile.TemporaryDirectory() as folder:
            try:
                loss, grad, ours, theirs = difference(kind, folder, **options)
                good = loss <= 1 and grad <= 1
                told = f"loss {loss:.3f}, gradient {grad:.3f} of what is allowed; losses " + numbers(ours)
                told += "" if good else f" against {numbers(theirs)}"
            except Exception as error:
                good, told = False, f"{type(error).__name__}: {error}"
        failed += not good
        print(f"{'ok  ' if good else 'FAIL'} {name}: {told} ({time.time() - start:.0f} s)", flush=True)
    print(f"{failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
