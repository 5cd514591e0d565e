"""One fused head for every model: Hugging Face's own forward runs, and two of its calls are intercepted.

    model.forward       leaves a request (labels and loss options) on the head for the length of one call
    lm_head.forward     finds the request: returns the loss of its hidden states instead of logits
    model.loss_function hands that loss back to Hugging Face's forward, which builds its output as ever

Everything else (auxiliary losses, caches, output classes) is Hugging Face's code. Both interceptions are
installed once, at patch time, so that torch.compile traces the model without a graph break. What cannot be
fused declines: the call then is Hugging Face's, and one warning says why.
"""

import functools
import inspect
import logging

import torch

from ..model import loss_utils
from .leaf import Request, heads

logger = logging.getLogger("liger_kernel")

# Keywords of ours, which Hugging Face's forwards don't know. The second group changes the loss, so it may
# never be ignored.
_METRICS = ("return_token_accuracy", "return_predicted_tokens")
_LOSS_CHANGING = ("use_token_scaling", "ce_weight", "label_smoothing", "lse_square_scale")
_OURS = (*_METRICS, *_LOSS_CHANGING, "accum_dtype", "chunk_mem_const")
_SHARED = ("num_items_in_batch", "ignore_index", "shift_labels")  # Hugging Face's loss reads these too
_TARGETS = ("labels", "shift_labels", "ignore_index")


def _is_causal_lm_loss(loss_function):
    from transformers.loss.loss_utils import ForCausalLMLoss

    return loss_function is ForCausalLMLoss or loss_function is loss_utils.liger_causal_lm_loss_from_logits


def _candidates(model, loss_function):
    """As `heads`, after asking whether the model's loss is one that the head can compute."""
    if (getattr(model, "_tp_size", None) or 1) > 1:
        return [], "the model is tensor parallel"
    if not _is_causal_lm_loss(loss_function):
        name = getattr(loss_function, "__name__", loss_function)
        return [], f"the model's loss_function is {name}, not ForCausalLMLoss"
    return heads(model)


def _declined(model, reason, changing):
    """Says once why a call was left to Hugging Face; an error where that would ignore an option."""
    if changing:
        raise ValueError(
            f"{', '.join(changing)} needs the fused head, which cannot serve this call: {reason}"
        )
    if model._liger_declined != reason and not torch.compiler.is_compiling():
        model._liger_declined = reason
        logger.warning("fused_linear_cross_entropy is left to Hugging Face: %s", reason)


def fused_attributes(base, softcap=None):
    """The attributes that make the Hugging Face class `base` compute its training loss without logits.

    softcap: name of the config's attribute that caps the logits. Keywords of the forward beyond Hugging
    Face's: `skip_logits` (None: in training with labels), `return_token_accuracy`, `return_predicted_tokens`,
    and the options of `liger_fused_linear_cross_entropy`.
    """
    from ..model.output_classes import rebuild

    original = getattr(base.forward, "_liger_original", base.forward)
    names = list(inspect.signature(original).parameters)[1:]
    inherited = base.loss_function

    @functools.wraps(original)
    def forward(self, *args, **kwargs):
        kwargs.update(zip(names, args, strict=False))
        skip_logits = kwargs.pop("skip_logits", None)
        ours = {name: kwargs.pop(name) for name in _OURS if name in kwargs}
        target = (
            kwargs.get("shift_labels") if kwargs.get("shift_labels") is not None else kwargs.get("labels")
        )
        if target is None and skip_logits:
            raise ValueError("skip_logits=True needs labels or shift_labels: nothing but the loss is left")
        changing = [n for n in _LOSS_CHANGING if isinstance(ours.get(n), torch.Tensor) or ours.get(n)]
        metrics = any(ours.get(name) for name in _METRICS)
        if skip_logits is None:
            skip_logits = self.training
        if target is not None and kwargs.get("labels") is None:
            kwargs["labels"] = target  # Hugging Face asks for its loss only where there are labels
        if target is None or not (skip_logits or changing or metrics):
            return original(self, **kwargs)

        request, leaves, reason = None, [], None
        if skip_logits or changing:
            leaves, reason = _candidates(self, inherited.fget(self))
        if leaves:
            options = ours | {name: kwargs[name] for name in _SHARED if kwargs.get(name) is not None}
            if softcap is not None:
                options["final_logit_softcapping"] = getattr(self.config, softcap)
            request = Request(target, options, keep_logits=not skip_logits)
        return_dict = kwargs.pop("return_dict", None)
        output = _call_with(request, leaves, original, self, kwargs)
        if request is not None and request.loss is None:
            request, reason = None, request.refused or "its forward did not call the head"
        if reason is not None:
            _declined(self, reason, changing)
        if request is not None:
            output = rebuild(output, skip_logits, request.token_accuracy, request.predicted_tokens)
        elif metrics:
            known = {name: kwargs[name] for name in _TARGETS if name in kwargs}
            wanted = [bool(ours.get(name)) for name in _METRICS]
            output = rebuild(output, False, *loss_utils.token_metrics(output.logits, *wanted, **known))
        if return_dict is None:
            return_dict = getattr(self.config, "return_dict", True)
        return output if return_dict else output.to_tuple()

    def loss_function(self):
        request = self._liger_request
        if request is not None and request.loss is not None:
            return request.hand_back
        return inherited.fget(self)

    forward._liger_original = original
    return {
        "forward": forward,
        "loss_function": property(loss_function, inherited.fset),
        "_liger_request": None,
        "_liger_declined": None,
    }


def _call_with(request, leaves, forward, model, kwargs):
    """Hugging Face's forward while the request lies on the model and its head."""
    for module in (model, *leaves):
        module._liger_request = request
    # last of the head's hooks: DeepSpeed's gives back another tensor, in whose backward it gathers the weight
    hooks = [] if torch.compiler.is_compiling() else [m.register_forward_hook(request.passed) for m in leaves]
    try:
        return forward(model, return_dict=True, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
        for module in (model, *leaves):
            module._liger_request = None


def cross_entropy_attributes(base):
    """The attributes that make the Hugging Face class `base` use our cross entropy on its logits."""
    original = getattr(base.forward, "_liger_original", base.forward)
    inherited = base.loss_function

    def loss_function(self):
        theirs = inherited.fget(self)
        return loss_utils.liger_causal_lm_loss_from_logits if _is_causal_lm_loss(theirs) else theirs

    return {"forward": original, "loss_function": property(loss_function, inherited.fset)}
