"""`python -m liger_kernel.selftest [op ...]`: every op against its reference, on this machine.

In under a minute: each sample of each op's spec runs forward and backward on random data and is held against
float64 truth; the bar is PyTorch's own error in the same dtype. Prints a table with the share of the bar that
was used; exit code 1 if an op passed its bar anywhere.
"""

import argparse
import sys
import time
import warnings


def run_op(spec, device, dtypes):
    """(samples run, worst share of the bar, lines about failures) of one op."""
    from . import _check

    n, worst, failures = 0, 0.0, []
    for sample in spec.samples:
        for name in dtypes:
            n += 1
            try:
                with warnings.catch_warnings():  # a sample's memory budget of one byte warns, as it should
                    warnings.simplefilter("ignore")
                    verdicts = _check.evaluate(spec, sample, device, _check.DTYPES[name])
            except Exception as error:  # one broken sample must not hide the others
                failures.append(
                    f"{spec.name} {sample.id} {name}: {type(error).__name__}: {str(error).splitlines()[0]}"
                )
                continue
            worst = max([worst, *(v.share for v in verdicts)])
            failures += [f"{spec.name} {sample.id} {name}: {v}" for v in verdicts if not v.ok]
    return n, worst, failures


def show(title, head, rows):
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(title)
        widths = [max(len(r[i]) for r in (head, *rows)) for i in range(len(head))]
        for row in (head, *rows):
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
        return
    table = Table(*head, title=title)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m liger_kernel.selftest", description=__doc__.splitlines()[0]
    )
    parser.add_argument("ops", nargs="*", help="only these (all by default)")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is a GPU")
    options = parser.parse_args(argv)
    import torch

    from .ops import SPECS

    unknown = set(options.ops) - set(SPECS)
    if unknown:
        parser.error(f"ops is {sorted(unknown)}, expected some of {sorted(SPECS)}")
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("device is 'cuda', but torch sees no GPU")
    dtypes = ["fp32", "bf16", "fp16"] + (["fp64"] if device == "cpu" else [])
    rows, failures = [], []
    for name in options.ops or SPECS:
        start = time.perf_counter()
        n, worst, bad = run_op(SPECS[name], device, dtypes)
        failures += bad
        verdict = f"{len(bad)} above" if bad else "ok"
        rows.append((name, f"{n}", f"{100 * worst:.0f} %", f"{time.perf_counter() - start:.1f}", verdict))
    where = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    show(
        f"liger_kernel self-test on {where}, {', '.join(dtypes)}",
        ("op", "runs", "error / bar", "seconds", "result"),
        rows,
    )
    print("\n".join(failures))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
