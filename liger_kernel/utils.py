"""What the machine has: device, its family, communication backend, optional packages. Upstream's names."""

import functools
import importlib.metadata
import importlib.util

import torch

PEFT_AVAILABLE = importlib.util.find_spec("peft") is not None

# (compute capability) or the compiler's target -> the family's name; unknown ones go by the target itself
_NVIDIA_FAMILIES = {
    "volta_turing": [(7, 0), (7, 5)],
    "ampere_ada": [(8, 0), (8, 6), (8, 9)],
    "hopper": [(9, 0)],
    "blackwell": [(10, 0)],
    "blackwell_ultra": [(10, 3)],
    "blackwell_consumer": [(12, 0)],
}
_AMD_FAMILIES = {
    "cdna": ["gfx908"],
    "cdna2": ["gfx90a"],
    "cdna3": ["gfx940", "gfx941", "gfx942"],
    "rdna3": ["gfx1100", "gfx1101", "gfx1102"],
}


def is_peft_available():
    return PEFT_AVAILABLE


def is_npu_available() -> bool:
    """Whether torch_npu and an Ascend device are there."""
    if importlib.util.find_spec("torch_npu") is None:
        return False
    try:
        import torch_npu  # noqa: F401  (adds torch.npu)

        return torch.npu.is_available()
    except (ImportError, AttributeError, RuntimeError):
        return False


def infer_device():
    """ "cuda" (NVIDIA and AMD), "npu", "xpu" or "cpu": the first one present."""
    if torch.cuda.is_available():
        return "cuda"
    if is_npu_available():
        return "npu"
    return "xpu" if torch.xpu.is_available() else "cpu"


def infer_comm_backend():
    """Name of the best torch.distributed backend of this torch build. RuntimeError if there is none."""
    dist = torch.distributed
    if dist.is_available():
        candidates = {
            "nccl": dist.is_nccl_available,
            "hccl": is_npu_available,
            "xccl": getattr(dist, "is_xccl_available", lambda: False),
            "mpi": dist.is_mpi_available,
            "gloo": dist.is_gloo_available,
        }
        for name, available in candidates.items():
            if available():
                return name
    raise RuntimeError(
        "torch.distributed has no backend here: none of nccl, hccl, xccl, mpi, gloo is available."
    )


@functools.cache
def infer_device_arch(device_id: int = 0) -> str:
    """Family of the device: "hopper", "cdna3", ...; its target ("sm_110") if unknown; "cpu", "xpu", "npu"."""
    device = infer_device()
    if device == "cuda" and torch.version.hip:
        target = torch.cuda.get_device_properties(device_id).gcnArchName.split(":")[0]
        return _family(_AMD_FAMILIES, target, target)
    if device == "cuda":
        capability = torch.cuda.get_device_capability(device_id)
        return _family(_NVIDIA_FAMILIES, capability, "sm_{}{}".format(*capability))
    return device


def _family(families, target, default):
    return next((name for name, targets in families.items() if target in targets), default)


def get_total_gpu_memory() -> int:
    """Memory of the current GPU in whole GiB. RuntimeError without a GPU."""
    device = infer_device()
    if device == "cpu":
        raise RuntimeError(
            "get_total_gpu_memory: no GPU found (torch sees neither a CUDA, an NPU nor an XPU device)."
        )
    module = getattr(torch, device)
    return module.get_device_properties(module.current_device()).total_memory // 2**30


def transformers_version_dispatch(
    required_version: str,
    before_fn,
    after_fn,
    before_args: tuple = (),
    after_args: tuple = (),
    before_kwargs: dict = None,
    after_kwargs: dict = None,
):
    """Calls `before_fn` if transformers is older than `required_version`, else `after_fn`."""
    from packaging.version import Version

    if Version(importlib.metadata.version("transformers")) < Version(required_version):
        return before_fn(*before_args, **(before_kwargs or {}))
    return after_fn(*after_args, **(after_kwargs or {}))
