"""Applies a row of the table: to one model (nothing shared changes) or to the classes of its modelling module
(models made later).

One mechanism serves both: a layer's class becomes a subclass of itself with our forward. On an instance the
class is assigned to each module; at class level it takes the name's place in the modelling module. Rope on an
instance is a copy of the attention's forward that finds our function among its globals; at class level it is
that global. `revert` puts the very same objects back.
"""

import importlib
import logging

from . import fused_head, surgery
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
    layer = next(layer for layer in row.layers if (layer.flag, layer.cls) == (flag, base.__name__))
    renamed = {
        ours: property(lambda self, theirs=theirs: getattr(self, theirs))
        for ours, theirs in layer.renamed.items()
    }
    return {
        "forward": _ours(layer.source).forward,
        "__init__": _init_checked(base, layer),
        **layer.attributes,
        **renamed,
    }


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
        fused_head.heads(self)

    return __init__


def _targets(row, flag, model):
    """The modules of `model` that the row's `flag` replaces. Without a model: the classes, as (class, name)
    of the modelling module."""
    if flag in _HEAD_FLAGS:
        names = [row.head.cls]
    elif flag == "rope":
        names = [row.rope.cls]
    else:
        names = [layer.cls for layer in row.layers if layer.flag == flag]
    if model is None:
        modeling = importlib.import_module(row.modeling)
        found = [(vars(modeling)[name], name) for name in names if name in vars(modeling)]
    else:
        found = [(module, surgery.owner(type(module)).__name__) for module in model.modules()]
        found = [(m, n) for m, n in found if n in names and surgery.owner(type(m)).__module__ == row.modeling]
        found = [(m, n) for m, n in found if not surgery.has_own_forward(m)]
        checks = {layer.cls: layer for layer in row.layers}
        found = [(m, n) for m, n in found if n not in checks or not why_inadmissible(checks[n], m)]
    if flag == "rope":
        found = [(t, n) for t, n in found if _reads_rope(row, t if model is None else type(t))]
    return found


def _reads_rope(row, cls):
    return surgery.with_global(surgery.owner(cls).forward, row.rope.function, None) is not None


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
        for target, name in found:
            (_patch_module if model is not None else _patch_class)(row, flag, target, name)
    if nothing:
        logger.warning("%s: %s matched nothing and changed nothing", where, ", ".join(nothing))
    logger.info(
        "%s",
        patch_report(model) if model is not None else f"{where}: {', '.join(targets) or 'nothing'} replaced",
    )
    return {flag: len(found) for flag, found in targets.items()}


def _patch_module(row, flag, module, name):
    cls = type(module)
    if getattr(cls, "_liger_flag", None) == flag:
        return
    surgery.swap_class(module, surgery.subclass(vars(cls).get("_liger_base", cls), row.name, flag))
    if flag == "fused_linear_cross_entropy":
        fused_head.heads(module)


def _patch_class(row, flag, cls, name):
    modeling = importlib.import_module(row.modeling)
    is_layer = flag != "rope" and flag not in _HEAD_FLAGS
    if "_liger_base" in vars(cls) if is_layer else flag in _journal.get(row.name, {}):
        return  # it stands already
    if flag == "rope":
        changes = [(modeling, row.rope.function, _ours("rope:liger_rotary_pos_emb"))]
    elif (
        flag in _HEAD_FLAGS
    ):  # on the class itself: programs hold it by other names too (`from transformers import ...`)
        for other in _HEAD_FLAGS:
            _undo(_journal.get(row.name, {}).pop(other, ()))
        overrides = {"_liger_flag": flag, **attributes(cls, row.name, flag)}
        changes = [(cls, attribute, value) for attribute, value in overrides.items()]
    else:
        changes = [(modeling, name, surgery.subclass(cls, row.name, flag))]
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
        if cls is fused_head.LigerHead:
            surgery.swap_class(module, fused_head.nn.Linear)
        elif "_liger_base" in vars(cls):
            surgery.swap_class(module, cls._liger_base)
        for attribute in ("_liger_request", "_liger_declined"):
            vars(module).pop(attribute, None)
