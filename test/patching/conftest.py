"""Fixtures over the rows of the patch table: a new row is tested without new code."""

import copy

import pytest
from tiny_models import apply_to, make_model

from liger_kernel.transformers import revert
from liger_kernel.transformers.patching.table import MODELS


@pytest.fixture(params=sorted(MODELS))
def row(request):
    return MODELS[request.param]


@pytest.fixture
def pair(row):
    """(Hugging Face's model, an equal one that is patched), both in training mode."""
    reference = make_model(row)
    patched = copy.deepcopy(reference)
    apply_to(row, patched)
    return reference.train(), patched.train()


@pytest.fixture(autouse=True)
def nothing_stays_patched():
    yield
    revert()


@pytest.fixture
def warnings_logged(caplog):
    """The texts of our warnings so far, as a function."""
    caplog.set_level("WARNING", logger="liger_kernel")
    return lambda: [r.getMessage() for r in caplog.records if r.name.startswith("liger_kernel")]
