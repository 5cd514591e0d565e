"""What a patch replaced and what it left alone, for people."""

import importlib
from dataclasses import dataclass, field

from . import surgery
from .table import MODEL_TYPES

_KINDS = (
    "Norm",
    "MLP",
    "Attention",
)  # by these words in a class's name a module is a candidate that the report explains


@dataclass
class Report:
    """replaced: {flag: names of the modules that run our kernel}; left: {name: (class, reason)} of candidates
    that don't."""

    model: str
    replaced: dict = field(default_factory=dict)
    left: dict = field(default_factory=dict)

    def __str__(self):
        counts = [f"{flag} {len(names)}" for flag, names in self.replaced.items()]
        lines = [f"{self.model}: {', '.join(counts) or 'nothing replaced'}"]
        grouped = {}
        for name, (cls, reason) in self.left.items():
            grouped.setdefault((cls, reason), []).append(name)
        for (cls, reason), names in grouped.items():
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            lines.append(f"  left alone: {cls} ({names[0]}{more}): {reason}")
        return "\n".join(lines)


def patch_report(model):
    """A Report of `model` as it is now: every module that runs a kernel of ours, and every norm, MLP,
    attention and head that doesn't."""
    row = MODEL_TYPES.get(getattr(getattr(model, "config", None), "model_type", None))
    report = Report(type(model).__name__)
    for name, module in model.named_modules():
        name, cls = name or "(model)", type(module)
        flag = _flag(row, module)
        if flag is not None:
            report.replaced.setdefault(flag, []).append(name)
            declined = getattr(module, "_liger_declined", None)
            if declined:
                report.left[f"{name}, last call"] = (cls.__name__, declined)
        elif any(kind in cls.__name__ for kind in _KINDS) or (
            row and row.head and surgery.owner(cls).__name__ == row.head.cls
        ):
            report.left[name] = (cls.__name__, why_left(row, module))
    return report


def _flag(row, module):
    """Which kernel a module runs: by its own class, or by what its class or its modelling module holds
    (class-level patch)."""
    cls = type(module)
    if (flag := getattr(cls, "_liger_flag", None)) is not None:
        return flag
    if row is not None and row.rope and surgery.owner(cls).__name__ == row.rope.cls:
        from ..rope import liger_rotary_pos_emb

        if getattr(importlib.import_module(row.modeling), row.rope.function) is liger_rotary_pos_emb:
            return "rope"
    return None


def why_left(row, module):
    """Why a candidate runs Hugging Face's code."""
    if row is None:
        return "the model's type has no row in the table"
    cls = surgery.owner(type(module))
    names = {layer.cls: layer for layer in row.layers}
    if cls.__name__ not in {*names, row.rope and row.rope.cls, row.head and row.head.cls}:
        return "no kernel for this class"
    if cls.__module__ != row.modeling:
        return f"its class comes from {cls.__module__}, not from {row.modeling}"
    if surgery.has_own_forward(module):
        return "its forward was replaced by somebody else"
    if cls.__name__ in names and (reason := why_inadmissible(names[cls.__name__], module)):
        return reason
    return "not asked for"


def why_inadmissible(layer, module):
    """Why a module of the right class computes something that the kernel doesn't; None if it computes the
    same."""
    if not layer.activations:
        return None
    activation = getattr(module, "act_fn", None) or getattr(module, "activation_fn", None)
    if type(activation).__name__ in layer.activations:
        return None
    return f"its activation is {type(activation).__name__}, the kernel computes {layer.activations[0]}"
