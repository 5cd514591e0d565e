"""Runs a method of an FSDP-wrapped module inside the wrapper's forward, so that the wrapper's hooks gather
its parameters."""


class _FSDPForwardRedirection:
    """`redirect(wrapper, method, module, *args, **kwargs)` = `method(*args, **kwargs)`, called from within
    `wrapper(...)`.

    wrapper: the FSDP module around `module`. FSDP gathers parameters only for calls of the wrapper's forward,
    which calls `module.forward`: for the length of this call that name leads to `method`. The patched heads
    of this package don't need it (their loss is computed inside the head's own call); trainers that read a
    head's weight themselves do.
    """

    def __call__(self, wrapper_module, method, original_module, *args, **kwargs):
        own = vars(original_module).get("forward")

        def restore():
            if own is None:
                vars(original_module).pop("forward", None)
            else:
                original_module.forward = own

        def forward(*inner_args, **inner_kwargs):
            restore()  # first: the method may call the module's real forward
            return method(*inner_args, **inner_kwargs)

        original_module.forward = forward
        try:
            return wrapper_module(*args, **kwargs)
        finally:
            restore()
