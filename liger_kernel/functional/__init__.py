"""The operators under short names, with a choice of implementation: `rms_norm`, `softmax`,
`cross_entropy`, ...

Every function ends in keyword-only `impl`, `mode` and `backend` (another name for `impl`): None, "liger",
or an implementation that the program registered with `liger_kernel.backends.register_impl`; mode: None or
"default". Another name is an ImplNotAvailableError, another mode a ValueError. One graph for
torch.compile.

Each module `functional/_<op>.py` has the functions of one operator and is found by discovery; one whose
operator is not in `liger_kernel.ops` is left out.
"""

import importlib
import pkgutil

__all__ = []
for _info in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name):
    if _info.name == "_operator":
        continue
    try:
        _module = importlib.import_module(f"{__name__}.{_info.name}")
    except ModuleNotFoundError as _error:
        if not (_error.name or "").startswith("liger_kernel.ops."):
            raise
        continue
    for _name in _module.__all__:
        globals()[_name] = getattr(_module, _name)
        __all__.append(_name)
del _info, _module, _name
