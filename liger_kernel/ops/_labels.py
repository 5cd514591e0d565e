"""The check of class labels that costs a synchronisation, and is therefore made on request alone."""

import os

import torch

_DEBUG = os.environ.get("LIGER_DEBUG", "0") not in ("", "0")


def check_labels(op, target, n_classes, ignore_index, name="target"):
    """With LIGER_DEBUG=1, raises for the first label on a GPU that is out of range, naming row and value.

    Without it a GPU answers such a row with NaN. On the CPU the operators check always, without this
    function.
    """
    if not _DEBUG or not target.is_cuda or torch.compiler.is_compiling():
        return
    if target.dtype != torch.int64 or target.dim() != 1:
        return  # the operator says so
    bad = ((target != ignore_index) & ((target < 0) | (target >= n_classes))).nonzero()
    if len(bad):
        row = bad[0, 0].item()
        raise RuntimeError(
            f"liger::{op}: {name}[{row}] is {target[row].item()}, expected a value in "
            f"[0, {n_classes}) or ignore_index ({ignore_index})"
        )


def check_indices(op, name, indices, n, what):
    """With LIGER_DEBUG=1, raises for the first index on a GPU outside [0, n), naming its place and value."""
    if not _DEBUG or not indices.is_cuda or torch.compiler.is_compiling():
        return
    if indices.is_floating_point():
        return  # the op refuses the dtype
    bad = ((indices < 0) | (indices >= n)).nonzero()
    if len(bad):
        place = ", ".join(map(str, bad[0].tolist()))
        value = indices[tuple(bad[0])].item()
        where = f"[{place}]" if place else ""
        raise RuntimeError(f"liger::{op}: {name}{where} is {value}, expected 0 to {n - 1}, {what}")
