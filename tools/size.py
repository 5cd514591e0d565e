"""The size of the libraries, against the limit of 40 MB for the architectures that a release carries.

python tools/size.py            builds CPU and CUDA libraries for all of them in build/size (make size: long,
                                and needs nvcc), prints their sizes; exit code 1 at the limit or above
python tools/size.py FILE ...   sizes of what is built already
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 40  # MB, of 10^6 bytes


def report(paths):
    """Prints each size and the sum; returns the sum in MB."""
    total = 0.0
    for path in paths:
        size = path.stat().st_size / 1e6
        total += size
        print(f"{size:8.2f} MB  {path.name}")
    print(f"{total:8.2f} MB  in all")
    return total


def main():
    if len(sys.argv) > 1:
        report(Path(name) for name in sys.argv[1:])
        return 0
    sys.path.insert(0, str(ROOT))
    from build_tools.native import CUDA_ARCHS

    env = {**os.environ, "LIGER_CUDA": "1", "LIGER_CUDA_ARCHS": CUDA_ARCHS}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", "build/size"]
    subprocess.run(command, cwd=ROOT, env=env, check=True)
    built = sorted((ROOT / "build/size/liger_kernel/lib").glob("*.so"))
    if not any("cuda" in path.name for path in built):
        sys.exit("no CUDA library was built: see the lines above")
    total = report(built)
    print(f"architectures {CUDA_ARCHS}; the limit is {LIMIT} MB")
    return total >= LIMIT


if __name__ == "__main__":
    sys.exit(main())
