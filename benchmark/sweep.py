"""How the time of an operator's benchmark case goes with its size.

    python -m benchmark.sweep                       on the CPU, small
    python -m benchmark.sweep --device cuda         minutes; an axis at a time with --axes, each its own rows
    python -m benchmark.sweep --device cuda --axes rows --ops rope --impls eager,compile,liger
    python -m benchmark.sweep --plot                draws benchmark/results/ again

Three axes: `rows`, row-wise operators from 128 tokens up (how the share of the floor falls for small sizes),
and for the linear losses `tokens` and `vocabulary`, speed and peak memory. The case is the operator's first
that --cases names (or its first), with the one size replaced. Rows go to
benchmark/results/sweep_<device>.jsonl with the fields axis and size; what is there is not measured again.
"""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

from . import cases, machine, run

AXES = {
    "rows": {
        "ops": "rms_norm,layer_norm,rope,swiglu,softmax,cross_entropy",
        "cases": "4096",
        "cpu": (128, 512, 2048),
        "cuda": (128, 512, 1024, 2048, 4096, 16384),
    },
    "tokens": {
        "ops": "fused_linear_cross_entropy",
        "cases": "B",
        "cpu": (128, 256, 512, 1024),
        "cuda": (1024, 2048, 4096, 8192, 16384),
    },
    "vocabulary": {
        "ops": "fused_linear_cross_entropy",
        "cases": "C",
        "cpu": (4000, 8000, 16000, 32000),
        "cuda": (16000, 32000, 64000, 128000, 256000),
    },
}


def tensors(case):
    return {k: v for k, v in case.sample.args.items() if cases.is_tensor(v)}


def sizes(case):
    """(batch, tokens of one batch row, vocabulary or 0) of a case."""
    matrices = [t.shape for t in tensors(case).values() if len(t.shape) > 1]
    batch = matrices[0][0] if len(matrices[0]) > 2 else 1
    return batch, matrices[0][-2], matrices[1][0] if case.flops[1] else 0


def resized(case, axis, size):
    """The case with `size` tokens, or a vocabulary of `size`."""
    batch, tokens, vocabulary = sizes(case)
    old, new = (vocabulary, size) if axis == "vocabulary" else (tokens, max(1, size // batch))

    def resize(t):
        shape = list(t.shape)
        for d, n in enumerate(shape):  # the last dimension of activations and parameters is no token
            rows = d < len(shape) - 1 or t.kind == "index"
            if n == old and (rows or axis == "vocabulary"):
                shape[d] = new
        high = new if axis == "vocabulary" and t.high == old else t.high
        return replace(t, shape=tuple(shape), high=high)

    args = {**case.sample.args, **{k: resize(t) for k, t in tensors(case).items()}}
    return replace(
        case,
        id=f"{case.id}@{axis}={size}",
        sample=replace(case.sample, args=args),
        fwd_elements=case.fwd_elements * new // old,
        full_elements=case.full_elements * new // old,
        flops=tuple(f * new // old for f in case.flops),
    )


def work(a, specs):
    for axis in a.axes.split(","):
        what = AXES[axis]
        for name in (a.ops or what["ops"]).split(","):
            if name not in specs:
                sys.exit(f"--ops: {name} unknown, expected of {', '.join(specs)}")
            known = specs[name].cases.get(a.device, ())
            named = [c for c in known if c.id in (a.cases or what["cases"]).split(",")]
            for case in (named or known)[:1]:
                for size in [int(n) for n in a.sizes.split(",")] if a.sizes else what[a.device]:
                    for dtype in a.dtypes.split(","):
                        yield specs[name], resized(case, axis, size), dtype, {"axis": axis, "size": size}


def options():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    p.add_argument("--axes", default=",".join(AXES), help="comma-separated of " + ", ".join(AXES))
    p.add_argument("--ops", default="", help="comma-separated; default: " + AXES["rows"]["ops"] + " and flce")
    p.add_argument("--cases", default="", help="comma-separated ids of the case to resize")
    p.add_argument("--sizes", default="", help="comma-separated; default: those of the axis")
    p.add_argument("--impls", default="eager,liger", help="as benchmark.run")
    p.add_argument("--dtypes", default="bfloat16")
    p.add_argument("--rounds", type=int, default=7, help="CPU rounds")
    p.add_argument("--seconds", type=float, default=0.3, help="GPU: at most, for each time")
    p.add_argument("--budget", type=int, default=0, help="MiB for the linear losses; default: the library's")
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--upstream", type=os.path.abspath, help="directory that holds upstream's liger_kernel")
    p.add_argument("--plot", action="store_true", help="only draw what is there")
    machine.add_commit(p)
    p.add_argument("--out", default="", help="default benchmark/results/sweep_<device>.jsonl")
    a = p.parse_args()
    if unknown := set(a.axes.split(",")) - set(AXES):
        p.error(f"--axes: {', '.join(sorted(unknown))} unknown, expected of {', '.join(AXES)}")
    return a


def main():
    a = options()
    out = Path(a.out) if a.out else machine.RESULTS / f"sweep_{a.device}.jsonl"
    if not a.plot:
        run.restart(a, "benchmark.sweep")
        from . import consumers

        base, todo = run.prepare(a), list(work(a, consumers.specs()))
        for with_memory in (False, True):  # of row-wise operators on the CPU it says nothing
            a.memory = with_memory
            part = [w for w in todo if bool(w[1].flops[1]) == with_memory]
            if part:
                run.measure_all(part, a, base, out)
    from . import plot

    print("plots:", *plot.sweeps(machine.read_rows(out), out.with_suffix("")))


if __name__ == "__main__":
    main()
