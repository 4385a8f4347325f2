"""Training that costs no time and no libraries, with real payments, checkpoints and resumption."""

import hashlib
import json
import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from ablate.errors import StopTraining
from ablate.records import Meter, Point, TrialResult, TrialSpec


def loss(arm: str, lr: float, seed: int) -> float:
    """A quadratic in log2 of the rate with its optimum at 3e-3, an offset per arm and noise per seed."""
    noise = int(hashlib.sha256(f"{arm} {seed} {lr}".encode()).hexdigest()[:8], 16) / 2**32
    return 3.0 + 0.1 * len(arm) + 0.02 * math.log2(lr / 3e-3) ** 2 + 0.002 * noise


def train(
    spec: TrialSpec,
    corpus: Any,
    workdir: Path,
    meter: Meter,
    step_seconds: float = 0.0,
    every: int = 10,
) -> TrialResult:
    """Steps that sleep. The state is a hash over all steps: a resumed run is told from a broken one.

    An arm called `breaks` raises, `diverges` diverges half way, `poison` kills its process there, and `hangs`
    runs in circles there, the first time that anybody trains it.
    """
    checkpoint = workdir / "checkpoint.json"
    step, state = 0, "start"
    if checkpoint.exists():
        step, state = json.loads(checkpoint.read_text())
    if spec.arm == "breaks":
        meter.debit(step, 1)
        raise RuntimeError("this component is broken")
    began = time.monotonic()
    try:
        while step < spec.steps:
            meter.debit(step, 1)
            if spec.arm == "poison" and step >= spec.steps // 2:
                os.kill(os.getpid(), signal.SIGKILL)
            if spec.arm == "diverges" and step >= spec.steps // 2:
                return _result(spec, step + 1, "diverged", math.log(512), "", "loss above ln(vocabulary)")
            if spec.arm == "hangs" and step >= spec.steps // 2 and not list(workdir.parent.glob("*/hung")):
                (workdir / "hung").touch()
                while True:
                    pass
            if step_seconds:
                time.sleep(step_seconds)
            state = hashlib.sha256(f"{state} {step} {spec.seed}".encode()).hexdigest()
            step += 1
            if step % every == 0:
                _save(checkpoint, step, state)
                meter.durable(step)
            seconds = time.monotonic() - began
            meter.progress(
                Point(step=step, tokens=step, mflop=spec.charge(step), seconds=seconds, lr=spec.lr)
            )
    except StopTraining:
        _save(checkpoint, step, state)
        meter.durable(step)
        return _result(spec, step, "interrupted", None, state, "asked to stop")
    return _result(spec, step, "complete", loss(spec.arm, spec.lr, spec.seed), state, "")


def _save(checkpoint: Path, step: int, state: str) -> None:
    part = checkpoint.with_suffix(".tmp")
    part.write_text(json.dumps([step, state]))
    part.replace(checkpoint)


def _result(
    spec: TrialSpec, step: int, outcome: Any, value: float | None, state: str, reason: str
) -> TrialResult:
    return TrialResult(
        outcome=outcome,
        val_loss=value,
        val_bpb=None if value is None else value / math.log(2) / 3,
        steps=step,
        tokens=step,
        useful_mflop=spec.charge(step),
        seconds=0.1,
        tokens_hash=state,
        curve=(Point(step=step, tokens=step, mflop=step, seconds=0.1, lr=spec.lr, val_loss=value),),
        reason=reason,
    )


def main() -> None:
    """`fake_training.py SECONDS_PER_STEP STUDY --home HOME --name NAME`: a worker that trains like this.

    Only the trials of the highest learning rate take that time, and the others none.
    """
    from ablate import worker
    from ablate.home import Home

    seconds, study, _, home, _, name = sys.argv[1:]

    def slow(spec: TrialSpec, corpus: Any, workdir: Path, meter: Meter) -> TrialResult:
        return train(spec, corpus, workdir, meter, float(seconds) if spec.lr > 0.01 else 0.0)

    worker.main(Home(Path(home)), study, name, slow)


if __name__ == "__main__":
    main()
