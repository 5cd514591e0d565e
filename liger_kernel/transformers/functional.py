"""The functional forms of the operators: `liger_rms_norm`, `liger_cross_entropy`, ...

Every module `transformers/<op>.py` names its functions in a tuple FUNCTIONAL; they are gathered here.
Programs replace names of this module (axolotl does), so callers inside this package look them up here at call
time.
"""

from ._discovery import operator_modules

__all__ = []
for _module in operator_modules():
    for _name in getattr(_module, "FUNCTIONAL", ()):
        globals()[_name] = getattr(_module, _name)
        __all__.append(_name)
del _module, _name
