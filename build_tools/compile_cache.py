"""Runs compilers in parallel and skips what is up to date by flags and by the times of every file it read."""

import hashlib
import json
import os
import re
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor


class BuildError(Exception):
    """Carries the compiler's own words; shown without a traceback."""


class CompileCache:
    """Objects live in `folder`; beside each lies NAME.json: the command's hash and the files it read."""

    def __init__(self, folder, root, n_jobs):
        self.folder, self.root, self.n_jobs = folder, root, n_jobs
        self.n_run = self.n_kept = 0
        self._lock = threading.Lock()
        self._versions = {}
        os.makedirs(folder, exist_ok=True)

    def run_all(self, jobs):
        """Runs (name, title, command, salt, inputs) jobs in parallel and returns their outputs, in order."""
        failed = threading.Event()
        with ThreadPoolExecutor(self.n_jobs) as pool:
            futures = [pool.submit(self._job, failed, *job) for job in jobs]
            errors = [f.exception() for f in futures]
        for error in errors:
            if error is not None:
                raise error
        return [f.result() for f in futures]

    def run(self, *job):
        return self.run_all([job])[0]

    def _job(self, failed, name, title, command, salt=(), inputs=()):
        """Runs `command -o NAME` unless nothing changed. `inputs`: files that no depfile will list."""
        if failed.is_set():  # another file's error is the one to show
            return None
        output, depfile = os.path.join(self.folder, name), os.path.join(self.folder, name + ".d")
        key = self._key(command, salt)
        if self._current(output, key):
            with self._lock:
                self.n_kept += 1
            return output
        compiles = "-c" in command
        extra = ["-MMD", "-MF", depfile] if compiles else []
        part = os.path.join(
            self.folder, "part-" + name
        )  # a killed compiler leaves no half-written object behind
        start = time.time()
        done = subprocess.run(
            [*command, *extra, "-o", part],
            cwd=self.root,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if done.returncode != 0:
            failed.set()
            raise BuildError(
                f"{title}: {os.path.basename(command[0])} failed (exit status {done.returncode})\n"
                f"{done.stdout.rstrip()}\nThe command was: {' '.join(command)}"
            )
        os.replace(part, output)
        read = {*inputs, *(_read_depfile(depfile) if compiles else ())}
        self._remember(output, key, read, start)
        with self._lock:
            self.n_run += 1
            print(f"{time.time() - start:6.1f} s  {title}", flush=True)
            if done.stdout.strip():
                print(done.stdout.rstrip(), flush=True)
        return output

    def _key(self, command, salt):
        words = [*command, *salt, self.version(command[0])]
        return hashlib.sha256("\0".join(map(str, words)).encode()).hexdigest()

    def version(self, compiler):
        """All that `--version` prints, so that another compiler under the same name recompiles."""
        with self._lock:
            if compiler not in self._versions:
                try:
                    done = subprocess.run([compiler, "--version"], text=True, capture_output=True)
                except OSError as e:
                    raise BuildError(f"cannot run the compiler {compiler!r}: {e}") from None
                self._versions[compiler] = done.stdout
            return self._versions[compiler]

    def _current(self, output, key):
        try:
            with open(output + ".json", encoding="utf-8") as f:
                known = json.load(f)
            return (
                known["key"] == key
                and os.path.exists(output)
                and all(self._stamp(path) == stamp for path, stamp in known["files"].items())
            )
        except (OSError, ValueError, KeyError):
            return False

    def _remember(self, output, key, files, start):
        stamps = {path: self._stamp(path) for path in files}
        # A file written while the compiler ran may not be what it read: no stamp will ever equal -1.
        stamps = {path: stamp if stamp[0] < start * 1e9 else [-1, -1] for path, stamp in stamps.items()}
        with open(output + ".json", "w", encoding="utf-8") as f:
            json.dump({"key": key, "files": stamps}, f)

    def _stamp(self, path):
        status = os.stat(os.path.join(self.root, path))
        return [status.st_mtime_ns, status.st_size]


def _read_depfile(path):
    """Prerequisites of a make rule: `target: a b \\ c`, a space within a name written `\\ `."""
    with open(path, encoding="utf-8") as f:
        text = f.read().replace("\\\n", " ")
    names = text.split(": ", 1)[1] if ": " in text else ""
    return [re.sub(r"\\(.)", r"\1", name) for name in re.findall(r"(?:\\.|\S)+", names)]
