"""Writes docs/performance.md and its charts from benchmark/results/.

    python -m benchmark.performance_page            writes the page and docs/performance_*.svg
    python -m benchmark.performance_page --check    exit code 1 if the page would change (make lint)

Of each case the last row of ours counts, and of the others the last row from the same machine and torch. What
has no row is listed as not measured. Nothing on the page is typed by hand but its prose."""

import argparse
import sys

from . import machine, plot
from .readme_table import demo, host, latest, source, steps, table
from .targets import target

DOCS = machine.ROOT / "docs"
PAGE = DOCS / "performance.md"
TITLES = {"cuda": "On a GPU", "cpu": "On a CPU"}
HEAD = """# Performance

Made by `python -m benchmark.performance_page` from `benchmark/results/`, where every row names its machine,
versions and commit.

The **floor** of a case is what no implementation can go below: the bytes that must move, at the copy
bandwidth measured in the same run, or for the linear losses their matrix products alone. Kernels that
mostly read can be a few percent under it. Times are forward + backward; on a GPU those of the kernels with
a flushed L2, on a CPU medians of rounds in which every implementation ran once. Peak is the memory a call
takes beyond its inputs, gradients included. A result is compared with eager PyTorch before it is timed, by
its norm.

The **bar** is the multiple that was set as a goal before the kernel was written: on a GPU of the floor, on
a CPU of torch.compile's time. A figure over it is in italics: work that is left.

To measure:

    make bench DEVICE=cuda                                            # every operator and loss; resumable
    python -m benchmark.run --device cuda --ops dpo,grpo --budget 2048    # within another memory budget
    python -m benchmark.sweep --device cuda                           # the curves
    python -m benchmark.plan_costs --device cuda                      # the plan's cost model
    make pages                                                        # this page and the other tables
"""


def rows_of(kind, device):
    return machine.read_rows(machine.RESULTS / f"{kind}_{device}.jsonl")


def _times(by, impls):
    cells = [f"{plot.milliseconds(by[i]):.3g}" if i in by else "–" for i in impls]
    return [*cells, f"**{plot.milliseconds(by['liger']):.3g}**"]


def _peak(by, impl):
    mib = by.get(impl, {}).get("peak_mib")
    return "–" if mib is None else f"{mib:.0f}"


def operators(device, specs):
    found = latest(rows_of("ops", device), lambda r: (r["op"], r["case"], r["dtype"]))
    if not found:
        return ["No operator was measured.", ""]
    impls = [i for i in plot.COLOURS if i != "liger" and any(i in by for by in found.values())]
    body, over, judged = [], 0, 0
    for (op, case, dtype), by in sorted(found.items()):
        ours, linear = by["liger"], op in specs and any(c.flops[1] for c in specs[op].cases.get(device, ()))
        bar = target(device, op, case, dtype, linear)
        multiple = plot.milliseconds(ours) / ours["floor_full_ms"]
        figure = multiple if device == "cuda" else ours.get("vs_compile")
        judged += bar is not None and figure is not None
        missed = bar is not None and figure is not None and round(figure, 2) > bar
        over += missed
        cell = "–" if figure is None else f"*{figure:.2f}*" if missed else f"{figure:.2f}"
        line = [op, case, dtype, f"{ours['floor_full_ms']:.3g}", *_times(by, impls)]
        if device == "cpu":
            line.append(f"{multiple:.2f}")
        body.append(
            [*line, cell, "–" if bar is None else f"{bar:.2f}", _peak(by, "eager"), _peak(by, "liger")]
        )
    names = [plot.NAMES.get(i, i) for i in impls]
    ratio = ["ours / floor"] if device == "cuda" else ["ours / floor", "ours / torch.compile"]
    head = ["operator", "case", "dtype", "floor", *names, "ours", *ratio, "bar", "peak MiB, eager", "ours"]
    chart = f"performance_{device}_ops.svg"
    return [
        f"{judged - over} of the {judged} cases that have a bar and a figure are within it. Times in ms.",
        "",
        *table(head, body),
        "",
        source([by["liger"] for by in found.values()]),
        "",
        f"![Multiples of the floor]({chart})",
        "",
    ]


def loss_alone(device, specs):
    """Linear losses without a gradient: wall time and the memory beyond the inputs."""
    linear = {n for n, s in specs.items() if any(c.flops[1] for c in s.cases.get(device, ()))}
    rows = [
        r for r in rows_of("ops", device) if r["op"] in linear and "fwd_ms" in r and r["impl"] != "upstream"
    ]
    found = latest(rows, lambda r: (r["op"], r["case"], r["dtype"]))
    if not found:
        return []
    impls = [i for i in plot.COLOURS if i != "liger" and any(i in by for by in found.values())]
    body = []
    for key, by in sorted(found.items()):
        cells = [f"{by[i]['fwd_ms']:.3g}" if i in by else "–" for i in (*impls, "liger")]
        peaks = [by.get(i, {}).get("peak_fwd_mib") for i in ("eager", "liger")]
        cells += ["–" if mib is None else f"{mib:.0f}" for mib in peaks]
        body.append([*key, f"{by['liger']['floor_fwd_ms']:.3g}", *cells])
    names = [plot.NAMES.get(i, i) for i in impls]
    return [
        "### Linear losses without a gradient",
        "",
        "Under `no_grad`, wall time in ms. Liger Kernel was not measured so.",
        "",
        *table(["operator", "case", "dtype", "floor", *names, "ours", "peak MiB, eager", "ours"], body),
        "",
        source([by["liger"] for by in found.values()]),
        "",
    ]


def _points(rows):
    """{(op, case, dtype): {size: {impl: row}}}, the last of each."""
    out = {}
    for r in rows:
        if "error" not in r:
            key = r["op"], r["case"].split("@")[0], r["dtype"]
            out.setdefault(key, {}).setdefault(r["size"], {})[r["impl"]] = r
    return out


def sweeps(device):
    rows, lines = rows_of("sweep", device), []
    texts = {
        "rows": "Ours in % of the floor as tokens grow fewer: a call has a cost of its own.",
        "tokens": "A linear loss as tokens grow: ms and peak MiB, eager → ours.",
        "vocabulary": "A linear loss as its vocabulary grows: ms and peak MiB, eager → ours.",
    }
    for axis, text in texts.items():
        points = _points([r for r in rows if r.get("axis") == axis])
        if not points:
            continue
        sizes = sorted({s for by in points.values() for s in by})
        body = []
        for (op, case, dtype), by in points.items():
            cells = []
            for s in sizes:
                found = by.get(s, {})
                ours, eager = found.get("liger"), found.get("eager")
                if not ours:
                    cells.append("–")
                elif axis == "rows":
                    cells.append(f"{100 * ours['floor_full_ms'] / plot.milliseconds(ours):.0f}")
                else:
                    both = [r for r in (eager, ours) if r]
                    ms = " → ".join(f"{plot.milliseconds(r):.3g}" for r in both)
                    cells.append(f"{ms}; {_peak(found, 'eager')} → {_peak(found, 'liger')}")
            body.append([op, case, dtype, *cells])
        lines += [f"### {axis.capitalize()}", "", text, ""]
        lines += [*table(["operator", "case", "dtype", *map(str, sizes)], body), ""]
        lines += [source([r for r in rows if r.get("axis") == axis]), ""]
        lines += [f"![By {axis}](performance_{device}_{axis}.svg)", ""]
    return lines


def plans(device):
    """The plan's choice for each shape against the fastest way of cutting that was tried."""
    shapes = {}
    for r in rows_of("plan_costs", device):
        shapes.setdefault((r["machine"], r["dtype"], *r["shape"]), []).append(r)
    if not shapes:
        return []
    body, close = [], 0
    for (_, dtype, n, h, v, mib), tried in shapes.items():
        ours = next(r for r in tried if r["chosen"])
        over = ours["measured_ms"] / min(r["measured_ms"] for r in tried)
        close += over <= 1.1
        how = f"{ours['n_blocks']} by {ours['loop_order']}"
        ms = [f"{ours[k]:.3g}" for k in ("predicted_ms", "measured_ms")]
        body.append([f"{n}x{h}x{v}", dtype, str(mib), how, *ms, str(len(tried)), f"{over:.2f}"])
    head = ["tokens x hidden x vocabulary", "dtype", "MiB", "blocks chosen", "predicted ms", "measured"]
    return [
        "### The plan of a linear loss",
        "",
        f"The choice is within 10 % of the fastest plan that was tried for {close} of {len(body)} shapes.",
        "",
        *table([*head, "plans tried", "chosen / fastest"], body),
        "",
        source([r for tried in shapes.values() for r in tried if r["chosen"]]),
        "",
    ]


def not_measured(device, specs):
    found = latest(rows_of("ops", device), lambda r: (r["op"], r["case"]))
    cases = [(n, c.id) for n, s in sorted(specs.items()) for c in s.cases.get(device, ())]
    missing = [f"{n} {c}" if n != c else n for n, c in cases if (n, c) not in found]
    alone = [k for k, by in found.items() if "compile" not in by]
    lines = ["Not measured here: " + (", ".join(missing) if missing else "nothing that has a case") + "."]
    if alone:
        lines.append(f"Without torch.compile beside ours: {len(alone)} of the {len(found)} cases that are.")
    axes = {r.get("axis") for r in rows_of("sweep", device)}
    absent = [a for a in ("rows", "tokens", "vocabulary") if a not in axes]
    if absent:
        command = f"python -m benchmark.sweep --device {device} --axes {','.join(absent)}"
        lines.append(f"No curves yet by {', '.join(absent)}: `{command}`.")
    failed = sorted({f"{r['op']} {r['case']} ({r['impl']})" for r in rows_of("ops", device) if "error" in r})
    if failed:
        lines.append("No time, but an error or a result unlike eager's: " + ", ".join(failed) + ".")
    return [" ".join(lines), ""]


def page(specs):
    lines = [HEAD]
    for device, title in TITLES.items():
        lines += [f"## {title}", "", *operators(device, specs), *loss_alone(device, specs)]
        lines += [*sweeps(device), *plans(device)]
        lines += ["### What was not measured", "", *not_measured(device, specs)]
        whole = [*steps(device), *host(device)]
        if whole:
            lines += ["### Whole steps and small calls", "", *whole]
    lines += ["## The demo", "", *demo()]
    return "\n".join(lines).rstrip() + "\n"


def charts():
    for device in TITLES:
        found = latest(rows_of("ops", device), lambda r: (r["op"], r["case"], r["dtype"]))
        rows = [r for _, by in sorted(found.items()) for r in by.values()]
        if rows:
            plot.ops(rows, DOCS / f"performance_{device}_ops.svg")
        plot.sweeps(rows_of("sweep", device), DOCS / f"performance_{device}", ".svg")


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--check", action="store_true")
    a = p.parse_args()
    from .consumers import specs

    new, old = page(specs()), PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    if a.check:
        what = "docs/performance.md is not what benchmark/results/ says: make pages"
        sys.exit(new != old and what)
    PAGE.write_text(new, encoding="utf-8")
    charts()


if __name__ == "__main__":
    main()
