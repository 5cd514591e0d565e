"""Wheel, sdist, editable install: two names, nothing left behind. The package's import."""

import filecmp
import os
import re
import shutil
import subprocess
import sys
import tarfile
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

import liger_kernel
from liger_kernel import _load, _upstream

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VERSION, UPSTREAM = "0.8.5.1", "0.8.5"
QUIET_PIP = ["-m", "pip", "--disable-pip-version-check", "--no-input", "--no-python-version-warning"]


def python(*args, cwd=ROOT, check=True, **env):
    """The interpreter of the tests with a clean path; an environment value of None unsets the variable."""
    env = {k: v for k, v in {**os.environ, "PYTHONPATH": "", **env}.items() if v is not None}
    done = subprocess.run([sys.executable, *args], cwd=cwd, capture_output=True, text=True, env=env)
    assert done.returncode == 0 or not check, done.stdout + done.stderr
    return done


class Environment:
    """An empty virtual environment. torch comes from the testing interpreter, by PYTHONPATH where needed."""

    def __init__(self, folder):
        python("-m", "venv", "--without-pip", str(folder))
        self.python = str(folder / "bin" / "python")
        self.site = self.run("import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()

    def run(self, code, check=True, **env):
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | env
        done = subprocess.run([self.python, "-c", code], capture_output=True, text=True, cwd="/", env=env)
        assert done.returncode == 0 or not check, done.stderr
        return done

    def pip(self, *args, check=True):
        return python(*QUIET_PIP, "--python", self.python, *args, check=check, cwd="/")

    def install(self, *wheels, **kwargs):
        return self.pip("install", "--no-index", "--no-deps", *map(str, wheels), **kwargs)

    def files(self):
        return sorted(
            os.path.join(d, f) for d, _, names in os.walk(self.site) for f in names if "__pycache__" not in d
        )


def reuse_objects(tree):
    """Gives `tree` this tree's objects and equal sources their times: the build then only links."""
    native = os.path.join(ROOT, "build", "native")
    if os.path.isdir(native):
        shutil.copytree(native, tree / "build" / "native")
    for folder, _, names in os.walk(tree / "csrc"):
        for name in names:
            copy = os.path.join(folder, name)
            source = os.path.join(ROOT, os.path.relpath(copy, tree))
            if filecmp.cmp(source, copy, shallow=False):
                os.utime(copy, ns=(os.stat(source).st_atime_ns, os.stat(source).st_mtime_ns))


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """An sdist, and a wheel and an editable wheel of the unpacked sdist, each through our backend.

    Not of this tree: its libraries may have been built for a GPU, elsewhere or with other options.
    """
    pytest.importorskip("setuptools", minversion="77")
    if not shutil.which("gcc"):
        pytest.skip("no gcc here")
    folder = tmp_path_factory.mktemp("dist")
    code = "import sys; from build_tools import backend as b; print(getattr(b, sys.argv[1])(sys.argv[2]))"
    python("-c", code, "build_sdist", str(folder))
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # not in 3.11.2, Debian 12's
        tar.extractall(folder / "unpacked", **safe)
    (tree,) = (folder / "unpacked").iterdir()
    reuse_objects(tree)
    # A stale module and library, as an earlier build in this tree would leave them.
    stale = (
        tree
        / "build"
        / f"lib.{__import__('sysconfig').get_platform()}-{sys.implementation.cache_tag}"
        / "liger_kernel"
    )
    (stale / "lib").mkdir(parents=True)
    (stale / "gone.py").write_text("")
    (stale / "lib" / "libliger_cuda.so").write_text("")
    python("-c", code, "build_wheel", str(folder), cwd=tree, LIGER_CUDA="0")
    (folder / "editable").mkdir()
    python("-c", code, "build_editable", str(folder / "editable"), cwd=tree, LIGER_CUDA="0")
    return folder


@pytest.fixture(scope="module")
def wheel(dist):
    (path,) = dist.glob("*.whl")
    return path


@pytest.fixture
def environment(tmp_path):
    return Environment(tmp_path / "venv")


def upstream_wheel(folder, version):
    """Stands for upstream's wheel: same distribution, same package folder."""
    info = f"liger_kernel-{version}.dist-info"
    path = folder / f"liger_kernel-{version}-py3-none-any.whl"
    files = {
        "liger_kernel/__init__.py": "UPSTREAM = True\n",
        "liger_kernel/only_upstream.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: liger_kernel\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/top_level.txt": "liger_kernel\n",
    }
    with zipfile.ZipFile(path, "w") as z:
        for name, text in files.items():
            z.writestr(name, text)
        z.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"]))
    return path


def test_wheel_serves_every_python_and_holds_no_stale_file(wheel):
    assert wheel.name.startswith(f"liger_kernel_c-{VERSION}-py3-none-linux_")
    names = zipfile.ZipFile(wheel).namelist()
    assert sorted(n for n in names if n.startswith("liger_kernel/lib/")) == [
        "liger_kernel/lib/build_info.json",
        "liger_kernel/lib/libliger_torch_cpu.so",
    ]
    assert "liger_kernel/gone.py" not in names
    tops = {n.split("/")[0] for n in names}
    assert tops == {"liger_kernel", f"liger_kernel_c-{VERSION}.dist-info", f"liger_kernel_c-{VERSION}.data"}
    packed = {n for n in names if n.startswith("liger_kernel/") and n.endswith(".py")}
    assert packed >= {p.relative_to(ROOT).as_posix() for p in Path(ROOT, "liger_kernel").rglob("*.py")}


def test_wheel_answers_for_both_names(wheel, environment):
    environment.install(wheel)
    code = (
        "from importlib.metadata import version, packages_distributions as p\n"
        "names = sorted(p()['liger_kernel'])\n"
        "print(version('liger_kernel'), version('liger-kernel'), version('liger-kernel-c'), names)"
    )
    assert (
        environment.run(code).stdout.strip()
        == f"{UPSTREAM} {UPSTREAM} {VERSION} ['liger-kernel', 'liger-kernel-c']"
    )
    satisfied = environment.pip("install", "--no-index", "--no-deps", "liger-kernel>=0.8.2")
    assert "already satisfied" in satisfied.stdout


def test_installed_wheel_works(wheel, environment):
    environment.install(wheel)
    code = (
        "import sys, liger_kernel; assert liger_kernel.__file__.startswith(sys.prefix)\n"
        "import torch, liger_kernel.ops\n"
        "from liger_kernel.ops import LigerRMSNormFunction as f\n"
        "y = f.apply(torch.full((2, 8), 3.0), torch.ones(8), 0.0)\n"
        "print(torch.allclose(y, torch.ones(2, 8)), liger_kernel.__version__)"
    )
    torch_site = os.path.dirname(os.path.dirname(torch.__file__))
    out = environment.run(code, PYTHONPATH=os.pathsep.join([environment.site, torch_site]))
    assert out.stdout.split() == ["True", VERSION] and "Warning" not in out.stderr


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_uninstall_leaves_nothing(kind, dist, environment):
    before = environment.files()
    environment.install(next((dist if kind == "wheel" else dist / "editable").glob("*.whl")))
    assert any("liger_kernel-0.8.5.dist-info" in f for f in environment.files())
    environment.pip("uninstall", "-y", "liger-kernel-c")
    assert environment.files() == before
    left = os.listdir(environment.site) if os.path.isdir(environment.site) else []  # pip removes an empty one
    assert not [d for d in left if "liger" in d]


def test_editable_install_imports_its_tree_and_answers_for_both_names(dist, environment):
    (editable,) = (dist / "editable").glob("*.whl")
    environment.install(editable)
    code = (
        "from importlib.metadata import version, packages_distributions as p; import liger_kernel\n"
        "ours = 'liger-kernel-c' in p()['liger_kernel']\n"
        "print(version('liger_kernel'), version('liger-kernel-c'), ours, liger_kernel.__file__)"
    )
    out = environment.run(code)
    (tree,) = (dist / "unpacked").iterdir()
    assert out.stdout.split() == [
        UPSTREAM,
        VERSION,
        "True",
        str(tree / "liger_kernel" / "__init__.py"),
    ]
    assert "Warning" not in out.stderr


@pytest.mark.parametrize("version", ["0.8.4", UPSTREAM])
def test_upstream_first_then_ours_warns_and_the_command_settles_it(version, wheel, environment, tmp_path):
    before = environment.files()
    environment.install(upstream_wheel(tmp_path, version))
    environment.install(wheel)
    out = environment.run("import liger_kernel, liger_kernel._version; from liger_kernel import __version__")
    assert out.stderr.count("are both installed") == 1
    assert f"liger-kernel {version} (upstream" in out.stderr
    command = re.search(
        r"To keep liger-kernel-c: pip (uninstall -y .*) && pip install liger-kernel-c\n", out.stderr
    )[1]
    environment.pip(*command.split())
    assert environment.files() == before
    environment.install(wheel)
    out = environment.run("import liger_kernel; print(liger_kernel.__version__)")
    assert out.stdout.strip() == VERSION and out.stderr == ""


def test_ours_first_then_upstream_is_refused_and_ours_stays(wheel, environment, tmp_path):
    """pip would have to remove our second name first, which belongs to liger-kernel-c."""
    environment.install(wheel)
    before = environment.files()
    done = environment.install(upstream_wheel(tmp_path, "0.8.1"), check=False)
    assert done.returncode != 0 and "RECORD" in done.stderr and "liger-kernel-c" in done.stderr
    assert environment.files() == before
    assert environment.run("import liger_kernel; print(liger_kernel.__version__)").stdout.strip() == VERSION


def test_upstream_forced_beside_ours_is_seen(wheel, environment, tmp_path):
    """Installers that do not ask: upstream's __init__ then runs, but what is left of ours still knows."""
    environment.install(wheel)
    environment.install("--ignore-installed", upstream_wheel(tmp_path, "0.8.1"))
    out = environment.run("import liger_kernel._upstream as u; u.warn_if_both_installed()")
    assert "liger-kernel 0.8.1 (upstream" in out.stderr


# The package's import --------------------------------------------------------------------------------------


def test_import_is_light():
    code = (
        "import sys, time, torch; t = time.perf_counter(); import liger_kernel; t = time.perf_counter() - t\n"
        "heavy = [m for m in ('transformers', 'triton', 'liger_kernel.ops') if m in sys.modules]\n"
        "print(t, torch.cuda.is_initialized(), heavy)"
    )
    runs = [python("-c", code).stdout.split() for _ in range(2)]
    assert min(float(seconds) for seconds, *_ in runs) < 0.2
    assert runs[0][1:] == ["False", "[]"]


def test_every_name_of_the_package_is_there():
    code = "import liger_kernel as k; print([n for n in (*k.__all__, 'functional') if not hasattr(k, n)])"
    assert python("-c", code).stdout.strip() == "[]"


def test_import_of_the_ops_needs_no_transformers_and_starts_no_cuda():
    code = (
        "import sys, torch, liger_kernel.ops\n"
        "print([m for m in ('transformers', 'triton') if m in sys.modules], torch.cuda.is_initialized())"
    )
    assert python("-c", code).stdout.split() == ["[]", "False"]


def test_missing_libraries_say_how_to_build(monkeypatch, tmp_path):
    monkeypatch.setattr(_load, "LIB", str(tmp_path))
    with pytest.raises(
        ImportError, match=r"libliger_torch_cpu\.so is missing.*setup\.py build_ext --inplace"
    ):
        _load._load_cpu()


def test_broken_library_is_named(monkeypatch, tmp_path):
    (tmp_path / "libliger_torch_cpu.so").write_text("not a library")
    monkeypatch.setattr(_load, "LIB", str(tmp_path))
    with pytest.raises(ImportError, match=r"does not load with torch .*file too short"):
        _load._load_cpu()


@pytest.mark.parametrize("version", ["2.9.1+cu128", "1.13.0"])
def test_old_torch_says_what_to_install(monkeypatch, version):
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(ImportError, match=r"needs torch >= 2\.10, found .*pip install -U 'torch>=2\.10'"):
        _load.libraries()


@pytest.mark.parametrize("version", ["2.10.0", "2.13.0+cpu", "3.0.0a0+git1"])
def test_new_torch_is_accepted(monkeypatch, version):
    monkeypatch.setattr(torch, "__version__", version)
    _load._check_torch_version()


@pytest.mark.parametrize(
    "driver, built, complains", [(12080, "13.0", True), (13000, "13.2", False), (0, "13.0", False)]
)
def test_old_driver(monkeypatch, driver, built, complains):
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: driver, raising=False)
    monkeypatch.setattr(_load, "build_info", lambda: {"nvcc": built})
    text = _load.driver_warning()
    assert (text is not None) == complains
    if complains:
        assert "supports CUDA 12.8" in text and "built with CUDA 13.0" in text and "Update the driver" in text


def test_second_copy_of_the_package_does_not_register_twice(tmp_path):
    """A second registration would abort the process."""
    shutil.copytree(
        os.path.join(ROOT, "liger_kernel"),
        tmp_path / "liger_kernel",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    code = (
        "import sys, liger_kernel.ops\n"
        "for name in [m for m in sys.modules if m.split('.')[0] == 'liger_kernel']: del sys.modules[name]\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from liger_kernel import _load; _load.libraries(); print(_load.LIB)"
    )
    out = python("-c", code, str(tmp_path))
    assert out.stdout.strip() == str(tmp_path / "liger_kernel" / "lib")
    assert "was registered from" in out.stderr


def test_gpu_tensors_without_a_gpu_library_say_what_to_build():
    """Called through the GPU's dispatch key with CPU tensors: this needs no GPU."""
    code = (
        "import torch, liger_kernel.ops\n"
        "from liger_kernel import _load\n"
        "_load._explain_gpu_calls('built without CUDA kernels (nvcc was not found)', 'cuda')\n"
        "schema = torch.ops.liger.rms_norm_fwd.default._schema\n"
        "values = {'bool': False, 'int': 0, 'str': '', 'float': 1.0}\n"
        "args = [values.get(str(a.type), torch.ones(2, 4)) for a in schema.arguments]\n"
        "cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)\n"
        "torch.ops.liger.rms_norm_fwd.default.redispatch(cuda, *args)"
    )
    if torch.version.cuda and os.path.exists(os.path.join(_load.LIB, "libliger_torch_cuda.so")):
        pytest.skip("the GPU library is there")
    out = python("-c", code, check=False)
    assert "nvcc was not found). Build from source with nvcc and LIGER_CUDA=1" in out.stderr


def test_env_report_names_what_matters():
    out = python("-m", "liger_kernel.env_report", LIGER_ISA_MAX="2").stdout
    for text in (VERSION, UPSTREAM, torch.__version__, "libliger_torch_cpu.so", "CPU level in use: "):
        assert text in out
    assert "unknown" not in out and "MISSING" not in out
    assert "x86-64-v3" not in out or "CPU level in use: x86-64-v2 (LIGER_ISA_MAX=2)" in out


def test_unknown_attribute_raises():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        liger_kernel.nonsense  # noqa: B018


def test_no_warning_without_upstream(monkeypatch):
    monkeypatch.setattr(_upstream, "conflict", lambda: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _upstream.warn_if_both_installed()
