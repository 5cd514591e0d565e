"""What only a GPU can show, for every operator: graphs, streams, no synchronisation, threads, more than 2^31
elements."""

import math
import threading

import pytest
import torch

from liger_kernel import _check as C
from liger_kernel.ops import SPECS
from liger_kernel.ops._spec import Sample, T
from liger_kernel.transformers.functional import liger_cross_entropy

pytestmark = pytest.mark.cuda_only
every_op = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def _step(spec, args, upstream):
    """Forward and backward into the caller's hands, without anything else on the way."""
    outputs = C.outputs_of(spec.fn(**args))
    roots = [o for o in outputs if o is not None and o.requires_grad]
    given = [g for g, o in zip(upstream, outputs) if g is not None and o.requires_grad]
    grads = torch.autograd.grad(roots, list(C.leaves(args).values()), given, allow_unused=True)
    return [t for t in (*outputs, *grads) if t is not None]


def _same(a, b):
    return [i for i, (p, q) in enumerate(zip(a, b, strict=True)) if not C.same_bits(p, q)]


@every_op
def test_cuda_graph_replays_on_new_data(spec):
    sample = spec.samples[0]
    args = C.draw(sample, "cuda", torch.bfloat16)
    upstream = C.call(spec.fn, args).upstream
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            _step(spec, args, upstream)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = _step(spec, args, upstream)
    for seed in (1, 2):
        fresh = C.draw(sample, "cuda", torch.bfloat16, seed=seed)
        with torch.no_grad():
            for name, t in C.tensors(args).items():
                t.copy_(fresh[name])
        graph.replay()
        torch.cuda.synchronize()
        assert _same(captured, _step(spec, fresh, upstream)) == []


@pytest.mark.parametrize("x", ["fp32", "bf16"])
@every_op
def test_nothing_waits_for_the_gpu(spec, x):
    args = C.draw(spec.samples[0], "cuda", C.DTYPES[x])
    upstream = C.call(spec.fn, args).upstream
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        _step(spec, args, upstream)
        with torch.no_grad():
            spec.fn(**args)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@every_op
def test_runs_on_the_current_stream(spec):
    """Behind a kernel of a tenth of a second on a side stream lie the inputs: whoever launches elsewhere
    reads the old ones."""
    sample = spec.samples[0]
    right = C.draw(sample, "cuda", torch.bfloat16, seed=1)
    upstream = C.call(spec.fn, right).upstream
    want = _step(spec, right, upstream)
    args = C.draw(sample, "cuda", torch.bfloat16, seed=0)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)
        with torch.no_grad():
            for name, t in C.tensors(args).items():
                t.copy_(right[name])
        got = _step(spec, args, upstream)
    side.synchronize()
    assert _same(got, want) == []


@every_op
def test_other_threads(spec):
    want = C.call(spec.fn, C.draw(spec.samples[0], "cuda", torch.bfloat16))
    found = []

    def work():
        try:
            found.append(C.call(spec.fn, C.draw(spec.samples[0], "cuda", torch.bfloat16)).equal(want))
        except Exception as error:  # reported in the test's own thread
            found.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert found == [[]] * 4


@every_op
def test_every_element_is_written(spec):
    """torch fills each uninitialised tensor with NaN in this mode."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        for sample in spec.samples:
            run = C.call(spec.fn, C.draw(sample, "cuda", torch.bfloat16))
            again = C.call(spec.fn, C.draw(sample, "cuda", torch.bfloat16))
            assert run.equal(again) == []
            C.check(spec, sample, "cuda", torch.bfloat16)
    finally:
        torch.use_deterministic_algorithms(False)


def _others(spec):
    names = [k for k, v in spec.samples[0].args.items() if isinstance(v, T)]
    return [pytest.param(spec, k, id=f"{spec.name}-{k}") for k in names[1:]]


@pytest.mark.parametrize("spec, name", [p for s in SPECS.values() for p in _others(s)])
def test_wrong_device_names_both(spec, name):
    args = C.draw(spec.samples[0], "cuda")
    args[name] = args[name].detach().cpu()
    with pytest.raises((RuntimeError, ValueError)) as error:
        spec.fn(**args)
    assert "cpu" in str(error.value) and "cuda" in str(error.value)


# ---- more than 2^31 elements -------------------------------------------------------------------------------
def _huge(sample: Sample) -> tuple[dict, int]:
    """The sample's arguments with a leading size that takes the largest tensor past 2^31 elements, and that
    size. 4099 rows of random numbers, repeated on the device."""
    lead = next(a.shape[0] for a in sample.args.values() if isinstance(a, T))
    widest = max(
        math.prod(a.shape[1:]) for a in sample.args.values() if isinstance(a, T) and a.shape[:1] == (lead,)
    )
    # the rows compared, times a power of two: means over rows then differ by exactly that. 8 of them, so that
    # the last ones start as far from a 16-byte boundary as the first ones, which sums over a row depend on
    n = 8
    while n * widest < 2**31 + 4099 * widest:
        n *= 2
    block = {
        k: T(**{**a.__dict__, "shape": (4099, *a.shape[1:])})
        if isinstance(a, T) and a.shape[:1] == (lead,)
        else a
        for k, a in sample.args.items()
    }
    args = C.draw(Sample(sample.id, block), "cuda", torch.bfloat16, grad=False)
    for name, spec in block.items():
        if isinstance(spec, T):
            t = args[name]
            if spec is not sample.args[name]:
                big = t.new_empty((n, *t.shape[1:]))
                for start in range(0, n, 4099):
                    big[start : start + 4099] = t[: min(4099, n - start)]
                t = big
            args[name] = t.requires_grad_(spec.grad and t.is_floating_point())
    return args, n


@pytest.mark.big
@pytest.mark.parametrize("spec", [s for s in SPECS.values() if s.big is not False], ids=lambda s: s.name)
def test_more_than_2_to_the_31_elements(spec):
    """The last rows of the huge run are those of a run on the last rows alone, bit for bit
    (products: closely)."""
    sample = spec.big or spec.samples[0]
    if "reduction" in sample.args:  # a mean would scale the two runs differently
        sample = sample.with_args("sum", reduction="sum")
    args, n = _huge(sample)
    outputs = C.outputs_of(spec.fn(**args))
    roots = [o for o in outputs if o is not None and o.requires_grad]
    generator = torch.Generator("cuda").manual_seed(1)
    upstream = [torch.randn(o.shape, dtype=o.dtype, device="cuda", generator=generator) for o in roots]
    if "reduction" not in sample.args:
        upstream = [g * (n // 8) if g.dim() == 0 else g for g in upstream]  # of a mean over rows
    grads = torch.autograd.grad(roots, list(C.leaves(args).values()), upstream, allow_unused=True)
    last = {
        k: v[-8:].detach().clone().requires_grad_(v.requires_grad)
        if isinstance(v, torch.Tensor) and v.shape[:1] == (n,)
        else v
        for k, v in args.items()
    }
    small_outputs = C.outputs_of(spec.fn(**last))
    small_roots = [o for o in small_outputs if o is not None and o.requires_grad]
    tails = [
        g[-8:].clone() if g.shape[:1] == (n,) else g / (n // 8) if "reduction" not in sample.args else g
        for g in upstream
    ]
    small_grads = torch.autograd.grad(small_roots, list(C.leaves(last).values()), tails, allow_unused=True)
    checked = 0
    for name, a, b in [
        *((f"out[{i}]", a, b) for i, (a, b) in enumerate(zip(outputs, small_outputs))),
        *((f"d{k}", a, b) for k, a, b in zip(C.leaves(args), grads, small_grads)),
    ]:
        if a is not None and a.shape[:1] == (n,):
            if spec.gemm:  # another number of rows may be another kernel of the library
                torch.testing.assert_close(a[-8:], b, rtol=1e-2, atol=1e-2 * b.abs().max().item())
            else:
                assert C.same_bits(a[-8:], b), name
            checked += 1
    assert checked


# ---- paths that only large inputs take ---------------------------------------------------------------------
@pytest.mark.parametrize("x", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "softcap": 30.0}], ids=["plain", "full"])
@pytest.mark.parametrize(
    "row_kib", [60, 100, 300]
)  # three rows on a multiprocessor, one, one that comes twice
def test_cross_entropy_rows_in_turn(row_kib, options, x):
    """More rows than a GPU has multiprocessors: the next row lands while the gradient of one is written."""
    spec = SPECS["cross_entropy"]
    shape = (301, row_kib * 1024 // x.itemsize)
    args = {
        "_input": T(shape),
        "target": T(shape[:1], "index", grad=False, high=shape[1], ignored=0.3),
        "weight": None,
        **options,
    }
    sample = Sample(f"rows-of-{row_kib}-kib", args)
    C.check(spec, sample, "cuda", x)
    args, one = C.draw(sample, "cuda", x), [torch.ones((), device="cuda")]
    run = C.call(spec.fn, args, upstream=one)
    logits = args["_input"].detach().requires_grad_()
    # no leaf: its memory may be written over
    loss = liger_cross_entropy(logits * 1, args["target"], in_place=True, **options)
    (grad,) = torch.autograd.grad(loss, logits, one)
    assert torch.equal(loss, run.outputs[0]) and torch.equal(grad, run.grads["_input"])


@pytest.mark.parametrize("x", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("options", [{}, {"accum_dtype": torch.float32}], ids=["plain", "fp32"])
def test_linear_loss_of_products_so_large_that_we_choose_their_tile(options, x):
    """Two blocks of rows, 1e11 operations in each product, the last one's rows no multiple of a tile."""
    n, h, v = 1100, 1024, 98312
    args = {
        "_input": T((n, h)),
        "weight": T((v, h), scale=h**-0.5),
        "target": T((n,), "index", grad=False, high=v, ignored=0.1),
        "memory_budget": 600 * v * 2,
        **options,
    }
    C.check(SPECS["fused_linear_cross_entropy"], Sample("chosen-tile", args), "cuda", x)


def test_cross_entropy_same_bits_from_every_launch():
    """A piece of the ring that the next one overtakes shows once in 500000 rows, and in no norm."""
    n_rows, n_cols = 3000, 300 * 1024 // 2
    x = torch.randn(n_rows, n_cols, device="cuda", dtype=torch.bfloat16)
    target = torch.randint(n_cols, (n_rows,), device="cuda")
    options = (None, -100, 0.0, 0.0, 1, 0.0, False, False, False, True)
    loss, *_, dx = torch.ops.liger.cross_entropy(x, target, *options)
    for _ in range(300):
        again, *_, dx_again = torch.ops.liger.cross_entropy(x, target, *options)
        assert torch.equal(again, loss) and torch.equal(dx_again, dx)


@pytest.mark.parametrize(
    ("shape", "groups"),
    [((300, 16, 1024), 4), ((150, 16, 4096), 8), ((40, 16, 16384), 4), ((40, 16, 14400), 4)],
    ids=["a block a group at once", "a block a group", "a cluster a group", "a cluster, threads to spare"],
)
def test_group_norm_several_groups(shape, groups):
    """More groups than reside at once, of whole blocks and not. Channels have means of their own, so that
    those of a cluster's blocks differ."""
    torch.manual_seed(0)
    x = torch.randn(shape, device="cuda") + torch.arange(16.0, device="cuda")[:, None]
    x = x.bfloat16().requires_grad_()
    w, b, dy = (torch.randn(s, device="cuda", dtype=x.dtype) for s in (16, 16, shape))

    def run(fn, dtype):
        args = [t.detach().to(dtype).requires_grad_() for t in (x, w, b)]
        y = fn(*args)
        return y, *torch.autograd.grad(y, args, dy.to(dtype))

    ours = run(lambda x, w, b: SPECS["group_norm"].fn(x, w, b, 16, groups, 1e-5), x.dtype)
    truth, eager = (
        run(lambda x, w, b: torch.group_norm(x, groups, w, b, 1e-5), t) for t in (torch.float64, x.dtype)
    )
    for name, a, t, e in zip(("Y", "dX", "dW", "db"), ours, truth, eager):
        bar = (e - t).abs().max() + torch.finfo(x.dtype).eps * t.abs().max()
        assert (a - t).abs().max() <= bar, name
