"""Clocks, and the physical floor they are compared with. Imports torch alone."""

import statistics
import time

import torch


class Floor:
    """Milliseconds that no implementation can go below: the bytes that must move at the copy bandwidth, or
    the operator's matrix products alone, both measured here. `products`: shapes (rows, hidden), (vocab,
    hidden) of a linear loss, or None."""

    def __init__(self, device, dtype, products):
        self.device, self.itemsize = device, dtype.itemsize
        n = 2**30 if device == "cuda" else 2**25
        self.source = torch.randn(n, device=device, dtype=dtype)
        self.copy, self.numel = torch.empty_like(self.source), n
        if products is not None:
            (m, h), (v, _) = products
            x, w, d = (torch.randn(s, device=device, dtype=dtype) for s in ((m, h), (v, h), (m, v)))
            self.products = (lambda: x @ w.t()), (lambda: (x @ w.t(), d @ w, d.t() @ x))
            self.operations = 2 * m * h * v, 6 * m * h * v
        else:
            self.products = None

    def clocks(self):
        """What to time: {name: function}."""
        fns = {"copy": lambda: self.copy.copy_(self.source)}
        if self.products:
            fns["gemm_fwd"], fns["gemm_full"] = self.products
        return fns

    def release(self):
        """Frees the memory that the clocks used."""
        self.source = self.copy = None
        self.products = self.products and ()

    def ms(self, times, elements, flops):
        """(forward, full) floor from the times of `clocks`, in ms."""
        if self.products is not None and flops[1]:
            fwd, full = times["gemm_fwd"], times["gemm_full"]
            return fwd * flops[0] / self.operations[0], full * flops[1] / self.operations[1]
        per_element = times["copy"] / (2 * self.numel)
        return elements[0] * per_element, elements[1] * per_element


def interleaved(fns, rounds):
    """{name: [ms per round]}: every round calls each function once, so that noise hits all alike (CPU)."""
    seen = {name: [] for name in fns}
    for fn in fns.values():
        fn()
    for _ in range(rounds):
        for name, fn in fns.items():
            t = time.perf_counter()
            fn()
            seen[name].append((time.perf_counter() - t) * 1e3)
    return seen


def _flush():
    return torch.empty(64 * 2**20, dtype=torch.int32, device="cuda")  # 256 MiB: larger than any L2


def cuda_ms(fn, repeats=60, seconds=1.5):
    """Median wall time on the GPU's clock, as a user sees it: the L2 is flushed before each call."""
    flush = _flush()
    for _ in range(4):
        fn()
    torch.cuda.synchronize()
    pairs, start = [], time.time()
    while len(pairs) < repeats and (len(pairs) < 10 or time.time() - start < seconds):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        flush.zero_()
        a.record()
        fn()
        b.record()
        pairs.append((a, b))
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in pairs)


def _profiled_ms(call, n):
    from torch.profiler import ProfilerActivity, profile

    flush = _flush()
    call()
    flush.zero_()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as prof:
        for _ in range(n):
            flush.zero_()
            call()
        torch.cuda.synchronize()
    return sum(e.self_device_time_total for e in prof.key_averages()) / n / 1e3


def cuda_kernel_ms(fn, n=7):
    """Milliseconds of GPU kernels and copies per call, whatever the host does meanwhile: the profiler's sum
    with the L2 flushed before each call, less the flushes alone."""
    return _profiled_ms(fn, n) - _profiled_ms(lambda: None, n)


def cuda_peak_mib(fn):
    """Peak of torch's allocator during a call, beyond what was there before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    fn()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20
