"""Loads the compiled libraries, once per process, with errors that say what to do."""

import json
import os
import re
import warnings

import torch

_PACKAGE = os.path.dirname(os.path.abspath(__file__))
LIB = os.path.join(_PACKAGE, "lib")
MINIMUM_TORCH = (2, 10)
REBUILD = "To settle it: `pip install --force-reinstall --no-deps liger-kernel-c`."
# In a clone Python takes its liger_kernel before the one that `pip install .` has just installed.
if os.path.exists(os.path.join(os.path.dirname(_PACKAGE), "build_tools", "native.py")):
    REBUILD = (
        "This is a source tree: `pip install -e .` or `python setup.py build_ext --inplace` there builds "
        "them; if liger-kernel-c is installed elsewhere, start Python in another folder."
    )


def libraries():
    """Registers `torch.ops.liger.*`: CPU always, CUDA or HIP where torch has it and the library was built.

    Raises ImportError if torch is older than 2.10 or the CPU library is missing or does not load. A GPU
    library that does not load is a warning, since the CPU works; without one an op on a GPU tensor raises.
    """
    _check_torch_version()
    # The guard lies on torch's own object: a second registration aborts the process, whoever asks for it.
    namespace = torch.ops.liger
    loaded_from = namespace.__dict__.get("loaded_from")
    if loaded_from is not None or hasattr(namespace, "rms_norm_fwd"):
        if loaded_from not in (None, LIB):
            warnings.warn(
                f"torch.ops.liger was registered from {loaded_from}; {LIB} is not loaded.", stacklevel=2
            )
        return
    namespace.loaded_from = LIB
    try:
        _load_cpu()
    except ImportError:
        del namespace.loaded_from
        raise
    gpu = "cuda" if torch.version.cuda else "hip" if torch.version.hip else None
    if gpu is not None:
        _load_gpu(gpu)


def build_info():
    """What setup.py wrote beside the libraries: architectures, what was skipped and why. {} if not built."""
    try:
        with open(os.path.join(LIB, "build_info.json"), encoding="utf-8") as f:
            return json.load(f)
    except FileNotFoundError:
        return {}


def _check_torch_version():
    version = tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2])
    if version < MINIMUM_TORCH:
        needed = ".".join(map(str, MINIMUM_TORCH))
        raise ImportError(
            f"liger_kernel needs torch >= {needed}, found {torch.__version__}: "
            f"pip install -U 'torch>={needed}'"
        )


def _load_cpu():
    path = os.path.join(LIB, "libliger_torch_cpu.so")
    if not os.path.exists(path):
        raise ImportError(f"liger_kernel's libraries are not built: {path} is missing. {REBUILD}")
    try:
        torch.ops.load_library(path)
    except OSError as e:
        why = f"{path} does not load with torch {torch.__version__}: {_cause(e)}"
        raise ImportError(f"{why}. {REBUILD}") from e


def _load_gpu(gpu):
    path = os.path.join(LIB, f"libliger_torch_{gpu}.so")
    if not os.path.exists(path):
        reason = build_info().get("skipped", {}).get(gpu.upper(), "the library is missing")
        _explain_gpu_calls(f"liger_kernel was built without {gpu.upper()} kernels ({reason})", gpu)
        return
    if gpu == "cuda":
        warning = driver_warning()
        if warning:
            warnings.warn(warning, stacklevel=4)
    try:
        torch.ops.load_library(path)
    except OSError as e:
        _explain_gpu_calls(f"{path} does not load with torch {torch.__version__}: {_cause(e)}", gpu)
        warnings.warn(f"liger_kernel works on the CPU only: {path} does not load: {_cause(e)}", stacklevel=4)


def _cause(error):
    """The linker's words; torch wraps them in an error that names the file only."""
    return error.__cause__ or error


def driver_warning():
    """Why no kernel can run with this NVIDIA driver, or None. Asks for its version only: no context."""
    built = re.match(r"(\d+)\.(\d+)", build_info().get("nvcc") or "")
    ask = getattr(torch._C, "_cuda_getDriverVersion", None)
    driver = ask() if ask else 0  # 12080 for 12.8; 0 without a driver
    if not built or not driver or driver // 1000 >= int(built[1]):
        return None
    return (
        f"The NVIDIA driver supports CUDA {driver // 1000}.{driver % 1000 // 10}, but liger_kernel's CUDA "
        f"library was built with CUDA {built[0]}: every liger_kernel op on a GPU will fail. Update the "
        f"driver, or build from source with the nvcc of CUDA {driver // 1000}: NVCC=/path/to/nvcc "
        "pip install --force-reinstall --no-deps --no-binary :all: liger-kernel-c"
    )


_gpu_errors = []  # keeps the registrations alive


def _explain_gpu_calls(why, gpu):
    """Without this a GPU tensor gets the dispatcher's list of backends, and no word on what to install."""
    compiler = {"cuda": "nvcc", "hip": "hipcc"}[gpu]
    text = f"{why}. Build from source with {compiler} and LIGER_{gpu.upper()}=1 in the environment."

    def raise_error(*args, **kwargs):
        raise NotImplementedError(text)

    library = torch.library.Library("liger", "IMPL", "CUDA")  # torch's key for both
    for name in torch._C._dispatch_get_all_op_names():
        if name.startswith("liger::"):
            library.impl(name.removeprefix("liger::"), raise_error)
    _gpu_errors.append(library)
