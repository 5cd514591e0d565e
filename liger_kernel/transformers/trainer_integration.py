"""The name under which older trainers look for the instance patcher."""

from .monkey_patch import _apply_liger_kernel_to_instance  # noqa: F401
