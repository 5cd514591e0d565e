"""Each structural rule finds its fault and leaves correct code alone."""

import importlib.util
import os

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
spec = importlib.util.spec_from_file_location("structural_lint", os.path.join(ROOT, "tools", "lint.py"))
lint = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lint)

KERNEL = "csrc/kernels/some_op.cu"
FAULTS = [
    (lint.no_long_file, "a.py", "x = 1\n" * 401, "x = 1\n" * 400),
    (lint.no_torch_in_kernels, KERNEL, "#include <torch/all.h>", '#include "gpu.h"'),
    (lint.no_torch_in_kernels, KERNEL, '#include "../torch/liger_torch.h"', "/* #include <Python.h> */"),
    (lint.gpu_knowledge_only_in_gpu_h, KERNEL, "#if defined(__HIPCC__)", "/* hip has no shuffle mask */"),
    (lint.gpu_knowledge_only_in_gpu_h, KERNEL, "hipStream_t s;", "int chip;"),
    (lint.gpu_knowledge_only_in_gpu_h, KERNEL, "cudaGetLastError();", "GPU_RT(GetLastError)();"),
    (lint.gpu_knowledge_only_in_gpu_h, "csrc/kernels/a_sm90.cu", "hipLaunch();", "cudaLaunch();"),
    (lint.gpu_knowledge_only_in_gpu_h, KERNEL, "v = __shfl_xor_sync(m, v, 1);", "v = gpu_shfl_xor(v, 1);"),
    (lint.gpu_knowledge_only_in_gpu_h, KERNEL, "m = 0xffffffffu;", "m = 0xffff0000u;"),
    (lint.gpu_knowledge_only_in_gpu_h, KERNEL, "lane = threadIdx.x % 32;", "lane = threadIdx.x % GPU_LANES;"),
    (lint.no_int_offsets, KERNEL, "int i = row * n_cols;", "int64_t i = row * n_cols;"),
    (lint.no_int_offsets, KERNEL, "void f(int n_rows);", "void f(int64_t n_rows);"),
    (lint.no_int_offsets, KERNEL, "int64_t r = blockIdx.x * 4;", "int64_t r = (int64_t)blockIdx.x * 4;"),
    (lint.no_int_offsets, KERNEL, "int r = threads * blockIdx.x;", "int64_t n, r = n * blockIdx.x;"),
    (lint.no_int_offsets, KERNEL, "int i, int j; X[i * j + 1]", "int i, int64_t j; X[i * j + 1]"),
    (lint.no_data_in_grid_yz, KERNEL, "dim3 grid(1, n_rows);", "dim3 grid(n_rows, 2);"),
    (lint.no_data_in_grid_yz, KERNEL, "k<<<dim3(1, b), 32>>>();", "k<<<dim3(b, HEADS), 32>>>();"),
    (lint.no_data_in_grid_yz, KERNEL, "int r = blockIdx.y;", "int r = blockIdx.x;"),
    (lint.no_upward_import, "liger_kernel/ops/a.py", "from ..transformers import x", "from . import x"),
    (lint.no_upward_import, "liger_kernel/ops/a.py", "import liger_kernel.chunked_loss.x", "import torch"),
    (
        lint.no_upward_import,
        "liger_kernel/ops/a.py",
        "from transformers import x",
        "def f():\n  import transformers",
    ),
    (
        lint.no_upward_import,
        "liger_kernel/chunked_loss/a.py",
        "from liger_kernel import transformers",
        "from ..ops import x",
    ),
    (lint.no_upward_import, "liger_kernel/utils.py", "from .ops import x", "from ._load import x"),
    (lint.no_upward_import, "liger_kernel/ops/a.py", "from .. import env_report", "from .. import _load"),
    (lint.no_upward_import, "liger_kernel/megatron/a.py", "from ..chunked_loss import a", "from . import b"),
]


@pytest.mark.parametrize(
    "rule, path, bad, good", FAULTS, ids=[f"{f[0].__name__}-{i}" for i, f in enumerate(FAULTS)]
)
def test_rule_finds_the_fault_and_nothing_else(rule, path, bad, good):
    assert list(rule(path, bad)), bad
    assert not list(rule(path, good)), good


def test_libraries_that_need_python_or_export_too_much_are_found(tmp_path):
    source = tmp_path / "bad.c"
    source.write_text(
        "int PyErr_Print(void); int other(void) { return PyErr_Print(); } int liger_x(void) { return 0; }"
    )
    library = tmp_path / "bad.so"
    assert os.system(f"gcc -shared -fPIC -o {library} {source}") == 0
    messages = [message for _, message in lint.check_library(str(library))]
    assert any("CPython symbol PyErr_Print" in m for m in messages)
    assert any("exports other" in m for m in messages)
    assert not any("liger_x" in m for m in messages)


def test_the_tree_keeps_the_rules():
    assert [f"{path}:{line}: {message}" for path, line, message in lint.findings()] == []
