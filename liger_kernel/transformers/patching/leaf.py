"""The head's leaf: an nn.Linear that computes the loss of its hidden states where a request lies on it.

It reads its own weight inside its own call, where FSDP, DeepSpeed and accelerate have gathered it.
"""

import torch
from torch import nn

from ..model import loss_utils
from . import surgery


class Request:
    """What a head shall compute in this call, and what came of it: `loss` and metrics, or why not."""

    def __init__(self, labels, options, keep_logits):
        self.labels, self.options, self.keep_logits = labels, options, keep_logits
        self.loss = self.token_accuracy = self.predicted_tokens = self.refused = None

    def serve(self, hidden_states, weight, bias):
        if weight.dim() != 2 or weight.shape[0] == 0:
            shape = tuple(weight.shape)
            raise ValueError(
                f"the head's weight has shape {shape} in the head's own call, not (vocab_size, hidden_size): "
                "it is sharded, and nothing has gathered it. Wrap the head itself (FSDP, DeepSpeed)."
            )
        hidden_size = hidden_states.shape[-1]
        if type(weight) not in (nn.Parameter, torch.Tensor):
            self.refused = f"the head's weight is a {type(weight).__name__}, not a plain tensor"
        elif self.keep_logits and hasattr(weight, "ds_id") and torch.is_grad_enabled():
            self.refused = "DeepSpeed ZeRO-3 gathers the head's weight for the backward of its logits alone"
        elif self.labels.numel() * hidden_size != hidden_states.numel():
            self.refused = "the head sees another number of rows than there are labels (logits_to_keep)"
        else:
            result = loss_utils.LigerForCausalLMLoss(
                hidden_states, weight, self.labels, hidden_size, bias=bias, **self.options
            )
            result = loss_utils.unpack_cross_entropy_result(result)
            self.loss, _, self.token_accuracy, self.predicted_tokens = result

    def passed(self, head, args, output):
        """A forward hook: the loss is what comes out of the head's call, through the other hooks."""
        # logits, which are no scalar, are a later call's, or were asked for beside the loss
        if self.loss is not None and output.shape == self.loss.shape:
            self.loss = output

    def hand_back(self, *args, **kwargs):
        return self.loss


class LigerHead(nn.Linear):
    """The nn.Linear of a patched model: a plain one, unless a request lies on it."""

    _liger_request = None

    def forward(self, input):
        request = self._liger_request
        if request is not None and request.loss is None:
            request.serve(input, self.weight, self.bias)
            if request.loss is not None and not request.keep_logits:
                return request.loss
        return super().forward(input)


def heads(model):
    """(the leaves that may be called as the model's head, None), or ([], why its head cannot be fused)."""
    head = _unwrap(model.get_output_embeddings())
    if type(head).__name__ == "ModulesToSaveWrapper":  # PEFT: one of these, as its adapters are switched
        leaves = [_unwrap(leaf) for leaf in (head.original_module, *head.modules_to_save.values())]
    else:
        leaves = [head]
    for leaf in leaves:
        plain = type(leaf) is nn.Linear and not surgery.has_own_forward(leaf)
        if plain and not torch.compiler.is_compiling():
            surgery.swap_class(leaf, LigerHead)  # a head that came after the patch (PEFT, resized embeddings)
        if not isinstance(leaf, LigerHead):
            return [], f"the head is a {type(leaf).__module__}.{type(leaf).__name__}, not a plain nn.Linear"
    return leaves, None


def _unwrap(module):
    return getattr(module, "_fsdp_wrapped_module", module)  # FSDP1 around the head alone
