"""The setuptools commands: build the libraries, pack them for any Python, under upstream's name too."""

import fcntl
import glob
import os
import shutil

from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.command.editable_wheel import editable_wheel
from setuptools.errors import CompileError

from build_tools.compile_cache import BuildError
from build_tools.native import NativeLibraries
from build_tools.second_name import add_second_name, write_source_tree_metadata

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class CleanBuild(build):
    def run(self):
        # Whatever lies here is packed, also the modules and libraries of an earlier build.
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class NativeBuild(build_ext):
    def run(self):
        package_root = ROOT if self.inplace else os.path.abspath(self.build_lib)
        # Not build_temp: it is a new folder in every editable install, and objects serve every Python.
        work = os.path.join(ROOT, "build", "native")
        os.makedirs(work, exist_ok=True)
        with open(os.path.join(work, ".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                NativeLibraries(ROOT, work, os.path.join(package_root, "liger_kernel", "lib")).build()
            except BuildError as e:
                raise CompileError(f"\n{e}") from None
        if self.inplace:
            write_source_tree_metadata(
                os.path.join(ROOT, "build", "metadata"), self.distribution.get_version()
            )

    def get_outputs(self):
        return []

    def get_output_mapping(self):
        return {}

    def get_source_files(self):
        return []


class TwoNameWheel(bdist_wheel):
    def get_tag(self):
        return "py3", "none", super().get_tag()[2]

    def run(self):
        super().run()
        add_second_name(self.distribution.dist_files[-1][2])


class TwoNameEditable(editable_wheel):
    def run(self):
        super().run()
        for wheel in glob.glob(os.path.join(self.dist_dir, "*.whl")):
            add_second_name(wheel)
