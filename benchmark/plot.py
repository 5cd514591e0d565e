"""Bar charts of the operators' rows."""

from collections import defaultdict

COLOURS = {"eager": "C7", "compile": "C1", "upstream": "C2", "liger": "C0"}


def ops(rows, path):
    """Multiples of the floor, forward + backward, by case and implementation: the latest row of each. Returns
    the path."""
    latest = defaultdict(dict)
    for row in rows:
        if row.get("floor_full_ms"):
            time = row.get("kernel_full_ms", row["full_ms"])
            latest[f"{row['op']}\n{row['case']} {row['dtype']}"][row["impl"]] = time / row["floor_full_ms"]
    if not latest:
        return "nothing to plot"
    try:
        import matplotlib
    except ImportError:
        return "needs matplotlib"
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    impls = [i for i in COLOURS if any(i in case for case in latest.values())]
    figure, ax = plt.subplots(figsize=(max(6, 1.3 * len(latest)), 4.5), layout="constrained")
    width = 0.8 / len(impls)
    for n, impl in enumerate(impls):
        places = [(i, case[impl]) for i, case in enumerate(latest.values()) if impl in case]
        x = [i + (n - (len(impls) - 1) / 2) * width for i, _ in places]
        bars = ax.bar(x, [y for _, y in places], width, color=COLOURS[impl], label=impl)
        ax.bar_label(bars, fmt="%.2g", fontsize=6)
    ax.axhline(1, color="black", linewidth=0.8)
    ax.set_xticks(range(len(latest)), latest, fontsize=7, rotation=30, ha="right")
    ax.set_ylabel("time / floor, forward + backward")
    ax.set_title(f"{rows[-1]['machine']}, torch {rows[-1]['torch']}")
    ax.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
