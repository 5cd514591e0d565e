"""What jsd, kl_div and tvd share in Python: fakes, autograd, samples."""

import torch

from ._saved_grad import scale_saved
from ._spec import Sample, T, accum

REDUCTION = {"none": 0, "mean": 1, "sum": 2, "batchmean": 3}


def check_reduction(reduction):
    if reduction not in REDUCTION:
        raise ValueError(f"reduction is {reduction!r}, expected 'none', 'mean', 'sum' or 'batchmean'")
    return REDUCTION[reduction]


def check_impl(**names):
    """Raises ValueError for a name of an implementation or mode that is not ours: there is one."""
    for name, value in names.items():
        if value not in (None, "liger", "default"):
            raise ValueError(
                f"{name} is {value!r}, expected None, 'liger' or 'default': there is one implementation here"
            )


def fake_fwd(x, grad, elementwise=False):
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if grad else x.new_empty((0,))
    return x.new_empty(x.shape if elementwise else (), dtype=accum(x)), dx


def fake_bwd(x):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def same_dtype(x, y):
    """x and y, detached, in the dtype that torch promotes theirs to: the operators take one."""
    dtype = torch.promote_types(x.dtype, y.dtype)
    return x.detach().to(dtype), y.detach().to(dtype)


def wants_grad(x):
    return torch.is_grad_enabled() and x.requires_grad


def forward(ctx, fwd, tensors, options, elementwise, dtype):
    """A Function's forward: the loss of fwd(*tensors, *options, grad), its gradient made along with it.

    Where the loss is elementwise, and for float16, whose range the incoming gradient (a loss scale) must
    reach before the rounding, the gradient is made in backward. dtype: the gradient's.
    """
    ctx.deferred, ctx.dtype, ctx.options = elementwise or dtype == torch.float16, dtype, options
    loss, dx = fwd(*tensors, *options, not ctx.deferred)
    ctx.save_for_backward(*(tensors if ctx.deferred else (dx.to(dtype),)))
    return loss


def backward(ctx, bwd, dloss):
    """The gradients of all arguments of that Function: of the first, and None."""
    nones = (None,) * (len(ctx.needs_input_grad) - 1)
    if not ctx.deferred:
        return scale_saved(*ctx.saved_tensors, dloss), *nones
    return bwd(dloss, *ctx.saved_tensors, *ctx.options).to(ctx.dtype), *nones


def sample(n, v, names=("_input", "target"), labels=False, kind="log", y_kind="x", **options):
    """kind: "log" of log-probabilities, "p" of probabilities, "mixed" of a log-probability and a target."""
    name = f"{n}x{v}" + "".join(f"-{k}_{o}" for k, o in options.items()) + ("-labels" if labels else "")
    log = {"mean": -2.0}
    p = {"positive": True, "scale": 0.5}
    x, y = names
    args = {
        x: T((n, v), **(p if kind == "p" else log)),
        y: T((n, v), y_kind, grad=False, **(log if kind == "log" else p)),
        **({"shift_labels": T((n,), "index", grad=False, high=9, ignored=labels)} if labels else {}),
        **options,
    }
    return Sample(name + ("-mixed" if y_kind == "w" else ""), args)


SIZES = ((0, 8), (1, 1), (3, 1), (2, 7), (33, 127), (3, 1023), (2, 1024), (2, 1025), (4, 2049), (2, 8201))
