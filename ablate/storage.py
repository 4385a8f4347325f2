"""Where studies are kept: a SQLite file in the home folder, or a PostgreSQL server for many machines.

The tables and every statement are the same. What differs is here: how a connection is made safe for many
processes, how a reading is consistent, how one process at a time is let do something, and how long work waits
for a server that has gone.
"""

import fcntl
import hashlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy import exc as sql_exc
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.pool import NullPool

from ablate.errors import AblateError, BadInputError

if TYPE_CHECKING:
    from ablate.home import Home

Value = TypeVar("Value")

BUSY_SECONDS = 60
"""That a statement waits for another process's lock on a SQLite file."""

OUTAGE_SECONDS = 60.0
"""That work waits for a server to come back, before it gives up."""

ALLOWED = "sqlite, postgresql://USER@HOST/DATABASE, or postgresql:///?service=NAME of ~/.pg_service.conf"

_SECRETS = ("password", "sslpassword", "passwd")
_NETWORK = {  # a server that has gone is noticed in ten seconds, where the driver's own settings take minutes
    "connect_timeout": 10,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 2,
    "tcp_user_timeout": 8000,
    "application_name": "ablate",
    "prepare_threshold": None,  # statements prepared on one connection of a pooler are unknown to the next
}
_STOPPED_SECONDS = 30
"""After which the server ends the transaction of a process that was stopped in it, with all its locks."""


class StorageError(AblateError):
    """The server cannot be reached, or ended the transaction."""


def server(value: str, key: str = "storage") -> str | None:
    """The address of a PostgreSQL database, checked; None for `sqlite`. Nothing is connected to.

    Args:
        key: what was set to it, for messages, which never repeat a password.

    Raises:
        BadInputError: no such address, another kind of database, or one with a password in it.
    """
    if value == "sqlite":
        return None
    try:
        url = make_url(value)
    except (sql_exc.ArgumentError, ValueError) as error:
        raise BadInputError(f"{key} is no address of a database. Allowed: {ALLOWED}.") from error
    if url.password is not None or any(name in url.query for name in _SECRETS):
        shown = url.difference_update_query(_SECRETS)._replace(password=None)
        raise BadInputError(
            f"{key}={shown.render_as_string()} was given with a password, which would end up in process lists "
            "and stored configurations. Leave it out, and put it into ~/.pgpass (mode 0600) or into the file "
            "that PGPASSFILE names, as HOST:PORT:DATABASE:USER:PASSWORD."
        )
    if url.get_backend_name() != "postgresql":
        raise BadInputError(f"{key}={value} is a database of another kind. Allowed: {ALLOWED}.")
    return url.set(drivername="postgresql+psycopg").render_as_string()


def url(home: "Home", file: Path) -> URL:
    """Where the tables are that are in `file` of a home without a server. All of them share one database there."""
    return make_url(home.storage) if home.storage else URL.create("sqlite", database=str(file))


def arguments(address: URL) -> dict[str, Any]:
    """Arguments of the driver for an address."""
    return {"timeout": BUSY_SECONDS} if address.get_backend_name() == "sqlite" else dict(_NETWORK)


def engine(address: URL) -> Engine:
    """Connections to an address that are safe for many processes.

    Raises:
        AblateError: the driver is not installed.
    """
    if address.get_backend_name() == "sqlite":
        return harden(create_engine(address, connect_args=arguments(address)))
    return _engine(address, pool_size=1, max_overflow=15, pool_pre_ping=True, pool_recycle=300)


def _engine(address: URL, **pool: Any) -> Engine:
    try:
        return harden(create_engine(address, connect_args=arguments(address), **pool))
    except ModuleNotFoundError as error:
        raise AblateError(
            "storage on PostgreSQL needs the driver psycopg. Install it with: pip install 'ablate[postgres]'"
        ) from error


def harden(engine: Engine) -> Engine:
    """Make connections safe for many processes.

    SQLite: WAL, fsync per commit, writers one at a time. A transaction that reads and then writes must hold
    the write lock from its beginning, else two of them read the same queued job. Readers ask for `read_only`
    and never wait. PostgreSQL: locks end with a process that hangs, and lost connections are told apart.
    """
    if engine.dialect.name == "postgresql":
        return _harden_postgresql(engine)

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions begin below, not where the driver guesses
        connection.execute(f"PRAGMA busy_timeout={BUSY_SECONDS * 1000}")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        reading = connection.get_execution_options().get("read_only", False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine


def _harden_postgresql(engine: Engine) -> Engine:
    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        # not in the start-up packet, of which a pooler takes no such thing
        connection.execute(f"SET idle_in_transaction_session_timeout = '{_STOPPED_SECONDS}s'")
        connection.commit()

    @event.listens_for(engine, "handle_error")
    def _lost(context: ExceptionContext) -> BaseException | None:
        error = context.sqlalchemy_exception
        lost = context.is_disconnect or isinstance(error, sql_exc.OperationalError)
        if context.is_pre_ping or not lost or not isinstance(error, sql_exc.DBAPIError):
            return None
        return StorageError(f"storage={engine.url.render_as_string()}: {error.orig or type(error.orig)}")

    return engine


def look_only(engine: Engine) -> None:
    """Forbid an engine's connections to change anything."""

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        if engine.dialect.name == "sqlite":
            connection.execute("PRAGMA query_only=ON")
        else:
            connection.read_only = True


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One consistent reading that no writer waits for."""
    options: dict[str, Any] = {"read_only": True}
    if engine.dialect.name == "postgresql":
        options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    with engine.connect().execution_options(**options) as connection, connection.begin():
        yield connection


def patiently(work: Callable[[], Value], seconds: float = OUTAGE_SECONDS) -> Value:
    """The value of `work`, begun again while a server is out of reach.

    A commit whose answer was lost may have happened. So `work` must be one transaction whose repetition
    changes nothing: entries of the ledger have keys, and writes of an attempt are fenced by its number.

    Raises:
        StorageError: the server stayed away for so many seconds.
    """
    begun = time.monotonic()
    said = False
    while True:
        try:
            value = work()
        except StorageError as error:
            if time.monotonic() - begun > seconds:
                raise
            if not said:
                print(f"{error} Waiting for it.", file=sys.stderr, flush=True)
                said = True
            time.sleep(0.2)
        else:
            if said:
                gone = time.monotonic() - begun
                print(f"The database is back after {gone:.1f} s.", file=sys.stderr, flush=True)
            return value


@contextmanager
def exclusive(home: "Home", name: str, wait: bool = True) -> Iterator[bool]:
    """Hold a lock that one process has at a time, over all machines that share the study database.

    It ends with the process at the latest. On a server a connection of its own holds it, so the process may
    outlive it: whatever must not happen twice is fenced by the tables as well.

    Yields:
        whether it is held; always true with `wait`.
    """
    if not home.storage:
        with _locked(home.root / "locks" / name, wait) as mine:
            yield mine
        return
    number = int.from_bytes(hashlib.sha256(f"ablate {name}".encode()).digest()[:8], "big", signed=True)
    own = _engine(make_url(home.storage), poolclass=NullPool)
    with own.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if wait:
            connection.execute(text("SELECT pg_advisory_lock(:number)"), {"number": number})
            yield True
        else:
            ask = text("SELECT pg_try_advisory_lock(:number)")
            yield connection.execute(ask, {"number": number}).scalar_one()


@contextmanager
def _locked(path: Path, wait: bool) -> Iterator[bool]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
