"""How long a training step of each arm takes here: measured once per machine, library and arm, else a guess."""

import dataclasses
import hashlib
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version

from ablate import calibrate, durations, provenance, schema, units
from ablate.home import Home
from ablate.records import Plan, Speed, StudyView
from ablate.variant import Variant
from components import native

WARM, TIMED = 3, 12
"""Steps before and while the clock runs. Their number is fixed, so that a plan knows what measuring costs."""


def needed(budget: schema.Budget) -> bool:
    """Whether a plan depends on how fast this machine is."""
    return budget.match == "wall_clock" or bool(durations.asked(budget))


def speeds(
    arms: Mapping[str, tuple[schema.Run, Variant]],
    step_mflop: Mapping[str, int],
    home: Home,
    views: Sequence[StudyView],
) -> tuple[Speed, ...]:
    """Seconds per step of every arm: as measured, or guessed from trials of this home or the matmul rate."""
    from ablate import calibrations

    keys = {name: _key(run, variant) for name, (run, variant) in arms.items()}
    known = calibrations.known(home, keys.values())
    rate = None
    found = []
    for name, (run, _) in arms.items():
        seconds = known.get(keys[name])
        if seconds is None:
            rate = rate or calibrate.rate(run, views)
            seconds = step_mflop[name] * units.MFLOP / rate
        found.append(
            Speed(
                arm=name,
                key=keys[name],
                step_seconds=seconds,
                mflop=(WARM + TIMED) * step_mflop[name],
                measured=keys[name] in known,
            )
        )
    return tuple(found)


def measure(plans: Sequence[Plan], home: Home, say: Callable[[str], None]) -> bool:
    """Measure what plans have only guessed, and keep it; whether there was anything, and plans are to be made anew."""
    waiting = [(plan, speed) for plan in plans for speed in plan.speeds if not speed.measured]
    if not waiting:
        return False
    from ablate import calibrations, runtime

    cost = units.compute(sum(speed.mflop for _, speed in waiting))
    say(f"Measuring how fast {len(waiting)} arms train here: {WARM + TIMED} steps of each, {cost}.")
    runtime.prepare(plans[0].run.launcher.threads)
    for plan, speed in waiting:
        calibrations.record(home, speed.key, _step_seconds(plan, speed.arm))
    return True


def _step_seconds(plan: Plan, name: str) -> float:
    """Median wall time of a step on random tokens."""
    from ablate import bench
    from ablate.speed import Machine

    arm = plan.arm(name)
    model = dataclasses.replace(arm.run.model, vocab_size=arm.variant.dims.vocab_size)
    machine = dataclasses.replace(Machine.of(plan.run), clock="wall")
    subject = bench.subject(name, dataclasses.replace(arm.run, model=model), machine)
    for _ in range(WARM):
        subject.step()
    times = []
    for _ in range(TIMED):
        begun = machine.now()
        subject.step()
        times.append(machine.now() - begun)
    return statistics.median(times)


def _key(run: schema.Run, variant: Variant) -> str:
    """Hash of all that the time of a step depends on."""
    trainer = run.trainer
    parts = {
        "machine": provenance.machine(),
        "device": _device_name(trainer.device),
        "torch": [version("torch"), native.available()],
        "variant": variant.fingerprint,
        "optimizer": [run.optimizer.name, run.optimizer.args],
        "step": [trainer.precision, trainer.seq_len, trainer.batch_size, run.launcher.threads],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _device_name(device: str) -> str:
    if not device.startswith("cuda"):
        return device
    import torch

    return torch.cuda.get_device_name(device)
