"""Applies a row of the table: to one model (nothing shared changes) or to the classes of its modelling module
(models made later).

One mechanism serves both: a layer's class becomes a subclass of itself with our forward. On an instance the
class is assigned to each module; at class level it takes the name's place in the modelling module. Rope on an
instance is a copy of the attention's forward that finds our function among its globals; at class level it is
that global. `revert` puts the very same objects back.
"""

import importlib
import logging

from torch import nn

from . import fused_head, leaf, surgery
from .report import patch_report, why_inadmissible
from .table import MODELS

logger = logging.getLogger("liger_kernel")
_MISSING = object()
_journal = {}  # {row name: {flag: [(object, attribute, former value)]}}: what stands at class level
_HEAD_FLAGS = ("cross_entropy", "fused_linear_cross_entropy")


def _ours(source):
    module, name = source.split(":")
    return getattr(importlib.import_module(f"liger_kernel.transformers.{module}"), name)


def attributes(base, row_name, flag):
    """What our subclass of the Hugging Face class `base` overrides (called by `surgery.subclass`)."""
    row = MODELS[row_name]
    if flag == "cross_entropy":
        return fused_head.cross_entropy_attributes(base)
    if flag == "fused_linear_cross_entropy":
        return fused_head.fused_attributes(base, row.head.softcap) | {"__init__": _init_with_head(base)}
    if flag == "rope":
        forward = surgery.with_global(base.forward, row.rope.function, _ours("rope:liger_rotary_pos_emb"))
        return {"forward": forward}
    layer = next(layer for layer in row.layers if layer.cls == surgery.owner(base).__name__)
    renamed = {ours: _alias(theirs) for ours, theirs in layer.renamed.items()}
    overrides = {"forward": _ours(layer.source).forward, "__init__": _init_checked(base, layer)}
    return overrides | layer.attributes | renamed


def _alias(name):
    return property(lambda self: getattr(self, name))  # torch.compile does not trace operator.attrgetter


def _init_checked(base, layer):
    """At class level the configuration shows only when a layer is made: one that computes something else
    stays Hugging Face's."""
    original = base.__init__

    def __init__(self, *args, **kwargs):
        original(self, *args, **kwargs)
        if why_inadmissible(layer, self):
            self.__class__ = base

    return __init__


def _init_with_head(base):
    """At class level the head is made after the patch: its class is swapped at once, so that torch.compile
    finds it done."""
    original = base.__init__

    def __init__(self, *args, **kwargs):
        original(self, *args, **kwargs)
        leaf.heads(self)

    return __init__


def _targets(row, flag, model):
    """What the row's `flag` replaces: modules of `model`, or without a model classes of the modelling
    module."""
    layers = {layer.cls: layer for layer in row.layers}
    if flag in _HEAD_FLAGS:
        names = [row.head.cls]
    elif flag == "rope":
        names = [row.rope.cls]
    else:
        names = [name for name, layer in layers.items() if layer.flag == flag]
    if model is None:
        modeling = importlib.import_module(row.modeling)
        return [
            vars(modeling)[name]
            for name in names
            if name in vars(modeling) and _reads_rope(row, flag, vars(modeling)[name])
        ]

    def fits(module):
        cls = surgery.owner(type(module))
        if cls.__name__ not in names or cls.__module__ != row.modeling or surgery.has_own_forward(module):
            return False
        admissible = cls.__name__ not in layers or not why_inadmissible(layers[cls.__name__], module)
        return admissible and _reads_rope(row, flag, cls)

    return [module for module in model.modules() if fits(module)]


def _reads_rope(row, flag, cls):
    """Whether an attention class calls the function that rope replaces (a newer transformers might have
    renamed it)."""
    forward = surgery.owner(cls).forward
    return flag != "rope" or surgery.with_global(forward, row.rope.function, None) is not None


def apply(row, flags, model=None, asked_for=()):
    """Puts the kernels of `row` whose flag is true into `model`, or into the modelling module's classes if
    there is none.

    flags: {flag: bool}. asked_for: flags for which it is an error to match nothing (ValueError, before
    anything has changed); any other that matches nothing is part of one warning. Raises ValueError if both
    cross entropies are on. Returns the matched counts.
    """
    if all(flags.get(flag) for flag in _HEAD_FLAGS):
        raise ValueError(
            "cross_entropy and fused_linear_cross_entropy are both True, but only one can compute the loss: "
            "pass fused_linear_cross_entropy=False to have cross_entropy"
        )
    targets = {flag: _targets(row, flag, model) for flag, on in flags.items() if on}
    nothing = [flag for flag, found in targets.items() if not found]
    where = row.modeling if model is None else type(model).__name__
    if demanded := [flag for flag in nothing if flag in asked_for]:
        raise ValueError(
            f"{', '.join(demanded)}=True matches nothing in {where} (row {row.name!r} of the table)"
        )
    for flag, found in targets.items():
        for target in found:
            (_patch_module if model is not None else _patch_class)(row, flag, target)
    if nothing:
        logger.warning("%s: %s matched nothing and changed nothing", where, ", ".join(nothing))
    replaced = f"{where}: {', '.join(targets) or 'nothing'} replaced"
    logger.info("%s", replaced if model is None else patch_report(model))
    return {flag: len(found) for flag, found in targets.items()}


def _patch_module(row, flag, module):
    cls = type(module)
    if getattr(cls, "_liger_flag", None) == flag:
        return
    surgery.swap_class(module, surgery.subclass(vars(cls).get("_liger_base", cls), row.name, flag))
    if flag == "fused_linear_cross_entropy":
        leaf.heads(module)


def _patch_class(row, flag, cls):
    modeling = importlib.import_module(row.modeling)
    is_layer = flag != "rope" and flag not in _HEAD_FLAGS
    if "_liger_base" in vars(cls) if is_layer else flag in _journal.get(row.name, {}):
        return  # it stands already
    if flag == "rope":
        changes = [(modeling, row.rope.function, _ours("rope:liger_rotary_pos_emb"))]
    elif flag in _HEAD_FLAGS:
        # On the class itself: programs hold it by other names too (`from transformers import ...`).
        for other in _HEAD_FLAGS:
            _undo(_journal.get(row.name, {}).pop(other, ()))
        overrides = {"_liger_flag": flag, **attributes(cls, row.name, flag)}
        changes = [(cls, attribute, value) for attribute, value in overrides.items()]
    else:
        changes = [(modeling, cls.__name__, surgery.subclass(cls, row.name, flag))]
    entries = _journal.setdefault(row.name, {}).setdefault(flag, [])
    for target, attribute, value in changes:
        entries.append((target, attribute, vars(target).get(attribute, _MISSING)))
        setattr(target, attribute, value)


def _undo(entries):
    for target, attribute, former in reversed(entries):
        if former is _MISSING:
            delattr(target, attribute)
        else:
            setattr(target, attribute, former)


def revert(target=None):
    """Undoes patches. target: a model (its modules get their former classes back), the name of a model family
    such as "llama" (what stands at class level), or None (all that stands at class level). The very same
    objects return; what was not patched is untouched. Models made under a class-level patch keep their layers
    until they are reverted themselves."""
    if target is None or isinstance(target, str):
        if target is not None and target not in MODELS:
            raise ValueError(f"target is {target!r}, expected a model, None or one of {sorted(MODELS)}")
        for name in list(_journal) if target is None else [target]:
            for entries in reversed(list(_journal.pop(name, {}).values())):
                _undo(entries)
        return
    for module in target.modules():
        cls = type(module)
        if cls is leaf.LigerHead:
            surgery.swap_class(module, nn.Linear)
        elif "_liger_base" in vars(cls):
            surgery.swap_class(module, cls._liger_base)
        for attribute in ("_liger_request", "_liger_declined"):
            vars(module).pop(attribute, None)
