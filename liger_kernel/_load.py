"""Loads the compiled libraries, once per process."""

import os

import torch


def libraries():
    """Registers `torch.ops.liger.*`; does nothing if they are registered already."""
    if not hasattr(torch.ops.liger, "rms_norm_fwd"):
        torch.ops.load_library(os.path.join(os.path.dirname(__file__), "lib", "libliger_torch_cpu.so"))
