"""Notices upstream's own distribution `liger-kernel` beside ours: two packages cannot share one folder."""

import importlib.metadata
import warnings

MARKER = (
    "liger_kernel_c.txt"  # lies in the second .dist-info that build_tools/second_name.py puts into our wheel
)
SETTLE = "pip uninstall -y liger-kernel liger-kernel-c && pip install liger-kernel-c"


def upstream_version():
    """Version of upstream's distribution if it is installed, else None.

    Our second name has the marker and no RECORD. Both in one folder: ours was unpacked over upstream's.
    """
    for dist in importlib.metadata.distributions(name="liger-kernel"):
        if dist.read_text(MARKER) is None or dist.read_text("RECORD") is not None:
            return dist.version
    return None


def warn_if_both_installed():
    version = upstream_version()
    if version is not None:
        warnings.warn(
            f"liger-kernel {version} (upstream's, with Triton kernels) and liger-kernel-c are both installed. They share "
            f"the folder liger_kernel, so files of the two are mixed. To keep liger-kernel-c: {SETTLE}",
            stacklevel=3,
        )
