"""Holds the cost model of the linear losses' plan against measurements.

    python -m benchmark.plan_costs                                   20 small shapes on the CPU
    python -m benchmark.plan_costs --device cuda --dtype bfloat16    20 shapes of language models on a GPU
    python -m benchmark.plan_costs --shapes 8192x4096x128256x256     (tokens x hidden x vocabulary x MiB)

Every shape is run with the plan that `liger_kernel.ops.linear_loss.plan` chooses and with every other that is
feasible: both loop orders, either accumulator, and blocks of the whole budget, a half and a quarter of it.
Prints predicted and measured milliseconds of fused_linear_cross_entropy, forward and gradients. A choice is
good within 10 % of the best measured: the last lines count those that are not. JSON lines go to --out; what
it has from the same machine, commit and shape is not measured again.
"""

import argparse
import statistics

import torch

from liger_kernel.ops.linear_loss import force_loop_order, plan
from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

from . import machine, timing

MIB = 2**20
HEADS = {
    "cpu": ((256, 4000), (512, 8000), (768, 16000), (64, 8000), (1024, 4000)),
    "cuda": ((4096, 128256), (2048, 128256), (4096, 32000), (1024, 151936), (512, 32000)),
}
TOKENS = {"cpu": (256, 1024), "cuda": (8192, 32768)}
BUDGETS = {"cpu": (1, 4), "cuda": (64, 256)}


def options(argv=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    p.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="")
    p.add_argument(
        "--shapes", default="", help="comma-separated tokens x hidden x vocabulary x budget in MiB"
    )
    p.add_argument("--rounds", type=int, default=5)
    machine.add_commit(p)
    p.add_argument("--out", default="", help="default: benchmark/results/plan_costs_<device>.jsonl")
    return p.parse_args(argv)


def shapes(a):
    if a.shapes:
        return [tuple(int(n) for n in text.split("x")) for text in a.shapes.split(",")]
    device = a.device
    return [(n, h, v, b) for h, v in HEADS[device] for n in TOKENS[device] for b in BUDGETS[device]]


def candidates(shape, dtype, device):
    """[(plan, keywords of the call)]: the chosen one first, each way of cutting once."""
    n, h, v, mib = shape
    wishes = [(None, None, 1)]
    for order in ("token", "vocabulary"):
        for accum in (None, torch.float32) if dtype.itemsize == 2 and order == "token" else (None,):
            wishes += [(order, accum, part) for part in (1, 2, 4)]
    found = {}
    for order, accum, part in wishes:
        call = dict(memory_budget=mib * MIB // part, accum_dtype=accum)
        p = plan(n, h, v, dtype, loop_order=order, device=device, **call)
        if order in (None, p.loop_order):
            found.setdefault((p.loop_order, p.block_rows, p.block_cols, p.accum_dtype), (p, call))
    return list(found.values())


def step(tensors, p, call):
    x, w, y = tensors
    with force_loop_order(p.loop_order):
        loss = liger_fused_linear_cross_entropy(x, w, y, **call)
    return torch.autograd.grad(loss, (x, w))


def measure(shape, dtype, a):
    n, h, v, _ = shape
    torch.manual_seed(0)
    x = torch.randn(n, h, device=a.device, dtype=dtype).requires_grad_()
    w = (torch.randn(v, h, device=a.device) * h**-0.5).to(dtype).requires_grad_()
    tensors = (x, w, torch.randint(v, (n,), device=a.device))
    plans = candidates(shape, dtype, a.device)
    fns = {i: (lambda p=p, call=call: step(tensors, p, call)) for i, (p, call) in enumerate(plans)}
    if a.device == "cuda":
        times = {i: timing.cuda_ms(fn, repeats=a.rounds) for i, fn in fns.items()}
    else:
        times = {i: statistics.median(ms) for i, ms in timing.interleaved(fns, a.rounds).items()}
    return [
        dict(
            shape=list(shape),
            dtype=str(dtype).removeprefix("torch."),
            chosen=i == 0,
            loop_order=p.loop_order,
            block=[p.block_rows, p.block_cols],
            n_blocks=p.n_blocks,
            accum_dtype=str(p.accum_dtype).removeprefix("torch."),
            accum_mib=p.accum_bytes / MIB,
            predicted_ms=p.seconds * 1e3,
            measured_ms=times[i],
        )
        for i, (p, _) in enumerate(plans)
    ]


def show(rows):
    best = min(r["measured_ms"] for r in rows)
    for r in sorted(rows, key=lambda r: r["measured_ms"]):
        block, accum = "x".join(map(str, r["block"])), r["accum_dtype"]
        print(
            f"{'x'.join(map(str, r['shape'])):>24} MiB {'->' if r['chosen'] else '  '} {r['loop_order']:10} "
            f"{r['n_blocks']:5} of {block:>14} {accum:9} predicted {r['predicted_ms']:9.2f} measured "
            f"{r['measured_ms']:9.2f} ms, {r['measured_ms'] / best:.2f} of the best",
            flush=True,
        )


def main(argv=None):
    a = options(argv)
    dtype = getattr(torch, a.dtype or ("bfloat16" if a.device == "cuda" else "float32"))
    out = a.out or machine.RESULTS / f"plan_costs_{a.device}.jsonl"
    facts, every = machine.facts(a.device), []
    same = dict(machine=facts["machine"], commit=facts["commit"], dtype=str(dtype).removeprefix("torch."))
    old = [r for r in machine.read_rows(out) if all(r.get(k) == v for k, v in same.items())]
    for shape in machine.progress(shapes(a), unit="shape"):
        rows = [r for r in old if r["shape"] == list(shape)]
        if not rows:
            rows = [{**facts, **r} for r in measure(shape, dtype, a)]
            machine.append_rows(out, rows)
        show(rows)
        every.append(rows)
    off = [r["measured_ms"] / r["predicted_ms"] for rows in every for r in rows]
    lost = [
        next(r["measured_ms"] for r in s if r["chosen"]) / min(r["measured_ms"] for r in s) for s in every
    ]
    print(f"measured / predicted: median {statistics.median(off):.2f}, from {min(off):.2f} to {max(off):.2f}")
    print(
        f"the chosen plan is within 10 % of the best for {sum(x <= 1.1 for x in lost)} of {len(lost)} shapes"
    )


if __name__ == "__main__":
    main()
