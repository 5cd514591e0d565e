"""Modules and functions shaped like those of Hugging Face transformers, and the functions that patch its
models.

The operators (`LigerRMSNorm`, `liger_rotary_pos_emb`, ...) need only torch and are found by discovery. What
patches models (`apply_liger_kernel_to_*`, `AutoLigerKernelForCausalLM`, `patch_report`, `revert`) needs
Hugging Face transformers and is imported at first use, so that `import liger_kernel.transformers` stays fast.
"""

import importlib
import importlib.util

from ._discovery import operator_modules
from .patching.table import MODELS as _MODELS

_LAZY = {
    "AutoLigerKernelForCausalLM": "auto_model",
    "_apply_liger_kernel": "monkey_patch",
    "_apply_liger_kernel_to_instance": "monkey_patch",
    "patch_report": "monkey_patch",
    "revert": "monkey_patch",
    **{f"apply_liger_kernel_to_{name}": "monkey_patch" for name in _MODELS},
}


def is_transformers_available() -> bool:
    """Whether Hugging Face transformers is installed."""
    return importlib.util.find_spec("transformers") is not None


__all__ = []
for _module in operator_modules():
    for _name in getattr(_module, "__all__", ()):
        globals()[_name] = getattr(_module, _name)
        __all__.append(_name)
del _module, _name
if is_transformers_available():
    __all__ += _LAZY


def __getattr__(name):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if not is_transformers_available():
        raise ImportError(
            f"{name} patches models of Hugging Face transformers, which is not installed: "
            "pip install transformers"
        )
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__():
    return sorted({*globals(), *_LAZY})
