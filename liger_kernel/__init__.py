"""Liger Kernel's API with kernels in C and CUDA C.

Importing this package is cheap: no library, no CUDA context, no transformers. The compiled libraries load
with `liger_kernel.ops`.
"""

import importlib

from ._upstream import warn_if_both_installed
from ._version import __version__

# name: the module that has it, imported when the name is first used
_LAZY = {
    "set_memory_budget": "liger_kernel.ops.linear_loss",
    "get_memory_budget": "liger_kernel.ops.linear_loss",
    "patch_report": "liger_kernel.transformers",
    "revert": "liger_kernel.transformers",
    "set_impl": "liger_kernel.backends",
    "get_impl": "liger_kernel.backends",
    "available_impls": "liger_kernel.backends",
    "set_backend": "liger_kernel.backends",
    "get_backend": "liger_kernel.backends",
    "available_backends": "liger_kernel.backends",
}

__all__ = ["__version__", *_LAZY]

warn_if_both_installed()


def __getattr__(name):
    if name == "functional":  # upstream imports it here
        return importlib.import_module("liger_kernel.functional")
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *_LAZY, "functional"})
