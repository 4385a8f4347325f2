"""Where a result comes from: code, libraries, machine. Never environment variables, paths or secrets."""

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, entry_points, version
from importlib.util import find_spec
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


CODE = "code_"
"""Beginning of the facts that `code` gives."""

_SHOWS = ("console/", "figures/", "report/")
"""Folders of this package that only show what is known already."""


def code(plugins: Iterable[str] = ()) -> dict[str, str]:
    """Hash of the source of each package that decides numbers, and whether its compiled kernels are there.

    Args:
        plugins: packages of components beside those that are installed as such.
    """
    installed = (point.module for point in entry_points(group="ablate.components"))
    tops = dict.fromkeys(name.partition(".")[0] for name in ("ablate", "components", *installed, *plugins))
    facts = {f"{CODE}{name}": _hash_of(name) for name in tops}
    built = any(
        name.startswith("native/_kernels") and name.endswith(".so") for name, _ in _files("components")
    )
    return {**facts, f"{CODE}kernels": "compiled" if built else "none"}


def _hash_of(package: str) -> str:
    digest = hashlib.sha256()
    for name, path in _files(package):
        shows = package == "ablate" and name.startswith(_SHOWS)
        if path.suffix in (".py", ".c", ".h") and not shows:
            digest.update(f"{name}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _files(package: str) -> Iterator[tuple[str, Path]]:
    """Files of a package or module by their names below it, in order; nothing is imported."""
    spec = find_spec(package)
    if spec is None:
        return
    folders = spec.submodule_search_locations
    if folders is None:
        yield package, Path(str(spec.origin))
    for folder in map(Path, folders or ()):
        for path in sorted(folder.rglob("*.*")):
            yield path.relative_to(folder).as_posix(), path


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
