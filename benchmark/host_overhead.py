"""What one small call costs the host: LigerRMSNorm's Function against F.rms_norm (native C++ autograd).

    python -m benchmark.host_overhead [--device cuda] [--out rows.jsonl]

Microseconds per call on (8, 256) fp32, forward alone and forward + backward; every round times each variant
once, 200 calls without a wait in between; medians over the rounds. Small models and short sequences are
bound by this."""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F

from . import machine

CALLS = 200


def hf_rms_norm(x, w):
    """As LlamaRMSNorm computes it: six kernels."""
    v = x.float()
    return w * (v * torch.rsqrt(v.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def variants(device):
    """{(name, direction): call}."""
    from liger_kernel.ops import LigerRMSNormFunction

    x, w = torch.randn(8, 256, device=device), torch.randn(256, device=device)
    leaves, gradient = (x.clone().requires_grad_(), w.clone().requires_grad_()), torch.randn_like(x)
    functions = {
        "F.rms_norm": lambda x, w: F.rms_norm(x, (256,), w, 1e-6),
        "liger": lambda x, w: LigerRMSNormFunction.apply(x, w, 1e-6, 0.0, "llama", True, None),
        "eager": hf_rms_norm,
        "compile": torch.compile(hf_rms_norm, fullgraph=True),
    }
    calls = {}
    for name, f in functions.items():
        calls[name, "fwd"] = lambda f=f: f(*leaves)
        calls[name, "full"] = lambda f=f: torch.autograd.grad(f(*leaves), leaves, gradient)
    return calls


def measure(calls, device, rounds):
    """{(name, direction): [us per call, per round]}."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    seen = {k: [] for k in calls}
    for call in calls.values():
        for _ in range(CALLS // 2):
            call()
    for _ in machine.progress(range(rounds), desc="rounds"):
        for k, call in calls.items():
            wait()
            start = time.perf_counter()
            for _ in range(CALLS):
                call()
            seen[k].append((time.perf_counter() - start) / CALLS * 1e6)
            wait()
    return seen


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    p.add_argument("--rounds", type=int, default=15)
    machine.add_commit(p)
    p.add_argument("--out", default="", help="default benchmark/results/host_overhead_<device>.jsonl")
    a = p.parse_args()
    base, rows = machine.facts(a.device), []
    seen = measure(variants(a.device), a.device, a.rounds)
    for impl in dict.fromkeys(name for name, _ in seen):
        row = {**base, "op": "rms_norm", "case": "8x256", "dtype": "float32", "impl": impl}
        for direction in ("fwd", "full"):
            times, native = seen[impl, direction], seen["F.rms_norm", direction]
            row[f"{direction}_us"] = statistics.median(times)
            row[f"{direction}_vs_native"] = statistics.median(x / y for x, y in zip(times, native))
        rows.append(row)
        print(f"{impl:12s} fwd {row['fwd_us']:7.1f} us ({row['fwd_vs_native']:.2f} x F.rms_norm)", end="")
        print(f"   fwd + bwd {row['full_us']:7.1f} us ({row['full_vs_native']:.2f} x)")
    machine.append_rows(a.out or machine.RESULTS / f"host_overhead_{a.device}.jsonl", rows)


if __name__ == "__main__":
    main()
