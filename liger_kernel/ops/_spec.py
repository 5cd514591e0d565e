"""`OpSpec`: what an operator says about itself, once, for tests, benchmarks, the self-test and the tables of
the docs.

A spec holds no tensors. It describes arguments (`T`), so that a test can draw them on any device, in any
dtype of its grid and in any memory layout, and a benchmark at any size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class T:
    """One tensor argument of a `Sample`.

    kind: "x" takes the activation dtype of the test grid, "w" the parameter dtype, "fp32" is always float32
    (float64 in fp64 runs), "index" is int64. Floating tensors are normal with the given `scale` and `mean`.
    Index tensors are uniform in [low, high); a share `ignored` of them is set to -100. `memory` is the order
    of the dimensions in memory, outermost first: (0, 2, 1, 3) is a (B, H, T, D) tensor that is a transposed
    view of dense (B, T, H, D), as queries are in Hugging Face's models.
    """

    shape: tuple[int, ...]
    kind: str = "x"
    grad: bool = True
    scale: float = 1.0
    mean: float = 0.0
    low: int = 0
    high: int = 0
    ignored: float = 0.0
    positive: bool = False  # absolute values: class weights, probabilities
    layouts: bool = True  # may be drawn strided, transposed, expanded, misaligned
    memory: tuple[int, ...] | None = None  # None: contiguous


@dataclass(frozen=True)
class Sample:
    """Named arguments of one call: `T` is drawn, anything else is passed as it is.

    floor: the size of the terms of a gradient that cancel almost entirely (rms_norm of one column: dX is eps
    of its terms). A unit in the last place is counted at this scale where the tensor's own is smaller. 0
    nearly everywhere: it is no tolerance.
    """

    id: str
    args: dict[str, Any]
    floor: float = 0.0

    def with_args(self, id: str, **changes) -> Sample:
        return Sample(f"{self.id}-{id}", {**self.args, **changes}, self.floor)


@dataclass(frozen=True)
class Case:
    """A benchmark case: a sample, and the bytes or operations that no implementation can do without.

    `fwd_elements`, `full_elements`: elements of the activation dtype that must move, forward and forward +
    backward. `flops`: (forward, full) operations of the matrix products, for operators bound by them.
    """

    id: str
    sample: Sample
    fwd_elements: int = 0
    full_elements: int = 0
    flops: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class OpSpec:
    """The registry entry of one operator.

    name        the stem: upstream's module name
    fn          the differentiable entry that users reach, called as fn(**args); returns a tensor or a tuple
    ref         the same call in plain PyTorch, as Hugging Face writes it; in float64 it is the truth, in a
                low precision it
                is the bar that our error may not pass
    samples     correctness cases: sizes 0, 1, odd, around every internal threshold, and every option
    options     pairs (base, changed) of samples that differ in one option: some output or gradient must
                differ
    raw         raw(args) -> list of (torch.ops.liger overload, positional arguments): what opcheck runs
    errors      (match, changes) pairs: changing the first sample so must raise with a text that matches
    cases       benchmark cases by device type: {"cpu": (Case, ...), "cuda": (Case, ...)}
    ulps        how many units in the last place of the output's dtype the error may exceed eager's own
    grad_factor how many times eager's own error a gradient of kind "w" may have (the linear losses: 3)
    gradcheck   samples small enough for fp64 gradcheck (the first with 0 < size < 64 elements, by default)
    dynamic     samples that differ in sizes alone, for one compiled graph with dynamic shapes (the first
                sample with other
                leading sizes, by default)
    big         the sample that a GPU runs with more than 2^31 elements by growing its leading size (the
                first, by default; False: the operator's rows depend on each other, and its own test has such
                a case)
    gemm        results pass through torch's matrix products, whose bits may change with layout, alignment and
                the number of
                threads: there the tests hold every variant against the truth instead of against the first
                one's bits
    reduces     sums over a row: on a GPU their order follows the alignment of the row
    notes       what the docs' table says beside the name
    """

    name: str
    fn: Callable
    ref: Callable
    samples: tuple[Sample, ...]
    options: tuple[tuple[Sample, Sample], ...] = ()
    raw: Callable | None = None
    errors: tuple[tuple[str, dict[str, Any]], ...] = ()
    cases: dict[str, tuple[Case, ...]] = field(default_factory=dict)
    ulps: float = 4.0
    grad_factor: float = 1.0
    gradcheck: tuple[Sample, ...] = ()
    dynamic: tuple[Sample, ...] = ()
    big: Sample | bool | None = None
    gemm: bool = False
    reduces: bool = False
    notes: str = ""


def in_memory(shape, memory) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(the dense tensor's shape, the permutation of it that has `shape`) for a `T.memory`."""
    if memory is None:
        return tuple(shape), tuple(range(len(shape)))
    if sorted(memory) != list(range(len(shape))):
        raise ValueError(f"memory is {memory}, expected a permutation of the dimensions of {tuple(shape)}")
    return tuple(shape[d] for d in memory), tuple(memory.index(d) for d in range(len(shape)))


def accum(x: torch.Tensor) -> torch.dtype:
    """The dtype that statistics and accumulators have: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def upcast(x: torch.Tensor) -> torch.Tensor:
    """What `.float()` is in a reference that must also run in float64."""
    return x.to(accum(x))
