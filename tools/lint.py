"""Structural rules that no formatter knows; docs/architecture.md says why each holds. Run by `make lint`.

Each rule is a function from a file's path and text to (line, message) pairs; RULES says which files it reads.
"""

import ast
import fnmatch
import glob
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MAX_LINES = 400
SOURCES = (".py", ".c", ".h", ".cu", ".cuh", ".cpp")
KERNELS = ("csrc/kernels/*", "csrc/liger*.h")

# What a folder may import: itself and every folder of a lower rank.
RANKS = {"transformers": 3, "chunked_loss": 2, "functional": 2, "megatron": 2, "ops": 1}
BASE = {
    "__init__",
    "_load",
    "_upstream",
    "_version",
    "utils",
}  # rank 0; the other top-level modules are tools above all
TOOL = 9


def no_long_file(path, text):
    n_lines = text.count("\n")
    if n_lines > MAX_LINES:
        yield n_lines, f"{n_lines} lines, at most {MAX_LINES}: split it by mechanism"


def no_torch_in_kernels(path, text):
    for line, code in _code_lines(text):
        if re.search(r"#\s*include\s*[<\"](\.\./)*(torch|ATen|c10|Python\.h|pybind11|numpy)", code):
            yield line, "kernels know neither torch nor Python"


def gpu_knowledge_only_in_gpu_h(path, text):
    if path.endswith("/gpu.h"):
        return
    words = {
        r"\b_*(hip|HIP)": "HIP",
        r"\bcuda[A-Z]\w*": "a CUDA run-time name",
        r"\bwarpSize\b": "the warp width",
        r"\b__\w+_sync\b|\b__syncwarp\b|\b__activemask\b": "a warp intrinsic",
        r"\b0x[fF]{8}(?![0-9a-fA-F])[uU]?": "a full mask",
        r"(threadIdx\.x|\b(lane|warp)\w*)\s*(%|/|&|>>|==|<|\*)=?\s*(5|31|32|64)\b": "a literal warp width",
    }
    for line, code in _code_lines(text):
        for pattern, what in words.items():
            allowed = {
                "a full mask": (".c", "primitives.h"),  # a number like any other on a CPU
                "a CUDA run-time name": ("_sm90.cu", "_sm90.cuh"),  # one architecture of one maker
            }
            if re.search(pattern, code) and not path.endswith(allowed.get(what, ())):
                yield line, f"{what} belongs in gpu.h"


def no_int_offsets(path, text):
    """An offset is 64-bit from its first product: a matrix of 2^31 elements is ordinary."""
    sizes = r"(n_rows|n_cols|\w*stride\w*|vocab_size|hidden_size|seq_len|row|col)"
    narrow = r"(?:unsigned(?: int)?|int|int32_t|uint32_t)"
    lines = list(_code_lines(text))
    ints = {name for _, code in lines for name in re.findall(rf"\b{narrow} (\w+)", code)}
    declared = r"\b(?:u?int64_t|size_t|real|float) (\w+)"
    wide = {name for _, code in lines for name in re.findall(declared, code)}
    ints -= wide
    for line, code in lines:
        if re.search(rf"\b{narrow} \w+ = [^;]*\b{sizes}\s*\*[^;]*;", code) and "(int)" not in code:
            yield line, "a product of sizes in an int: make it int64_t"
        if re.search(rf"\b{narrow} (row|n_rows|n_cols|\w*offset|\w*stride)\b(?!\()", code):
            yield line, "sizes, strides, rows and offsets are int64_t"
        left = re.findall(r"(\w+)\s*\*\s*blockIdx\.x", code)
        if re.search(r"(?<!\(int64_t\))(?<!\* )\bblockIdx\.x\s*\*", code) or not wide.issuperset(left):
            yield line, "blockIdx.x times something is a 32-bit product: write (int64_t)blockIdx.x"
        for index in re.findall(r"\[([^\[\]]*)\]", code):
            for a, b in re.findall(r"(?<!\))\b([a-z]\w*)\s*\*\s*([a-z]\w*)\b", index):
                if a in ints and b in ints and re.search(r"\b[a-zA-Z]\w*_?ptr|\b[XYW]\b|\bd[XYW]\b", code):
                    yield line, f"{a} * {b} is an int product in an index: cast the first factor to int64_t"


def no_data_in_grid_yz(path, text):
    """Grid y and z end at 65535, so no size of the data may go there."""
    for line, code in _code_lines(text):
        shapes = re.findall(r"\bdim3\s+\w*grid\w*\s*[({](.*?)[)}]\s*;", code) + re.findall(
            r"<<<\s*dim3\s*\((.*?)\)\s*,", code
        )
        extents = [part.strip() for shape in shapes for part in shape.split(",")[1:]]
        extents += re.findall(r"\bgrid\w*\.[yz]\s*=\s*([^;]*);", code)
        if any(not re.fullmatch(r"\d+|[A-Z][A-Z0-9_]*", extent) for extent in extents):
            yield line, "a grid's y and z extents must be constants (65535 is their limit)"
        if re.search(r"\bblockIdx\.[yz]\b", code):
            yield line, "blockIdx.y and .z: fold the index into x"


def no_upward_import(path, text):
    package = ["liger_kernel", *path.split("/")[1:-1]]
    module = os.path.splitext(path)[0].replace("/", ".")
    rank = _rank(module)
    tree = ast.parse(text, path)
    for node in ast.walk(tree):
        for target in _imported(node, package):
            same_folder = target.split(".")[1:2] == package[1:2]
            if _rank(target) > rank or (_rank(target) == rank and rank in RANKS.values() and not same_folder):
                yield node.lineno, f"{target}: imports go down the layers only"
    for node in tree.body:
        if rank < RANKS["transformers"] and any(
            re.match(r"transformers\b", t) for t in _imported(node, package)
        ):
            yield node.lineno, "only liger_kernel/transformers knows Hugging Face's transformers"


def _rank(module):
    """Of a full name such as liger_kernel.ops.rms_norm; the last part may be a name within the module."""
    parts = module.split(".")
    if parts[0] != "liger_kernel":
        return -1
    second = parts[1] if len(parts) > 1 else "__init__"
    if second in RANKS:
        return RANKS[second]
    is_module = os.path.exists(os.path.join(ROOT, "liger_kernel", second + ".py"))
    return TOOL if is_module and second not in BASE else 0


def _imported(node, package):
    """Full names of the modules that an import statement may load."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = package[: len(package) - node.level + 1] if node.level else []
    module = ".".join([*base, *([node.module] if node.module else [])])
    return [f"{module}.{alias.name}" for alias in node.names]


def check_library(path):
    """Only liger_* is exported, and nothing of CPython or of torch's unstable C++ ABI is needed."""
    symbols = subprocess.run(
        ["nm", "-D", "--format=posix", path], capture_output=True, text=True, check=True
    ).stdout
    for symbol in symbols.splitlines():
        name, kind = symbol.split()[:2]
        name = name.split("@")[0]
        if kind in "Uwv":
            if re.match(r"_?Py[A-Z_]", name):
                yield 0, f"needs the CPython symbol {name}"
            if re.match(r"_ZNK?(2at|3c10|5torch)", name):
                yield 0, f"needs {name}, which is not in torch's stable ABI"
        elif not name.startswith("liger_"):
            yield 0, f"exports {name}"


RULES = {
    no_long_file: ["*"],
    no_torch_in_kernels: KERNELS,
    gpu_knowledge_only_in_gpu_h: KERNELS,
    no_int_offsets: KERNELS,
    no_data_in_grid_yz: KERNELS,
    no_upward_import: ["liger_kernel/*.py"],
}


def _code_lines(text):
    """(number, code) of C source without comments and string contents."""

    def blank(match):
        return re.sub(r"[^\n]", " ", match[0]) if match[0][0] == "/" else '""'

    text = re.sub(r'/\*.*?\*/|//[^\n]*|(?<!include )"(?:\\.|[^"\\\n])*"', blank, text, flags=re.S)
    return enumerate(text.split("\n"), 1)


def _matches(path, patterns):
    return any(fnmatch.fnmatch(path, pattern) for pattern in patterns)


def findings(root=ROOT):
    """All (path, line, message) of the tree."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    for path in sorted(set(listed.stdout.split("\n"))):
        if not path.endswith(SOURCES) or not os.path.exists(os.path.join(root, path)):
            continue
        with open(os.path.join(root, path), encoding="utf-8") as f:
            text = f.read()
        for rule, patterns in RULES.items():
            if _matches(path, patterns):
                yield from ((path, line, message) for line, message in rule(path, text))
    for path in sorted(glob.glob(os.path.join(root, "liger_kernel/lib/*.so"))):
        yield from ((os.path.relpath(path, root), line, message) for line, message in check_library(path))


def main():
    found = list(findings())
    for path, line, message in found:
        print(f"{path}:{line}: {message}")
    libraries = len(glob.glob(os.path.join(ROOT, "liger_kernel/lib/*.so")))
    print(f"structural rules: {len(found)} findings ({libraries} built libraries checked)")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
