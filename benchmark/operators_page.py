"""Writes docs/operators.md from the operators' modules, `OpSpec`s and measured results.

    python -m benchmark.operators_page            writes the page
    python -m benchmark.operators_page --check    exit code 1 if that would change it (make lint)

Of each operator: the equations and the source (the docstring of ops/<op>.py), arguments, shapes, dtypes and
errors (that of its autograd Function), options, files, and the share of the physical floor that the last
measurement reached, from benchmark/results/. Nothing on the page is typed by hand."""

import argparse
import importlib
import inspect
import re
import sys
import textwrap

from . import machine
from .readme_table import latest, table

PAGE = machine.ROOT / "docs" / "operators.md"
HEAD = """# Operators

Made by `python -m benchmark.operators_page`; edit the docstrings in `liger_kernel/ops/` instead.

Every operator has forward and backward on CPUs (C11) and NVIDIA GPUs (CUDA C; AMD's through hipcc), takes
float32, bfloat16 and float16, on the CPU float64 too, any strides and any size, and runs in torch.compile and
CUDA graphs. Shares are floor over time. The floor is the time that the bytes which must move take at the copy
bandwidth measured in the same run, or for the linear losses their matrix products.
"""


def _docstring(thing):
    return inspect.cleandoc(thing.__doc__ or "")


def markdown(text):
    """A docstring as Markdown: indented paragraphs are code, the others are joined lines."""
    out = []
    for part in re.split(r"\n\s*\n", text):
        if all(line.startswith("    ") for line in part.split("\n")):
            out += ["```", textwrap.dedent(part), "```", ""]
        else:
            out += [textwrap.fill(" ".join(part.split()).replace("|", "\\|"), 118), ""]
    return "\n".join(out)


def function_of(module):
    """The autograd Function of an operator's module, or None."""
    names = [n for n in getattr(module, "__all__", ()) if n.endswith("Function")]
    return getattr(module, names[0]) if names else None


def files_of(stem):
    patterns = f"csrc/kernels/{stem}*.c", f"csrc/kernels/{stem}*.cu", f"csrc/torch/{stem}.cpp"
    found = [p for pattern in patterns for p in sorted(machine.ROOT.glob(pattern))]
    own = [p for p in found if p.stem == stem or re.fullmatch(rf"{stem}_(sm\d+|block|bwd|loop|hard)", p.stem)]
    return [str(p.relative_to(machine.ROOT)) for p in own] + [f"liger_kernel/ops/{stem}.py"]


def options_of(spec):
    """Arguments that are no tensors, with the values that samples have, in the order of their appearance."""
    found = {}
    for sample in spec.samples:
        for name, value in sample.args.items():
            if not hasattr(value, "kind"):
                values = found.setdefault(name, [])
                if value is not None and value not in values:
                    values.append(value)
    return sorted(found)


def measured(name):
    """{device: [row of ours]}, the last of each case and dtype."""
    out = {}
    for device in ("cpu", "cuda"):
        rows = [r for r in machine.read_rows(machine.RESULTS / f"ops_{device}.jsonl") if r["op"] == name]
        found = latest(rows, lambda r: (r["case"], r["dtype"]))
        out[device] = [by["liger"] for by in found.values()]
    return out


def share(row):
    prefix = "kernel_" if "kernel_full_ms" in row else ""
    return [f"{row[f'floor_{d}_ms'] / row[f'{prefix}{d}_ms']:.0%}" for d in ("fwd", "full")]


def best(rows):
    """The table's cell: the share of the first case, by dtype."""
    first = [r for r in rows if r["case"] == rows[0]["case"]] if rows else []
    return (
        ", ".join(f"{r['dtype'].replace('float', 'fp').replace('bfp', 'bf')} {share(r)[1]}" for r in first)
        or "–"
    )


def section(spec):
    module = importlib.import_module(f"liger_kernel.ops.{spec.name}")
    function = function_of(module)
    lines = [f"## {spec.name}", "", markdown(_docstring(module))]
    if hasattr(function, "forward"):
        signature = str(inspect.signature(function.forward)).replace("(ctx, ", "(")
        lines += [f"`{function.__name__}.apply{signature}`", "", markdown(_docstring(function))]
    options = ", ".join(f"`{o}`" for o in options_of(spec)) or "none"
    lines += [
        f"Options: {options}.",
        "",
        "Files: " + ", ".join(f"`{f}`" for f in files_of(spec.name)) + ".",
        "",
    ]
    body = [
        [device, row["machine"], row["case"], row["dtype"], *share(row), row["commit"]]
        for device, rows in measured(spec.name).items()
        for row in rows
    ]
    if body:
        head = ["device", "machine", "case", "dtype", "share, forward", "share, full", "commit"]
        lines += [*table(head, body), ""]
    return "\n".join(lines)


def page():
    from liger_kernel.ops import SPECS

    specs = [SPECS[name] for name in sorted(SPECS)]
    body = []
    for spec in specs:
        title = _docstring(importlib.import_module(f"liger_kernel.ops.{spec.name}")).split("\n\n")[0]
        title = re.split(r": reference|: fakes|\. Reference", " ".join(title.split()))[0].rstrip(".")
        by = measured(spec.name)
        link = f"[{spec.name}](#{spec.name})"
        body.append([link, title.replace("|", "\\|"), spec.notes, best(by["cpu"]), best(by["cuda"])])
    head = ["operator", "what", "options", "share of the floor, CPU", "GPU"]
    text = "\n".join([HEAD, *table(head, body), "", *(section(s) for s in specs)])
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--check", action="store_true")
    a = p.parse_args()
    new, old = page(), PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    if a.check:
        sys.exit(
            new != old and "docs/operators.md is not what the code says: python -m benchmark.operators_page"
        )
    PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
