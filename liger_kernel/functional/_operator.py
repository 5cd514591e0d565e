"""Turns the body of a function into the operator's own implementation, and the function into a choice."""

import functools

from ..backends import NAME, dispatch, register_impl
from ..backends.dispatch import plain


def operator(fn):
    """Registers `fn` as our implementation of the operator of its name. The result takes `fn`'s arguments,
    of which impl, mode and backend decide which implementation gets the others."""
    op_name = fn.__name__
    register_impl(op_name, impl_name=NAME, preference_rank=50, notes="C and CUDA C")(fn)

    @functools.wraps(fn)
    def chosen(*args, impl=None, mode=None, backend=None, **kwargs):
        if mode not in (None, "default"):
            raise ValueError(f"mode is {mode!r}, expected None or 'default'")
        if impl is not None and backend is not None and impl != backend:
            raise ValueError(f"impl is {impl!r} and backend {backend!r}: two names for one choice")
        if impl is None and backend is None and plain(op_name):
            return fn(*args, **kwargs)
        return dispatch(op_name, *args, impl=impl, backend=backend, **kwargs)

    return chosen
