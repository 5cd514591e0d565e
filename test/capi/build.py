"""Builds liger_capi into test/build/capi and prints its path. Its kernels are the package build's objects."""

import pathlib
import sys
import sysconfig

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import pybind11  # noqa: E402

from build_tools.compile_cache import CompileCache  # noqa: E402
from build_tools.native import NativeLibraries  # noqa: E402


def build():
    native = NativeLibraries(str(ROOT), str(ROOT / "build" / "native"), None)
    (ROOT / "build" / "native").mkdir(parents=True, exist_ok=True)
    levels = native._cpu_levels()
    kernels = native.cache.run_all(
        [j for source in native._sources("kernels/*.c") for j in native._kernel_jobs(source, levels)]
    )
    work = ROOT / "test" / "build" / "capi"
    work.mkdir(parents=True, exist_ok=True)
    includes = [f"-I{p}" for p in ("csrc", pybind11.get_include(), sysconfig.get_path("include"))]
    flags = ["-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", *includes]
    cache = CompileCache(str(work), str(ROOT), native.jobs)
    bindings = cache.run_all(
        [
            (p.stem + ".o", f"test/capi/{p.name}", [*native.cxx, *flags, "-c", str(p.relative_to(ROOT))])
            for p in sorted((ROOT / "test" / "capi").glob("*.cpp"))
        ]
    )
    name = "liger_capi" + sysconfig.get_config_var("EXT_SUFFIX")
    link = [*native.cxx, "-shared", *bindings, *kernels, "-lm"]
    return pathlib.Path(cache.run(name, name, link, (), [*bindings, *kernels]))


if __name__ == "__main__":
    print(build())
