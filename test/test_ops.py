"""What every operator promises, from its `OpSpec` alone: a new op is tested by existing."""

import itertools
import os
import subprocess
import sys

import pytest
import torch

from liger_kernel import _check as C
from liger_kernel.ops import SPECS, _labels
from liger_kernel.ops._spec import Sample, T

LOW = ("fp32", "bf16", "fp16")
MIX = [(x, w) for x in LOW for w in LOW if x != w]


def per_sample(samples_of=lambda spec: spec.samples, dtypes=((None, None),)):
    """Parametrises over (spec, sample, x, w) with ids such as rms_norm-3x5x48-bf16-fp32."""
    rows = []
    for spec in SPECS.values():
        for sample, (x, w) in itertools.product(samples_of(spec), dtypes):
            marks = [pytest.mark.cpu_only] if x == "fp64" else []
            name = "-".join([spec.name, sample.id] + ([x] if x else []) + ([w] if w and w != x else []))
            args = (spec, sample) + ((C.DTYPES[x], C.DTYPES[w]) if x else ())
            rows.append(pytest.param(*args, id=name, marks=marks))
    return pytest.mark.parametrize("spec, sample, x, w" if dtypes[0][0] else "spec, sample", rows)


def per_op(rows_of=lambda spec: [()], names="", id_of=lambda row: ""):
    rows = [
        pytest.param(spec, *row, id="-".join(filter(None, [spec.name, id_of(row)])))
        for spec in SPECS.values()
        for row in rows_of(spec)
    ]
    return pytest.mark.parametrize("spec" + (", " + names if names else ""), rows)


def first(n):
    return lambda spec: spec.samples[:n]


def middling(spec):
    """The first sample, and the first four others that have elements but not many."""
    return [spec.samples[0]] + [s for s in spec.samples[1:] if 64 < C.size(s) < 40_000][:4]


# ---- numbers -----------------------------------------------------------------------------------------------
@per_sample(dtypes=[(d, d) for d in (*LOW, "fp64")])
def test_within_eagers_error(spec, sample, x, w, device):
    C.check(spec, sample, device, x, w)


@per_sample(first(2), MIX)
def test_mixed_dtypes(spec, sample, x, w, device):
    C.check(spec, sample, device, x, w)


@per_sample(first(2), [("fp32", "fp32"), ("bf16", "fp32"), ("fp32", "bf16"), ("bf16", "bf16")])
def test_autocast(spec, sample, x, w, device):
    C.check(spec, sample, device, x, w, autocast=(device, torch.bfloat16))


@per_sample(first(2), [("bf16", "fp32"), ("fp32", "bf16"), ("fp16", "fp16")])
def test_function_returns_gradients_in_the_parameters_dtype(spec, sample, x, w, device):
    """As the Function returns them: autograd would cast a wrong one without a word."""
    args = C.draw(sample, device, x, w)
    outputs = C.outputs_of(spec.fn(**args))
    roots = [o for o in outputs if o is not None and o.requires_grad]
    seen = []

    def visit(node, done):
        if node is None or node in done:
            return
        done.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            takers = [
                n.variable.dtype if hasattr(n, "variable") else None for n, _ in node.next_functions if n
            ]
            # one entry per tensor argument: those that need no gradient have no next function
            places = [i for i, (n, _) in enumerate(node.next_functions) if n is not None]
            node.register_hook(lambda grads, _: seen.extend(zip([grads[i] for i in places], takers)))
        for following, _ in node.next_functions:
            visit(following, done)

    done = set()
    for root in roots:
        visit(root.grad_fn, done)
    torch.autograd.grad(
        roots,
        list(C.leaves(args).values()),
        [C.random_like(o, i) for i, o in enumerate(roots)],
        allow_unused=True,
    )
    assert seen
    for grad, dtype in seen:
        assert grad is None or dtype is None or grad.dtype == dtype


@per_sample(lambda spec: spec.gradcheck or [s for s in spec.samples if 0 < C.size(s) < 64][:2])
@pytest.mark.cpu_only
def test_gradcheck(spec, sample):
    args = C.draw(sample, "cpu", torch.float64)
    names = list(C.leaves(args))

    def f(*leaves):
        outputs = C.outputs_of(spec.fn(**{**args, **dict(zip(names, leaves))}))
        return tuple(o for o in outputs if o is not None and o.requires_grad)

    assert torch.autograd.gradcheck(f, [args[n] for n in names])


# ---- layouts -----------------------------------------------------------------------------------------------
def other_order(spec, layout, device):
    """A GPU reads a row in pieces of 16 bytes and what its alignment leaves at the ends."""
    return spec.reduces and device == "cuda" and layout in ("misaligned", "expanded")


@pytest.mark.parametrize("layout", C.LAYOUTS)
@per_sample(middling)
def test_layout_gives_the_contiguous_runs_bits(spec, sample, layout, device):
    for x in (torch.float32, torch.bfloat16):
        if other_order(spec, layout, device) or (spec.gemm and layout != "expanded"):
            C.check(spec, sample, device, x, layout=layout)
            continue
        args = C.draw(sample, device, x, layout=layout)
        dense = C.call(spec.fn, C.copied(args))
        run = C.call(spec.fn, args, upstream=dense.upstream)
        if not spec.gemm:
            assert run.equal(dense) == []
        # equal rows cancel to a gradient of rounding noise, which no relative bar fits
        elif x == torch.float32:
            for name, value in run.named().items():
                torch.testing.assert_close(value, dense.named()[name], rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("layout", C.LAYOUTS)
@per_sample(middling)
def test_layout_of_incoming_gradients(spec, sample, layout, device):
    if other_order(spec, layout, device):
        return C.check(spec, sample, device, torch.bfloat16, incoming=layout)
    args = C.draw(sample, device, torch.bfloat16)
    strange = C.call(spec.fn, args, layout=layout)
    dense = [g if g is None else g.clone(memory_format=torch.contiguous_format) for g in strange.upstream]
    assert strange.equal(C.call(spec.fn, args, upstream=dense)) == []


# ---- the autograd contract ---------------------------------------------------------------------------------
@per_sample(middling, [("fp32", "fp32"), ("bf16", "fp32")])
def test_inputs_and_incoming_gradients_are_untouched(spec, sample, x, w, device):
    if sample.args.get("in_place") is True:
        pytest.skip("the sample permits it")
    args = C.draw(sample, device, x, w)
    before, versions = C.copied(args), {k: t._version for k, t in C.tensors(args).items()}
    run = C.call(spec.fn, args)
    again = [g if g is None else C.random_like(g, f"0/{i}") for i, g in enumerate(run.upstream)]
    with torch.no_grad():
        spec.fn(**args)
    assert [k for k, t in C.tensors(args).items() if not C.same_bits(t, before[k])] == []
    assert {k: t._version for k, t in C.tensors(args).items()} == versions
    assert all(C.same_bits(g, h) for g, h in zip(run.upstream, again) if g is not None)


@per_sample(middling, [("fp32", "fp32"), ("bf16", "fp32")])
def test_repeats_bit_for_bit_with_any_number_of_threads(spec, sample, x, w, device):
    runs = []
    for n_threads in (2, 2, 1):
        torch.set_num_threads(n_threads)
        runs.append(C.call(spec.fn, C.draw(sample, device, x, w)))
    assert runs[0].equal(runs[1]) == []
    if spec.gemm:
        C.check(spec, sample, device, x, w)
    else:
        assert runs[0].equal(runs[2]) == []


@per_sample(first(2), [("fp32", "fp32"), ("bf16", "fp32")])
def test_second_backward(spec, sample, x, w, device):
    """Upstream gradients 1 g, 3 g, 1 g on one graph: nothing that was saved has been scaled in place."""
    args = C.draw(sample, device, x, w)
    outputs = C.outputs_of(spec.fn(**args))
    roots, wanted = [o for o in outputs if o is not None and o.requires_grad], list(C.leaves(args).values())
    g = [C.random_like(o, i) for i, o in enumerate(roots)]
    three = [3 * t for t in g]
    first, tripled, third = (
        torch.autograd.grad(roots, wanted, u, retain_graph=True, allow_unused=True) for u in (g, three, g)
    )
    aligned = iter(three)
    aligned = [next(aligned) if o is not None and o.requires_grad else None for o in outputs]
    fresh = C.call(spec.fn, C.draw(sample, device, x, w), upstream=aligned)
    for name, a, b, c in zip(C.leaves(args), first, tripled, third):
        assert C.same_bits(a, c), f"d{name} changed with the second backward"
        assert C.same_bits(b, fresh.grads[name]), f"d{name} for 3 g is not that of a fresh graph"


@per_sample(first(3), [("fp32", "fp32"), ("bf16", "fp32"), ("bf16", "bf16")])
def test_no_grad(spec, sample, x, w, device):
    """Without gradients the values keep to the same bar (the way to them may be another)."""

    def forward_only(**args):
        with torch.no_grad():
            outputs = C.outputs_of(spec.fn(**args))
        assert not any(o.requires_grad for o in outputs if o is not None)
        return outputs

    frozen_sample = Sample(
        sample.id, {k: _frozen(a) if isinstance(a, T) else a for k, a in sample.args.items()}, sample.floor
    )
    C.check(spec, frozen_sample, device, x, w, fn=forward_only)


def _frozen(arg):
    return T(**{**arg.__dict__, "grad": False})


@per_op(
    lambda spec: [(s, keep) for s in spec.samples[:2] for keep in C.frozen(s)],
    "sample, keep",
    lambda r: f"{r[0].id}-{'+'.join(r[1])}",
)
def test_frozen_arguments(spec, sample, keep, device):
    part = Sample(
        sample.id,
        {k: a if k in keep or not isinstance(a, T) else _frozen(a) for k, a in sample.args.items()},
        sample.floor,
    )
    for x in (torch.float32, torch.bfloat16):
        C.check(spec, part, device, x)


# ---- options and errors ------------------------------------------------------------------------------------
@per_op(lambda spec: spec.options, "base, changed", lambda r: f"{r[0].id}-to-{r[1].id}")
def test_option_changes_something(spec, base, changed, device):
    for x in (torch.float32, torch.bfloat16):
        runs = []
        for sample in (base, changed):
            same_name = Sample(base.id, sample.args)  # the same tensors for both
            runs.append(C.call(spec.fn, C.draw(same_name, device, x)).named())
        a, b = runs
        if a.keys() != b.keys() or any(not C.same_bits(a[k], b[k]) for k in a):
            return
    pytest.fail("no output and no gradient differs: the option is ignored")


@per_op(lambda spec: spec.errors, "match, changes", lambda r: "+".join(r[1]) + "-" + r[0][:24])
def test_error_names_the_argument(spec, match, changes, device, monkeypatch):
    monkeypatch.setattr(_labels, "_DEBUG", True)  # on a GPU, looking at labels costs a wait: only on request
    sample = Sample("error", {**spec.samples[0].args, **changes})
    args = C.draw(sample, device)
    before = C.copied(args)
    with pytest.raises((RuntimeError, ValueError, TypeError, IndexError), match=match):
        spec.fn(**args)
    assert all(C.same_bits(t, before[k]) for k, t in C.tensors(args).items())


# ---- torch.compile, export, opcheck ------------------------------------------------------------------------
@per_sample(
    lambda spec: (
        [*spec.samples[:1], *(s for s in spec.samples[1:] if C.size(s) < 2000)][:6] if spec.raw else []
    ),
    [("fp32", "fp32"), ("bf16", "fp32")],
)
def test_opcheck(spec, sample, x, w, device):
    for op, args in spec.raw(C.draw(sample, device, x, w, grad=False)):
        torch.library.opcheck(op, args)


def grown(sample: Sample) -> list[Sample]:
    """The sample with its leading size (that of its first tensor) changed wherever another tensor leads with
    it too."""
    lead = next(a.shape[0] for a in sample.args.values() if isinstance(a, T))
    out = []
    for n in (lead, lead + 1, lead + 4, 2 * lead + 1):
        args = {
            k: T(**{**a.__dict__, "shape": (n, *a.shape[1:])})
            if isinstance(a, T) and a.shape[:1] == (lead,)
            else a
            for k, a in sample.args.items()
        }
        out.append(Sample(f"{sample.id}-lead{n}", args, sample.floor))
    return out


def sizes(spec):
    return spec.dynamic or grown(spec.samples[0])


def _compiled(spec, backend):
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    return torch.compile(spec.fn, fullgraph=True, dynamic=True, backend=counter), counter


@per_op(
    lambda spec: [(x, w) for x, w in [(d, d) for d in LOW] + [("bf16", "fp32"), ("fp32", "bf16")]],
    "x, w",
    "-".join,
)
def test_compile_aot_eager(spec, x, w, device):
    compiled, counter = _compiled(spec, "aot_eager")
    for sample in sizes(spec):
        args = C.draw(sample, device, C.DTYPES[x], C.DTYPES[w])
        assert C.call(compiled, args).equal(C.call(spec.fn, args)) == []
    assert counter.frame_count <= 2, "a size is baked into the graph"


@pytest.mark.slow
@per_op()
def test_compile_inductor(spec, device):
    compiled, counter = _compiled(spec, "inductor")
    for sample in sizes(spec)[:3]:
        C.check(spec, sample, device, torch.bfloat16, torch.float32, fn=compiled)
    assert counter.frame_count <= 2, "a size is baked into the graph"


@per_op(lambda spec: [(x,) for x in ("fp32", "bf16")], "x", lambda r: r[0])
def test_export(spec, x, device):
    class Module(torch.nn.Module):
        def forward(self, values):
            return spec.fn(**values, **constants)

    args = C.draw(spec.samples[0], device, C.DTYPES[x], grad=False)
    values, constants = C.tensors(args), {k: v for k, v in args.items() if not isinstance(v, torch.Tensor)}
    program = torch.export.export(Module(), (values,), strict=True)
    a, b = (C.outputs_of(f(values)) for f in (program.module(), Module()))
    assert all(C.same_bits(p, q) for p, q in zip(a, b) if q is not None)


# ---- ISA levels and memory ---------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.cpu_only
@pytest.mark.parametrize("level", ["2", "3", "4"])
def test_every_isa_level_and_poisoned_memory(level):
    """The self-test over all ops in a process of its own: at one ISA level, and with every fresh allocation
    filled with 0xfe (-1.7e38 in fp32 and bf16), so that an element no kernel writes is seen."""
    env = {**os.environ, "LIGER_ISA_MAX": level, "MALLOC_PERTURB_": "1", "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-m", "liger_kernel.selftest"], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
