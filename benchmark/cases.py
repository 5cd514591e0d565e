"""From an operator's `OpSpec` to something that can be timed. Nothing here imports liger_kernel, so that the
process that measures upstream's package can use it too."""

import gc

import torch

# a sanity check before timing, not the test suite: relative difference in norm from eager in the same dtype
CLOSE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}


def draw(arg, dtype, device, generator):
    """The tensor that an `ops._spec.T` (or a dict of its fields) describes."""
    t = arg if isinstance(arg, dict) else vars(arg)
    order = t.get("memory")
    if order:  # drawn as it lies in memory, seen in the shape's order
        dense = draw({**t, "shape": [t["shape"][d] for d in order], "memory": None}, dtype, device, generator)
        seen = dense.detach().permute([order.index(d) for d in range(len(order))])
        return seen.requires_grad_(dense.requires_grad)
    if t["kind"] == "index":
        x = torch.randint(t["low"], t["high"], t["shape"], generator=generator, device=device)
        if t["ignored"]:
            x[torch.rand(x.shape, generator=generator, device=device) < t["ignored"]] = -100
        return x
    dtype = torch.float32 if t["kind"] == "fp32" else dtype
    x = torch.randn(t["shape"], generator=generator, device=device, dtype=dtype).mul_(t["scale"])
    x = x.add_(t["mean"]) if t["mean"] else x
    return (x.abs_() if t["positive"] else x).requires_grad_(t["grad"])


def is_tensor(arg):
    """Whether an argument of a `Sample` describes a tensor: a T, or what `portable` made of it."""
    return hasattr(arg, "kind") or isinstance(arg, dict) and "kind" in arg


def portable(case):
    """A `Case` as JSON, for the process that must not import our package."""
    args = {k: vars(v) if is_tensor(v) else v for k, v in case.sample.args.items()}
    elements = case.fwd_elements, case.full_elements
    return {"id": case.id, "args": args, "elements": elements, "flops": case.flops}


def random_like(o, generator):
    """Random values in the memory order of `o`, as autograd passes them on; the same for any order."""
    values = torch.randn(o.shape, generator=generator, device=o.device, dtype=o.dtype)
    return torch.empty_like(o).copy_(values)


def products(case):
    """((rows, hidden), (vocab_size, hidden)) of a portable linear loss, else None."""
    floats = [x["shape"] for x in case["args"].values() if is_tensor(x) and x["kind"] != "index"]
    (*rows, hidden), weight = [s for s in floats if len(s) > 1][:2] if case["flops"][1] else ((0, 0), 0)
    return ((torch.Size(rows).numel(), hidden), tuple(weight)) if weight else None


class Call:
    """One implementation on one case's arguments: forward without grad, forward, forward + backward."""

    def __init__(self, fn, args):
        self.fn, self.args = fn, args
        self.leaves = [a for a in args.values() if isinstance(a, torch.Tensor) and a.requires_grad]
        self.gradients = None

    def forward(self):
        return self.fn(**self.args)

    def bare(self):
        with torch.no_grad():
            return self.fn(**self.args)

    def full(self):
        """(outputs, gradients). autograd.grad, since adding into .grad is not the operator's work."""
        out = self.forward()
        out = out if isinstance(out, tuple) else (out,)
        out = [o for o in out if isinstance(o, torch.Tensor) and o.requires_grad]
        if self.gradients is None:
            g = torch.Generator(out[0].device).manual_seed(1)
            self.gradients = [random_like(o, g) if o.ndim else torch.ones_like(o) for o in out]
        return out, torch.autograd.grad(out, self.leaves, self.gradients, allow_unused=True)


def arguments(args, dtype, device):
    g = torch.Generator(device).manual_seed(0)
    return {k: draw(v, dtype, device, g) if is_tensor(v) else v for k, v in args.items()}


def norms(call):
    """Norms of the outputs and gradients: what two processes can compare."""
    out, grads = call.full()
    return [t.detach().float().norm().item() for t in (*out, *(g for g in grads if g is not None))]


def difference(call, reference):
    """The largest relative difference in norm of two calls' outputs and gradients."""
    (a, da), (b, db) = call.full(), reference.full()
    worst = 0.0
    for x, y in zip((*a, *da), (*b, *db), strict=True):
        if x is None or y is None:
            worst = max(worst, 0.0 if x is y else float("inf"))
            continue
        x, y = x.detach().float(), y.detach().float()
        worst = max(worst, ((x - y).norm() / y.norm().clamp_min(1e-30)).item())
        if worst != worst:  # NaN
            return float("inf")
    return worst


def in_float32(call, gradients):
    """The call on the same values in float32, with the incoming gradients of another."""

    def widen(t):
        is_float = isinstance(t, torch.Tensor) and t.is_floating_point()
        return t.detach().float().requires_grad_(t.requires_grad) if is_float else t

    wide = Call(call.fn, {k: widen(v) for k, v in call.args.items()})
    wide.gradients = [g.float() for g in gradients]
    return wide


def release():
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
