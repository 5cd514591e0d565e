"""benchmark/: cases are what their descriptions say, and a run that stops goes on where it was."""

import functools
import json
import subprocess
import sys

import pytest
import torch

from benchmark import cases, consumers, machine, peers, performance_page, sweep
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


def test_sweeps_change_one_size():
    rope = sweep.resized(SPECS["rope"].cases["cpu"][0], "rows", 128)
    assert {k: t.shape for k, t in sweep.tensors(rope).items()} == {
        "q": (2, 32, 64, 64), "k": (2, 8, 64, 64), "cos": (1, 64, 64), "sin": (1, 64, 64)
    }  # fmt: skip
    norm = sweep.resized(SPECS["rms_norm"].cases["cpu"][0], "rows", 128)  # 2048 x 2048: columns stay
    assert [t.shape for t in sweep.tensors(norm).values()] == [(128, 2048), (2048,)]
    assert norm.full_elements == 5 * 128 * 2048
    loss = SPECS["fused_linear_cross_entropy"].cases["cpu"][0]
    wide, long = sweep.resized(loss, "vocabulary", 4000), sweep.resized(loss, "tokens", 128)
    assert [t.shape for t in sweep.tensors(wide).values()] == [(1024, 768), (4000, 768), (1024,)]
    assert wide.sample.args["target"].high == 4000 and wide.flops[1] == 6 * 1024 * 768 * 4000
    assert [t.shape for t in sweep.tensors(long).values()] == [(128, 768), (32000, 768), (128,)]


@pytest.mark.parametrize("name", consumers.LOSSES)
def test_losses_of_hidden_states_are_measured_against_the_same_loss(name):
    spec = consumers.LOSSES[name]
    for case in spec.cases.values():
        (rows, h), (v, h2) = cases.products(cases.portable(case[0]))
        assert h == h2 and case[0].flops[0] % (2 * rows * h * v) == 0
    small = sweep.resized(sweep.resized(spec.cases["cpu"][0], "tokens", 20), "vocabulary", 50)
    drawn = cases.arguments(cases.portable(small)["args"], torch.float32, "cpu")
    ours, eager = (cases.Call(peers.way(i, spec, drawn), drawn) for i in ("liger", "eager"))
    assert cases.difference(ours, eager) < 1e-5
    assert ours.full()[1][0].abs().max() > 0


def test_eagers_own_error_is_not_held_against_an_implementation():
    """A sum in bf16 stops growing at 256; one that is right but for its rounding is close in float32."""
    args = {"x": torch.ones(4096, 3, dtype=torch.bfloat16, requires_grad=True)}
    rounded = cases.Call(lambda x: functools.reduce(torch.add, x.unbind()), args)
    right = cases.Call(lambda x: x.float().sum(0).to(x.dtype), args)
    assert cases.difference(right, rounded) > 0.9
    assert cases.difference(right, cases.in_float32(rounded, right.gradients)) < 1e-2


def test_cross_entropy_in_place_is_measured_on_fresh_logits():
    small = sweep.resized(consumers.IN_PLACE.cases["cpu"][0], "rows", 20)
    drawn = cases.arguments(cases.portable(small)["args"], torch.float32, "cpu")
    before = drawn["_input"].detach().clone()
    ours, eager = (cases.Call(peers.way(i, consumers.IN_PLACE, drawn), drawn) for i in ("liger", "eager"))
    assert cases.difference(ours, eager) < 1e-5 and torch.equal(drawn["_input"], before)


def test_peers_do_only_what_they_can():
    plain = SPECS["fused_linear_cross_entropy"].cases["cpu"][0].sample.args
    names = peers.installed()
    assert names[:3] == ["eager", "compile", "liger"]
    spec = SPECS["fused_linear_cross_entropy"]
    for peer in names[3:]:
        assert peers.way(peer, spec, plain) and not peers.way(peer, spec, {**plain, "bias": 1})
        assert peers.way(peer, SPECS["rope"], SPECS["rope"].cases["cpu"][0].sample.args) is None


def test_the_page_says_what_missed_its_bar_and_what_has_no_row(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    row = {"machine": "M", "torch": "2", "commit": "c", "date": "d", "dtype": "bfloat16", "impl": "liger"}
    row |= {"op": "rms_norm", "floor_full_ms": 1.0, "floor_fwd_ms": 0.5, "full_ms": 9.0, "peak_mib": 3.0}
    rows = [{**row, "case": c, "kernel_full_ms": ms} for c, ms in (("2048", 1.1), ("4096", 1.2))]
    rows += [{**row, "op": "rope", "case": "32+8x128", "error": "E"}]
    machine.append_rows(tmp_path / "ops_cuda.jsonl", rows)
    swept = {**row, "axis": "rows", "case": "4096@rows=128", "size": 128, "kernel_full_ms": 4.0}
    machine.append_rows(tmp_path / "sweep_cuda.jsonl", [swept])
    text = performance_page.page(consumers.specs())
    assert "1 of the 2 cases that have a bar and a figure are within it" in text
    assert "| 1.10 | 1.15 |" in text and "| *1.20* | 1.10 |" in text
    assert "unlike eager's: rope 32+8x128 (liger)" in text and "Without torch.compile beside ours: 2" in text
    missing = text.split("Not measured here: ")[1].split(". ")[0].split(", ")
    assert {"rope 32+8x128", "dpo 4x2048x4096x128256"} < {*missing} and "rms_norm 4096" not in missing
    assert "| rms_norm | 4096 | bfloat16 | 25 |" in text and "No curves yet by tokens, vocabulary" in text
    assert "No operator was measured." in text  # on the CPU
