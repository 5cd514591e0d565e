"""Peak memory of a call on the CPU, where no allocator counts: the process' own high-water mark (VmHWM, reset
through /proc/self/clear_refs), beyond what was resident before the call. Linux.

`peaks` runs this module as a process of its own, with malloc told to give every large block back; the
process that measures times keeps its memory instead.
"""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def _status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) / 1024


def peak_mib(call):
    """MiB above the resident memory of before that a second call takes (the first compiles and warms up)."""
    call()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def peaks(op, case, dtype, impls, budget):
    """{impl: {"peak_mib", "peak_fwd_mib"}}; `case`: its id on the CPU or what cases.portable made of it."""
    job = {"op": op, "case": case, "dtype": dtype, "impls": impls, "budget": budget}
    env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | GIVE_BACK
    command = [sys.executable, "-m", "benchmark.memory"]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, input=json.dumps(job), text=True, capture_output=True, env=env, cwd=root)
    if done.returncode:
        raise RuntimeError(f"benchmark.memory ended with code {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main():
    job = json.load(sys.stdin)
    from liger_kernel import set_memory_budget

    from . import cases, consumers, peers

    if job["budget"]:
        set_memory_budget(job["budget"] << 20)
    spec, found = consumers.specs()[job["op"]], {}
    drawn = cases.arguments(job["case"]["args"], getattr(torch, job["dtype"]), "cpu")
    for impl in job["impls"]:
        call = cases.Call(peers.way(impl, spec, drawn), drawn)
        found[impl] = {"peak_mib": peak_mib(call.full), "peak_fwd_mib": peak_mib(call.bare)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
