"""What a result row says about where it comes from, and the rows' file."""

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmark" / "results"


def commit():
    """LIGER_BENCH_COMMIT (which --commit sets), for a copied tree; else the checkout's commit, with + where
    files differ from it; "unknown" outside git."""
    if given := os.environ.get("LIGER_BENCH_COMMIT"):
        return given

    def git(*args):
        done = subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != ROOT:
            return "unknown"  # a copy inside another repository
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "csrc", "liger_kernel")
        return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def add_commit(parser):
    """--commit: where rows are measured in a copy of the tree, its repository knows nothing of ours."""

    def keep(commit):
        os.environ["LIGER_BENCH_COMMIT"] = commit
        return commit

    text = "what rows name as commit; default: LIGER_BENCH_COMMIT, else git's"
    parser.add_argument("--commit", type=keep, help=text)


def machine(device):
    if device == "cuda":
        if not torch.cuda.is_available():
            sys.exit("--device cuda, but torch sees no GPU")
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(s.split(":", 1)[1].strip() for s in lines if s.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{model}, {torch.get_num_threads()} threads"


def facts(device):
    """The fields that every row carries."""
    row = {"device": device, "machine": machine(device), "torch": torch.__version__, "commit": commit()}
    row["date"] = datetime.date.today().isoformat()
    row["python"] = platform.python_version()
    return row


def version(distribution, path):
    """A distribution's version as installed in the directory `path`."""
    found = importlib.metadata.distributions(name=distribution, path=[str(path)])
    return next((d.version for d in found), "unknown")


def read_rows(path):
    """The rows of a file, without a last line that an interruption cut short."""
    try:
        text = Path(path).read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines() if line.strip()]


def append_rows(path, rows):
    """Adds rows, in the place of a last line that an interruption cut short."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as f:
        f.seek(0)
        f.truncate(f.read().rfind(b"\n") + 1)
        f.write("".join(json.dumps(row) + "\n" for row in rows).encode())


def progress(items, **options):
    """A tqdm bar where tqdm is installed, else the items as they are."""
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    return tqdm(items, **options)
