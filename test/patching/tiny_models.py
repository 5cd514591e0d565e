"""Tiny random models of every row of the patch table, and what the tests compare them by."""

import pytest
import torch

transformers = pytest.importorskip("transformers")

VOCAB = 97
# Taken for every model whose configuration knows the name; a new row needs nothing here.
TINY = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,  # logits far from uniform, so that a missing scale or softcap shows
    "final_logit_softcapping": 2.0,
    "sliding_window": 6,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def make_model(row, **changes):
    """A randomly initialised causal language model of a row, fp32; its norms' weights are random too."""
    config_class = transformers.models.auto.configuration_auto.CONFIG_MAPPING[
        (row.model_types or (row.name,))[0]
    ]
    known = config_class()
    wanted = {name: value for name, value in TINY.items() if hasattr(known, name)} | changes
    config = config_class(**wanted)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def apply_to(row, model=None, **flags):
    from liger_kernel.transformers import monkey_patch

    getattr(monkey_patch, f"apply_liger_kernel_to_{row.name}")(model=model, **flags)


def batch(rows=2, length=11, seed=1):
    """Token ids and labels with ignored positions at the start of one row and in the middle of the other."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(3, VOCAB, (rows, length), generator=generator)
    labels = input_ids.clone()
    labels[0, :3] = -100
    labels[-1, length // 2] = -100
    return {"input_ids": input_ids, "labels": labels}


def step(model, *calls):
    """(losses, {name: gradient}) of forward and backward over the calls, gradients summed as in
    accumulation."""
    model.zero_grad()
    losses = []
    for call in calls:
        loss = model(**call).loss
        loss.backward()
        losses.append(loss.detach())
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return losses, gradients


def assert_same_step(ours, theirs):
    """The bar of the project: losses to 1e-6, each gradient to 1e-5 of its norm (fp32, CPU)."""
    (our_losses, our_gradients), (their_losses, their_gradients) = ours, theirs
    for mine, reference in zip(our_losses, their_losses, strict=True):
        assert abs(mine - reference) <= 1e-6 * abs(reference), (mine, reference)
    assert our_gradients.keys() == their_gradients.keys()
    for name, reference in their_gradients.items():
        error = (our_gradients[name] - reference).norm() / reference.norm()
        assert error <= 1e-5, (name, float(error))
