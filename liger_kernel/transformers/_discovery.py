"""Finds the operator modules of this package, so that adding `transformers/<op>.py` touches no list."""

import importlib
import pkgutil

# Not operators: they patch Hugging Face models and need Hugging Face transformers, or collect the operators
# themselves.
_NOT_OPERATORS = {"auto_model", "functional", "monkey_patch", "trainer_integration"}


def operator_modules():
    """The imported modules `liger_kernel.transformers.<op>`, in alphabetical order."""
    package = importlib.import_module(__package__)
    names = sorted(info.name for info in pkgutil.iter_modules(package.__path__) if not info.ispkg)
    names = [name for name in names if not name.startswith("_") and name not in _NOT_OPERATORS]
    return [importlib.import_module(f"{__package__}.{name}") for name in names]
