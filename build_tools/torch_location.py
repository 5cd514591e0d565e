"""Finds the torch to build against without importing it, also from inside pip's isolated build environment.

pip (and uv) hide the interpreter's own site-packages while they build. A torch downloaded only for the build
would be another one than the torch that later loads our libraries, and up to 3 GB: look past the isolation.
"""

import ast
import importlib.machinery
import importlib.util
import os
import re
import site
import sys
import sysconfig
from typing import NamedTuple

MINIMUM = (2, 10)


class Torch(NamedTuple):
    path: str  # the package's folder
    version: str
    cuda: str | None  # torch.version.cuda, None for builds without CUDA
    hip: str | None

    @property
    def new_enough(self):
        numbers = re.findall(r"\d+", self.version)[:2]
        return tuple(map(int, numbers)) >= MINIMUM


def find_torch():
    """The torch that `python -c "import torch"` would import outside the build, or None."""
    for folders in (sys.path, _real_site_packages()):
        spec = importlib.machinery.PathFinder.find_spec("torch", folders)
        if spec is not None and spec.submodule_search_locations:
            path = os.path.abspath(list(spec.submodule_search_locations)[0])
            if os.path.exists(os.path.join(path, "version.py")):
                return _describe(path)
    return None


def _describe(path):
    """Reads torch/version.py: importing torch costs seconds and, isolated, lacks its dependencies."""
    names = {"__version__": "0", "cuda": None, "hip": None}
    with open(os.path.join(path, "version.py"), encoding="utf-8") as f:
        for node in ast.parse(f.read()).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            for target in targets:
                if getattr(target, "id", None) in names and isinstance(
                    getattr(node, "value", None), ast.Constant
                ):
                    names[target.id] = node.value.value
    return Torch(path, names["__version__"], names["cuda"], names["hip"])


def _real_site_packages():
    """Site-packages of the building interpreter, an activated environment, the user and the system."""
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    prefix = os.environ.get(
        "VIRTUAL_ENV"
    )  # uv and `python -m build` run the build in an environment of their own
    if prefix:
        folders += [
            sysconfig.get_path(key, vars={"base": prefix, "platbase": prefix})
            for key in ("purelib", "platlib")
        ]
    if _sees_system_packages():
        folders.append(site.getusersitepackages())
        folders += site.getsitepackages([sys.base_prefix])  # knows Debian's dist-packages
        folders.append(
            sysconfig.get_path("purelib", vars={"base": sys.base_prefix, "platbase": sys.base_prefix})
        )
    return [f for f in dict.fromkeys(folders) if f]


def _sees_system_packages():
    if sys.prefix == sys.base_prefix:
        return True
    try:
        with open(os.path.join(sys.prefix, "pyvenv.cfg"), encoding="utf-8") as f:
            return re.search(r"^include-system-site-packages\s*=\s*true", f.read(), re.I | re.M) is not None
    except OSError:
        return False
