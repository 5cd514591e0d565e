"""benchmark/: cases are what their descriptions say, and a run that stops goes on where it was."""

import json
import subprocess
import sys

import pytest
import torch

from benchmark import cases, machine
from liger_kernel import _check as C
from liger_kernel.ops import SPECS
from liger_kernel.ops._spec import Sample, T, in_memory

pytestmark = pytest.mark.cpu_only


def test_memory_order():
    arg = T((2, 4, 3, 8), memory=(0, 2, 1, 3))
    sent = json.loads(json.dumps(vars(arg)))  # as the process that measures upstream gets it
    drawn = cases.draw(sent, torch.bfloat16, "cpu", torch.Generator().manual_seed(0))
    checked = C.draw(Sample("s", {"x": arg}))["x"]
    for t in (drawn, checked):
        assert t.shape == (2, 4, 3, 8) and t.stride() == (96, 8, 32, 1) and t.is_leaf and t.requires_grad
    plain = C.draw(Sample("s", {"x": T((2, 4, 3, 8))}))["x"]
    assert plain.is_contiguous() and torch.equal(plain, checked)
    with pytest.raises(ValueError, match=r"memory is \(0, 2\), expected a permutation"):
        in_memory((2, 3), (0, 2))


def test_gradients_lie_as_outputs_do():
    args = {"x": torch.randn(2, 4, 3, 8).transpose(1, 2).requires_grad_()}
    strided, dense = cases.Call(lambda x: x * 2, args), cases.Call(lambda x: (x * 2).contiguous(), args)
    strided.full(), dense.full()
    assert strided.gradients[0].stride() == args["x"].stride() and dense.gradients[0].is_contiguous()
    assert torch.equal(strided.gradients[0], dense.gradients[0])  # or two implementations would not compare


@pytest.mark.parametrize("device", ("cpu", "cuda"))
def test_rope_is_measured_as_models_call_it(device):
    model, contiguous = SPECS["rope"].cases[device]
    assert model.sample.args["q"].memory == model.sample.args["k"].memory == (0, 2, 1, 3)
    assert contiguous.sample.args["q"].memory is None and contiguous.id.endswith("contiguous")


def test_commit_can_be_given(monkeypatch):
    monkeypatch.setenv("LIGER_BENCH_COMMIT", "abc")
    assert machine.commit() == "abc"


def test_a_run_is_resumed(tmp_path):
    out = tmp_path / "rows.jsonl"
    command = [sys.executable, "-m", "benchmark.run", "--ops", "dyt", "--dtypes", "float32", "--impls"]
    command += ["eager,liger", "--rounds", "1", "--commit", "abc", "--out", str(out)]
    for _ in range(2):
        subprocess.run(command, cwd=machine.ROOT, check=True, capture_output=True)
        rows = machine.read_rows(out)
        assert [r["impl"] for r in rows] == ["eager", "liger"]
        assert all(r["commit"] == "abc" and r["full_ms"] > 0 for r in rows)
    out.write_text(json.dumps(rows[0]) + "\n" + json.dumps(rows[1])[:40])  # killed while it wrote
    subprocess.run(command, cwd=machine.ROOT, check=True, capture_output=True)
    assert [r["impl"] for r in machine.read_rows(out)] == ["eager", "eager", "liger"]
