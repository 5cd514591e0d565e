"""The plan and the memory budget of the linear losses: how a loss is cut into blocks of logits.

`plan(...)` is the C function that the operators themselves ask (csrc/kernels/linear_loss_plan.c has the rules
and their reasons): pure, so one can see beforehand what a call will do. The budget bounds the one buffer of
logits that a call uses; gradients, and an accumulator where the plan asks for one, come on top and are
reported apart.
"""

import ctypes
import os
import warnings
from dataclasses import dataclass

import torch

from .. import _load

__all__ = ["set_memory_budget", "get_memory_budget"]

DEFAULT_BUDGET = 256 * 2**20
DTYPE_CODES = {
    torch.float32: 0,
    torch.float16: 1,
    torch.bfloat16: 2,
    torch.float64: 3,
}  # liger_dtype in csrc/liger.h
_DTYPES = {code: dtype for dtype, code in DTYPE_CODES.items()}
AUTO = -1
# CPUs without fp16 products in oneDNN take a path several times slower than fp32
_CPU_HAS_FP16 = getattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: False)()


def products_dtype_of(x, weight):
    """What products are computed in: autocast's dtype under autocast, else what holds both operands."""
    device = x.device.type
    dtype = torch.promote_types(x.dtype, weight.dtype)
    if dtype != torch.float64 and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    return torch.float32 if dtype == torch.float16 and device == "cpu" and not _CPU_HAS_FP16 else dtype


def _checked_budget(value, name):
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}, expected a number of bytes, at least 1")
    return value


def _budget_from_environment():
    text = os.environ.get("LIGER_MEMORY_BUDGET")
    if not text:
        return DEFAULT_BUDGET
    if not text.isdecimal():
        raise ValueError(f"LIGER_MEMORY_BUDGET is {text!r}, expected a number of bytes, at least 1")
    return _checked_budget(int(text), "LIGER_MEMORY_BUDGET")


_budget = _budget_from_environment()


def set_memory_budget(n_bytes):
    """Bounds the buffer of logits that a linear loss may use, in bytes; None restores the default (256 MiB).

    LIGER_MEMORY_BUDGET sets it at start. Larger blocks are faster, up to a point: on an H200 256 MiB cost 6 %
    over no bound at all. Raises ValueError unless n_bytes is a positive int.
    """
    global _budget
    _budget = DEFAULT_BUDGET if n_bytes is None else _checked_budget(n_bytes, "n_bytes")


def get_memory_budget():
    """The bound in bytes on the buffer of logits of a linear loss."""
    return _budget


_too_small = set()


def resolve_budget(memory_budget, row_bytes):
    """The budget of one call: its own, or the process's. Warns once if no row of `row_bytes` fits."""
    budget = _budget if memory_budget is None else _checked_budget(memory_budget, "memory_budget")
    if not torch.compiler.is_compiling() and row_bytes > budget and not _too_small:
        _too_small.add(budget)
        warnings.warn(
            f"memory_budget is {budget} bytes and one row of logits takes {row_bytes}: "
            "the loss goes row by row, which is slow.",
            stacklevel=3,
        )
    return budget


@dataclass(frozen=True)
class Plan:
    """How a linear loss is cut: what `plan` answers.

    loop_order    "token" (blocks of rows) or "vocabulary" (blocks of columns after a statistics pass; not
    chosen yet) block_rows    rows of a block; the last may have fewer n_blocks      how many blocks
    block_bytes   what the block's buffers take, at most the budget (unless one row takes more) accum_bytes
    what the accumulator of the weight gradient takes beside the gradient itself accum_dtype   what the weight
    gradient is added up in widen_block   whether dlogits are copied to float32 for the weight gradient's
    product
    """

    loop_order: str
    block_rows: int
    n_blocks: int
    block_bytes: int
    accum_bytes: int
    accum_dtype: torch.dtype
    widen_block: bool


_SIZES = ("n_rows", "hidden_size", "vocab_size", "memory_budget", "chunk_mem_const")
_FLAGS = ("needs_dx", "needs_dw", "on_gpu", "accum", "compute_dtype", "w_dtype")


class _Args(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in _SIZES] + [(name, ctypes.c_int) for name in _FLAGS]


class _Result(ctypes.Structure):
    _fields_ = [
        ("loop_order", ctypes.c_int),
        *((name, ctypes.c_int64) for name in ("block_rows", "n_blocks", "block_bytes", "accum_bytes")),
        ("accum_dtype", ctypes.c_int),
        ("widen_block", ctypes.c_int),
    ]


def plan(
    n_rows,
    hidden_size,
    vocab_size,
    dtype,
    weight_dtype=None,
    *,
    needs_dx=True,
    needs_dw=True,
    accum_dtype=None,
    chunk_mem_const=1,
    memory_budget=None,
    device="cpu",
):
    """A `Plan`: how the loss of x (n_rows, hidden_size), weight (vocab_size, hidden_size) is cut into blocks.

    dtype: what the products are computed in. weight_dtype: that of the weight, if another. accum_dtype: None,
    or what the caller insists on for the weight gradient. chunk_mem_const: above 1, blocks of about that many
    times x's size. device: "cpu" or "cuda". Raises ValueError for a negative size or an unknown dtype.
    """
    for name, t in (("dtype", dtype), ("weight_dtype", weight_dtype), ("accum_dtype", accum_dtype)):
        if t is not None and t not in DTYPE_CODES:
            raise ValueError(f"{name} is {t}, expected float32, float16, bfloat16 or float64")
    library = ctypes.CDLL(os.path.join(_load.LIB, "libliger_torch_cpu.so"))  # loaded already: the same handle
    budget = get_memory_budget() if memory_budget is None else memory_budget
    code = DTYPE_CODES[dtype]
    accum = AUTO if accum_dtype is None else DTYPE_CODES[accum_dtype]
    w_code = code if weight_dtype is None else DTYPE_CODES[weight_dtype]
    on_gpu = torch.device(device).type != "cpu"
    args = _Args(
        n_rows,
        hidden_size,
        vocab_size,
        budget,
        chunk_mem_const,
        needs_dx,
        needs_dw,
        on_gpu,
        accum,
        code,
        w_code,
    )
    r = _Result()
    if library.liger_linear_loss_plan(ctypes.byref(args), ctypes.byref(r)) != 0:
        raise ValueError(
            f"sizes are {n_rows}, {hidden_size}, {vocab_size} and memory_budget is {budget}: "
            "expected none to be negative"
        )
    return Plan(
        ("token", "vocabulary")[r.loop_order],
        r.block_rows,
        r.n_blocks,
        r.block_bytes,
        r.accum_bytes,
        _DTYPES[r.accum_dtype],
        bool(r.widen_block),
    )
