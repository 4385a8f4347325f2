"""The command itself, with real text, training, Optuna and MLflow: to its verdicts, again, and through Ctrl-C."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ablate import reading, study
from ablate.home import Home
from ablate.records import StudyView

WORDS = [f"{what} {does}" for what in ("the layer", "a token", "the stream") for does in ("learns", "mixes")]


def _command(folder: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "ablate.cli", *words]


def _overrides(folder: Path, home: str, *more: str) -> list[str]:
    return [
        "sweep=smoke",
        "data=text",
        f"data.files=[{folder / 'words.txt'}]",
        "data.tokenizer=bytes",
        "data.val_tokens=512",
        "trainer.seq_len=32",
        "launcher.workers=2",
        f"home={folder / home}",
        *more,
    ]


def _run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    return subprocess.run(
        _command(folder, *words), capture_output=True, text=True, timeout=300, check=False, env=environment
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("end to end")
    rng = random.Random(0)
    (folder / "words.txt").write_text("\n".join(" ".join(rng.choices(WORDS, k=20)) for _ in range(300)))
    return folder


@pytest.fixture(scope="module")
def first(folder: Path) -> subprocess.CompletedProcess[str]:
    return _run(folder, "run", *_overrides(folder, "home"))


def _view(folder: Path, home: str = "home") -> StudyView:
    at = Home(folder / home)
    return reading.read(study.find(at, ""), at)


def test_a_sweep_runs_to_its_verdicts(folder: Path, first: subprocess.CompletedProcess[str]) -> None:
    assert first.returncode == 0, first.stderr
    view = _view(folder)
    assert view.state == "done"
    assert [verdict.arm for verdict in view.verdicts] == ["csa"]
    assert view.verdicts[0].kind == "inconclusive"  # a few steps must never be more
    for word in ("Verdicts", "csa", "inconclusive", "report.html", f"ablate dashboard {view.name}"):
        assert word in first.stdout
    assert "\x1b" not in first.stdout + first.stderr, "no control characters where nobody watches"
    files = {path.name for path in Home(folder / "home").report(view.name).iterdir()}
    assert {"report.html", "report.md", "contrasts.csv"} <= files


def test_arms_of_a_replicate_saw_the_same_tokens(
    folder: Path, first: subprocess.CompletedProcess[str]
) -> None:
    view = _view(folder)
    steps = min(arm.steps for arm in view.plan.arms)
    for row in view.trials:
        assert row.result is not None
        assert row.result.outcome == "complete"
        assert row.result.steps == view.plan.arm(row.spec.arm).steps >= steps
    from ablate import data

    corpus = data.prepare(view.plan.run.data, Home(folder / "home"))
    trainer = view.plan.run.trainer
    for seed in {row.spec.seed for row in view.trials}:
        longest: dict[int, str] = {}
        for row in (row for row in view.trials if row.spec.seed == seed):
            assert row.result is not None
            expected = _hash(corpus, seed, row.result.steps, trainer.batch_size, trainer.seq_len)
            assert row.result.tokens_hash == longest.setdefault(row.result.steps, expected) == expected


def _hash(corpus: Any, seed: int, steps: int, batch_size: int, seq_len: int) -> str:
    """What a trial of that many steps must have seen, arm or no arm."""
    import hashlib

    digest = ""
    for step in range(steps):
        batch = corpus.batch(seed, step, batch_size, seq_len)
        one = hashlib.sha256(digest.encode())
        one.update(batch.inputs.numpy().tobytes())
        one.update(batch.labels.numpy().tobytes())
        digest = one.hexdigest()
    return digest


def test_the_ledger_holds_every_flop(folder: Path, first: subprocess.CompletedProcess[str]) -> None:
    view = _view(folder)
    assert sum(account.spent for account in view.accounts) <= view.plan.total_mflop
    assert sum(account.reserved for account in view.accounts) == 0
    spent = {account.phase: account.spent for account in view.accounts}
    for phase in ("search", "confirm"):
        useful = sum(r.result.useful_mflop for r in view.trials if r.result and r.spec.phase == phase)
        assert spent[phase] == useful
    evaluated = sum(
        len([p for p in r.result.curve if p.val_loss is not None]) for r in view.trials if r.result
    )
    each = {arm.name: {mflop for _, mflop in arm.evaluations} for arm in view.plan.arms}
    assert evaluated == sum(len(view.plan.arm(r.spec.arm).evaluations) for r in view.trials)
    assert spent["evaluation"] == sum(r.evaluation_mflop for r in view.trials)
    assert spent["evaluation"] == sum(
        sum(each[r.spec.arm]) for r in view.trials for p in (r.result.curve if r.result else ()) if p.val_loss
    )


def test_engines_hold_the_same_numbers(folder: Path, first: subprocess.CompletedProcess[str]) -> None:
    import mlflow
    import optuna

    view, home = _view(folder), Home(folder / "home")
    client = mlflow.MlflowClient(f"sqlite:///{home.mlflow}")
    experiment = client.get_experiment_by_name(view.name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`ablate.kind` = 'trial'")
    mirrored = sorted(run.data.metrics["val/loss"] for run in runs)
    assert mirrored == pytest.approx(sorted(r.result.val_loss for r in view.trials if r.result))
    searched = optuna.load_study(study_name=view.name, storage=f"sqlite:///{home.optuna}").trials
    tuned = [r.result.val_loss for r in view.trials if r.result and r.spec.phase == "search"]
    assert sorted(t.value for t in searched) == pytest.approx(sorted(tuned))


def test_the_same_command_again_costs_nothing_and_says_so(
    folder: Path, first: subprocess.CompletedProcess[str]
) -> None:
    before = _view(folder)
    again = _run(folder, "run", *_overrides(folder, "home"))
    assert again.returncode == 0
    assert "14 trials are already done and cost nothing again" in again.stderr
    assert _view(folder).accounts == before.accounts
    assert [row.attempts for row in _view(folder).trials] == [1] * 14


def test_trials_of_another_study_are_found_again(
    folder: Path, first: subprocess.CompletedProcess[str]
) -> None:
    """One more seed per arm: a new study, which pays for the new trials alone."""
    more = _run(folder, "run", *_overrides(folder, "home", "sweep.confirm.replicates=3"))
    assert more.returncode == 0
    at = Home(folder / "home")
    view = reading.read(study.names(at)[0], at)
    assert len(view.trials) == 16
    assert sum(row.reused_from is not None for row in view.trials) == 14
    spent = sum(account.spent for account in view.accounts)
    own = [r for r in view.trials if not r.reused_from]
    assert spent == sum(r.result.useful_mflop + r.evaluation_mflop for r in own if r.result)


def test_ctrl_c_settles_and_resume_ends_with_the_same_numbers(
    folder: Path, first: subprocess.CompletedProcess[str]
) -> None:
    home = Home(folder / "interrupted")
    process = subprocess.Popen(
        _command(folder, "run", *_overrides(folder, "interrupted", "tracking=off")),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        time.sleep(0.1)
        if home.database.exists() and study.names(home):
            rows = reading.read(study.names(home)[0], home, with_verdicts=False).trials
            if any(row.state == "complete" for row in rows):
                break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    name = study.names(home)[0]
    assert f"ablate resume {name}" in out
    stopped = reading.read(name, home)
    assert stopped.state == "stopped"
    assert stopped.workers == {}
    assert sum(a.spent + a.reserved for a in stopped.accounts) <= stopped.plan.total_mflop
    resumed = _run(folder, "resume", name, "--home", str(home.root))
    assert resumed.returncode == 0, resumed.stderr
    expected = {row.spec.fingerprint: row.result for row in _view(folder).trials}
    for row in reading.read(name, home).trials:
        undisturbed = expected[row.spec.fingerprint]
        assert row.result is not None
        assert undisturbed is not None
        assert (row.result.val_loss, row.result.tokens_hash) == (
            undisturbed.val_loss,
            undisturbed.tokens_hash,
        )


def test_status_answers_in_json(folder: Path, first: subprocess.CompletedProcess[str]) -> None:
    answer = _run(folder, "status", "--home", str(folder / "home"), "--json")
    assert answer.returncode == 0
    assert json.loads(answer.stdout)["state"] == "done"
