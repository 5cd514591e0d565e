"""The implementations, by operator and name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .capability import Capability

NAME = "liger"
SYNONYMS = {
    "nvidia-triton": NAME,
    "triton": NAME,
}  # upstream's default: who asks for it gets what stands for it


class ImplNotAvailableError(RuntimeError):
    """An implementation that was asked for by name does not exist, or does not run here."""


class NoImplAvailableError(RuntimeError):
    """An operator has no implementation that runs here."""


class LigerImplFallbackWarning(UserWarning):
    """An implementation named in the environment does not run here; another does its work."""


BackendNotAvailableError = ImplNotAvailableError
NoBackendAvailableError = NoImplAvailableError
LigerBackendFallbackWarning = LigerImplFallbackWarning


@dataclass(frozen=True)
class OpImpl:
    """One implementation of one operator. Exactly one of `forward` and `autograd_function` is set."""

    op_name: str
    impl_name: str
    capability: Capability = field(default_factory=Capability)
    forward: Callable | None = None
    autograd_function: Any = None
    modes: tuple[str, ...] = ()
    default_mode: str | None = None
    preference_rank: int = 100
    tolerances: dict | None = None
    notes: str = ""

    def call(self, *args, **kwargs):
        """The operator's result. An autograd Function takes no keywords."""
        if self.autograd_function is None:
            return self.forward(*args, **kwargs)
        if kwargs:
            raise TypeError(
                f"{self.op_name}/{self.impl_name} is an autograd Function: it takes no keywords, "
                f"got {', '.join(kwargs)}"
            )
        return self.autograd_function.apply(*args)

    @property
    def backend(self) -> str:
        return self.impl_name


_IMPLS: dict[str, dict[str, OpImpl]] = {}


def canonical(name):
    """Our name for a synonym of it; any other name as it is."""
    return SYNONYMS.get(name, name)


def register_impl(
    op_name,
    *,
    impl_name=None,
    capability=None,
    modes=(),
    default_mode=None,
    preference_rank=100,
    tolerances=None,
    notes="",
    backend=None,
):
    """A decorator that registers a function, or a torch.autograd.Function class, as an implementation of
    `op_name`. impl_name (or `backend`) names it; a second registration under a name replaces the first.
    Raises ValueError without a name, or with two.
    """
    if (impl_name is None) == (backend is None):
        raise ValueError(f"impl_name is {impl_name!r} and backend {backend!r}, expected one of the two")
    name = canonical(impl_name or backend)

    def register(thing):
        is_function = inspect.isclass(thing) and hasattr(thing, "apply")
        place = {"autograd_function" if is_function else "forward": thing}
        _IMPLS.setdefault(op_name, {})[name] = OpImpl(
            op_name,
            name,
            capability=capability or Capability(),
            modes=tuple(modes),
            default_mode=default_mode,
            preference_rank=preference_rank,
            tolerances=tolerances,
            notes=notes,
            **place,
        )
        return thing

    return register


register_op = register_impl


def list_registered(op_name):
    """The `OpImpl`s of an operator, the preferred first."""
    return sorted(_IMPLS.get(op_name, {}).values(), key=lambda i: (i.preference_rank, i.impl_name))


def get_registered(op_name, backend):
    """The `OpImpl` of that name, or None."""
    return _IMPLS.get(op_name, {}).get(canonical(backend))


def all_registered_ops():
    """The names of the operators, in alphabetical order."""
    return sorted(_IMPLS)


def declare_op_locations(op_name, module_paths):
    """Upstream's table of modules to import for an operator. Nothing to do: `liger_kernel.functional` finds
    its own."""


def get_discovery_failures():
    """Upstream's record of modules that could not be imported: always empty."""
    return {}
