"""The build itself: what is compiled again and when, what is never packed, what an error says."""

import os
import shutil
import stat
import subprocess
import sys

import pytest
import torch

from build_tools import backend, native, torch_location
from build_tools.compile_cache import BuildError
from build_tools.native import NativeLibraries

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
HEADER = '#define VALUE {}\n#define PUBLIC __attribute__((visibility("default")))\n'
KERNEL = '#include "one.h"\n#if LIGER_BASE_UNIT\nPUBLIC {}\n#else\ntypedef int unused;\n#endif\n'
pytestmark = pytest.mark.skipif(not shutil.which("gcc"), reason="no gcc here")
NO_GPU = {"LIGER_CUDA": "0", "LIGER_HIP": "0", "MAX_JOBS": "2"}


@pytest.fixture
def tree(tmp_path):
    """A source tree with one kernel, its header and one glue file: a build takes a second."""
    (tmp_path / "csrc/kernels").mkdir(parents=True)
    (tmp_path / "csrc/torch").mkdir()
    (tmp_path / "csrc/exports.map").write_text("{ global: liger_*; local: *; };\n")
    (tmp_path / "csrc/kernels/one.h").write_text(HEADER.format(1))
    (tmp_path / "csrc/kernels/one.c").write_text(KERNEL.format("int liger_one(void) { return VALUE; }"))
    (tmp_path / "csrc/torch/glue.cpp").write_text(
        'extern "C" __attribute__((visibility("default"))) int liger_glue() { return LIGER_GPU; }\n'
    )
    return tmp_path


def build(tree, **env):
    libraries = NativeLibraries(str(tree), str(tree / "work"), str(tree / "lib"), {**NO_GPU, **env})
    libraries.build()
    return libraries


def call(tree, function):
    """In a fresh process, since a loaded library stays loaded."""
    code = f"import ctypes; print(ctypes.CDLL('{tree}/lib/libliger_torch_cpu.so').{function}())"
    env = {**os.environ, "LD_LIBRARY_PATH": os.path.join(os.path.dirname(torch.__file__), "lib")}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    ).stdout.strip()


def test_second_build_compiles_nothing_and_says_so(tree, capsys):
    first = build(tree)
    assert first.cache.n_run > 0 and call(tree, "liger_one") == "1"
    capsys.readouterr()
    again = build(tree)
    assert again.cache.n_run == 0 and again.cache.n_kept == first.cache.n_run
    summary = capsys.readouterr().out
    assert "built    libliger_torch_cpu.so" in summary
    assert "skipped  CUDA" in summary and "LIGER_CUDA=0" in summary


def test_changed_header_recompiles_its_users_alone(tree):
    build(tree)
    (tree / "csrc/kernels/one.h").write_text(HEADER.format(23))
    again = build(tree)
    assert call(tree, "liger_one") == "23"
    n_kernel_objects = len(again._cpu_levels()) + 1  # float for each, double once
    assert again.cache.n_run == n_kernel_objects + 1  # and the link; not the glue


def test_changed_flags_recompile(tree):
    first = build(tree)
    assert build(tree, CC="gcc -DVARIANT").cache.n_run > len(first._cpu_levels())


def test_removed_source_leaves_the_library(tree):
    (tree / "csrc/kernels/two.c").write_text(KERNEL.format("int liger_two(void) { return 2; }"))
    build(tree)
    assert call(tree, "liger_two") == "2"
    (tree / "csrc/kernels/two.c").unlink()
    build(tree)
    with pytest.raises(subprocess.CalledProcessError):
        call(tree, "liger_two")


def test_stale_library_is_removed_and_a_loaded_one_keeps_its_file(tree):
    build(tree)
    (tree / "lib/libliger_cuda.so").write_text("from an earlier build")
    inode = os.stat(tree / "lib/libliger_torch_cpu.so").st_ino
    held = open(tree / "lib/libliger_torch_cpu.so", "rb")  # as a running process would
    before = held.read()
    (tree / "csrc/kernels/one.h").write_text(HEADER.format(3))
    build(tree)
    assert sorted(os.listdir(tree / "lib")) == ["build_info.json", "libliger_torch_cpu.so"]
    assert os.stat(tree / "lib/libliger_torch_cpu.so").st_ino != inode
    held.seek(0)
    assert held.read() == before
    held.close()


def test_compiler_error_shows_its_message_and_the_file(tree):
    (tree / "csrc/kernels/broken.c").write_text("int liger_broken(void) { return undeclared_thing; }\n")
    with pytest.raises(BuildError) as e:
        build(tree)
    text = str(e.value)
    assert text.startswith("csrc/kernels/broken.c (")
    assert "undeclared_thing" in text and "The command was: gcc" in text


def test_warning_is_an_error_where_asked(tree):
    """By default not: a user's compiler may warn of more than ours."""
    with (tree / "csrc/torch/glue.cpp").open("a") as f:
        f.write("static int liger_f(int unused) { return 0; }\n")
    with pytest.raises(BuildError, match="unused"):
        build(tree, LIGER_WERROR="1")
    build(tree)


@pytest.mark.parametrize("env, text", [
    ({"CC": "no-such-compiler"}, "cannot run the compiler 'no-such-compiler'"),
    ({"LIGER_CUDA": "yes"}, "LIGER_CUDA='yes': allowed are auto, 0 and 1"),
    ({"LIGER_HIP": "auto"}, "LIGER_HIP='auto': allowed are 0 and 1"),
])  # fmt: skip
def test_wrong_environment_says_what_is_allowed(tree, env, text):
    with pytest.raises(BuildError) as e:
        build(tree, **env)
    assert text in str(e.value)


@pytest.fixture
def fake_nvcc(tree):
    """Answers questions as nvcc does and knows no GPU code; nothing is compiled with it."""
    path = tree / "nvcc"
    path.write_text(
        "#!/bin/sh\ncase $1 in --version) echo 'Cuda compilation tools, release 12.9, V12.9.1';;\n"
        "--list-gpu-code) echo sm_75; echo sm_80; echo sm_90; echo sm_90a; echo sm_120;; esac\n"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    (tree / "csrc/kernels/one.cu").write_text("")
    (tree / "csrc/kernels/one_sm90.cu").write_text("")
    return str(path)


def commands(tree, fake_nvcc, archs, monkeypatch):
    monkeypatch.setattr(native, "_output", lambda c: "" if c[0] == "nvidia-smi" else original(c))
    libraries = NativeLibraries(
        str(tree), str(tree / "work"), str(tree / "lib"), {"LIGER_CUDA_ARCHS": archs, "NVCC": fake_nvcc}
    )
    return {job[0]: job[2] for job in libraries._cuda_jobs(fake_nvcc)}


original = native._output


def test_cuda_archs(tree, fake_nvcc, monkeypatch):
    flags = commands(tree, fake_nvcc, "80;90+PTX", monkeypatch)["one_cuda.o"]
    assert [f for f in flags if "gencode" in f] == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ]
    assert "--compress-mode=size" in flags


def test_hopper_files_get_90a_for_90_only(tree, fake_nvcc, monkeypatch):
    flags = commands(tree, fake_nvcc, "8.0 9.0", monkeypatch)["one_sm90_cuda.o"]
    assert [f for f in flags if "gencode" in f] == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
    ]


def test_default_archs_are_those_nvcc_knows(tree, fake_nvcc, monkeypatch):
    flags = commands(tree, fake_nvcc, "", monkeypatch)["one_cuda.o"]
    assert [f.split(",code=")[1] for f in flags if "gencode" in f] == [
        "sm_75",
        "sm_80",
        "sm_90",
        "sm_120",
        "compute_120",
    ]


def test_unknown_arch_is_named(tree, fake_nvcc, monkeypatch):
    with pytest.raises(BuildError, match="does not know 70; it knows 75, 80, 90, 120"):
        commands(tree, fake_nvcc, "70;90", monkeypatch)


def test_auto_follows_torch_and_1_insists(tree, fake_nvcc, monkeypatch):
    def find(torch_cuda, **env):
        libraries = NativeLibraries(
            str(tree), str(tree / "work"), str(tree / "lib"), {"NVCC": fake_nvcc, **env}
        )
        libraries.torch = libraries.torch._replace(cuda=torch_cuda)
        return libraries._find_nvcc(), libraries.skipped.get("CUDA", "")

    assert find("13.0") == (fake_nvcc, "")
    assert find(None)[0] is None and "is not a CUDA build" in find(None)[1]
    assert find(None, LIGER_CUDA="1") == (fake_nvcc, "")
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    assert "nvcc was not found" in find("13.0")[1]
    with pytest.raises(BuildError, match="nvcc was not found"):
        find("13.0", LIGER_CUDA="1")


def test_torch_is_found_without_importing_it_and_behind_isolation():
    """pip's isolation takes site-packages from sys.path and leaves the interpreter as it is."""
    code = (
        "import sys; sys.path = [sys.argv[1], *(p for p in sys.path if 'site-packages' not in p)]\n"
        "from build_tools.torch_location import find_torch\n"
        "print(find_torch().version, 'torch' in sys.modules)"
    )
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    out = subprocess.run([sys.executable, "-c", code, ROOT], capture_output=True, text=True, env=env)
    assert out.stdout.split() == [torch.__version__, "False"], out.stderr


def test_backend_asks_for_torch_only_where_there_is_none(monkeypatch):
    assert not any(r.startswith("torch") for r in backend.get_requires_for_build_wheel())
    for found in (None, torch_location.Torch("/t", "2.9.1", None, None)):
        monkeypatch.setattr(backend, "find_torch", lambda found=found: found)
        assert "torch>=2.10" in backend.get_requires_for_build_wheel()
        assert "torch>=2.10" in backend.get_requires_for_build_editable()


def test_old_torch_is_refused(tree, monkeypatch):
    monkeypatch.setattr(native, "find_torch", lambda: torch_location.Torch("/t", "2.9.1+cpu", None, None))
    with pytest.raises(
        BuildError, match=r"torch 2\.9\.1\+cpu in /t is too old: liger-kernel-c needs torch >= 2\.10"
    ):
        build(tree)
