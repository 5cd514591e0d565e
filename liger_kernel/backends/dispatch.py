"""The choice of an implementation, and its call."""

import importlib
import os
import warnings

from . import registry
from .registry import NAME, ImplNotAvailableError, LigerImplFallbackWarning, NoImplAvailableError

# read once: a call that looked at the environment would not be one graph for torch.compile
_ENV = {k: v for k, v in os.environ.items() if k.startswith(("LIGER_KERNEL_IMPL_", "LIGER_KERNEL_BACKEND"))}
_STRICT = os.environ.get("LIGER_KERNEL_STRICT", "") not in ("", "0", "false", "False")
_chosen = None  # by set_impl


def _from_env(op_name):
    op = op_name.upper()
    for key in (f"LIGER_KERNEL_IMPL_{op}", f"LIGER_KERNEL_BACKEND_{op}", "LIGER_KERNEL_BACKEND"):
        if value := _ENV.get(key):
            return value
    return None


def _impls(op_name):
    if not registry.list_registered(op_name):
        importlib.import_module("liger_kernel.functional")  # registers ours
    return registry.list_registered(op_name)


def _known(op_name):
    return ", ".join(i.impl_name for i in _impls(op_name)) or "none"


def emit_fallback_warning(op_name, requested, actual, reason):
    """Warns that `actual` runs instead of `requested`. LIGER_KERNEL_STRICT: ImplNotAvailableError."""
    text = f"{op_name}: the implementation {requested!r} is not available ({reason}); {actual!r} runs instead"
    if _STRICT:
        raise ImplNotAvailableError(text)
    warnings.warn(text, LigerImplFallbackWarning, stacklevel=3)


def _get(op_name, requested, device):
    """(`OpImpl`, None), or (None, the reason)."""
    _impls(op_name)
    impl = registry.get_registered(op_name, requested)
    if impl is None:
        return None, f"{op_name} has {_known(op_name)}"
    reason = impl.capability.reason_if_unsatisfied(device)
    return (None, reason) if reason else (impl, None)


def resolve_impl(op_name, requested=None, device=None):
    """The `OpImpl` that a call of `op_name` on `device` runs.

    Raises ImplNotAvailableError where `requested`, or the name given to `set_impl`, is not registered for the
    operator or does not run there; a name from the environment is passed over with a warning. Raises
    NoImplAvailableError where nothing runs.
    """
    env = _from_env(op_name) if requested is None else None
    for name, explicit in ((requested, True), (env, False), (_chosen if env is None else None, True)):
        if name is None:
            continue
        impl, reason = _get(op_name, name, device)
        if impl is not None:
            return impl
        if explicit:
            raise ImplNotAvailableError(f"{op_name}: impl is {name!r}, which is not available: {reason}")
        actual = resolve_default(op_name, device)
        emit_fallback_warning(op_name, name, actual.impl_name, reason)
        return actual
    return resolve_default(op_name, device)


def resolve_default(op_name, device=None):
    """The implementation of the lowest rank that runs on `device`."""
    reasons = []
    for impl in _impls(op_name):
        reason = impl.capability.reason_if_unsatisfied(device)
        if reason is None:
            return impl
        reasons.append(f"{impl.impl_name}: {reason}")
    ops = ", ".join(registry.all_registered_ops())
    why = "; ".join(reasons) or f"unknown operator, expected one of {ops}"
    raise NoImplAvailableError(f"{op_name} has no implementation that runs here ({why})")


def dispatch(op_name, *args, impl=None, backend=None, **kwargs):
    """The result of `op_name` on the given arguments, by the implementation that `resolve_impl` chooses for
    the first tensor's device. `backend` is another name for `impl`."""
    device = next((a.device for a in args if hasattr(a, "device")), None)
    return resolve_impl(op_name, impl if impl is not None else backend, device).call(*args, **kwargs)


def plain(op_name):
    """Whether ours is the only choice: nothing else is registered, and no name is asked for."""
    impls = registry._IMPLS.get(op_name, {})
    return _chosen is None and not _ENV and len(impls) == 1 and NAME in impls


def available_impls(op_name, device=None):
    """Names of the implementations that run on `device`, the preferred first."""
    return [i.impl_name for i in _impls(op_name) if i.capability.is_satisfied(device)]


def all_impls(op_name):
    """Names of all registered implementations, the preferred first."""
    return [i.impl_name for i in _impls(op_name)]


def set_impl(name):
    """Chooses an implementation for every operator of `liger_kernel.functional`; None: by preference again.
    Raises ImplNotAvailableError for a name that no operator has."""
    global _chosen
    if name is not None:
        importlib.import_module("liger_kernel.functional")
        known = {i.impl_name for op in registry.all_registered_ops() for i in registry.list_registered(op)}
        if registry.canonical(name) not in known:
            raise ImplNotAvailableError(
                f"name is {name!r}, expected None or one of {', '.join(sorted(known))}"
            )
    _chosen = name if name is None else registry.canonical(name)


def get_impl():
    """The name given to `set_impl`, or None."""
    return _chosen


def clear_available_cache():
    """Upstream's cache of what runs where. Nothing is cached here."""


resolve_backend, available_backends, all_backends = resolve_impl, available_impls, all_impls
set_backend, get_backend = set_impl, get_impl
