"""Which implementation of an operator runs: a dictionary over names, so that programs may register their own.

There is one implementation of each operator here, "liger", in C and CUDA C. Upstream's names for its default,
"nvidia-triton" and "triton", mean it too. A name is chosen by the argument `impl` (or `backend`) of
`liger_kernel.functional`, else by LIGER_KERNEL_IMPL_<OP> or LIGER_KERNEL_BACKEND_<OP>, else by
LIGER_KERNEL_BACKEND, else by `set_impl`, else by the lowest `preference_rank`.
"""

from .capability import PYTORCH_FALLBACK, Capability
from .dispatch import (
    all_backends,
    all_impls,
    available_backends,
    available_impls,
    clear_available_cache,
    dispatch,
    emit_fallback_warning,
    get_backend,
    get_impl,
    resolve_backend,
    resolve_impl,
    set_backend,
    set_impl,
)
from .registry import (
    NAME,
    BackendNotAvailableError,
    ImplNotAvailableError,
    LigerBackendFallbackWarning,
    LigerImplFallbackWarning,
    NoBackendAvailableError,
    NoImplAvailableError,
    OpImpl,
    all_registered_ops,
    declare_op_locations,
    get_discovery_failures,
    get_registered,
    list_registered,
    register_impl,
    register_op,
)

__all__ = [
    "NAME",
    "PYTORCH_FALLBACK",
    "BackendNotAvailableError",
    "Capability",
    "ImplNotAvailableError",
    "LigerBackendFallbackWarning",
    "LigerImplFallbackWarning",
    "NoBackendAvailableError",
    "NoImplAvailableError",
    "OpImpl",
    "all_backends",
    "all_impls",
    "all_registered_ops",
    "available_backends",
    "available_impls",
    "clear_available_cache",
    "declare_op_locations",
    "dispatch",
    "emit_fallback_warning",
    "get_backend",
    "get_discovery_failures",
    "get_impl",
    "get_registered",
    "list_registered",
    "register_impl",
    "register_op",
    "resolve_backend",
    "resolve_impl",
    "set_backend",
    "set_impl",
]
