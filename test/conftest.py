"""Options, markers and thread caps. Drawing of arguments and the bars are in liger_kernel/_check.py."""

import os
import pathlib
import sys

os.environ.setdefault("OMP_NUM_THREADS", "2")
sys.path[:0] = [str(pathlib.Path(__file__).parents[1]), str(pathlib.Path(__file__).parent)]

import pytest  # noqa: E402
import torch  # noqa: E402


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", choices=["cpu", "cuda"], help="where the ops run")


def pytest_configure(config):
    config.addinivalue_line("markers", "cpu_only: needs float64, or says nothing new on a GPU")
    config.addinivalue_line("markers", "cuda_only: needs --device cuda")
    config.addinivalue_line("markers", "big: more than 2^31 elements; tens of GB")
    config.addinivalue_line("markers", "slow: compiles with Inductor or starts processes")
    if config.getoption("--device") == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda, but torch sees no GPU")


def pytest_collection_modifyitems(config, items):
    other = "cuda_only" if config.getoption("--device") == "cpu" else "cpu_only"
    gone = [i for i in items if i.get_closest_marker(other)]
    if gone:
        config.hook.pytest_deselected(items=gone)
        items[:] = [i for i in items if not i.get_closest_marker(other)]


@pytest.fixture(scope="session")
def device(request):
    return request.config.getoption("--device")


@pytest.fixture(autouse=True)
def _same_start():
    torch.manual_seed(0)
    torch.set_num_threads(2)
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
