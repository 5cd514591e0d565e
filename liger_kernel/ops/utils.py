"""Helpers that other programs import from here under upstream's names. Our own operators need none of them
but `ensure_contiguous`.
"""

import contextlib
import functools
import importlib

import torch


def is_hip():
    """Whether torch was built for ROCm."""
    return torch.version.hip is not None


@contextlib.contextmanager
def device_context(device):
    """Makes `device` current inside the block if it is a GPU; does nothing for the CPU."""
    with torch.cuda.device(device) if torch.device(device).type == "cuda" else contextlib.nullcontext():
        yield


def ensure_contiguous(fn):
    """Decorates an autograd.Function's forward or backward: tensor arguments reach it contiguous."""

    def dense(value):
        return value.contiguous() if isinstance(value, torch.Tensor) else value

    @functools.wraps(fn)
    def wrapper(ctx, *args, **kwargs):
        return fn(ctx, *map(dense, args), **{name: dense(value) for name, value in kwargs.items()})

    return wrapper


def calculate_settings(n):
    """(block size, number of warps) that a Triton kernel over rows of n columns would take: the next power of
    two of n, and 4 to 32 warps. Kept for callers with Triton kernels of their own; raises RuntimeError above
    65536, as upstream does.
    """
    block = 1 << max(n - 1, 0).bit_length()
    if block > 65536:
        raise RuntimeError(f"n is {n}: a block of {block} exceeds Triton's limit of 65536")
    warps = 32 if block >= 32768 else 16 if block >= 8192 else 8 if block >= 2048 else 4
    return block, min(warps, 16) if is_hip() else warps


def compare_version(package, operator, target):
    """operator(version of the installed package, target), e.g. compare_version("torch", operator.ge, "2.10");
    False if not installed.
    """
    from packaging.version import parse

    try:
        module = importlib.import_module(package)
    except ImportError:
        return False
    return operator(parse(parse(module.__version__).base_version), parse(target))


def get_amp_custom_fwd_bwd():
    """The decorators torch.amp.custom_fwd and custom_bwd for the device in use: CUDA if there is one, else
    the CPU.
    """
    device = "cuda" if torch.backends.cuda.is_built() else "cpu"
    return (
        functools.partial(torch.amp.custom_fwd, device_type=device),
        functools.partial(torch.amp.custom_bwd, device_type=device),
    )


amp_custom_fwd, amp_custom_bwd = get_amp_custom_fwd_bwd()


def __getattr__(name):
    if name == "torch_to_triton_dtype":  # Triton is imported only for those who ask
        try:
            import triton.language as tl
        except ImportError:
            return {}
        return {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
