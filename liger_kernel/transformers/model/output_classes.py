"""Outputs of patched heads: the model's own output class with `token_accuracy` and `predicted_tokens`
appended."""

from dataclasses import field, make_dataclass

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast, MoeCausalLMOutputWithPast

_made = {}  # a plain dictionary, since torch.compile traces through caches


def with_metrics(output_class):
    """The subclass of a Hugging Face output class that also has `token_accuracy` and `predicted_tokens` (None
    by default)."""
    if output_class not in _made:
        fields = [
            ("token_accuracy", torch.FloatTensor | None, field(default=None)),
            ("predicted_tokens", torch.LongTensor | None, field(default=None)),
        ]
        namespace = {"__module__": __name__, "__doc__": output_class.__doc__}
        name = f"Liger{output_class.__name__}"
        _made[output_class] = make_dataclass(name, fields, bases=(output_class,), namespace=namespace)
    return _made[output_class]


def rebuild(output, drop_logits, token_accuracy, predicted_tokens):
    """A Hugging Face output with the metrics' fields, and without logits where only the loss was computed."""
    fields = {name: value for name, value in output.items() if not (drop_logits and name == "logits")}
    return with_metrics(type(output))(
        **fields, token_accuracy=token_accuracy, predicted_tokens=predicted_tokens
    )


LigerCausalLMOutputWithPast = with_metrics(CausalLMOutputWithPast)
LigerMoeCausalLMOutputWithPast = with_metrics(MoeCausalLMOutputWithPast)
