"""What is compiled, with which flags, and what is linked into which library.

Environment
    LIGER_CUDA        auto (default: if nvcc is found and torch was built for CUDA), 0 or 1
    LIGER_CUDA_ARCHS  such as "80;90+PTX"; default: the GPUs present, else CUDA_ARCHS below
    LIGER_HIP         0 (default) or 1
    LIGER_HIP_ARCHS   such as "gfx90a"; default: HIP_ARCHS below
    LIGER_WERROR      1: warnings are errors (the Makefile's choice); default 0, since a compiler that we have
                      not seen may warn of more
    MAX_JOBS, CC, CXX, NVCC, HIPCC
"""

import glob
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import time

from build_tools.compile_cache import BuildError, CompileCache
from build_tools.torch_location import MINIMUM, find_torch

CUDA_ARCHS = "75;80;86;89;90;100;120+PTX"  # what a release carries
HIP_ARCHS = "gfx908;gfx90a;gfx1030"
WARNINGS = ["-Wall", "-Wextra"]
# Not -O3: it compiles twice as long, and of seven operators measured at v2 and v4 none is slower without.
# no-trapping-math: without it gcc does not vectorise loops with a compare and a select.
C_FLAGS = [
    "-std=c11",
    "-O2",
    "-ftree-vectorize",
    "-fPIC",
    "-fvisibility=hidden",
    "-fopenmp-simd",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",  # -std=c11 alone forbids fused multiply-adds, which halve the arithmetic
]
CXX_FLAGS = [
    "-std=c++20",
    "-O2",
    "-fPIC",
    "-fvisibility=hidden",
    "-DTORCH_TARGET_VERSION=0x{:02x}{:02x}000000000000".format(*MINIMUM),
]
LINK_FLAGS = [
    "-shared",
    "-Wl,--exclude-libs,ALL",
    "-Wl,--version-script=csrc/exports.map",
    "-Wl,-z,relro,-z,now",
    "-s",
]


class NativeLibraries:
    """Builds what this machine can build into `folder` (objects go to `work`), says what was left out."""

    def __init__(self, root, work, folder, environ=os.environ):
        self.root, self.folder, self.env = root, folder, environ
        strict = environ.get("LIGER_WERROR") == "1"
        self.warnings = [*WARNINGS, *(["-Werror"] if strict else [])]
        self.cuda_warnings = ["-Werror=all-warnings"] if strict else []
        self.jobs = int(environ.get("MAX_JOBS") or os.cpu_count() or 1)
        self.cache = CompileCache(os.path.abspath(work), root, self.jobs)
        self.cc, self.cxx = shlex.split(environ.get("CC") or "gcc"), shlex.split(environ.get("CXX") or "g++")
        self.torch = find_torch()
        self.built, self.skipped = {}, {}  # library: what for; part: why not
        self.archs = {}

    def build(self):
        start = time.time()
        self._check_machine()
        nvcc, hipcc = self._find_nvcc(), self._find_hipcc()
        levels = self._cpu_levels()
        names = [f"x86-64-v{level}" for level in levels] if len(levels) > 1 else [platform.machine()]
        kernels, glue = self._sources("kernels/*.c"), self._sources("torch/*.cpp")
        if not kernels or not glue:
            raise BuildError(
                "csrc/kernels/*.c or csrc/torch/*.cpp is missing: is this a complete source tree?"
            )

        # One pool for everything: the slow .cu files start first, so that they do not end alone.
        parts = {"cuda": self._cuda_jobs(nvcc) if nvcc else [], "hip": self._hip_jobs(hipcc) if hipcc else []}
        parts["cpu"] = [j for source in kernels for j in self._kernel_jobs(source, levels)]
        parts["cpu"] += [self._glue_job(source, 0) for source in glue]
        parts["gpu_glue"] = [self._glue_job(source, 1) for source in glue] if nvcc or hipcc else []
        parts = {part: list(jobs) for part, jobs in parts.items()}
        outputs = iter(self.cache.run_all([j for jobs in parts.values() for j in jobs]))
        objects = {part: [next(outputs) for _ in jobs] for part, jobs in parts.items()}

        for_torch = f"for torch >= {MINIMUM[0]}.{MINIMUM[1]}"
        self._link(
            "libliger_torch_cpu.so",
            objects["cpu"],
            [self._stub("libtorch_cpu.so")],
            f"CPU, {' '.join(names)}, float and double, {for_torch}",
        )
        if nvcc:
            self._link(
                "libliger_cuda.so", objects["cuda"], self._static_cudart(nvcc), f"CUDA {self.archs['cuda']}"
            )
            self._link_gpu_glue(
                "libliger_torch_cuda.so", "libliger_cuda.so", objects["gpu_glue"], f"CUDA, {for_torch}"
            )
        if hipcc:
            self._link(
                "libliger_hip.so",
                objects["hip"],
                [],
                f"HIP {self.archs['hip']}",
                [hipcc, *(f"--offload-arch={arch}" for arch in self._hip_archs())],
            )
            self._link_gpu_glue(
                "libliger_torch_hip.so", "libliger_hip.so", objects["gpu_glue"], f"HIP, {for_torch}"
            )
        self._install(names, nvcc)
        self._print_summary(time.time() - start)

    def _check_machine(self):
        if platform.system() != "Linux":
            raise BuildError(f"liger-kernel-c builds on Linux only so far, this is {platform.system()}.")
        if self.torch is None:
            raise BuildError("torch was not found. Install it first (pip install torch), then build again.")
        if not self.torch.new_enough:
            raise BuildError(
                f"torch {self.torch.version} in {self.torch.path} is too old: liger-kernel-c needs "
                f"torch >= {MINIMUM[0]}.{MINIMUM[1]}."
            )

    def _sources(self, pattern):
        return sorted(glob.glob(os.path.join("csrc", pattern), root_dir=self.root))

    # The CPU library ----------------------------------------------------------------------------------------

    def _cpu_levels(self):
        """{level: flags}, lowest first. Other machines than x86-64 have one: the compiler's own target."""
        if platform.machine() not in ("x86_64", "AMD64"):
            return {2: []}
        return {
            2: ["-march=x86-64-v2"],
            3: ["-march=x86-64-v3"],
            4: ["-march=x86-64-v4", "-mprefer-vector-width=512"],
        }

    def _kernel_jobs(self, source, levels):
        """One object for each ISA level, and one for fp64 tensors; each file dispatches among its own."""
        all_levels, lowest = "".join(map(str, levels)), min(levels)
        for real, level in [*(("float", level) for level in levels), ("double", lowest)]:
            isa = f"{real[0]}_v{level}"
            defines = [
                f"-DREAL={real}",
                f"-DLIGER_ISA={isa}",
                f"-DLIGER_LEVEL={level}",
                f"-DLIGER_LEVELS={all_levels}",
            ]
            if (real, level) == ("float", lowest):
                defines.append("-DLIGER_BASE_UNIT=1")  # here the file's public functions are emitted
            command = [*self.cc, *C_FLAGS, *self.warnings, *levels[level], *defines]
            yield f"{_stem(source)}_{isa}.o", f"{source} ({isa})", [*command, "-Icsrc", "-c", source]

    def _glue_job(self, source, gpu):
        # -isystem: torch's own headers do not pass -Wextra.
        command = [
            *self.cxx,
            *CXX_FLAGS,
            *self.warnings,
            f"-DLIGER_GPU={gpu}",
            "-Icsrc",
            f"-isystem{self.torch.path}/include",
        ]
        title = f"{source} ({'GPU' if gpu else 'CPU'})"
        return f"{_stem(source)}_glue{gpu}.o", title, [*command, "-c", source], (self.torch.version,)

    # CUDA ---------------------------------------------------------------------------------------------------

    def _find_nvcc(self):
        """The nvcc to use, or None with the reason in self.skipped."""
        wish = self.env.get("LIGER_CUDA") or "auto"
        if wish not in ("auto", "0", "1"):
            raise BuildError(f"LIGER_CUDA={wish!r}: allowed are auto, 0 and 1.")
        homes = [self.env.get("CUDA_HOME"), self.env.get("CUDA_PATH"), "/usr/local/cuda"]
        candidates = [
            self.env.get("NVCC"),
            "nvcc",
            *(os.path.join(home, "bin", "nvcc") for home in homes if home),
        ]
        nvcc = next(filter(None, (shutil.which(c) for c in candidates if c)), None)
        if wish == "1" and nvcc is None:
            raise BuildError("LIGER_CUDA=1, but nvcc was not found: put it on PATH or name it in NVCC.")
        if wish == "0":
            self.skipped["CUDA"] = "LIGER_CUDA=0"
        elif nvcc is None:
            self.skipped["CUDA"] = "nvcc was not found (put it on PATH or name it in NVCC)"
        elif wish == "auto" and self.torch.cuda is None:
            self.skipped["CUDA"] = (
                f"torch {self.torch.version} is not a CUDA build (LIGER_CUDA=1 builds it all the same)"
            )
        elif not self._sources("kernels/*.cu"):
            self.skipped["CUDA"] = "there is no csrc/kernels/*.cu"
        return None if "CUDA" in self.skipped else nvcc

    def _cuda_archs(self, nvcc):
        """[("90", ""), ("120", "+PTX")]: as asked for, else the GPUs present, else a release's."""
        known = set(re.findall(r"sm_(\d+)", _output([nvcc, "--list-gpu-code"])))
        asked = self.env.get("LIGER_CUDA_ARCHS")
        present = (
            []
            if asked
            else re.findall(
                r"^(\d+)\.(\d+)",
                _output(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]),
                re.M,
            )
        )
        names = asked or ";".join(sorted({major + minor for major, minor in present}, key=int))
        if not names:
            names = ";".join(a for a in CUDA_ARCHS.split(";") if a.replace("+PTX", "") in known)
            names += "" if names.endswith("+PTX") else "+PTX"
        archs = [
            re.fullmatch(r"(?:sm_)?(\d+)\.?(\d)a?(\+PTX)?", name.strip())
            for name in re.split(r"[;, ]+", names)
        ]
        archs = [(m[1] + m[2], m[3] or "") if m else (None, "") for m in archs]
        unknown = [name for name, (arch, _) in zip(re.split(r"[;, ]+", names), archs) if arch not in known]
        if unknown:
            raise BuildError(
                f"LIGER_CUDA_ARCHS={names!r}: {nvcc} does not know {', '.join(unknown)}; "
                f"it knows {', '.join(sorted(known, key=int))}."
            )
        return archs

    def _nvcc_release(self, nvcc):
        return re.search(r"release (\d+\.\d+)", self.cache.version(nvcc))[1]

    def _cuda_jobs(self, nvcc):
        sources, archs = self._sources("kernels/*.cu"), self._cuda_archs(nvcc)
        self.archs["cuda"] = ", ".join(f"sm_{arch}{ptx}" for arch, ptx in archs)
        flags = [
            "-std=c++17",
            "-O3",
            "-Xcompiler",
            "-fPIC,-fvisibility=hidden,-Wall,-Wextra",
            *self.cuda_warnings,
            "-Icsrc",
        ]
        if tuple(map(int, self._nvcc_release(nvcc).split("."))) >= (12, 8):
            flags.append("--compress-mode=size")  # six times smaller
        for source in sources:
            codes = []
            for arch, ptx in archs:
                # A file of fast paths for Hopper needs the instructions that only sm_90a has.
                target = "90a" if arch == "90" and _stem(source).endswith("_sm90") else arch
                codes.append(f"-gencode=arch=compute_{target},code=sm_{target}")
                if ptx:
                    codes.append(f"-gencode=arch=compute_{arch},code=compute_{arch}")
            yield f"{_stem(source)}_cuda.o", f"{source} (CUDA)", [nvcc, *flags, *codes, "-c", source]

    def _static_cudart(self, nvcc):
        """nvcc may be a wrapper anywhere, so it is asked where its libraries are."""
        plan = subprocess.run(
            [nvcc, "--dryrun", "-x", "cu", os.devnull, "-o", "liger"], text=True, capture_output=True
        )
        line = re.search(r"LIBRARIES=(.*)", plan.stderr + plan.stdout)
        folders = [f for f in shlex.split(line[1]) if not f.endswith("/stubs")] if line else []
        return [*folders, "-lcudart_static", "-lpthread", "-ldl", "-lrt"]

    # HIP ----------------------------------------------------------------------------------------------------

    def _find_hipcc(self):
        wish = self.env.get("LIGER_HIP") or "0"
        if wish not in ("0", "1"):
            raise BuildError(f"LIGER_HIP={wish!r}: allowed are 0 and 1.")
        if wish == "0":
            self.skipped["HIP"] = "LIGER_HIP=1 was not given"
            return None
        candidates = [
            self.env.get("HIPCC"),
            "hipcc",
            os.path.join(self.env.get("ROCM_PATH") or "/opt/rocm", "bin", "hipcc"),
        ]
        hipcc = next(filter(None, (shutil.which(c) for c in candidates if c)), None)
        if hipcc is None:
            raise BuildError("LIGER_HIP=1, but hipcc was not found: put it on PATH or name it in HIPCC.")
        os.environ["HIP_PLATFORM"] = "amd"  # or hipcc calls nvcc wherever it finds one
        return hipcc

    def _hip_archs(self):
        return re.split(r"[;, ]+", self.env.get("LIGER_HIP_ARCHS") or HIP_ARCHS)

    def _hip_jobs(self, hipcc):
        archs = self._hip_archs()
        self.archs["hip"] = ", ".join(archs)
        flags = ["-x", "hip", "-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", *self.warnings, "-Icsrc"]
        for source in self._sources("kernels/*.cu"):
            command = [hipcc, *flags, *(f"--offload-arch={arch}" for arch in archs), "-c", source]
            yield f"{_stem(source)}_hip.o", f"{source} (HIP)", command

    # Linking ------------------------------------------------------------------------------------------------

    def _stub(self, soname):
        """An empty library with torch's SONAME: only the name counts, and a CPU torch lacks some."""
        source = os.path.join(self.cache.folder, "empty.c")
        if not os.path.exists(source):
            open(source, "w").close()
        return self.cache.run(
            f"stub-{soname}", f"stub of {soname}", [*self.cc, "-shared", source, f"-Wl,-soname,{soname}"]
        )

    def _link(self, name, objects, libraries, what, linker=None):
        command = [
            *(linker or self.cxx),
            *LINK_FLAGS,
            f"-Wl,-soname,{name}",
            *objects,
            "-Wl,--no-as-needed",
            *libraries,
        ]
        files = [f for f in (*objects, *libraries, "csrc/exports.map") if not f.startswith("-")]
        self.built[name] = (self.cache.run(name, name, command, (), files), what)

    def _link_gpu_glue(self, name, kernels, objects, what):
        stubs = [
            self._stub("libtorch_cpu.so"),
            self._stub("libtorch.so"),
        ]  # libtorch.so brings torch's GPU symbols
        self._link(name, objects, [self.built[kernels][0], *stubs, "-Wl,-rpath,$ORIGIN"], what)

    def _install(self, cpu_levels, nvcc):
        """Copies by rename, so that running processes keep their file, and removes what was not built now."""
        os.makedirs(self.folder, exist_ok=True)
        info = {
            "torch": self.torch.version,
            "cpu_levels": cpu_levels,
            "cuda_archs": self.archs.get("cuda"),
            "hip_archs": self.archs.get("hip"),
            "compiler": self.cache.version(self.cc[0]).split("\n")[0],
            "nvcc": self._nvcc_release(nvcc) if nvcc else None,
            "skipped": self.skipped,
            "libraries": {name: what for name, (_, what) in self.built.items()},
        }
        text = os.path.join(self.cache.folder, "build_info.json")
        with open(text, "w", encoding="utf-8") as f:
            json.dump(info, f, indent=2)
        wanted = {name: path for name, (path, _) in self.built.items()} | {"build_info.json": text}
        for name in os.listdir(self.folder):
            if name not in wanted:
                os.remove(os.path.join(self.folder, name))
        for name, path in wanted.items():
            part = os.path.join(self.folder, f".part-{os.getpid()}-{name}")
            shutil.copy2(path, part)
            os.replace(part, os.path.join(self.folder, name))

    def _print_summary(self, seconds):
        libraries = "1 library" if len(self.built) == 1 else f"{len(self.built)} libraries"
        lines = [
            f"liger-kernel-c: {libraries} with torch {self.torch.version}'s headers in {seconds:.1f} s "
            f"({self.cache.n_run} compiled or linked, {self.cache.n_kept} up to date)"
        ]
        for name, (path, what) in self.built.items():
            lines.append(f"  built    {name:24} {os.path.getsize(path) // 1024:6} KB  {what}")
        lines += [f"  skipped  {part:24}            {why}" for part, why in self.skipped.items()]
        print("\n".join(lines), flush=True)


def _stem(path):
    return os.path.splitext(os.path.basename(path))[0]


def _output(command):
    """What a query prints; nothing if it cannot run."""
    try:
        done = subprocess.run(command, text=True, capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
