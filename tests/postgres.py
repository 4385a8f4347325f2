"""A PostgreSQL server of the tests' own: in a temporary folder, on a Unix socket, gone afterwards."""

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg

DEBIAN = Path("/usr/lib/postgresql")
"""Debian keeps what only an administrator calls off the PATH."""

FAST = (
    "fsync=off",
    "full_page_writes=off",
    "synchronous_commit=off",
    "listen_addresses=",
    "max_connections=60",
)


class Server:
    """A running server; databases are made on it one per test.

    Attributes:
        folder: holds the data, the socket and the log.
    """

    def __init__(self, binaries: Path, folder: Path):
        self.folder = folder
        self._binaries, self._data = binaries, folder / "data"
        self._numbers = itertools.count()
        self._process: subprocess.Popen[bytes] | None = None
        self._identity = _identity()
        if self._identity:
            os.chown(folder, self._identity["user"], self._identity["group"])
        options = ("--no-sync", "--no-instructions", "--auth=trust", "--username=ablate", "--encoding=UTF8")
        command = [binaries / "initdb", *options, "--locale=C", self._data]
        subprocess.run(command, check=True, capture_output=True, cwd=folder, **self._identity)

    def start(self) -> None:
        """Start the server and wait until it answers."""
        settings = (part for setting in FAST for part in ("-c", setting))
        command = [self._binaries / "postgres", "-D", self._data, "-k", self.folder, *settings]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, **self._identity
            )
        for _ in range(300):
            with suppress(psycopg.OperationalError):
                self.execute("SELECT 1")
                return
            time.sleep(0.05)
        raise RuntimeError((self.folder / "log").read_text())

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End the server: SIGINT ends its connections first, SIGQUIT is a crash."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(30)

    def execute(self, statement: str) -> None:
        """Run one statement outside of a transaction."""
        with psycopg.connect(self.address("postgres"), autocommit=True) as connection:
            connection.execute(statement.encode())

    def address(self, database: str) -> str:
        """URL of a database."""
        return f"postgresql://ablate@/{database}?host={self.folder}"

    @contextmanager
    def database(self) -> Iterator[str]:
        """An empty database for as long as the block runs; yields its URL."""
        name = f"test_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        yield self.address(name)
        self.execute(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def server() -> Iterator[Server | None]:
    """A server for as long as the block runs; None where PostgreSQL is not installed."""
    binaries = _binaries()
    if binaries is None:
        yield None
        return
    folder = Path(tempfile.mkdtemp(prefix="ablate-pg-"))  # pytest's folders are closed to other users
    try:
        made = Server(binaries, folder)
        made.start()
        try:
            yield made
        finally:
            made.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _binaries() -> Path | None:
    found = shutil.which("initdb")
    installed = [Path(found).resolve()] if found else sorted(DEBIAN.glob("*/bin/initdb"))
    return installed[-1].parent if installed else None


def _identity() -> dict[str, Any]:
    """Whom the server runs as: it refuses to be root."""
    if os.getuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            user = pwd.getpwnam(name)
            return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    raise RuntimeError("there is no user that the server could run as")
