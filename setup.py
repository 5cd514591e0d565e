"""Builds the native libraries into liger_kernel/lib and packs a py3-none-<platform> wheel.

Options are environment variables, listed in build_tools/native.py.
"""

import os
import sys

from setuptools import Distribution, Extension, setup

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from build_tools.commands import CleanBuild, NativeBuild, TwoNameEditable, TwoNameWheel  # noqa: E402


class PlatformDistribution(Distribution):
    def has_ext_modules(self):  # the libraries are no Python extensions, but they tie the wheel to a platform
        return True


setup(
    distclass=PlatformDistribution,
    ext_modules=[Extension("liger_kernel._native", [])],  # only so that setuptools runs build_ext
    cmdclass={
        "build": CleanBuild,
        "build_ext": NativeBuild,
        "bdist_wheel": TwoNameWheel,
        "editable_wheel": TwoNameEditable,
    },
)
