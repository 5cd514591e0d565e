"""Notices upstream's own distribution `liger-kernel` beside ours: two packages cannot share one folder."""

import importlib.metadata
import warnings

MARKER = (
    "liger_kernel_c.txt"  # lies in the second .dist-info that build_tools/second_name.py puts into our wheel
)


def conflict():
    """(upstream's version, the command that settles it), or None where upstream is not installed."""
    for dist in importlib.metadata.distributions(name="liger-kernel"):
        ours, recorded = dist.read_text(MARKER) is not None, dist.read_text("RECORD") is not None
        if ours and not recorded:
            continue
        # pip uninstalls whichever liger-kernel it finds first. Ours has no RECORD, so it has to go before
        # upstream's, unless it was unpacked over upstream's of the same version: that RECORD serves both.
        names = "liger-kernel liger-kernel-c" if ours else "liger-kernel-c liger-kernel"
        return dist.version, f"pip uninstall -y {names} && pip install liger-kernel-c"
    return None


def warn_if_both_installed():
    found = conflict()
    if found is not None:
        version, command = found
        warnings.warn(
            f"liger-kernel {version} (upstream, Triton kernels) and liger-kernel-c are both installed. "
            f"They share the folder liger_kernel, so files are mixed. To keep liger-kernel-c: {command}",
            stacklevel=3,
        )
