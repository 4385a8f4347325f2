"""The study database: its tables, and connections that keep their promises.

Whatever is true about a study is here; Optuna and MLflow hold copies. SQLite by default, in WAL with an
fsync per commit; every statement is SQLAlchemy Core, so that another engine is another URL. Times are unix
seconds of the database's clock, amounts of compute integer MFLOP (raw FLOPs overflow 64 bits at real
budgets).
"""

import fcntl
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Connection,
    Engine,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    event,
)
from sqlalchemy import exc as sql_exc
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from ablate.errors import AblateError
from ablate.home import Home

VERSION = 2
"""Of the tables below, kept in SQLite's `user_version`."""

BUSY_SECONDS = 60

Found = Any
"""A row of a query, columns by name. SQLAlchemy types it differently in 2.0 and 2.1."""

metadata = MetaData()

study = Table(
    "study",
    metadata,
    Column("name", String, primary_key=True),
    Column("fingerprint", String, nullable=False),
    Column("state", String, nullable=False),  # planned | running | stopped | done
    Column("stopping", Boolean, nullable=False, default=False),  # workers must checkpoint and let go
    Column("plan", Text, nullable=False),
    Column("provenance", Text, nullable=False),
    Column("created_at", Float, nullable=False),
)

trial = Table(
    "trial",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("study", ForeignKey("study.name"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("slot", String, nullable=False),  # its place in the plan, such as search/csa/3
    Column("fingerprint", String, nullable=False, index=True),
    Column("arm", String, nullable=False),
    Column("phase", String, nullable=False),
    Column("spec", Text, nullable=False),
    Column("state", String, nullable=False),  # queued | running | complete | diverged | failed | cancelled
    Column("result", Text),
    Column("reused_from", String),
    Column("step_mflop", BigInteger, nullable=False),
    Column("paid_steps", BigInteger, nullable=False, default=0),  # its phase has paid for steps below this
    Column("wasted", BigInteger, nullable=False, default=0),  # contingency has paid, MFLOP
    Column("optuna", Integer),
    Column("told", Boolean, nullable=False, default=False),
    Column("started_at", Float),
    Column("ended_at", Float),
    UniqueConstraint("study", "number"),
    UniqueConstraint("study", "slot"),
)

proposal = Table(  # of an open search; one that is trained has a trial
    "proposal",
    metadata,
    Column("study", ForeignKey("study.name"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("optuna", Integer, nullable=False),
    Column("told", Boolean, nullable=False, default=False),
    Column("sampler", String, nullable=False),
    Column("params", Text, nullable=False),  # JSON, as are overrides, costs and violations
    Column("overrides", Text, nullable=False),
    Column("lr", Float, nullable=False),
    Column("kind", String, nullable=False),  # new | duplicate | infeasible | invalid
    Column("reason", Text, nullable=False),
    Column("identity", String, nullable=False),
    Column("schedule", Text, nullable=False),
    Column("costs", Text, nullable=False),
    Column("violations", Text, nullable=False),
    Column("trial", ForeignKey("trial.id")),
)

job = Table(
    "job",
    metadata,
    Column("trial", ForeignKey("trial.id"), primary_key=True),
    Column("study", ForeignKey("study.name"), nullable=False),
    Column("state", String, nullable=False),  # queued | running | done
    Column("attempt", Integer, nullable=False, default=0),  # newest one: the fencing token
    Column("losses", Integer, nullable=False, default=0),  # attempts that died
    Index("job_queue", "study", "state", "trial"),
)

attempt = Table(
    "attempt",
    metadata,
    Column("trial", ForeignKey("trial.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("study", ForeignKey("study.name"), nullable=False),
    Column("worker", String, nullable=False),
    Column("state", String, nullable=False),  # running | finished | stopped | lost
    Column("first_step", BigInteger),
    Column("durable_step", BigInteger),
    Column("lease_until", Float, nullable=False),
    Column("started_at", Float, nullable=False),
    Column("ended_at", Float),
    Column("progress", Text),
    Column("reason", Text),
    Index("attempt_state", "study", "state"),
)

budget = Table(
    "budget",
    metadata,
    Column("study", ForeignKey("study.name"), primary_key=True),
    Column("phase", String, primary_key=True),
    Column("cap", BigInteger, nullable=False),
    Column("spent", BigInteger, nullable=False, default=0),
    Column("reserved", BigInteger, nullable=False, default=0),
    Column("waste", BigInteger, nullable=False, default=0),
    CheckConstraint("spent >= 0 AND reserved >= 0 AND waste >= 0", name="no_negative_amounts"),
    CheckConstraint("spent + reserved <= cap", name="within_cap"),
)

ledger = Table(
    "ledger",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("study", ForeignKey("study.name"), nullable=False),
    Column("phase", String, nullable=False),
    Column("kind", String, nullable=False),  # reserve | debit | refund | release | waste
    Column("key", String, nullable=False),
    Column("trial", ForeignKey("trial.id"), index=True),
    Column("spent", BigInteger, nullable=False),  # changes of the budget's columns
    Column("reserved", BigInteger, nullable=False),
    Column("waste", BigInteger, nullable=False),
    Column("at", Float, nullable=False),
    UniqueConstraint("study", "key"),
)

event_log = Table(
    "event",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("study", ForeignKey("study.name"), nullable=False, index=True),
    Column("at", Float, nullable=False),
    Column("kind", String, nullable=False),
    Column("text", Text, nullable=False),
)

worker = Table(
    "worker",
    metadata,
    Column("study", ForeignKey("study.name"), primary_key=True),
    Column("name", String, primary_key=True),
    Column("host", String, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("trial", Integer),  # number of the trial in its hands
    Column("seen_at", Float, nullable=False),
)


class now(FunctionElement[float]):  # noqa: N801 - used like the SQL function it is
    """Unix seconds on the database's clock, so that no worker's clock can end another's lease."""

    type = Float()
    inherit_cache = True


@compiles(now)
def _now(element: now, compiler: Any, **_: Any) -> str:
    return "extract(epoch from clock_timestamp())"


@compiles(now, "sqlite")
def _now_sqlite(element: now, compiler: Any, **_: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


def harden(engine: Engine) -> Engine:
    """Make SQLite connections safe for many processes: WAL, fsync per commit, writers one at a time.

    A transaction that reads and then writes must hold the write lock from its beginning, else two of them
    read the same queued job. Readers ask for `read_only` and never wait.
    """
    if engine.dialect.name != "sqlite":
        return engine

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


def connect(home: Home) -> Engine:
    """The study database of a home; tables are made on first use, by one process.

    Raises:
        AblateError: the file is no database, or another version of `ablate` made it.
    """
    return _engine(home.database)


@functools.lru_cache(maxsize=16)
def _engine(path: Path) -> Engine:
    path.parent.mkdir(parents=True, exist_ok=True)
    engine = harden(create_engine(f"sqlite:///{path}", connect_args={"timeout": BUSY_SECONDS}))
    try:
        with locked(path.with_suffix(".lock")):
            _make(engine, path)
    except sql_exc.DatabaseError as error:
        raise AblateError(
            f"{path} cannot be used as a study database ({error.orig}). Move it away or choose another home."
        ) from error
    return engine


def _make(engine: Engine, path: Path) -> None:
    with engine.begin() as connection:
        found = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
        if found not in (0, VERSION):
            raise AblateError(
                f"{path} has tables of version {found}, this program those of {VERSION}. Choose another home."
            )
        if found == 0:
            metadata.create_all(connection)
            connection.exec_driver_sql(f"PRAGMA user_version={VERSION}")


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One consistent reading that no writer waits for."""
    with engine.connect().execution_options(read_only=True) as connection, connection.begin():
        yield connection


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold an exclusive lock on a file, which ends with the process at the latest.

    Yields:
        whether it is held; always true with `wait`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def note(connection: Connection, study_name: str, kind: str, text: str) -> None:
    """Record an event for people to read."""
    connection.execute(event_log.insert().values(study=study_name, at=now(), kind=kind, text=text))
