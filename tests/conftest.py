"""Puts this folder on the import path, for `study_views`. A PostgreSQL server, and homes with each storage."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import postgres as servers
import pytest

from ablate import db
from ablate.home import Home
from ablate.storage import server


@pytest.fixture(scope="session")
def postgres() -> Iterator[servers.Server]:
    """A PostgreSQL server."""
    with servers.server() as server:
        if server is None:
            pytest.skip("needs PostgreSQL: initdb is neither on the PATH nor where Debian puts it")
        yield server


SLOW = [pytest.param("sqlite"), pytest.param("postgresql", marks=pytest.mark.slow)]


@pytest.fixture(params=["sqlite", "postgresql"])
def any_home(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Home]:
    """An empty home, its studies in a file and on a server."""
    with _home(request, tmp_path) as home:
        yield home


@pytest.fixture(params=SLOW)
def slowly_any_home(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Home]:
    """The same for tests that take long: those on a server are slow ones."""
    with _home(request, tmp_path) as home:
        yield home


@contextmanager
def _home(request: pytest.FixtureRequest, folder: Path) -> Iterator[Home]:
    if request.param == "sqlite":
        yield Home(folder)
        return
    with request.getfixturevalue("postgres").database() as address:
        yield Home(folder, server(address))
        db._engine.cache_clear()


@pytest.fixture
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Columns of the terminal, 80 unless a test says otherwise."""
    columns = getattr(request, "param", 80)
    monkeypatch.setenv("COLUMNS", str(columns))
    return columns
