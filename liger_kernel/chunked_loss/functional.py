"""The losses by position: `liger_fused_linear_dpo` is `LigerFusedLinearDPOFunction.apply`, and so on.

Every module `chunked_loss/<loss>.py` names its functions in a tuple FUNCTIONAL; they are gathered here.
"""

from ._discovery import loss_modules

__all__ = []
for _module in loss_modules():
    for _name in getattr(_module, "FUNCTIONAL", ()):
        globals()[_name] = getattr(_module, _name)
        __all__.append(_name)
del _module, _name
