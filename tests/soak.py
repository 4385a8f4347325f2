"""A sweep whose workers are killed again and again, and the same sweep undisturbed: both end in the same numbers.

    make soak ARGS="--kills 50"

Real processes train real models under `ablate run`. Each time that the sweep has come a little further, a process
of it is drawn by lot and gets SIGKILL, whatever it is doing: importing, claiming, training, writing a checkpoint,
settling. Now and then it is `ablate run` itself, after which `ablate resume` goes on. In the end verdicts, losses,
token hashes and final weights must be those of the undisturbed sweep, bit for bit; the ledger must hold every
FLOP; and no kill may have cost more than the steps between two checkpoints.
"""

import argparse
import functools
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import select

from ablate import db, ledger, reading, stored, study
from ablate.home import Home
from ablate.records import StudyView

INTERVAL = 6
"""Optimizer steps between two checkpoints."""

WORDS = [f"{what} {does}" for what in ("the layer", "a token", "the stream") for does in ("learns", "mixes")]
ANSWER = ("verdicts", "effects", "question", "baseline", "registration", "deviations")
"""What of `ablate verdict --json` must be equal; all of it but the name of the state."""

RUNNER = 0.2
"""How often `ablate run` itself is among those that the lot may fall on."""

POLL_SECONDS = 0.05


@dataclass
class Storm:
    """What was killed, by what it was doing."""

    kills: int = 0
    of: Counter[str] = field(default_factory=Counter)
    restarts: int = 0


def main() -> None:
    """Run both sweeps, print what was found, and fail where it is not as promised."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the storm")
    parser.add_argument("--per-trial", default="5 GFLOP", help="compute of one trial")
    parser.add_argument("--folder", type=Path, help="new folder to keep; by default one that is removed")
    asked = parser.parse_args()
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        soak(folder, asked.kills, asked.seed, asked.per_trial)
    finally:
        for process in _processes(folder):
            _kill(process)
        if asked.folder is None:
            shutil.rmtree(folder)


def soak(folder: Path, kills: int, seed: int, per_trial: str) -> None:
    """As above, below `folder`."""
    rng = random.Random(seed)
    text = folder / "words.txt"
    text.write_text("\n".join(" ".join(rng.choices(WORDS, k=20)) for _ in range(300)))
    calm, rough = Home(folder / "calm"), Home(folder / "storm")

    began = time.monotonic()
    done = _start(["run", *_overrides(text, calm, per_trial)])
    assert done.wait() == 0, _log(calm)
    (name,) = study.names(calm)
    undisturbed = reading.read(name, calm)
    print(f"undisturbed  {len(undisturbed.trials)} trials in {time.monotonic() - began:.0f} s", flush=True)

    began = time.monotonic()
    storm = _rage(rough, _overrides(text, rough, per_trial), name, _moments(rng, kills), rng)
    print(f"storm        {storm.kills} kills in {time.monotonic() - began:.0f} s", flush=True)
    print(f"             of {', '.join(f'{number} {what}' for what, number in storm.of.most_common())}")
    print(f"             `ablate resume` {storm.restarts} times")
    prove(undisturbed, calm, reading.read(name, rough), rough, storm)
    print("all as promised")


def prove(calm: StudyView, calm_home: Home, rough: StudyView, home: Home, storm: Storm) -> None:
    """Compare the two studies and account for every FLOP of the one under the storm."""
    ours, theirs = _answer(calm.name, calm_home), _answer(rough.name, home)
    for key in ANSWER:
        assert ours[key] == theirs[key], f"{key} of the verdict differ: {ours[key]} / {theirs[key]}"
    assert ours["verdicts"], "no verdict, nothing to compare"
    assert _numbers(calm, calm_home) == _numbers(rough, home)
    for verdict in ours["verdicts"]:
        print(f"verdict      {verdict['arm']}: {verdict['kind']}, difference {verdict['delta']!r} in both")
    print(
        f"             {len(calm.trials)} losses, curves, token hashes; {_weighed(calm, calm_home)} weights equal"
    )

    accounts = {account.phase: account for account in rough.accounts}
    with db.reading(db.connect(home)) as connection:
        ledger.check(connection, rough.name, rough.plan.total_mflop)
        e = db.ledger.c
        paid = (e.study == rough.name, e.phase == ledger.CONTINGENCY, e.waste > 0)
        wastes = connection.execute(select(e.trial, e.waste).where(*paid)).all()
        training = e.phase.in_(("search", "confirm"))
        changes = select(e.trial, e.spent, e.key).where(e.study == rough.name, training)
        back = [row for row in connection.execute(changes).all() if ledger.given_back(row.key)]
        t = db.trial.c
        rows = connection.execute(select(t.id, t.spec).where(t.study == rough.name)).all()
    step = {row.id: stored.spec_from_text(row.spec).step_mflop for row in rows}
    worst = max((-row.spent / step[row.trial] for row in back), default=0.0)
    assert worst <= INTERVAL, f"a kill cost {worst} steps"
    assert len(wastes) <= storm.kills
    wasted = accounts[ledger.CONTINGENCY].spent
    evaluating = max(arm.evaluation_mflop for arm in rough.plan.arms)
    bound = storm.kills * (INTERVAL * max(step.values()) + evaluating)
    assert wasted == accounts[ledger.CONTINGENCY].waste == sum(row.waste for row in wastes) <= bound
    useful = sum(row.result.useful_mflop for row in rough.trials if row.result is not None)
    assert useful == accounts["search"].spent + accounts["confirm"].spent
    evaluated = sum(row.spec.evaluated(row.result.steps) for row in rough.trials if row.result is not None)
    assert evaluated == accounts["evaluation"].spent
    charged = sum(row.charged_mflop for row in rough.trials)
    assert charged == useful + evaluated + wasted <= rough.plan.total_mflop
    assert not any(account.reserved for account in rough.accounts)
    assert useful + evaluated == sum(account.spent for account in calm.accounts)
    left = [path for path in home.trial(rough.name, 0).parent.glob("*/*") if path.is_dir()]
    assert not left, f"left behind: {left}"
    attempts = sum(row.attempts for row in rough.trials)
    print(f"attempts     {attempts} for {len(rough.trials)} trials")
    print(f"useful       {useful} MFLOP, as without the storm")
    print(
        f"waste        {wasted} MFLOP in {len(wastes)} payments, {100 * wasted / useful:.1f} % of what was useful"
    )
    print(
        f"bound        {bound} MFLOP: {storm.kills} kills of at most {INTERVAL} steps each; the worst took {worst:g}"
    )
    print(
        f"ledger       {useful} + {wasted} = {useful + wasted} MFLOP spent <= {rough.plan.total_mflop} in all"
    )


def _overrides(text: Path, home: Home, per_trial: str) -> list[str]:
    return [
        "sweep=smoke",
        "tracking=off",
        "data=text",
        f"data.files=[{text}]",
        "data.tokenizer=bytes",
        "data.val_tokens=512",
        "trainer.seq_len=32",
        f"trainer.checkpoint_steps={INTERVAL}",
        f"budget.per_trial={per_trial}",
        "budget.contingency=0.5",
        "launcher.workers=2",
        "launcher.max_attempts=1000",
        f"home={home.root}",
    ]


def _start(words: list[str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    where = Path(words[-1].removeprefix("home="))
    where.mkdir(parents=True, exist_ok=True)
    with (where / "soak.log").open("ab") as log:
        line = [sys.executable, "-m", "ablate.cli", *words]
        return subprocess.Popen(line, stdout=log, stderr=log, env=environment)


def _log(home: Home) -> str:
    return (home.root / "soak.log").read_text(errors="replace")[-3000:]


def _moments(rng: random.Random, kills: int) -> list[float]:
    """When to kill: shares of the sweep's work that must be done by then."""
    return sorted(rng.uniform(0.01, 0.97) for _ in range(kills))


def _rage(home: Home, overrides: list[str], name: str, moments: list[float], rng: random.Random) -> Storm:
    """Run the sweep and kill until the moments are over; then let it come to its end."""
    storm = Storm()
    process = _start(["run", *overrides])
    while True:
        time.sleep(POLL_SECONDS * rng.random())
        if process.poll() is not None:
            view = reading.read(name, home, with_verdicts=False)
            if view.state == "done":
                return storm
            storm.restarts += 1
            assert storm.restarts <= len(moments) + 1, _log(home)
            process = _start(["resume", name, "--home", str(home.root)])
        if storm.kills == len(moments) or not home.database.exists() or name not in study.names(home):
            continue
        view = reading.read(name, home, with_verdicts=False)
        if _share(view) >= moments[storm.kills] and (victims := _victims(home, process, rng)):
            time.sleep(0.2 * rng.random())
            victim, what = rng.choice(victims)
            if _kill(victim):
                storm.kills += 1
                storm.of[what(view)] += 1


def _share(view: StudyView) -> float:
    """Steps that are paid for, as a share of all that the plan wants."""
    planned = sum(account.cap for account in view.accounts if account.phase != ledger.CONTINGENCY)
    spent = sum(account.spent for account in view.accounts if account.phase != ledger.CONTINGENCY)
    return spent / planned


def _victims(
    home: Home, runner: subprocess.Popen[bytes], rng: random.Random
) -> list[tuple[psutil.Process, Callable[[StudyView], str]]]:
    """Worker processes of the home, each with what it is doing; rarely also the one that runs the study."""
    found: list[tuple[psutil.Process, Callable[[StudyView], str]]] = [
        (process, functools.partial(_doing, process.pid))
        for process in _processes(home.root)
        if "worker" in process.info["cmdline"]
    ]
    if rng.random() < RUNNER:
        found.append((psutil.Process(runner.pid), lambda _view: "`ablate run` itself"))
    return found


def _processes(folder: Path) -> list[psutil.Process]:
    """Those that work below a folder."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if (line := process.info["cmdline"]) and "ablate.cli" in line and str(folder) in " ".join(line)
    ]


def _doing(pid: int, view: StudyView) -> str:
    held = [trial for _, other, trial, _ in view.workers.values() if other == pid]
    if not held:
        return "worker on its way"
    return "worker with a trial" if held[0] is not None else "worker between trials"


def _kill(process: psutil.Process) -> bool:
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return False
    return True


def _answer(name: str, home: Home) -> dict[str, Any]:
    """What `ablate verdict` says, without the measured time that is in its sentences."""
    line = [sys.executable, "-m", "ablate.cli", "verdict", name, "--home", str(home.root), "--json"]
    said = subprocess.run(line, capture_output=True, check=True, text=True).stdout
    return json.loads(re.sub(r", wall [+-]?\d+%", "", said))


def _numbers(view: StudyView, home: Home) -> dict[str, Any]:
    """All that training gave, by trial, without what clocks say."""
    found = {}
    for row in view.trials:
        assert row.result is not None
        assert row.result.outcome == "complete", row.result.reason
        curve = [(p.step, p.tokens, p.lr, p.train_loss, p.val_loss) for p in row.result.curve]
        numbers = (row.result.val_loss, row.result.val_bpb, row.result.tokens_hash, row.result.metrics)
        found[row.spec.fingerprint] = (numbers, curve, _weights(home, view.name, row.number))
    return found


def _weights(home: Home, name: str, number: int) -> str:
    path = home.trial(name, number) / "model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


def _weighed(view: StudyView, home: Home) -> int:
    return sum(bool(_weights(home, view.name, row.number)) for row in view.trials)


if __name__ == "__main__":
    main()
