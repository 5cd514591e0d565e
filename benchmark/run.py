"""Times operators against eager PyTorch, torch.compile, other libraries and the physical floor.

    python -m benchmark.run                                       every operator on the CPU
    python -m benchmark.run --device cuda --ops rms_norm,rope --out rows.jsonl
    python -m benchmark.run --device cuda --impls upstream --upstream DIR
        DIR from: pip install --no-deps --target DIR liger-kernel==0.8.5
    python -m benchmark.run --device cuda --ops dpo,grpo --budget 2048

Cases, references and floors come from each operator's `OpSpec`. eager is the reference (or, where that does
more than users do, what baselines.py has), compile is torch.compile of it. The losses of chunked_loss have
theirs in consumers.py; other libraries are called as peers.py says. --budget is the linear losses' memory
budget in MiB, and part of the case's name. A result is compared with eager before it is timed; one that
differs gets a row with an error and no time. "full" is forward and backward. The floor is the bytes that must
move at the copy bandwidth, or the matrix products alone, measured in the same run.

CPU: every round calls each implementation once, and ratios are medians over the rounds, so that noise hits
all alike. The process restarts itself with malloc kept from returning memory: large outputs would time page
faults; --memory reads peaks in a process of its own. GPU: events around one call with a flushed L2 (what a
user waits), and the kernels' own time by the profiler; ratios are of the latter.

Rows that --out has (same machine, commit, torch) are not measured again: an interrupted run goes on where
it stopped. Upstream's rows carry norms of outputs and gradients, to be compared with eager's row of the
same case."""

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from . import cases, machine, memory, peers, plot, timing

KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "1000000000000"}


def options(argv=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    p.add_argument("--ops", default="", help="comma-separated; default: all")
    p.add_argument("--cases", default="", help="comma-separated ids; default: all")
    names = ",".join(peers.NAMES)
    p.add_argument("--impls", default=names, help=f"default: {names}, as far as installed; or upstream")
    p.add_argument("--dtypes", default="", help="default: float32,bfloat16 on the CPU, bfloat16 on a GPU")
    p.add_argument("--rounds", type=int, default=21, help="CPU rounds")
    p.add_argument("--seconds", type=float, default=1.5, help="GPU: at most, for each time")
    p.add_argument("--memory", action="store_true", help="CPU: peaks too (a GPU has them always)")
    p.add_argument("--budget", type=int, default=0, help="MiB for the linear losses; default: the library's")
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--upstream", type=os.path.abspath, help="directory that holds upstream's liger_kernel")
    machine.add_commit(p)
    p.add_argument("--out", default="", help="JSON lines; default benchmark/results/ops_<device>.jsonl")
    return p.parse_args(argv)


def key(row):
    return tuple(row[k] for k in ("op", "case", "dtype", "impl", "machine", "torch", "commit"))


def measure(fns, case, dtype, a, base):
    """Rows of one case: {impl: fn} on the arguments that `case` (see cases.portable) describes."""
    args = cases.arguments(case["args"], dtype, a.device)
    products = cases.products(case)
    rows, calls = {}, {}
    reference = cases.Call(fns["eager"], args) if "eager" in fns else None
    for impl, fn in fns.items():
        name = str(dtype).removeprefix("torch.")
        row = rows[impl] = {**base, "case": case["id"], "dtype": name, "impl": impl}
        call = cases.Call(fn, args)
        try:
            row["norms"] = cases.norms(call)
            off = cases.difference(call, reference) if reference and impl != "eager" else 0.0
            if off > cases.CLOSE[dtype]:  # eager may be off: layer_norm's dW in bf16 on a CPU, 5 %
                off = cases.difference(call, cases.in_float32(reference, call.gradients))
            if off > cases.CLOSE[dtype]:
                raise ArithmeticError(f"{off:.2e} from eager, in norm; allowed {cases.CLOSE[dtype]:.0e}")
            calls[impl] = call
        except Exception as e:  # one implementation that fails must not stop the others
            row["error"] = f"{type(e).__name__}: {str(e).splitlines()[0][:200] if str(e) else ''}"
        cases.release()
    if calls and a.device == "cpu" and a.memory:
        for impl, found in memory.peaks(base["op"], case, name, list(calls), a.budget).items():
            rows[impl].update(found)
    floor = timing.Floor(a.device, dtype, products)
    times = (_time_cpu if a.device == "cpu" else _time_cuda)(a, floor, calls, rows)
    fwd, full = floor.ms(times, case["elements"], case["flops"])
    for impl in calls:
        rows[impl].update(floor_fwd_ms=fwd, floor_full_ms=full)
    torch._dynamo.reset()
    return list(rows.values())


def _time_cpu(a, floor, calls, rows):
    fns = floor.clocks()
    for impl, call in calls.items():
        fns[impl, "fwd"], fns[impl, "full"] = call.bare, call.full
    seen = timing.interleaved(fns, a.rounds)
    times = {k: statistics.median(v) for k, v in seen.items()}
    for impl in calls:
        rows[impl].update(fwd_ms=times[impl, "fwd"], full_ms=times[impl, "full"])
        for peer in {"eager", "compile"} & set(calls):
            pairs = zip(seen[impl, "full"], seen[peer, "full"], strict=True)
            rows[impl][f"vs_{peer}"] = statistics.median(x / y for x, y in pairs)
    return times


def _time_cuda(a, floor, calls, rows):
    times = {k: timing.cuda_ms(fn, repeats=20) for k, fn in floor.clocks().items()}
    floor.release()  # before peaks are read
    for impl, call in calls.items():
        row = rows[impl]
        row.update(peak_mib=timing.cuda_peak_mib(call.full), peak_fwd_mib=timing.cuda_peak_mib(call.bare))
        row.update(fwd_ms=timing.cuda_ms(call.bare, seconds=a.seconds))
        row.update(full_ms=timing.cuda_ms(call.full, seconds=a.seconds))
        row["kernel_fwd_ms"] = timing.cuda_kernel_ms(call.bare)
        row["kernel_full_ms"] = timing.cuda_kernel_ms(call.full)
    for impl in calls:
        for peer in {"eager", "compile"} & set(calls):
            rows[impl][f"vs_{peer}"] = rows[impl]["kernel_full_ms"] / rows[peer]["kernel_full_ms"]
    return times


def show(row):
    text = f"{row['dtype']:9s}{row['op'] + '/' + row['case']:33s} {row['impl']:9s}"
    if "error" in row:
        return text + row["error"]
    best = row.get("kernel_full_ms", row["full_ms"])
    text += f" fwd {row['fwd_ms']:8.3f}  full {row['full_ms']:8.3f} ms"
    if "kernel_full_ms" in row:
        text += f"  kernels {row['kernel_fwd_ms']:7.3f} / {row['kernel_full_ms']:7.3f}"
    if "peak_mib" in row:
        text += f"  peak {row['peak_mib']:6.0f} MiB"
    text += f"  {best / row['floor_full_ms']:6.3f} x floor" if row["floor_full_ms"] else ""
    return text + "".join(f"  {row[k]:.2f} x {k[3:]}" for k in ("vs_eager", "vs_compile") if k in row)


def upstream(work, a, base, out):
    """Upstream's package carries our package's name: its own process measures it."""
    if not a.upstream:
        sys.exit("--impls upstream needs --upstream DIR, where pip install --target DIR put it")
    job = {"work": work, "base": base, "options": vars(a), "out": str(out)}
    command = [sys.executable, "-m", "benchmark.upstream"]
    subprocess.run(command, input=json.dumps(job), text=True, check=True, cwd=Path(__file__).parents[1])


def restart(a, module):
    """On the CPU, once, with malloc kept from returning memory."""
    if a.device == "cpu" and any(os.environ.get(k) != v for k, v in KEEP_MEMORY.items()):
        os.environ.update(KEEP_MEMORY)
        os.execv(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]])


def prepare(a):
    """(the fields of every row, the rows' file), after threads and budget are set."""
    import liger_kernel

    if a.threads:
        torch.set_num_threads(a.threads)
    if a.budget:
        liger_kernel.set_memory_budget(a.budget << 20)
    return {**machine.facts(a.device), "liger_kernel": liger_kernel.__version__}


def measure_all(work, a, base, out):
    """Measures what `out` lacks of `work`, (spec, case, dtype, more fields of the row), and adds it there."""
    done, impls = {key(row) for row in machine.read_rows(out)}, a.impls.split(",")
    if unknown := set(impls) - {*peers.NAMES, "upstream"}:
        known = ", ".join((*peers.NAMES, "upstream"))
        sys.exit(f"--impls: {', '.join(sorted(unknown))} unknown, expected of {known}")
    here = [i for i in peers.installed() if i in impls]

    def lacking(spec, case, dtype, names):
        row = {**base, "op": spec.name, "case": case.id, "dtype": dtype}
        return any(key({**row, "impl": i}) not in done for i in names)

    print(f"{base['machine']}, torch {base['torch']}, commit {base['commit']}; rows go to {out}")
    todo = []
    for spec, case, dtype, more in work:  # implementations are interleaved: a case is measured whole or not
        fns = {i: peers.way(i, spec, case.sample.args) for i in here}
        fns = {i: f for i, f in fns.items() if f}
        if lacking(spec, case, dtype, fns):
            todo.append((fns, spec, case, dtype, more))
    for fns, spec, case, dtype, more in machine.progress(todo, desc="cases"):
        fields = {**base, "op": spec.name, **more}
        rows = measure(fns, cases.portable(case), getattr(torch, dtype), a, fields)
        machine.append_rows(out, rows)
        cases.release()
        print("\n".join(show(row) for row in rows), flush=True)
    if "upstream" in impls:
        rest = [w for w in work if lacking(*w[:3], ["upstream"])]
        if rest:
            upstream([(s.name, cases.portable(c), d, more) for s, c, d, more in rest], a, base, out)


def main(argv=None):
    a = options(argv)
    restart(a, "benchmark.run")
    from . import consumers  # not above: upstream's process imports this module, and no package of ours

    base, specs = prepare(a), consumers.specs()
    out = Path(a.out) if a.out else machine.RESULTS / f"ops_{a.device}.jsonl"
    dtypes = (a.dtypes or ("bfloat16" if a.device == "cuda" else "float32,bfloat16")).split(",")
    names = a.ops.split(",") if a.ops else list(specs)
    if unknown := set(names) - set(specs):
        sys.exit(f"--ops: {', '.join(sorted(unknown))} unknown, expected of {', '.join(specs)}")
    work = [
        (specs[name], replace(case, id=f"{case.id}-{a.budget}MiB") if a.budget else case, dtype, {})
        for name in names
        for case in specs[name].cases.get(a.device, ())
        if not a.cases or case.id in a.cases.split(",")
        for dtype in dtypes
    ]
    measure_all(work, a, base, out)
    rows = [row for row in machine.read_rows(out) if row["commit"] == base["commit"]]
    print("plot:", plot.ops(rows, out.with_suffix(".png")))


if __name__ == "__main__":
    main()
