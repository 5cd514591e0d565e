"""Charts of measured rows: bars of the operators, lines of the sweeps. Needs matplotlib."""

from collections import defaultdict

COLOURS = {
    "eager": "C7",
    "compile": "C1",
    "upstream": "C2",
    "quack": "C4",
    "cce": "C5",
    "torch": "C8",
    "liger": "C0",
}
NAMES = {"compile": "torch.compile", "upstream": "Liger Kernel", "torch": "F.linear_cross_entropy"}
NAMES["liger"] = "liger-kernel-c"
SETTINGS = {"svg.hashsalt": "liger", "svg.fonttype": "none"}  # the same rows, the same file


def pyplot():
    """matplotlib.pyplot without a display, or None."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    matplotlib.rcParams.update(SETTINGS)
    import matplotlib.pyplot as plt

    return plt


def milliseconds(row):
    return row.get("kernel_full_ms", row["full_ms"])


def save(plt, figure, path):
    figure.savefig(path, dpi=120, metadata={"Date": None} if str(path).endswith(".svg") else None)
    plt.close(figure)
    return path


def ops(rows, path):
    """Multiples of the floor, forward + backward, by case and implementation: the latest row of each. Returns
    the path."""
    latest = defaultdict(dict)
    for row in rows:
        if row.get("floor_full_ms"):
            name = row["op"] if row["op"] == row["case"] else f"{row['op']} {row['case']}"
            case = latest[f"{name} {row['dtype'].replace('float', 'fp').replace('bfp', 'bf')}"]
            case[row["impl"]] = milliseconds(row) / row["floor_full_ms"]
    if not latest:
        return "nothing to plot"
    if (plt := pyplot()) is None:
        return "needs matplotlib"
    bars, ticks, y = defaultdict(list), [], 0.0  # a case takes as many lines as it has bars
    for case in latest.values():
        impls = [i for i in COLOURS if i in case]
        for i, impl in enumerate(impls):
            bars[impl].append((y + i, case[impl]))
        ticks.append(y + (len(impls) - 1) / 2)
        y += len(impls) + 0.7
    figure, ax = plt.subplots(figsize=(9, 1.2 + 0.14 * y), layout="constrained")
    for impl in [i for i in COLOURS if i in bars]:
        drawn = ax.barh(*zip(*bars[impl]), 0.9, color=COLOURS[impl], label=NAMES.get(impl, impl))
        ax.bar_label(drawn, fmt="%.2f", fontsize=6, padding=1)
    ax.axvline(1, color="black", linewidth=0.8)
    ax.set_xscale("log")
    ax.set_xlim(left=0.7)
    most = max(max(case.values()) for case in latest.values())
    marks = [t for t in (1, 2, 3, 5, 10, 20, 50) if t <= 1.2 * most]
    ax.set_xticks(marks, marks)
    ax.minorticks_off()
    ax.set_yticks(ticks, latest, fontsize=7)
    ax.set_ylim(y - 0.2, -1)
    ax.set_xlabel("time / floor, forward + backward: 1 is the limit, shorter is better", fontsize=8)
    ax.set_title(f"{rows[-1]['machine']}, torch {rows[-1]['torch']}", fontsize=9)
    ax.legend(fontsize=8)
    return save(plt, figure, path)


def _lines(ax, rows, value):
    """A line of value(row) by size for each implementation; returns whether there was one."""
    by = defaultdict(dict)
    for row in rows:
        if "error" not in row and value(row):
            by[row["impl"]][row["size"]] = value(row)
    for impl in [i for i in COLOURS if i in by]:
        points = sorted(by[impl].items())
        ax.plot(*zip(*points), "o-", color=COLOURS[impl], label=NAMES.get(impl, impl), markersize=4)
    return bool(by)


def _sizes(ax, rows):
    ticks = sorted({r["size"] for r in rows})
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks, [f"{t // 1024}k" if t % 1024 == 0 else str(t) for t in ticks], fontsize=7)
    ax.minorticks_off()
    ax.grid(alpha=0.3)


def shares(rows, path):
    """Share of the floor against the number of tokens, a panel an operator."""
    cases = defaultdict(list)
    for row in rows:
        cases[row["op"], row["case"].split("@")[0], row["dtype"]].append(row)
    if not cases or (plt := pyplot()) is None:
        return None
    wide = min(3, len(cases))
    tall = -(-len(cases) // wide)
    size = (3.4 * wide + 0.6, 2.5 * tall + 0.7)
    figure, axes = plt.subplots(tall, wide, figsize=size, layout="constrained", squeeze=False, sharey=True)
    for ax, (name, part) in zip(axes.flat, cases.items()):
        _lines(ax, part, lambda r: 100 * r["floor_full_ms"] / milliseconds(r))
        _sizes(ax, part)
        ax.axhline(100, color="black", linewidth=0.8)
        ax.set_ylim(bottom=0)
        ax.set_title(" ".join(name), fontsize=9)
    for ax in axes.flat[len(cases) :]:
        ax.set_visible(False)
    axes[0, 0].legend(fontsize=8)
    figure.supxlabel("tokens", fontsize=9)
    figure.supylabel("% of the floor, forward + backward", fontsize=9)
    figure.suptitle(f"{rows[-1]['machine']}, torch {rows[-1]['torch']}", fontsize=9)
    return save(plt, figure, path)


def against(rows, axis, path):
    """Time and peak memory of linear losses against tokens or vocabulary, a column a case."""
    cases = defaultdict(list)
    for row in rows:
        cases[row["op"], row["case"].split("@")[0], row["dtype"]].append(row)
    if not cases or (plt := pyplot()) is None:
        return None
    figure, axes = plt.subplots(
        len(cases), 2, figsize=(8.5, 3.2 * len(cases)), layout="constrained", squeeze=False
    )
    for (time, memory), (name, part) in zip(axes, cases.items()):
        _lines(time, part, milliseconds)
        if not _lines(memory, part, lambda r: r.get("peak_mib")):
            memory.text(0.5, 0.5, "not measured", ha="center", transform=memory.transAxes)
        for ax, what in ((time, "ms, forward + backward"), (memory, "peak MiB beyond inputs")):
            _sizes(ax, part)
            ax.set_yscale("log", base=2)
            ax.yaxis.set_major_formatter("{x:g}")
            ax.set_xlabel(axis, fontsize=8)
            ax.set_ylabel(what, fontsize=8)
            ax.tick_params(labelsize=7)
            ax.set_title(" ".join(name), fontsize=8)
        time.legend(fontsize=8)
    figure.suptitle(f"{rows[-1]['machine']}, torch {rows[-1]['torch']}", fontsize=9)
    return save(plt, figure, path)


def sweeps(rows, stem, suffix=".png"):
    """A chart of each axis that has rows, beside `stem`: their paths."""
    paths = []
    for axis in ("rows", "tokens", "vocabulary"):
        part = [r for r in rows if r.get("axis") == axis and "error" not in r]
        path = stem.parent / f"{stem.name}_{axis}{suffix}"
        if part and (shares(part, path) if axis == "rows" else against(part, axis, path)):
            paths.append(path)
    return paths
