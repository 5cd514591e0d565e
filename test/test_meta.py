"""Rules for the tests themselves."""

import re
from pathlib import Path

HERE = Path(__file__).parent
FILES = [p for p in HERE.rglob("*.py") if "build" not in p.parts]


def test_incoming_gradients_are_random():
    """Under .sum() or .mean() all incoming gradients are one number, and one bug class is invisible."""
    unit = re.compile(r"\.(sum|mean)" + r"\(\)\.backward\(")
    assert [p.name for p in FILES if unit.search(p.read_text())] == []


def test_no_test_retries_or_is_expected_to_fail():
    loose = re.compile("pytest.mark." + "(xfail|flaky)")
    assert [
        str(p) for p in HERE.rglob("*.py") if "build" not in p.parts and loose.search(p.read_text())
    ] == []
