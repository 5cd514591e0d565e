"""Losses of preference tuning, reinforcement learning and distillation, on linear heads' hidden states.

Each is a plain function of per-token log-probabilities, which come from one pass over the head
(`ops/linear_logprob.py`), or of two heads' logits (`ops/fused_linear_jsd.py`). The `__all__` of every module
is re-exported.
"""

from ._discovery import loss_modules

__all__ = []
for _module in loss_modules():
    for _name in getattr(_module, "__all__", ()):
        globals()[_name] = getattr(_module, _name)
        __all__.append(_name)
del _module, _name
