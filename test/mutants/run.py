"""Seeds faults, one at a time, and demands that the tests named for each fail.

    run.py [--only TEXT]                      C kernels, glue and Python, on the CPU
    run.py --device cuda                      the .cu files, on a machine with nvcc and a GPU
    run.py --device cuda --build-only DIR     builds the mutated GPU libraries (MUTANT_ARCHS, default 90)
    run.py --device cuda --prebuilt DIR       runs them on a machine with a GPU and no nvcc
    run.py --shard 0/4 ...                    every fourth of them, for processes side by side

A mutant is (name, file, old text, new text, pytest's arguments) in test/mutants/<stem>.py; the old text
stands exactly once in the file. The tree is copied, so nothing here is touched; only what a mutant changes is
compiled again. The named tests must pass before any fault is seeded. Prints a table; exit code 1 if a mutant
survives.
"""

import argparse
import os
import pathlib
import runpy
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
SKIPPED = (".git", "__pycache__", ".venv*", "dist", "demo_output", "*.egg-info", ".inductor_cache", "wheel*")


def mutants(device, only):
    found = []
    for path in sorted(pathlib.Path(__file__).parent.glob("[!_]*.py")):
        if path.name != "run.py" and path.stem.startswith("cuda") == (device == "cuda"):
            found += [m for m in runpy.run_path(str(path))["MUTANTS"] if not only or only in m[0]]
    twice = {m[0] for m in found if [n[0] for n in found].count(m[0]) > 1}
    if twice:
        raise SystemExit(f"two mutants of one name: {', '.join(sorted(twice))}")
    for name, file, old, *_ in found:
        n = (ROOT / file).read_text().count(old)
        if n != 1:
            raise SystemExit(f"{name}: the text to change stands {n} times in {file}, expected once:\n{old}")
    return found


def build(tree, device):
    env = {**os.environ, "LIGER_CUDA": "1" if device == "cuda" else "0", "LIGER_HIP": "0"}
    env["LIGER_WERROR"] = "0"  # a fault may well leave a variable unused
    env["LIGER_CUDA_ARCHS"] = os.environ.get("MUTANT_ARCHS", "90")
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{done.stdout[-2000:]}{done.stderr[-2000:]}")


def does_not_compile(tree, device):
    """None, or what the compiler says of the seeded tree: a fault that cannot be built proves nothing."""
    try:
        build(tree, device)
    except RuntimeError as error:
        return f"does not compile: {error}"
    return None


def run_tests(tree, device, arguments):
    """(did they fail, pytest's last line). Errors of collection are no catch."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "--device",
        device,
        *arguments,
    ]
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    env.setdefault("OMP_NUM_THREADS", "2")
    try:
        done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, timeout=600)
    except subprocess.TimeoutExpired:
        return True, "ran into the time limit"
    if done.returncode in (2, 3, 4, 5):
        raise SystemExit(
            f"pytest {' '.join(arguments)}: nothing ran\n{done.stdout[-3000:]}{done.stderr[-2000:]}"
        )
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    return done.returncode != 0, failed[0].split(" - ")[0][
        7:
    ] if failed else "crashed" if done.returncode else "passed"


class Seeded:
    """The text of `file` with the fault in it, for the length of a with block."""

    def __init__(self, tree, file, old, new):
        self.path, self.old, self.new = tree / file, old, new

    def __enter__(self):
        self.text = self.path.read_text()
        self.path.write_text(self.text.replace(self.old, self.new))

    def __exit__(self, *_):
        self.path.write_text(self.text)


def judge(tree, device, all_mutants, prebuilt, progress):
    library = tree / "liger_kernel" / "lib" / "libliger_cuda.so"
    if not prebuilt:
        build(tree, device)
    for arguments in {tuple(m[4]): m[4] for m in all_mutants}.values():
        failed, text = run_tests(tree, device, arguments)
        if failed:
            raise SystemExit(f"{' '.join(arguments)} fails without any fault: {text}")
    good = library.read_bytes() if prebuilt else None
    rows, libraries_are_good = [], True
    for name, file, old, new, arguments in all_mutants:
        start = time.perf_counter()
        compiled = not file.endswith(".py")
        if not (compiled or libraries_are_good):
            build(tree, device)
        libraries_are_good = not compiled or bool(prebuilt)
        with Seeded(tree, file, old, new):
            if prebuilt:
                shutil.copy(pathlib.Path(prebuilt) / f"{name}.so", library)
            broken = does_not_compile(tree, device) if compiled and not prebuilt else None
            caught, text = (False, broken) if broken else run_tests(tree, device, arguments)
        if prebuilt:
            library.write_bytes(good)
        rows.append(
            (name, file, "caught" if caught else "SURVIVED", text, f"{time.perf_counter() - start:.0f}")
        )
        progress(rows[-1])
    return rows


def build_only(tree, all_mutants, folder, progress):
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    for name, file, old, new, _ in all_mutants:
        with Seeded(tree, file, old, new):
            broken = does_not_compile(tree, "cuda")
            if not broken:
                library = tree / "liger_kernel" / "lib" / "libliger_cuda.so"
                shutil.copy(library, pathlib.Path(folder) / f"{name}.so")
        progress((name, file, broken or "built", "", ""))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--only", help="mutants whose name contains this")
    parser.add_argument("--shard", default="0/1", metavar="K/N", help="mutants K, K + N, K + 2 N, ...")
    parser.add_argument("--build-only", metavar="DIR")
    parser.add_argument("--prebuilt", metavar="DIR")
    options = parser.parse_args()
    from liger_kernel.selftest import show

    k, n = map(int, options.shard.split("/"))
    chosen = mutants(options.device, options.only)[k::n]
    n_done = 0

    def progress(row):
        nonlocal n_done
        n_done += 1
        filled = 20 * n_done // len(chosen)
        print(
            f"[{'#' * filled}{'.' * (20 - filled)}] {n_done}/{len(chosen)} {row[0]}: {row[2]} {row[3]}",
            flush=True,
        )

    with tempfile.TemporaryDirectory(prefix="liger-mutants-") as folder:
        tree = pathlib.Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*SKIPPED), symlinks=True)
        if options.build_only:
            build_only(tree, chosen, options.build_only, progress)
            return 0
        rows = judge(tree, options.device, chosen, options.prebuilt, progress)
    show(f"{len(rows)} mutants", ("mutant", "file", "result", "by", "seconds"), rows)
    survivors = [r[0] for r in rows if r[2] != "caught"]
    print(f"{len(rows) - len(survivors)} of {len(rows)} caught", *survivors)
    return 1 if survivors or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
