"""Where a result comes from: code, libraries, machine. Never environment variables, paths or secrets."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "ablate",
    "torch",
    "lightning",
    "optuna",
    "mlflow",
    "datasets",
    "tokenizers",
    "hydra-core",
    "numpy",
    "scipy",
    "sqlalchemy",
)


def collect(code: Path | None = None) -> dict[str, str]:
    """Facts by name, read without importing anything heavy (tens of milliseconds).

    Args:
        code: folder of the code that runs, this package by default; its git commit is recorded.
    """
    facts = {"python": platform.python_version(), **_versions(), **machine()}
    return facts | _git(code or Path(__file__).parent)


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str]:
    """The hardware and the system that a result comes from."""
    cores = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    return {
        "os": f"{platform.system()} {platform.release()}",
        "cpu": _cpu_model(),
        "cores": str(cores),
        "usable_cores": str(usable),
    }


def _cpu_model() -> str:
    """The processor's name as the system gives it; its architecture where it gives none."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git(folder: Path) -> dict[str, str]:
    """Commit, and whether tracked files differ from it; nothing outside a repository or without git.

    A copy installed into an environment that lies in somebody's repository is not that repository's code.
    """
    if "site-packages" in folder.parts or "dist-packages" in folder.parts:
        return {}
    try:
        # --no-optional-locks: a status query must not get in the way of a commit that is going on
        shown = subprocess.run(
            ["git", "--no-optional-locks", "status", "--porcelain=v2", "--branch", "--untracked-files=no"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        ).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return {}
    commit = next((line.split()[-1] for line in shown if line.startswith("# branch.oid")), "")
    if not commit or commit == "(initial)":
        return {}
    dirty = any(not line.startswith("#") for line in shown)
    return {"git_commit": commit, "git_dirty": str(dirty).lower()}
