"""What an implementation needs of the machine."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch

PYTORCH_FALLBACK = "pytorch"  # the name upstream gives plain PyTorch; nothing is registered under it here


@dataclass(frozen=True)
class Capability:
    """min_cc, max_cc: compute capabilities such as (9, 0), inclusive. modules: what must be importable.
    requires_cuda: whether the device must be a GPU. predicate: called with the device, for anything else.
    """

    min_cc: tuple[int, int] | None = None
    max_cc: tuple[int, int] | None = None
    modules: tuple[str, ...] = ()
    requires_cuda: bool = False
    predicate: Callable[..., bool] | None = None

    def reason_if_unsatisfied(self, device=None) -> str | None:
        """Why it does not run on `device` (default: the current GPU, if there is one), or None."""
        for module in self.modules:
            if importlib.util.find_spec(module) is None:
                return f"the module {module!r} is not installed"
        device = torch.device(device) if device is not None else None
        on_gpu = torch.cuda.is_available() if device is None else device.type == "cuda"
        if not on_gpu:
            if self.requires_cuda or self.min_cc or self.max_cc:
                return f"needs a CUDA device, got {device or 'none'}"
        elif self.min_cc or self.max_cc:
            cc = torch.cuda.get_device_capability(device)
            if self.min_cc and cc < tuple(self.min_cc):
                return f"needs compute capability {tuple(self.min_cc)} or above, got {cc}"
            if self.max_cc and cc > tuple(self.max_cc):
                return f"needs compute capability {tuple(self.max_cc)} or below, got {cc}"
        if self.predicate is not None and not self.predicate(device):
            return "its predicate says no"
        return None

    def is_satisfied(self, device=None) -> bool:
        """Whether `reason_if_unsatisfied(device)` is None."""
        return self.reason_if_unsatisfied(device) is None
