"""One module per operator; this package gathers them.

Every module `ops/<op>.py` is imported and the names in its `__all__` are re-exported, so that adding an
operator adds a file and touches no list. `SPECS` holds the operators' `OpSpec`s by name; the tests, the
benchmarks and the self-test run over it.
"""

import importlib
import pkgutil

from .. import _load

_load.libraries()

SPECS = {}
__all__ = []
for _info in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name):
    if _info.name.startswith("_") or _info.ispkg:
        continue
    _module = importlib.import_module(f"{__name__}.{_info.name}")
    for _name in getattr(_module, "__all__", ()):
        globals()[_name] = getattr(_module, _name)
        __all__.append(_name)
    if (_spec := getattr(_module, "SPEC", None)) is not None:
        SPECS[_spec.name] = _spec
del _info, _module, _name, _spec
