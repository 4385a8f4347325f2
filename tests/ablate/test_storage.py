"""Studies on a PostgreSQL server: found by its address, never with a password, the same numbers as in a file."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import postgres as servers
import pytest
import small_studies
from optuna.exceptions import StorageInternalError
from sqlalchemy import select, text

from ablate import db, doctor, reading, storage, study
from ablate.errors import BadInputError
from ablate.home import Home

TINY = (
    "sweep=smoke",
    "budget.per_trial=1 GFLOP",
    "launcher.workers=2",
    "tracking.enabled=false",
)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("postgresql://me:s3cret@host/db", "with a password"),
        ("postgresql://me@host/db?password=s3cret", "with a password"),
        ("mysql://me:s3cret@host/db", "with a password"),
        ("mysql://me@host/db", "another kind"),
        ("s3cret", "no address"),
    ],
)
def test_an_address_that_cannot_serve_is_refused_and_no_password_repeated(
    address, said, tmp_path, monkeypatch
):
    with pytest.raises(BadInputError, match=said) as refused:
        Home.at(str(tmp_path), address)
    assert "s3cret" not in str(refused.value)
    assert "storage" in str(refused.value)
    monkeypatch.setenv("ABLATE_DB", address)
    with pytest.raises(BadInputError, match="ABLATE_DB"):
        Home.at(str(tmp_path))


def test_the_configuration_comes_before_the_environment_and_that_before_the_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("ABLATE_DB", raising=False)
    assert Home.at(str(tmp_path)).storage is None
    home = Home.at(str(tmp_path), "postgresql://me@a/db")
    assert home.storage == "postgresql+psycopg://me@a/db"
    home.create()
    assert Home.at(str(tmp_path)) == home, "later commands find it"
    monkeypatch.setenv("ABLATE_DB", "postgresql:///?service=b")
    assert Home.at(str(tmp_path)).storage == "postgresql+psycopg:///?service=b"
    monkeypatch.setenv("ABLATE_DB", "sqlite")
    assert Home.at(str(tmp_path)).storage is None
    assert Home.at(str(tmp_path), "postgresql://me@a/db") == home


def test_a_server_that_is_not_there_is_said_in_seconds(tmp_path):
    home = Home(tmp_path, storage.server(f"postgresql://me@/db?host={tmp_path}"))
    with pytest.raises(storage.StorageError, match="No such file"):
        study.names(home)
    (found,) = (check for check in doctor.examine(home) if check.name == "study database")
    assert not found.ok


def test_tables_of_another_version_are_refused(any_home):
    with db.connect(any_home).begin() as connection:
        if any_home.storage:
            connection.execute(text("COMMENT ON TABLE study IS 'ablate, tables of version 99'"))
        else:
            connection.execute(text("PRAGMA user_version=99"))
    db._engine.cache_clear()
    with pytest.raises(BadInputError, match="tables of version 99"):
        study.names(any_home)


def test_a_study_of_another_version_is_refused_in_words(any_home):
    plan = small_studies.plan()
    study.create(plan, any_home)
    with db.connect(any_home).begin() as connection:
        old = json.loads(connection.execute(select(db.study.c.plan)).scalar_one())
        del old["caps"]
        connection.execute(db.study.update().values(plan=json.dumps(old)))
    with pytest.raises(BadInputError, match="another version of ablate"):
        study.view(plan.study, any_home)


def test_one_process_at_a_time_has_a_lock_and_it_ends_with_its_connection(any_home):
    with storage.exclusive(any_home, "a", wait=False) as first:
        assert first
        with (
            storage.exclusive(any_home, "a", wait=False) as second,
            storage.exclusive(any_home, "b") as other,
        ):
            assert (second, other) == (False, True)
    with storage.exclusive(any_home, "a", wait=False) as again:
        assert again


def test_a_reading_is_consistent_and_cannot_write(any_home):
    plan = small_studies.plan()
    study.create(plan, any_home)
    engine = db.connect(any_home)
    with db.reading(engine) as connection:
        assert connection.execute(select(db.study.c.state)).scalar_one() == "planned"
        with engine.begin() as other:
            other.execute(db.study.update().values(state="running"))
        assert connection.execute(select(db.study.c.state)).scalar_one() == "planned"


def test_the_clock_is_the_databases_and_counts_unix_seconds(any_home):
    with db.reading(db.connect(any_home)) as connection:
        found = float(connection.execute(select(db.now())).scalar_one())
    assert abs(found - time.time()) < 60


def test_a_stopped_process_loses_its_locks(postgres, tmp_path, monkeypatch):
    """SIGSTOP amid a transaction: the server ends it, and the others go on."""
    monkeypatch.setattr(storage, "_STOPPED_SECONDS", 1)
    with postgres.database() as address:
        home = Home(tmp_path, storage.server(address))
        plan = small_studies.plan()
        study.create(plan, home)
        engine = db.connect(home)
        with engine.connect() as stopped:
            stopped.execute(db.study.update().values(state="stopped"))
            with engine.begin() as other:
                other.execute(db.study.update().values(state="running"))
            with pytest.raises(storage.StorageError):
                stopped.execute(select(db.study.c.name))
        assert reading.read(plan.study, home).state == "running"
        engine.dispose()


def test_work_waits_for_a_server_that_restarts(tmp_path, capsys):
    with servers.server() as server:
        if server is None:
            pytest.skip("needs PostgreSQL: initdb is neither on the PATH nor where Debian puts it")
        with server.database() as address:
            home = Home(tmp_path, storage.server(address))
            plan = small_studies.plan(steps=6, extensions=0, replicates=2)
            study.create(plan, home)
            done = []
            thread = threading.Thread(target=lambda: done.append(small_studies.finish(home, plan, _slow)))
            thread.start()
            time.sleep(0.5)
            server.stop(signal.SIGQUIT)
            time.sleep(0.5)
            server.start()
            thread.join(120)
            assert done, "the work has ended"
            assert {row.state for row in done[0].trials} == {"complete"}
            assert max(row.attempts for row in done[0].trials) == 1, "nobody lost a trial"
            db.connect(home).dispose()
    assert "Waiting for it." in capsys.readouterr().err


def _slow(spec, corpus, workdir, meter):
    import fake_training

    return fake_training.train(spec, corpus, workdir, meter, step_seconds=0.02)


def test_a_study_ends_the_same_on_a_server_as_in_a_file(postgres, tmp_path):
    plan = small_studies.plan(steps=4)
    with postgres.database() as address:
        homes = Home(tmp_path / "file"), Home(tmp_path / "server", storage.server(address))
        for home in homes:
            study.create(plan, home)
            small_studies.finish(home, plan)
        file, server = (study.view(plan.study, home) for home in homes)
        db.connect(homes[1]).dispose()
    assert file.verdicts
    assert file.verdicts == server.verdicts
    assert file.accounts == server.accounts
    assert [(r.number, r.spec, r.state, r.result) for r in file.trials] == [
        (r.number, r.spec, r.state, r.result) for r in server.trials
    ]


def test_the_optuna_dashboard_reads_a_server_and_cannot_write(postgres, tmp_path):
    from dashboards import engines

    plan = small_studies.plan(steps=2)
    with postgres.database() as address:
        home = Home(tmp_path, storage.server(address))
        with pytest.raises(engines.NotThereError):
            engines.optuna_storage(home)
        study.create(plan, home)
        small_studies.finish(home, plan)
        opened = engines.optuna_storage(home)
        number = opened.get_study_id_from_name(plan.study)
        with pytest.raises(StorageInternalError):
            opened.set_study_user_attr(number, "x", 1)
        opened.engine.dispose()
        db.connect(home).dispose()


@pytest.mark.slow
def test_a_real_run_of_two_workers_has_the_same_verdicts_on_a_server_as_in_a_file(postgres, tmp_path):
    root = Path(__file__).parents[2]
    found = {}
    with postgres.database() as address:
        for name, where in (("file", "sqlite"), ("server", address)):
            environment = {key: value for key, value in os.environ.items() if key != "ABLATE_DB"}
            environment |= {
                "PYTHONPATH": str(root),
                "OMP_NUM_THREADS": "1",
                "ABLATE_HOME": str(tmp_path / name),
            }
            command = [sys.executable, "-m", "ablate.cli"]
            subprocess.run(
                [*command, "run", *TINY, f"storage={where}"], env=environment, cwd=tmp_path, check=True
            )
            answer = [*command, "verdict", "--json"]
            shown = subprocess.run(answer, env=environment, cwd=tmp_path, check=True, capture_output=True)
            found[name] = json.loads(shown.stdout)
            assert (tmp_path / name / "ablate.db").exists() == (name == "file")
            proved = subprocess.run(
                [*command, "ledger"], env=environment, cwd=tmp_path, check=True, capture_output=True
            )
            assert b"Every FLOP is accounted for" in proved.stdout
    assert found["file"]["verdicts"]
    assert _numbers(found["file"]) == _numbers(found["server"])


def _numbers(answer: dict) -> list[dict]:
    """Verdicts without the words that tell how fast the arms were on this machine."""
    told = ("caveats", "sentence")
    return [{key: value for key, value in row.items() if key not in told} for row in answer["verdicts"]]
