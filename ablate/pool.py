"""Worker processes on this machine: started, watched, replaced, and ended together."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from ablate.home import Home
from ablate.records import Plan

_MALLOC = {  # keep freed memory: returning it to the system between steps costs more than it gives
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "2147483647",
    "MALLOC_TOP_PAD_": "67108864",
}


class Pool:
    """Local workers of one study, each in a process group of its own, so that Ctrl-C reaches the parent only.

    Args:
        command: beginning of the command line; the study, its home and the worker's name are appended.
    """

    def __init__(self, home: Home, plan: Plan, command: Sequence[str] | None = None):
        self._home, self._plan = home, plan
        self._command = list(command or [sys.executable, "-m", "ablate.cli", "worker"])
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def names(self) -> list[str]:
        """Names of the workers that are thought to run."""
        return list(self._running)

    def start(self, count: int, taken: Sequence[str] = ()) -> None:
        """Start so many workers under names that are not `taken`."""
        free = (f"{socket.gethostname()}-{i}" for i in range(1, 1 + count + len(taken)))
        for name in [name for name in free if name not in taken][:count]:
            self.spawn(name)

    def spawn(self, name: str) -> None:
        """Start one worker; its output goes to the study's log folder."""
        folder = self._home.logs(self._plan.study)
        folder.mkdir(parents=True, exist_ok=True)
        line = [*self._command, self._plan.study, "--home", str(self._home.root), "--name", name]
        with self.log(name).open("ab") as log:
            self._running[name] = subprocess.Popen(
                line,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment(name),
                process_group=0,
            )

    def log(self, name: str) -> Path:
        """The file that a worker's output goes to."""
        return self._home.logs(self._plan.study) / f"{name}.log"

    def ended(self) -> dict[str, int]:
        """Exit codes of workers that have ended since the last call."""
        codes = {name: process.poll() for name, process in self._running.items()}
        over = {name: code for name, code in codes.items() if code is not None}
        for name in over:
            del self._running[name]
        return over

    def terminate(self) -> None:
        """Ask all workers to checkpoint and end."""
        for process in self._running.values():
            process.terminate()

    def kill(self, name: str) -> None:
        """End one worker at once."""
        if name in self._running:
            self._running[name].kill()

    def kill_all(self) -> None:
        """End all workers at once and wait until they are gone."""
        for process in self._running.values():
            process.kill()
        for process in self._running.values():
            process.wait()

    def wait(self, seconds: float) -> bool:
        """Whether all workers ended within so many seconds."""
        deadline = time.monotonic() + seconds
        while any(process.poll() is None for process in self._running.values()):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def last_words(self, name: str) -> str:
        """End of a worker's output."""
        try:
            lines = self.log(name).read_text(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-15:])

    def _environment(self, name: str) -> Mapping[str, str]:
        run = self._plan.run
        threads = str(run.launcher.threads)
        own = {**os.environ, **_MALLOC, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        own["ABLATE_DB"] = self._home.storage or "sqlite"
        own |= {"TOKENIZERS_PARALLELISM": "false", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
        if run.trainer.device == "cuda":
            own["CUDA_VISIBLE_DEVICES"] = _gpu(int(name.rpartition("-")[2]) - 1)
        return own


def is_alive(pid: int, name: str) -> bool:
    """Whether a process is the worker of that name, and not another one with an old number."""
    try:
        line = psutil.Process(pid).cmdline()
    except psutil.Error:
        return False
    return name in line or ("worker" in line and name.endswith(f"-{pid}"))  # the name that it gave itself


def find(home: Home, study: str) -> dict[str, int]:
    """Process ids of a study's named workers on this machine, also of those that have not joined it yet."""
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if {study, str(home.root), "--name"} <= set(line):
            found[line[line.index("--name") + 1]] = process.pid
    return found


def cause(code: int) -> str:
    """Why a process ended, from its exit code."""
    if code == -signal.SIGKILL:
        return "killed by SIGKILL, likely out of memory"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _gpu(index: int) -> str:
    """The GPU of a worker: they take turns over those that are visible."""
    import torch

    visible = [v for v in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if v]
    visible = visible or [str(i) for i in range(torch.cuda.device_count())]
    return visible[index % len(visible)] if visible else ""
