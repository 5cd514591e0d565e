"""Writes README's measured tables, between its `<!-- measured -->` markers, from benchmark/results/.

    python -m benchmark.readme_table            rewrites README.md
    python -m benchmark.readme_table --check    exit code 1 if that would change it

Reads ops_<device>.jsonl, host_overhead_<device>.jsonl, train_step_<device>.jsonl and demo_*.json (the
demo's result.json). Of each case the last row of ours counts, and of the others the last row from the same
machine and torch. No figure is typed by hand."""

import argparse
import json
import sys

from . import machine

README = machine.ROOT / "README.md"
BEGIN, END = "<!-- measured -->", "<!-- /measured -->"
PEERS = {"eager": "eager", "compile": "torch.compile", "upstream": "Liger Kernel"}


def latest(rows, case):
    """{case: {impl: row}}: the last of ours, and the last of the others from the same machine and torch."""
    ours = {case(r): r for r in rows if r["impl"] == "liger" and "error" not in r}
    found = {k: {"liger": r} for k, r in ours.items()}
    for r in rows:
        mine = ours.get(case(r))
        same = mine and all(r[k] == mine[k] for k in ("machine", "torch"))
        if same and r["impl"] != "liger" and "error" not in r:
            found[case(r)][r["impl"]] = r
    return found


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return lines + ["| " + " | ".join(r) + " |" for r in rows]


def source(rows):
    """Where rows come from, in a line."""
    parts = [sorted({r[k] for r in rows}) for k in ("machine", "torch", "commit", "date")]
    where, torch, commit, date = (", ".join(p) for p in parts)
    return f"{where}; torch {torch}; commit {commit}; {date}."


def operators(device):
    found = latest(
        machine.read_rows(machine.RESULTS / f"ops_{device}.jsonl"), lambda r: (r["op"], r["case"], r["dtype"])
    )
    if not found:
        return []
    time = "kernel_full_ms" if device == "cuda" else "full_ms"
    body = []
    for (op, case, dtype), by in found.items():
        ours = by["liger"]
        ms = {impl: f"{r[time]:.3g}" for impl, r in by.items()}
        name = op if case == op else f"{op} {case}"
        cells = [
            name,
            dtype,
            f"{ours['floor_full_ms']:.3g}",
            *(ms.get(p, "–") for p in PEERS),
            f"**{ms['liger']}**",
        ]
        cells.append(f"{ours[time] / ours['floor_full_ms']:.2f}")
        cells.append(f"{ours['vs_compile']:.2f}" if "vs_compile" in ours else "–")
        body.append(cells)
    what = "kernel time" if device == "cuda" else "medians of interleaved rounds"
    head = ["operator", "dtype", "floor", *PEERS.values(), "ours", "ours / floor", "ours / torch.compile"]
    title = {"cuda": "Operators on a GPU", "cpu": "Operators on a CPU"}[device]
    return [f"**{title}**, forward + backward, ms ({what}).", "", *table(head, body), "",
            source([by["liger"] for by in found.values()]), ""]  # fmt: skip


def host(device):
    found = latest(machine.read_rows(machine.RESULTS / f"host_overhead_{device}.jsonl"), lambda r: r["case"])
    body = [
        [impl, f"{r['fwd_us']:.1f}", f"{r['full_us']:.1f}", f"{r['full_vs_native']:.2f}"]
        for by in found.values()
        for impl, r in sorted(by.items())
    ]
    if not body:
        return []
    head = ["implementation", "forward, µs", "forward + backward, µs", "× F.rms_norm"]
    title = f"**Host cost of one RMSNorm call**, (8, 256) fp32, {device}."
    return [title, "", *table(head, body), "", source([by["liger"] for by in found.values()]), ""]


def steps(device):
    rows = machine.read_rows(machine.RESULTS / f"train_step_{device}.jsonl")
    found = latest(rows, lambda r: (r["model"], r["batch_size"], r["seq_len"]))
    names = {"hf": "Hugging Face", **PEERS, "liger": "ours"}
    body = []
    for (model, batch, length), by in found.items():
        for impl, title in names.items():
            if r := by.get(impl):
                peak = f"{r['peak_gib']:.1f}" if r["peak_gib"] else "–"
                speed = f"{r['tokens_per_s']:.0f}"
                body.append([f"{model} {batch}x{length}", title, speed, peak, f"{r['losses'][3]:.4f}"])
    if not body:
        return []
    head = ["model", "implementation", "tokens/s", "peak GiB", "4th loss"]
    title = f"**Training steps**, bf16, random weights, SGD, {device}."
    return [title, "", *table(head, body), "", source([by["liger"] for by in found.values()]), ""]


def demo():
    body, where = [], []
    for path in sorted(machine.RESULTS.glob("demo_*.json")):
        r = json.loads(path.read_text())
        o, hf, ours = r["options"], r["speed"]["hf"], r["speed"]["liger"]
        what = f"{o['device']}, {o['dtype']}, vocabulary {o['vocab_size']}"
        memory = f"{r['peak']['hf']:.2f} → {r['peak']['liger']:.2f}"
        where.append(f"{r['machine']}, torch {r['torch']}, {o['steps']} steps, {r['date']}")
        body.append([what, f"{hf:.0f} → {ours:.0f}", f"{r['ratio']:.2f}", memory, f"{r['worst']:.3%}"])
    if not body:
        return []
    head = ["`make demo`", "tokens/s", "ratio", "peak GiB", "losses apart by"]
    return [
        "**The demo**, Hugging Face → with liger_kernel.",
        "",
        *table(head, body),
        "",
        "; ".join(dict.fromkeys(where)) + ".",
        "",
    ]


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--check", action="store_true")
    a = p.parse_args()
    lines = demo()
    for device in ("cuda", "cpu"):
        lines += [*steps(device), *operators(device), *host(device)]
    old = README.read_text(encoding="utf-8")
    before, rest = old.split(BEGIN, 1)
    new = before + BEGIN + "\n" + "\n".join(lines) + END + rest.split(END, 1)[1]
    if a.check:
        sys.exit(new != old and "README.md's tables are not what benchmark/results/ says")
    README.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
