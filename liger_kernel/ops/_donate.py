"""Backward over what forward saved: `gradients` writes them there where nobody can see that it did.

Gated units save two wide tensors, and their gradients are two more of that size, beside the incoming one, at
the place where a transformer's layer needs its most memory. Mostly the saved two are a projection's outputs
that only this node still holds and will drop at once: then the gradients are written over them. That takes

- a running backward that frees its graph: with `retain_graph=True` the tensors are read again;
- one that builds no graph (`create_graph=True`), which could save them once more;
- no torch.compile, functorch transform or tensor subclass: they stand for values, not for memory;
- tensors that an operator made. A leaf is its owner's, and only of others is it known that saved-tensor hooks
  hand out a tensor of their own (checkpoint, save_on_cpu);
- contiguous tensors with all of their storage to themselves: in a part of one, others may be seen;
- memory of torch's own allocator, which no other library and no other process sees;
- nobody else who holds the tensor or its storage, in Python or C++: a view, NumPy, a hook, another node that
  saved it, the same tensor given twice. All of them count: in Python's references to the tensor and to its
  storage, and in torch's uses of each. `_alone` measures the counts of a tensor that a node alone holds.

What no count shows is a reader of a tensor that is held no more: a kernel on another stream, as
`record_stream` allows it, or a process that a CUDA tensor was sent to. `LIGER_DONATE=0` in the environment
turns all of this off.
"""

import functools
import os
import sys
import threading

import torch

from ._saved_grad import may_overwrite_saved

_ENABLED = (
    os.environ.get("LIGER_DONATE", "1") not in ("", "0")
    and hasattr(torch.Tensor, "_use_count")  # private, as the next
    and hasattr(torch._C, "_storage_Use_Count")
)
_LEAST = 2**20  # bytes: below, looking costs more than an allocation


def gradients(ctx, dc, bwd, bwd_, *options):
    """The results of bwd(dc, *saved, *options), a tuple: where nobody can see it, over the saved tensors.

    bwd_ takes the same arguments and writes each result over the saved tensor whose gradient it is.
    """
    saved = list(ctx.saved_tensors)  # a list of our own: who holds the tuple then counts as a holder
    if not (may_overwrite_saved() and _may_donate(dc, saved)):
        results = bwd(dc, *saved, *options)
        return results if isinstance(results, tuple) else (results,)
    results = tuple(t.detach() for t in saved)
    bwd_(dc, *results, *options)
    torch.autograd.graph.increment_version(results)  # an error for who reads the saved ones in spite of all
    return results


def _may_donate(dc, saved):
    return (
        _ENABLED
        and min(t.nbytes for t in saved) >= _LEAST
        and not torch.is_grad_enabled()
        and torch._C._has_storage(dc)  # not one that a vmap made
        and all(map(_owns_memory, saved))
        and _alone().issuperset(_holders(saved))
    )


def _owns_memory(t):
    return (
        type(t) is torch.Tensor
        and not t.is_leaf
        and t.is_contiguous()
        and (storage := t.untyped_storage()).resizable()  # memory that another library lends is not
        and not (t.device.type == "cpu" and storage.is_shared())
    )


def _holders(saved):
    """For each tensor: Python's references to it and its storage, torch's uses of both.

    By `map`, in C: how an interpreter counts the references of local variables changes with its version.
    """
    storages = tuple(map(torch.Tensor.untyped_storage, saved))
    return zip(
        map(sys.getrefcount, saved),
        map(torch.Tensor._use_count, saved),
        map(sys.getrefcount, storages),
        [torch._C._storage_Use_Count(s._cdata) for s in storages],
    )


class _Probe(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, seen):
        ctx.save_for_backward(a)
        ctx.seen = seen
        return a.clone()

    @staticmethod
    def backward(ctx, dc):
        ctx.seen.update(_holders(list(ctx.saved_tensors)))
        return dc, None


@functools.cache
def _alone():
    """What `_holders` says of a saved tensor that nobody else holds: saved as it is, and by way of hooks.

    Measured, since it depends on the versions of torch and Python, in a thread of its own, where no mode of
    the caller's is on that would hold the tensor.
    """
    seen = set()

    def measure():
        x = torch.zeros(1, device="cpu", requires_grad=True)
        _Probe.apply(x * 2, seen).backward()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.tolist(), torch.tensor):
            out = _Probe.apply(x * 2, seen)
        out.backward()

    thread = threading.Thread(target=measure)
    thread.start()
    thread.join()
    return frozenset(seen)
