"""Draws a sample of an `OpSpec`, runs it, and holds the result against float64 truth.

The tests and the self-test share this. The bar is not a tolerance. Truth is the reference in float64 on the
same rounded inputs; the reference in the tested dtype ("eager") has an error of its own against it; ours may
exceed that by `spec.ulps` units in the last place, relative to the tensor's scale. Four measures of an error
are taken, so that neither a dropped last column nor one wrong row drowns in a large tensor: the largest
element, the norm of the whole, of the worst row and of the worst column. Incoming gradients are random for
every differentiable output.
"""

from __future__ import annotations

import contextlib
import itertools
import zlib
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .ops._spec import OpSpec, Sample, T, in_memory

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
LAYOUTS = ("sliced", "transposed", "permuted", "expanded", "misaligned", "strided")
IGNORED = -100
SMALL = 4096  # samples with fewer elements are drawn several times: one error of one small tensor says little
DRAWS = 6


# ---- drawing -----------------------------------------------------------------------------------------------
def seed_of(*parts) -> int:
    return zlib.crc32("/".join(map(str, parts)).encode())


def lay_out(t: torch.Tensor, layout: str | None) -> torch.Tensor:
    """A tensor of the same values whose memory is laid out otherwise. "expanded" repeats the first entry of
    the leading dimension, so it changes values; a layout that a tensor is too small for leaves it as it
    is."""
    if layout is None or t.dim() == 0 or t.numel() == 0:
        return t
    if layout == "sliced":  # rows further apart than they are long, and a storage offset of 16 bytes or more
        big = t.new_full(
            [n + 1 for n in t.shape[:-1]] + [t.shape[-1] + 16], float("nan") if t.is_floating_point() else -7
        )
        view = big[tuple(slice(0, n) for n in t.shape[:-1])][..., 8 : 8 + t.shape[-1]]
        return view.copy_(t)
    if layout == "transposed":  # the last dimension is the one with the large stride
        return t.transpose(-1, -2).contiguous().transpose(-1, -2) if t.dim() > 1 else t
    if (
        layout == "permuted"
    ):  # as q and k come out of a projection: the outer dimensions swapped, the last one contiguous
        return t.transpose(0, 1).contiguous().transpose(0, 1) if t.dim() > 2 else t
    if layout == "expanded":
        return t[:1].expand(t.shape) if t.dim() > 1 else t[:1].expand(t.shape)
    if layout == "misaligned":
        flat = t.new_empty(t.numel() + 1)
        return flat[1:].view(t.shape).copy_(t)
    if layout == "strided":
        return t.new_empty((*t.shape[:-1], t.shape[-1] * 2))[..., ::2].copy_(t)
    raise ValueError(f"layout is {layout!r}, expected one of {LAYOUTS}")


def _tensor(arg: T, generator, device, x, w) -> torch.Tensor:
    where = {"generator": generator, "device": generator.device}
    if arg.kind == "index":
        high = max(arg.high, arg.low + 1)
        t = torch.randint(arg.low, high, arg.shape, **where)
        if arg.ignored:
            t = torch.where(torch.rand(arg.shape, **where) < arg.ignored, IGNORED, t)
        return t.to(device)
    wide = torch.float64 if x == torch.float64 else torch.float32
    t = torch.randn(arg.shape, dtype=wide, **where) * arg.scale + arg.mean
    if arg.positive:
        t = t.abs()
    return t.to({"x": x, "w": w, "fp32": wide}[arg.kind]).to(device)


def draw(sample: Sample, device="cpu", x=torch.float32, w=None, seed=0, layout=None, grad=True) -> dict:
    """The sample's arguments, on `device`: activations in dtype x, parameters in dtype w (x by default).
    Drawn on the CPU, so that every device sees the same values."""
    generator = torch.Generator("cpu").manual_seed(seed_of(sample.id, seed))
    args = {}
    for name, arg in sample.args.items():
        if isinstance(arg, T):
            t = _tensor(arg, generator, device, x, w or x)
            if arg.memory:
                dense, order = in_memory(arg.shape, arg.memory)
                t = t.new_empty(dense).permute(order).copy_(t)
            t = lay_out(t, layout) if arg.layouts else t
            arg = t.requires_grad_(grad and arg.grad and t.is_floating_point())
        args[name] = arg
    return args


def tensors(args: dict) -> dict[str, torch.Tensor]:
    return {k: v for k, v in args.items() if isinstance(v, torch.Tensor)}


def leaves(args: dict) -> dict[str, torch.Tensor]:
    return {k: v for k, v in tensors(args).items() if v.requires_grad}


def cast(args: dict, dtype: torch.dtype) -> dict:
    """The arguments with every floating tensor in `dtype`, as new leaves."""
    out = {}
    for k, v in args.items():
        if isinstance(v, torch.Tensor):
            v = (v.detach().to(dtype) if v.is_floating_point() else v).requires_grad_(v.requires_grad)
        out[k] = v
    return out


def copied(args: dict) -> dict:
    """The same values in fresh contiguous memory."""
    return {
        k: v.detach().clone(memory_format=torch.contiguous_format).requires_grad_(v.requires_grad)
        if isinstance(v, torch.Tensor)
        else v
        for k, v in args.items()
    }


def size(sample: Sample) -> int:
    return max((torch.Size(a.shape).numel() for a in sample.args.values() if isinstance(a, T)), default=0)


# ---- running -----------------------------------------------------------------------------------------------
@dataclass
class Run:
    outputs: tuple  # tensors, or None where the op returned something else
    grads: dict[str, torch.Tensor]
    upstream: list  # per output: its incoming gradient, or None

    def named(self) -> dict[str, torch.Tensor]:
        out = {f"out[{i}]" if len(self.outputs) > 1 else "out": o for i, o in enumerate(self.outputs)}
        return {k: v for k, v in (out | {f"d{k}": g for k, g in self.grads.items()}).items() if v is not None}

    def equal(self, other: Run) -> list[str]:
        """The names whose bits differ."""
        a, b = self.named(), other.named()
        assert a.keys() == b.keys(), (list(a), list(b))
        return [k for k in a if not same_bits(a[k], b[k])]


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    kind = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}[a.element_size()]
    return torch.equal(a.detach().contiguous().view(kind), b.detach().contiguous().view(kind))


def outputs_of(result) -> tuple:
    items = result if isinstance(result, (tuple, list)) else (result,)
    return tuple(o if isinstance(o, torch.Tensor) else None for o in items)


def random_like(o: torch.Tensor, seed, layout=None) -> torch.Tensor:
    generator = torch.Generator("cpu").manual_seed(seed_of("upstream", seed))
    g = torch.randn(o.shape, dtype=torch.float64, generator=generator)
    if g.dim() == 1 and g.numel() > 1:
        g[0] = 0  # "the gradient is its first element" must not pass
    return lay_out(g.to(o.dtype).to(o.device), layout)


def widened(upstream: list, dtype) -> list:
    return [g if g is None else g.to(dtype) for g in upstream]


def call(fn, args: dict, seed=0, layout=None, upstream=None, autocast=None, retain_graph=False) -> Run:
    """fn(**args), then the gradients of every leaf for one random gradient per differentiable output."""
    scope = torch.autocast(autocast[0], autocast[1]) if autocast else contextlib.nullcontext()
    with scope:
        outputs = outputs_of(fn(**args))
    wants = [o is not None and o.requires_grad for o in outputs]
    if upstream is None:
        upstream = [
            random_like(o, f"{seed}/{i}", layout) if want else None
            for i, (o, want) in enumerate(zip(outputs, wants))
        ]
    # a Function's outputs all require grad where one input does; the reference's only those that depend on it
    roots, given = (
        zip(*((o, g) for o, g, want in zip(outputs, upstream, wants) if want)) if any(wants) else ((), ())
    )
    wanted = leaves(args)
    grads = {}
    if roots and wanted:
        g = torch.autograd.grad(
            roots, list(wanted.values()), given, retain_graph=retain_graph, allow_unused=True
        )
        grads = dict(zip(wanted, g))
    return Run(outputs, grads, upstream)


class ExactProducts(TorchDispatchMode):
    """Products whose inner dimension is added up in blocks of 32. BLAS's own order may cost float64 ten units
    and float32 one, or the reverse, by the number of threads: a truth that errs like that is none."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.mm.default:
            return self._product(*args)
        if func is torch.ops.aten.addmm.default and not kwargs:
            return args[0] + self._product(*args[1:])
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _product(a, b, block=32):
        if a.shape[1] <= block or not a.numel() or not b.numel():
            return a @ b
        pad = -a.shape[1] % block
        a = torch.nn.functional.pad(a, (0, pad)).view(a.shape[0], -1, block)
        b = torch.nn.functional.pad(b, (0, 0, 0, pad)).view(-1, block, b.shape[1])
        return torch.bmm(a.transpose(0, 1), b).sum(0)


# ---- judging -----------------------------------------------------------------------------------------------
def measures(
    got: torch.Tensor, truth: torch.Tensor, dtype: torch.dtype, strict: bool, floor=0.0
) -> dict[str, float]:
    """Errors of `got` against `truth`, relative to the scale of `truth` (at least `floor` an element) in the
    same measure. Where the truth itself rounds to an infinity or is NaN in `dtype`, `got` has to say the
    same. strict=False (eager): its own overflows count nothing."""
    got, truth = got.detach().double(), truth.detach().double()
    rounded = truth.to(dtype).double()
    agree = (got == rounded) | (got.isnan() & rounded.isnan())
    error = torch.where(agree & ~got.isfinite(), 0.0, (got - truth).abs())
    error = (
        torch.nan_to_num(error, nan=float("inf"), posinf=float("inf"))
        if strict
        else torch.where(error.isfinite(), error, 0.0)
    )
    scale = torch.nan_to_num(truth.abs(), nan=0.0, posinf=0.0).clamp_min(floor)
    out = {}

    def put(name, e, t):
        out[name] = (e / t).item() if t > 0 else (float("inf") if e > 0 else 0.0)

    if error.numel() == 0:
        return out
    put("max", error.max(), scale.max())
    put("norm", error.norm(), scale.norm())
    error, scale = (t.reshape(-1, t.shape[-1] if t.dim() else 1) for t in (error, scale))
    for name, dim in (("row", 1), ("col", 0)):
        if error.shape[dim] >= 32:  # a norm over fewer elements is the largest element over again
            put(name, error.norm(dim=dim).max(), scale.norm(dim=dim).max())
    return out


@dataclass
class Verdict:
    what: str  # "out", "dX" ...
    measure: str
    error: float
    bar: float
    eager: float

    @property
    def ok(self) -> bool:
        return self.error <= self.bar

    @property
    def share(self) -> float:
        """How much of what is allowed was used."""
        return self.error / self.bar if self.bar else (0.0 if self.error == 0 else float("inf"))

    def __str__(self):
        text = f"{self.what}: {self.measure} error {self.error:.3e} above {self.bar:.3e}"
        return f"{text} (eager {self.eager:.3e})"


def _slack(spec: OpSpec, dtype: torch.dtype, measure: str) -> float:
    eps = torch.finfo(dtype).eps
    if measure == "max" or dtype in (torch.float32, torch.float64):
        return spec.ulps * eps  # sums in the output's own dtype: another order is another rounding
    return spec.ulps / 8 * eps  # sums are wider than the output: half a unit covers the last rounding


def judge(
    spec: OpSpec,
    sample: Sample,
    ours: list[Run],
    truth: list[Run],
    eager: list[Run],
    wide: list[Run] | None = None,
    eps_of=None,
) -> list[Verdict]:
    """One verdict per output, gradient and measure, over several draws put together. `wide`: the reference
    in fp64, against a truth in fp64 whose products alone are more exact; so `eager` is fp32's there, and its
    error, in units of its last place, stands in where it is the larger of both. `eps_of`: the dtype whose
    last place counts, if not the output's own."""
    verdicts = []
    shrink = 1.0 if wide is None else torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
    runs = [[r.named() for r in part] for part in (ours, truth, eager, wide) if part is not None]
    for what in runs[0][0]:
        stack = [torch.stack([r[what].detach() for r in part]) for part in runs]
        dtype = stack[0].dtype
        if not stack[0].is_floating_point():
            wrong = stack[0] != stack[1]
            bar = (stack[2] != stack[1]).sum().item()  # a near tie may fall either way in a low precision
            verdicts.append(Verdict(what, "mismatches", wrong.sum().item(), bar, bar))
            continue
        stack = [s if s.dim() > 1 else s[:, None] for s in stack]
        floor = sample.floor if what.startswith("d") else 0.0
        theirs = {m: shrink * e for m, e in measures(stack[2], stack[1], dtype, False, floor).items()}
        if wide is not None:
            own = measures(stack[3], stack[1], dtype, False, floor)
            theirs = {m: max(e, own[m]) for m, e in theirs.items()}
        arg = sample.args.get(what[1:]) if what.startswith("d") else None
        factor = spec.grad_factor if isinstance(arg, T) and arg.kind == "w" else 1.0
        for measure, error in measures(stack[0], stack[1], dtype, True, floor).items():
            bar = factor * theirs[measure] + _slack(spec, eps_of or dtype, measure)
            if dtype == torch.float64:
                bar *= 2  # the truth is no more exact than eager here
            if stack[1].numel() and not floor and stack[1].abs().max() == 0:
                bar = 0.0  # all labels ignored: zero is zero
            verdicts.append(Verdict(what, measure, error, bar, theirs[measure]))
    return verdicts


def evaluate(
    spec: OpSpec,
    sample: Sample,
    device="cpu",
    x=torch.float32,
    w=None,
    layout=None,
    autocast=None,
    fn=None,
    incoming=None,
) -> list[Verdict]:
    """Forward and gradients of spec.fn (or `fn`) held against truth, with eager's error as the bar.

    layout, incoming: how the arguments and the incoming gradients lie in memory.
    """
    w = w or x
    wide = x == torch.float64
    ours, truth, eager, double = [], [], [], []
    for seed in range(DRAWS if size(sample) < SMALL else 1):
        args = draw(sample, device, x, w, seed, layout)
        run = call(fn or spec.fn, args, seed, incoming, autocast=autocast)
        args = draw(sample, device, x, w, seed, layout)  # as they were, whatever the op did
        ours.append(run)
        exact = cast(args, torch.float64)
        incoming64 = widened(run.upstream, torch.float64)
        with ExactProducts() if wide else contextlib.nullcontext():
            truth.append(call(spec.ref, exact, upstream=incoming64))
        if wide:  # fp32's error on fp64's inputs, rounding of the inputs included
            double.append(call(spec.ref, cast(args, torch.float64), upstream=incoming64))
            low = cast(args, torch.float32)
            eager.append(call(spec.ref, low, upstream=widened(run.upstream, torch.float32)))
        else:
            # dense for a product: PyTorch's own in bf16 on a CPU with AMX reads the NaNs between rows (2.13)
            dense = copied(args) if spec.gemm and layout == "sliced" else args
            eager.append(call(spec.ref, dense, upstream=run.upstream, autocast=autocast))
        _same_kind(run, eager[-1], args, wide or autocast)
    return judge(spec, sample, ours, truth, eager, double or None, autocast[1] if autocast else None)


def _same_kind(ours: Run, eager: Run, args: dict, any_dtype) -> None:
    a, b = ours.named(), eager.named()
    assert a.keys() == b.keys(), f"ours gives {list(a)}, the reference {list(b)}"
    for k in a:
        assert a[k].shape == b[k].shape, (
            f"{k} has shape {tuple(a[k].shape)}, the reference {tuple(b[k].shape)}"
        )
        assert any_dtype or a[k].dtype == b[k].dtype, (
            f"{k} has dtype {a[k].dtype}, the reference {b[k].dtype}"
        )
    for name, leaf in leaves(args).items():
        assert f"d{name}" not in a or a[f"d{name}"].dtype == leaf.dtype, f"d{name} is not in {name}'s dtype"


def check(*args, **kwargs) -> None:
    """`evaluate`, or AssertionError with every measure that is over its bar."""
    bad = [str(v) for v in evaluate(*args, **kwargs) if not v.ok]
    assert not bad, "\n".join(bad)


def frozen(sample: Sample) -> list[tuple[str, ...]]:
    """Every proper, non-empty choice of arguments that keep requires_grad."""
    names = [k for k, v in sample.args.items() if isinstance(v, T) and v.grad and v.kind != "index"]
    return [c for n in range(1, len(names)) for c in itertools.combinations(names, n)]
