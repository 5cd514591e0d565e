"""Gives one object another forward and touches nothing that others share: class swap and function copy.

A patched module keeps its identity, weights, hooks and attributes; only its class becomes a subclass of its
former class, with the same name. Unlike a `forward` bound to the instance this survives deepcopy, pickling
and nn.DataParallel (whose replicas would call the original's parameters), and is undone by assigning the
class again.
"""

import functools
import importlib
import types


def owner(cls):
    """The class that defines the forward of `cls`, seen through our subclasses and through wrappers that only
    add hooks (FSDP2)."""
    definers = (c for c in cls.__mro__ if "forward" in vars(c))
    return next(c for c in definers if "_liger_base" not in vars(c))


@functools.cache
def subclass(base, row_name, flag):
    """The subclass of the Hugging Face class `base` that carries the kernel `flag` of the table's row."""
    engine = importlib.import_module(f"{__package__}.engine")
    namespace = engine.attributes(base, row_name, flag)
    namespace.update(
        _liger_base=base,
        _liger_flag=flag,
        __module__=base.__module__,  # Hugging Face looks its classes up by these names
        __qualname__=base.__qualname__,
        __doc__=base.__doc__,
        _get_name=lambda self: f"Liger({base.__name__})",  # what print(model) shows
        __reduce_ex__=lambda self, protocol: (
            _blank,
            (base.__module__, base.__qualname__, row_name, flag),
            dict(vars(self)),
        ),
    )
    return type(base)(base.__name__, (base,), namespace)


def _blank(module, qualname, row_name, flag):
    """For unpickling and deepcopy: an empty instance of the subclass, which has no importable name of its
    own."""
    base = functools.reduce(getattr, qualname.split("."), importlib.import_module(module))
    cls = subclass(
        vars(base).get("_liger_base", base), row_name, flag
    )  # the module may hold our subclass just now
    return cls.__new__(cls)


def has_own_forward(module):
    """Whether somebody has bound a forward to this very instance, which a class swap would not replace."""
    return "forward" in vars(module) and "_old_forward" not in vars(module)


def swap_class(module, cls):
    """Assigns the class. Accelerate's hooks (device_map) keep the former forward as `_old_forward`: that is
    renewed."""
    kept = vars(module).get("_old_forward")
    if isinstance(kept, types.MethodType) and kept.__func__ is type(module).forward:
        module._old_forward = types.MethodType(cls.forward, module)
    module.__class__ = cls


def with_global(function, name, value):
    """A copy of `function` that reads `value` where the original reads its module's global `name`; None where
    neither the function nor anything it wraps reads it. The copy sees the other globals as they are now.
    Decorators are copied along (4.57 has `deprecate_kwarg` around attention forwards)."""
    if not isinstance(function, types.FunctionType):
        return None
    cells, found = list(function.__closure__ or ()), False
    for i, cell in enumerate(cells):
        try:
            inner = with_global(cell.cell_contents, name, value)
        except ValueError:  # an empty cell
            continue
        if inner is not None:
            cells[i], found = types.CellType(inner), True
    scope = function.__globals__
    if name in function.__code__.co_names and name in scope:
        # Without __name__, torch.compile takes globals from this dict; with it, from the module of that name.
        scope = {key: item for key, item in scope.items() if key != "__name__"} | {name: value}
    elif not found:
        return None
    copy = types.FunctionType(
        function.__code__, scope, function.__name__, function.__defaults__, tuple(cells)
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return functools.update_wrapper(copy, function, assigned=functools.WRAPPER_ASSIGNMENTS)
