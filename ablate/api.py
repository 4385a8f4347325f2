"""The Python interface behind `ablate.load`, `ablate.plan` and `ablate.run`."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ablate import config, schema, throughput
from ablate.home import Home
from ablate.planning import make_plan
from ablate.records import Plan, StudyView


def load(
    sweep: str | None = None, overrides: Sequence[str] = (), config_dirs: Iterable[str | Path] = ()
) -> schema.Run:
    """Compose a sweep's configuration with Hydra-style overrides: `load("smoke", ["model.hidden_size=128"])`.

    Raises:
        BadInputError: an unknown key, option or component, or a value of the wrong type or out of range.
    """
    chosen = [f"sweep={sweep}"] if sweep else []
    return config.load([*chosen, *overrides], [Path(folder) for folder in config_dirs])


def plan(run: schema.Run) -> Plan:
    """Arms, costs and detectable effect of a study; spends and writes nothing."""
    return make_plan(run, Home.at(run.home, run.storage))


def run(run: schema.Run, observer: Callable[[StudyView], None] | None = None) -> StudyView:
    """Run a study to its end, or go on with it, and write its report. `observer` sees each new state."""
    from ablate import report, study

    home = Home.at(run.home, run.storage).create()
    made = make_plan(run, home)
    if throughput.measure([made], home, lambda _: None):
        made = make_plan(run, home)
    study.create(made, home)
    view = study.run(made, home, observer or (lambda _: None))
    report.write(view, home.report(view.name))
    return view
