"""`python -m liger_kernel.env_report`: what a bug report needs to say about the machine."""

import ctypes
import importlib.metadata
import os
import platform

from ._load import LIB, REBUILD, build_info, driver_warning
from ._upstream import conflict
from ._version import UPSTREAM_VERSION, __version__


def environment():
    """The report as {title: text}, in order. Nothing here raises: a broken installation is what it is for."""
    report = {
        "Operating system": platform.platform(),
        "Python": platform.python_version(),
        "liger-kernel-c": f"{__version__} (API of Liger Kernel {UPSTREAM_VERSION}) in {os.path.dirname(LIB)}",
    }
    found = conflict()
    if found is not None:
        report["Conflict"] = f"upstream's liger-kernel {found[0]} is installed too; to settle it: {found[1]}"
    report.update(_torch())
    for package in ("transformers", "trl", "peft", "accelerate", "triton"):
        report[package] = _version(package)
    report.update(_libraries())
    return report


def print_env_report():
    print("Environment Report:")
    print("-------------------")
    for title, text in environment().items():
        print(f"{title}: {text}")


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _torch():
    import torch

    yield "torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'no'}, HIP {torch.version.hip or 'no'}"
    yield "CPU threads", f"{torch.get_num_threads()} of {os.cpu_count()}"
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(i)
            target = getattr(properties, "gcnArchName", None) if torch.version.hip else None
            target = target or f"sm_{properties.major}{properties.minor}"
            yield f"GPU {i}", f"{properties.name}, {target}, {properties.total_memory / 2**30:.0f} GiB"
    else:
        yield "GPU", "none that torch can use"
    warning = driver_warning()
    if warning:
        yield "Driver", warning


def _libraries():
    info = build_info()
    if not info:
        yield "Libraries", f"not built ({LIB} is empty). {REBUILD}"
        return
    yield (
        "Built with",
        f"torch {info['torch']}, {info['compiler']}" + (f", nvcc {info['nvcc']}" if info["nvcc"] else ""),
    )
    for name, what in info["libraries"].items():
        missing = "" if os.path.exists(os.path.join(LIB, name)) else " MISSING"
        yield f"Library {name}", what + missing
    for part, why in info["skipped"].items():
        yield f"Skipped {part}", why
    yield "CPU level in use", _cpu_level()


def _cpu_level():
    import torch

    from . import _load

    try:
        _load.libraries()
        # The very file that is loaded: opening another copy would register the ops twice and abort.
        folder = torch.ops.liger.__dict__.get("loaded_from", LIB)
        isa = ctypes.CDLL(os.path.join(folder, "libliger_torch_cpu.so")).liger_cpu_isa
        isa.restype = ctypes.c_char_p
        cap = os.environ.get("LIGER_ISA_MAX")
        return isa().decode() + (f" (LIGER_ISA_MAX={cap})" if cap else "")
    except (ImportError, OSError, AttributeError) as e:
        return f"unknown: {e}"


if __name__ == "__main__":
    print_env_report()
