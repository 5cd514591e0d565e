"""The plan and the memory budget of the linear losses: how a loss is cut into blocks of logits.

`plan(...)` is the C function that the operators themselves ask (csrc/kernels/linear_loss_plan.c has the rules
and their reasons): pure, so one can see beforehand what a call will do. The budget bounds the one buffer of
logits that a call uses; gradients, and an accumulator where the plan asks for one, come on top and are
reported apart.
"""

import contextlib
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

    LIGER_MEMORY_BUDGET sets it at start. Larger blocks are faster, up to a point: on an H200 256 MiB cost 3
    to 4 % over no bound at all (benchmark.run, cases A and B, the default and --budget 2048). Raises
    ValueError unless n_bytes is a positive int.
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

    - loop_order: "token" (blocks of rows) or "vocabulary" (blocks of columns: a pass for the statistics of
      the rows, then the logits again for the gradients)
    - block_rows, block_cols: rows and columns of a block; the last may have fewer
    - n_blocks: how many blocks
    - block_bytes: what the block's buffers take, at most the budget (unless one row takes more)
    - accum_bytes: what an accumulator takes beside the gradient itself: of the weight's gradient, or, by
      vocabulary, of x's
    - accum_dtype: what the weight gradient is added up in
    - widen_block: whether dlogits are copied to float32 for the weight gradient's product
    - seconds: what the cost model says of the loop. The model and its constants stand in
      csrc/kernels/linear_loss_plan.c; `python -m benchmark.plan_costs` holds them against measurements
    """

    loop_order: str
    block_rows: int
    n_blocks: int
    block_bytes: int
    accum_bytes: int
    accum_dtype: torch.dtype
    widen_block: bool
    block_cols: int
    seconds: float


_SIZES = ("n_rows", "hidden_size", "vocab_size", "memory_budget", "chunk_mem_const")
_FLAGS = ("needs_dx", "needs_dw", "on_gpu", "accum", "compute_dtype", "w_dtype", "loop_order", "x_dtype")
LOOP_ORDERS = ("token", "vocabulary")


class _Args(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in _SIZES] + [(name, ctypes.c_int) for name in _FLAGS]


class _Result(ctypes.Structure):
    _fields_ = [
        ("loop_order", ctypes.c_int),
        *((name, ctypes.c_int64) for name in ("block_rows", "n_blocks", "block_bytes", "accum_bytes")),
        ("accum_dtype", ctypes.c_int),
        ("widen_block", ctypes.c_int),
        ("block_cols", ctypes.c_int64),
        ("seconds", ctypes.c_double),
    ]


def _order_from_environment():
    text = os.environ.get("LIGER_LOOP_ORDER")
    if text and text not in LOOP_ORDERS:
        raise ValueError(f"LIGER_LOOP_ORDER is {text!r}, expected one of {', '.join(LOOP_ORDERS)}")
    return LOOP_ORDERS.index(text) if text else AUTO


_order = _order_from_environment()


def forced_loop_order():
    """The code of the loop order that `force_loop_order` or LIGER_LOOP_ORDER (read at start) asks for.

    AUTO where neither does.
    """
    return _order


@contextlib.contextmanager
def force_loop_order(loop_order):
    """Within it fused_linear_cross_entropy takes that loop order where it is possible at all.

    "token" or "vocabulary"; None: the plan's choice. For measurements and tests: of the whole process, not of
    one thread.
    """
    global _order
    before = _order
    _order = AUTO if loop_order is None else LOOP_ORDERS.index(loop_order)
    try:
        yield
    finally:
        _order = before


def plan(
    n_rows,
    hidden_size,
    vocab_size,
    dtype,
    weight_dtype=None,
    *,
    loop_order=None,
    x_dtype=None,
    needs_dx=True,
    needs_dw=True,
    accum_dtype=None,
    chunk_mem_const=1,
    memory_budget=None,
    device="cpu",
):
    """A `Plan`: how the loss of x (n_rows, hidden_size), weight (vocab_size, hidden_size) is cut into blocks.

    dtype: what the products are computed in. weight_dtype, x_dtype: that of the weight and of x, if another.
    accum_dtype: None, or what the caller insists on for the weight gradient. chunk_mem_const: above 1, blocks
    of about that many times x's size. loop_order: "token" (the only one that linear losses beside
    fused_linear_cross_entropy have), "vocabulary" (where the budget holds at least 256 columns, else
    "token"), or None: the cheaper by the cost model. device: "cpu" or "cuda". Raises ValueError for a
    negative size or an unknown dtype or order.
    """
    for name, t in (("dtype", dtype), ("weight_dtype", weight_dtype), ("accum_dtype", accum_dtype)):
        if t is not None and t not in DTYPE_CODES:
            raise ValueError(f"{name} is {t}, expected float32, float16, bfloat16 or float64")
    if loop_order not in (None, *LOOP_ORDERS):
        raise ValueError(f"loop_order is {loop_order!r}, expected None, 'token' or 'vocabulary'")
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
        _order if loop_order is None else LOOP_ORDERS.index(loop_order),
        code if x_dtype is None else DTYPE_CODES[x_dtype],
    )
    r = _Result()
    if library.liger_linear_loss_plan(ctypes.byref(args), ctypes.byref(r)) != 0:
        raise ValueError(
            f"sizes are {n_rows}, {hidden_size}, {vocab_size} and memory_budget is {budget}: "
            "expected none to be negative"
        )
    return Plan(
        LOOP_ORDERS[r.loop_order],
        r.block_rows,
        r.n_blocks,
        r.block_bytes,
        r.accum_bytes,
        _DTYPES[r.accum_dtype],
        bool(r.widen_block),
        r.block_cols,
        r.seconds,
    )
