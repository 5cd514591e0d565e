"""The C tests (test/c) of the CPU kernels, at every ISA level. `make check` runs them under the
sanitizers."""

import runpy
from pathlib import Path

import pytest

pytestmark = pytest.mark.cpu_only
HERE = Path(__file__).parent
NAMES = [p.stem.removeprefix("test_") for p in sorted((HERE / "c").glob("test_*.c"))]


@pytest.fixture(scope="module")
def runner():
    script = runpy.run_path(str(HERE / "c" / "run.py"))
    return script["run"], script["build"](sanitize=False)


@pytest.mark.parametrize("level", ["2", "3", "4"])
@pytest.mark.parametrize("name", NAMES)
def test_c(runner, name, level):
    run, programs = runner
    _isa, checks, code, _seconds, errors = run(programs[name], level)
    assert code == 0 and int(checks) > 0, errors
