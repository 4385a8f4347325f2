"""The study database: its tables, and how they come to be there.

Whatever is true about a study is here; Optuna and MLflow hold copies. Every statement is SQLAlchemy Core, so
that SQLite and PostgreSQL get the same ones. Times are unix seconds of the database's clock, amounts of compute
integer MFLOP (raw FLOPs overflow 64 bits at real budgets).
"""

import functools
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
    select,
)
from sqlalchemy import exc as sql_exc
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from ablate import storage
from ablate.errors import AblateError, BadInputError
from ablate.home import Home
from ablate.storage import reading

VERSION = 4
"""Of the tables below, kept in SQLite's `user_version`, and with PostgreSQL in a comment on the first table."""

Found = Any
"""A row of a query, columns by name. SQLAlchemy types it differently in 2.0 and 2.1."""

_COMMENT = "ablate, tables of version "

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
    Column("params", Text, nullable=False),  # JSON, as are overrides and costs
    Column("overrides", Text, nullable=False),
    Column("lr", Float, nullable=False),
    Column("kind", String, nullable=False),  # new | duplicate | infeasible | invalid
    Column("reason", Text, nullable=False),
    Column("identity", String, nullable=False),
    Column("schedule", Text, nullable=False),
    Column("costs", Text, nullable=False),
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

calibration = Table(  # a measured speed
    "calibration",
    metadata,
    Column("key", String, primary_key=True),  # machine, library, arm, shape of a step
    Column("step_seconds", Float, nullable=False),
    Column("study", ForeignKey("study.name")),  # which has paid
    Column("at", Float, nullable=False),
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
    UniqueConstraint("study", "phase", "key"),
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


def connect(home: Home) -> Engine:
    """The study database of a home; tables are made on first use, by one process.

    Raises:
        BadInputError: another version of `ablate` made its tables. AblateError: the file is no database.
        StorageError: the server cannot be reached.
    """
    return _engine(home)


def exists(home: Home) -> bool:
    """Whether a home has a study database; asking makes none."""
    if not home.storage:
        return home.database.exists()
    engine = storage.engine(storage.url(home, home.database))
    with reading(engine) as connection:
        found = _version(connection)
    engine.dispose()
    return found is not None


@functools.lru_cache(maxsize=16)
def _engine(home: Home) -> Engine:
    engine = storage.engine(storage.url(home, home.database))
    home.root.mkdir(parents=True, exist_ok=True)
    try:
        found = _tables(home, engine)
    except sql_exc.DatabaseError as error:
        raise AblateError(
            f"{_where(home)} cannot be used as a study database ({error.orig}). Choose another home or storage."
        ) from error
    if found != VERSION:
        raise BadInputError(
            f"{_where(home)} has tables of version {found}, this program those of {VERSION}. "
            "Choose another home or storage, or the version of ablate that made it."
        )
    return engine


def _where(home: Home) -> str:
    return home.storage or str(home.database)


def _tables(home: Home, engine: Engine) -> int:
    """Version of the tables, which are made where there are none."""
    if home.storage:  # thousands of workers may start at once: none waits for a lock that it does not need
        with reading(engine) as connection:
            found = _version(connection)
        if found is not None:
            return found
    with storage.exclusive(home, "tables"), engine.begin() as connection:
        return _version(connection) or _make(connection)


def _version(connection: Connection) -> int | None:
    """Version of the tables that are there; None where there are none."""
    if connection.dialect.name == "sqlite":
        return connection.exec_driver_sql("PRAGMA user_version").scalar_one() or None
    text = connection.exec_driver_sql("SELECT obj_description(to_regclass('study'))").scalar_one()
    return None if text is None else int(text.removeprefix(_COMMENT))


def _make(connection: Connection) -> int:
    metadata.create_all(connection)
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(f"PRAGMA user_version={VERSION}")
    else:
        connection.exec_driver_sql(f"COMMENT ON TABLE study IS '{_COMMENT}{VERSION}'")
    return VERSION


def study_row(connection: Connection, name: str, home: Home) -> Found:
    """A study of a home.

    Raises:
        BadInputError: there is none of that name.
    """
    found = connection.execute(select(study).where(study.c.name == name)).first()
    if found is None:
        raise BadInputError(f"study '{name}' does not exist in {home.place}.")
    return found


def note(connection: Connection, study_name: str, kind: str, text: str) -> None:
    """Record an event for people to read."""
    connection.execute(event_log.insert().values(study=study_name, at=now(), kind=kind, text=text))
