"""Finds the modules of this package, so that adding `chunked_loss/<loss>.py` touches no list."""

import importlib
import pkgutil


def loss_modules():
    """The imported modules `liger_kernel.chunked_loss.<loss>`, in alphabetical order."""
    package = importlib.import_module(__package__)
    names = sorted(info.name for info in pkgutil.iter_modules(package.__path__))
    names = [name for name in names if not name.startswith("_") and name != "functional"]
    return [importlib.import_module(f"{__package__}.{name}") for name in names]
