"""What earlier studies of this home tell about the next one: speed and noise; else a stated guess."""

import statistics
import time
from collections.abc import Sequence

from ablate import division, durations, units
from ablate.errors import AblateError
from ablate.home import Home
from ablate.records import ArmPlan, Speed, StudyView
from ablate.schema import Run

TYPICAL_SHARE = 0.08
"""Share of the matmul rate that training `micro` reaches; used until trials have been measured."""

NOISE_PRIOR = 0.02
"""Nats: standard deviation of paired differences of final held-out loss, typical of small models."""


def earlier(home: Home, limit: int = 3) -> list[StudyView]:
    """The newest studies of a home, newest first; none where there is no database yet."""
    from ablate import study

    views = []
    for name in study.names(home):
        try:
            views.append(study.view(name, home))
        except (AblateError, KeyError, TypeError, ValueError):
            continue  # written by another version: no use for an estimate, and no reason to refuse a plan
    return sorted(views, key=lambda view: view.created_at, reverse=True)[:limit]


def noise(run: Run, views: Sequence[StudyView]) -> tuple[float, str]:
    """Standard deviation of paired differences in nats, and where it is from."""
    for view in views:
        same = view.plan.run.model.name == run.model.name and view.plan.run.data.name == run.data.name
        measured = [verdict.sd for verdict in view.verdicts if verdict.n >= 3 and verdict.sd > 0]
        if same and measured:
            return statistics.median(measured), f"median over {len(measured)} contrasts of {view.name}"
    return (
        NOISE_PRIOR,
        f"assumed, typical of models of this size; measured once {run.model.name} has confirm trials",
    )


def seconds(
    run: Run,
    arms: Sequence[ArmPlan],
    workers: int,
    views: Sequence[StudyView],
    speeds: Sequence[Speed] = (),
) -> float | None:
    """Wall time of the study, or None on a device that no earlier trial has measured."""
    trials = sum(division.trials_of(run.sweep).values())
    if speeds:
        steps = {arm.name: arm.steps for arm in arms}
        work = statistics.fmean(steps[speed.arm] * speed.step_seconds for speed in speeds) * trials
        return work / min(workers, trials) * durations.OVERHEAD
    rate = _measured_rate(run, views)
    if rate is None:
        if run.trainer.device != "cpu":
            return None
        rate = matmul_rate(run.launcher.threads) * TYPICAL_SHARE
    work = statistics.fmean(arm.mflop for arm in arms) * units.MFLOP * trials
    return work / rate / min(workers, trials) * durations.OVERHEAD


def rate(run: Run, views: Sequence[StudyView]) -> float:
    """FLOP/s of one worker: of earlier trials, else a guess from a matrix product."""
    from ablate import speed

    measured = _measured_rate(run, views)
    if measured is None and run.trainer.device.startswith("cuda"):
        measured = speed.matmul_rate(speed.Machine.of(run)) * TYPICAL_SHARE
    return measured or matmul_rate(run.launcher.threads) * TYPICAL_SHARE


def _measured_rate(run: Run, views: Sequence[StudyView]) -> float | None:
    """FLOP/s of one worker: median over finished trials of the same model, device and threads."""
    for view in views:
        other = view.plan.run
        if (other.model.name, other.trainer, other.launcher.threads) != (
            run.model.name,
            run.trainer,
            run.launcher.threads,
        ):
            continue
        rates = [
            row.result.useful_mflop * units.MFLOP / row.result.seconds
            for row in view.trials
            if row.result
            and row.result.outcome == "complete"
            and row.result.seconds > 0
            and not row.reused_from
        ]
        if rates:
            return statistics.median(rates)
    return None


def matmul_rate(threads: int, budget: float = 0.2) -> float:
    """FLOP/s of float32 matrix products on this CPU with that many threads, over `budget` seconds."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        a = torch.randn(512, 512)
        torch.mm(a, a)
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < budget:
            torch.mm(a, a)
            done += 1
        return done * 2 * 512**3 / (time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
