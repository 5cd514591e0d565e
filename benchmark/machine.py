"""What a result row says about where it comes from, and the rows' file."""

import datetime
import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmark" / "results"


def commit():
    """The checkout's commit, with + where files differ from it; "unknown" outside git."""

    def git(*args):
        done = subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "csrc", "liger_kernel")
        return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine(device):
    if device == "cuda":
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
    try:
        return [json.loads(line) for line in Path(path).read_text().splitlines() if line.strip()]
    except FileNotFoundError:
        return []


def append_rows(path, rows):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as f:
        for row in rows:
            f.write(json.dumps(row) + "\n")


def progress(items, **options):
    """A tqdm bar where tqdm is installed, else the items as they are."""
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    return tqdm(items, **options)
