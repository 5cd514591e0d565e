"""Builds every test/c/test_*.c against the CPU kernels and runs it at every ISA level of this machine.

    python test/c/run.py               as the package is built: guard bytes and poisoned buffers find what a
                                       kernel should not do
    python test/c/run.py --sanitize    under AddressSanitizer and UndefinedBehaviorSanitizer

The kernels are compiled with the flags of build_tools/native.py, plus the sanitizers'. Prints a table; exit
code 1 on a failure.
"""

import argparse
import glob
import os
import pathlib
import re
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from build_tools.native import WARNINGS, NativeLibraries, _stem  # noqa: E402

SANITIZE = [
    "-O1",
    "-g",
    "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
]


def build(sanitize):
    """{name: executable} of every test."""
    work = ROOT / "test" / "build" / ("c-sanitize" if sanitize else "c")
    work.mkdir(parents=True, exist_ok=True)
    objects_in = work if sanitize else ROOT / "build" / "native"  # those of the package, if it was built
    objects_in.mkdir(parents=True, exist_ok=True)
    extra = SANITIZE if sanitize else []
    native = NativeLibraries(str(ROOT), str(objects_in), None)
    jobs = [
        (out, title, [*command[:-2], *extra, *command[-2:]], *rest)
        for source in native._sources("kernels/*.c")
        for out, title, command, *rest in native._kernel_jobs(source, native._cpu_levels())
    ]
    objects = native.cache.run_all(jobs)
    programs = {}
    for path in sorted(glob.glob(str(ROOT / "test" / "c" / "test_*.c"))):
        program = work / _stem(path)
        flags = ["-std=c11", "-O1", "-g", *WARNINGS, *extra, f"-I{ROOT}/csrc"]
        subprocess.run([*native.cc, *flags, path, *objects, "-lm", "-o", str(program)], check=True)
        programs[_stem(path).removeprefix("test_")] = program
    return programs


def run(program, level):
    env = {**os.environ, "LIGER_ISA_MAX": level, "UBSAN_OPTIONS": "print_stacktrace=1"}
    start = time.perf_counter()
    done = subprocess.run([program], env=env, capture_output=True, text=True)
    counts = re.search(r"(\S+) checks=(\d+) failures=(\d+)", done.stdout)
    isa, checks = (counts[1], counts[2]) if counts else ("?", "0")
    return isa, checks, done.returncode, time.perf_counter() - start, done.stderr


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sanitize", action="store_true")
    options = parser.parse_args()
    from liger_kernel.selftest import show

    rows, errors = [], []
    for name, program in build(options.sanitize).items():
        for level in ("2", "3", "4"):
            isa, checks, code, seconds, stderr = run(program, level)
            bad = code != 0 or checks == "0"
            rows.append((name, isa, checks, f"{seconds:.2f}", "FAILED" if bad else "ok"))
            errors += [stderr[:6000]] if bad else []
    show(
        "C tests" + (", AddressSanitizer and UBSan" if options.sanitize else ""),
        ("test", "ISA", "checks", "seconds", "result"),
        rows,
    )
    print("\n".join(errors), file=sys.stderr)
    return 1 if errors or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
