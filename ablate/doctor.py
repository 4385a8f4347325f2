"""What a bug report needs and what most often goes wrong: versions, cores, devices, home folder, database."""

import os
import platform
import shutil
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from ablate import units
from ablate.errors import AblateError, BadInputError
from ablate.home import Home

PACKAGES = (
    "ablate",
    "torch",
    "lightning",
    "optuna",
    "mlflow",
    "hydra-core",
    "omegaconf",
    "datasets",
    "tokenizers",
    "sqlalchemy",
)


@dataclass(frozen=True)
class Check:
    """One finding; `ok` False means that runs will fail."""

    name: str
    ok: bool
    text: str


def examine(home: Home) -> list[Check]:
    """All checks. Creates the home folder if it can, since that is what is asked."""
    checks = [Check("python", True, f"{platform.python_version()} on {platform.platform()}")]
    for package in PACKAGES:
        try:
            checks.append(Check(package, True, version(package)))
        except PackageNotFoundError:
            checks.append(Check(package, False, "is not installed"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    checks += [Check("cores", True, f"{cores} usable of {os.cpu_count()}"), _devices(), _home(home)]
    if home.storage:
        return [*checks, _server(home)]
    files = (("study database", home.database), ("optuna", home.optuna))
    return checks + [_database(name, path) for name, path in files]


def show(checks: list[Check]) -> None:
    """Print one line per check."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    width = max(len(check.name) for check in checks)
    for check in checks:
        mark = "[green]ok  [/]" if check.ok else "[red]FAIL[/]"
        console.print(f"{mark} {check.name:<{width}}  {escape(check.text)}", soft_wrap=True)


def _devices() -> Check:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Check("devices", True, f"cpu, {', '.join(names)}")
    return Check("devices", True, "cpu, mps" if torch.backends.mps.is_available() else "cpu")


def _home(home: Home) -> Check:
    try:
        home.create()
    except BadInputError as error:
        return Check("home", False, str(error))
    return Check("home", True, f"{home.root}, {units.size(shutil.disk_usage(home.root).free)} free")


def _server(home: Home) -> Check:
    """Whether the server takes studies, how fast it answers, and how far its clock is from this machine's."""
    from sqlalchemy import select

    from ablate import db

    try:
        engine = db.connect(home)
        begun, here = time.perf_counter(), time.time()
        with db.reading(engine) as connection:
            ahead = connection.execute(select(db.now())).scalar_one() - here
            version = connection.exec_driver_sql("SHOW server_version").scalar_one()
    except AblateError as error:
        return Check("study database", False, str(error))
    answer = (
        f"answers in {1000 * (time.perf_counter() - begun):.0f} ms, its clock {float(ahead):+.1f} s from here"
    )
    return Check("study database", True, f"{home.storage}, PostgreSQL {version}, {answer}")


def _database(name: str, path: os.PathLike[str]) -> Check:
    if not os.path.exists(path):
        return Check(name, True, "none yet")
    try:
        with closing(sqlite3.connect(f"file:{os.fspath(path)}?mode=ro", uri=True)) as connection:
            found = connection.execute("PRAGMA integrity_check").fetchone()[0]
    except sqlite3.Error as error:
        return Check(name, False, f"{path}: {error}")
    return Check(name, found == "ok", f"{units.size(os.path.getsize(path))}, integrity {found}")
