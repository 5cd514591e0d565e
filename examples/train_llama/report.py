"""What train.py prints and plots about its two runs, and its exit code."""

import datetime
import json
import platform
import statistics

import torch

TOLERANCE = {"bf16": 0.01, "fp32": 0.001}  # of the 10-step means of the losses
NAMES = {"hf": "Hugging Face", "liger": "with liger_kernel"}


def summary(args, steps, empty):
    timed = {name: [s["seconds"] for s in rows[2:] or rows] for name, rows in steps.items()}  # 2 to warm up
    speed = {n: args.batch_size * args.seq_len / statistics.median(seconds) for n, seconds in timed.items()}
    ratio = statistics.median(hf / liger for hf, liger in zip(timed["hf"], timed["liger"], strict=True))
    peak = {name: rows[-1]["peak"] for name, rows in steps.items()}
    losses = {name: [s["loss"] for s in rows] for name, rows in steps.items()}
    means = {n: [statistics.mean(x[i : i + 10]) for i in range(0, len(x), 10)] for n, x in losses.items()}
    worst = max(abs(b / a - 1) for a, b in zip(means["hf"], means["liger"], strict=True))
    same = worst <= TOLERANCE[args.dtype]  # also False for NaN
    print(f"\n{'':20s}{'tokens/s':>10s}{'peak memory':>14s}{'final loss':>12s}")
    for name, title in NAMES.items():
        print(f"{title:20s}{speed[name]:10.0f}{peak[name]:10.2f} GiB{means[name][-1]:12.4f}")
    print(f"{'ratio':20s}{ratio:10.2f}{peak['liger'] / peak['hf']:14.2f}")
    print("tokens/s: median step; ratio: median over pairs of steps; final loss: mean of the last 10 steps.")
    print(f"Of the memory {empty:.2f} GiB are Python and its libraries, before there is a model.")
    verdict = "the same" if same else "TOO DIFFERENT"
    print(f"10-step means of the losses: {worst:.3%} apart, allowed {TOLERANCE[args.dtype]:.1%}: {verdict}")
    where = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor()
    where = where or f"{platform.machine()}, {torch.get_num_threads()} threads"
    result = {"machine": where, "torch": torch.__version__, "date": datetime.date.today().isoformat()}
    result |= {"options": vars(args), "speed": speed, "ratio": ratio, "peak": peak, "worst": worst}
    (args.out / "result.json").write_text(json.dumps({**result, "losses": losses}, default=str, indent=1))
    plot(args, losses, speed, peak)
    return 0 if same else 1


def plot(args, losses, speed, peak):
    try:
        import matplotlib
    except ImportError:
        return print(f"No plot, since matplotlib is not installed. Figures: {args.out / 'result.json'}")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4), width_ratios=[2, 1, 1], layout="constrained")
    for (name, y), style in zip(losses.items(), ("-", "--"), strict=True):
        axes[0].plot(range(1, len(y) + 1), y, style, label=NAMES[name])
    axes[0].set(title=f"loss ({args.dtype}, {args.device})", xlabel="step")
    axes[0].legend()
    for ax, values, title in ((axes[1], speed, "tokens per second"), (axes[2], peak, "peak memory, GiB")):
        bars = ax.bar([NAMES[name] for name in values], values.values(), color=["C0", "C1"])
        ax.bar_label(bars, fmt="%.4g")
        ax.set(title=title)
    figure.savefig(args.out / "demo.png", dpi=120)
    print(f"Plot: {args.out / 'demo.png'}   figures: {args.out / 'result.json'}")
