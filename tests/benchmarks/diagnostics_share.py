"""What diagnostics take of training time: python tests/benchmarks/diagnostics_share.py [--steps N] [OVERRIDE]...

One real trial on the offline corpus, in which every call that a probe makes is timed between the steps that it
interrupts, so that both see the same load of the machine. Exits with 1 where the share is above 3 %. Fewer steps
make it larger: the default is little more than the fewest that a verdict is given for.
"""

import argparse
import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

LIMIT = 0.03


class Timed:
    """Seconds of all calls of the functions that it replaces, by their names."""

    def __init__(self, module: Any, names: list[str]) -> None:
        self.seconds = dict.fromkeys(names, 0.0)
        for name in names:
            setattr(module, name, self._timed(name, getattr(module, name)))

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any) -> Any:
            begun = time.perf_counter()
            found = function(*args)
            self.seconds[name] += time.perf_counter() - begun
            return found

        return timed


class Free:
    """A meter that everything is free with."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def debit(self, step: int, steps: int) -> None: ...

    def progress(self, point: Any) -> None: ...

    def durable(self, step: int) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)


def measure(steps: int, overrides: list[str], folder: Path) -> dict[str, Any]:
    """Train once; seconds of training and of each part of the probes, and what was found."""
    import dataclasses

    from ablate import config, curriculum, data, diagnosis, runtime, schema, training
    from ablate.home import Home
    from ablate.specs import TrialSpec
    from ablate.stages import Staged
    from ablate.variant import Variant

    run = config.load(overrides, require_sweep=False)
    runtime.prepare(run.launcher.threads or 1)
    corpus = data.prepare(run.data, Home(folder))
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, vocab_size=corpus.vocab_size))
    variant = Variant.from_run(run)
    flops = variant.costs(run.trainer.seq_len).total.train_flops * run.trainer.batch_size
    trained = Staged(steps=steps, step_mflop=-(-flops // 10**6))
    spec = TrialSpec(
        fingerprint="share",
        arm="",
        phase="search",
        replicate=0,
        seed=1,
        lr=run.optimizer.lr,
        run=schema.to_dict(run),
        data_fingerprint=corpus.fingerprint,
        steps=steps,
        step_mflop=trained.step_mflop,
        evaluations=curriculum.evaluations(run, variant, trained),
    )
    timed = Timed(diagnosis, ["weights", "diagnose", "update_ratios", "effective_context"])
    result = training.train(spec, corpus, folder / "trial", Free())
    training_seconds = result.seconds - timed.seconds["weights"]
    return {
        "steps": steps,
        "watched_tokens": diagnosis.watched_tokens(
            run.trainer, run.data.val_tokens // run.trainer.seq_len, len(result.curve)
        ),
        "trained_tokens": result.tokens,
        "training_seconds": training_seconds,
        "probe_seconds": timed.seconds,
        "share": sum(timed.seconds.values()) / training_seconds,
        "loss": result.val_loss,
        "alarms": [alarm.text for alarm in result.alarms],
        "diagnostics": [point.diagnostics for point in result.curve],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(asked.steps, ["trainer.device=cpu", *asked.overrides], Path(folder))
    print(json.dumps(found, indent=1))
    print(f"diagnostics took {found['share']:.2%} of training time; allowed {LIMIT:.0%}")
    return int(found["share"] > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
