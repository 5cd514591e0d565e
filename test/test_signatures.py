"""Names, defaults and argument positions of everything we have equal those of release 0.8.5
(test/data/api-0.8.5.json).

New arguments stand last and have defaults. The only exceptions are the lines "- `module.name`: reason" under
the heading "Signatures" of docs/differences.md.
"""

import ast
import importlib
import inspect
import json
import pathlib
import re

import pytest

HERE = pathlib.Path(__file__).parent
API = json.loads((HERE / "data" / "api-0.8.5.json").read_text())
EMPTY = inspect.Parameter.empty


def exceptions():
    page = HERE.parent / "docs" / "differences.md"
    text = page.read_text() if page.exists() else ""
    section = re.search(r"^#+ Signatures\n(.*?)(?=^#|\Z)", text, re.M | re.S)
    return set(re.findall(r"^- `([\w.]+)`:", section[1], re.M)) if section else set()


def ours():
    """(module, name) of every entry of the snapshot whose module and name exist here."""
    rows = []
    for module, entries in API.items():
        try:
            there = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith("liger_kernel"):
                raise
            continue  # a module that we do not have (yet)
        for name in entries:
            thing = there
            for part in name.split("."):
                try:
                    thing = getattr(thing, part, None) if thing is not None else None
                except ModuleNotFoundError:  # a lazy name of an op that is not there yet
                    thing = None
            if thing is not None:
                rows.append((module, name))
    return rows


def theirs(signature):
    """[(name, kind, source of the default)] of a signature's text."""
    args = ast.parse(f"def f{signature}: pass").body[0].args
    positional = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(positional) - len(args.defaults)) + args.defaults
    rows = [(a.arg, "positional", d) for a, d in zip(positional, defaults)]
    rows += [(args.vararg.arg, "*", None)] if args.vararg else []
    rows += [(a.arg, "keyword", d) for a, d in zip(args.kwonlyargs, args.kw_defaults)]
    rows += [(args.kwarg.arg, "**", None)] if args.kwarg else []
    return rows


KINDS = {
    inspect.Parameter.POSITIONAL_ONLY: "positional",
    inspect.Parameter.POSITIONAL_OR_KEYWORD: "positional",
    inspect.Parameter.VAR_POSITIONAL: "*",
    inspect.Parameter.KEYWORD_ONLY: "keyword",
    inspect.Parameter.VAR_KEYWORD: "**",
}


def default_of(node, module):
    """The value of a default's source: a literal, a name of the module, or the source itself."""
    if node is None:
        return EMPTY
    text = ast.unparse(node)
    scope = {**vars(module), "torch": importlib.import_module("torch")}
    try:
        return eval(text, scope)  # the snapshot is ours
    except Exception:
        return text


@pytest.mark.parametrize("module, name", ours(), ids=lambda v: v.removeprefix("liger_kernel."))
def test_signature(module, name):
    if f"{module.removeprefix('liger_kernel.')}.{name}" in exceptions() or f"{module}.{name}" in exceptions():
        pytest.skip("listed on docs/differences.md")
    there = importlib.import_module(module)
    thing = there
    for part in name.split("."):
        thing = getattr(thing, part)
    if isinstance(thing, property):  # the snapshot has the arguments of the setter, where there is one
        thing = thing.fset or thing.fget
    mine = [p for p in inspect.signature(thing).parameters.values() if p.name not in ("self", "cls", "ctx")]
    upstream = theirs(API[module][name])
    named = {p.name: p for p in mine}
    if name.endswith(".backward"):  # autograd calls it by position
        wanted = [n for n, kind, _ in upstream if kind == "positional"]
        assert len(wanted) == len(mine) or any(KINDS[p.kind] == "*" for p in mine)
        return
    for place, (arg, kind, default) in enumerate(upstream):
        if kind in ("*", "**"):
            assert kind in [KINDS[p.kind] for p in mine], f"no {kind}{arg}"
            continue
        assert arg in named, f"argument {arg!r} is missing"
        assert KINDS[named[arg].kind] == kind, f"{arg} is not {kind}"
        if kind == "positional":
            assert mine[place].name == arg, f"argument {place} is {mine[place].name!r}, not {arg!r}"
        expected = default_of(default, there)
        got = named[arg].default
        assert _same(got, expected), f"{arg} defaults to {got!r}, upstream's to {expected!r}"
    known = {n for n, _, _ in upstream}
    for p in mine:
        new = p.name not in known and KINDS[p.kind] in ("positional", "keyword")
        assert not new or p.default is not EMPTY, f"the new argument {p.name!r} has no default"


def _same(a, b):
    return (a is EMPTY and b is EMPTY) or a is b or (type(a) is type(b) and a == b) or str(a) == str(b)


def test_exceptions_are_real():
    """A line on the page whose name no longer exists, or was never upstream's, is out of date."""
    known = {f"{m.removeprefix('liger_kernel.')}.{n}" for m, entries in API.items() for n in entries}
    assert {e.removeprefix("liger_kernel.") for e in exceptions()} <= known


def test_chunk_mem_const():
    flce = pytest.importorskip("liger_kernel.ops.fused_linear_cross_entropy")
    assert flce._CHUNK_MEM_CONST == 1
