"""How to run a study again: the command, checked, and the whole configuration as a sweep file."""

import copy
import dataclasses
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ablate import config, designs, schema
from ablate.errors import BadInputError

FOLDER = "reproduce"
"""Folder beside the report that holds the sweep file; what `--config-dir` names."""

_WHOLE = ("sweep.arms.", "sweep.factors.", "sweep.space.")
"""Below these, a value is given as a whole."""

_GROUPS = ("model", "data", "budget", "optimizer", "launcher", "tracking")


@dataclass(frozen=True)
class Reproduction:
    """Two ways to run the study again.

    Attributes:
        short: by the shipped sweep and overrides; None where that does not give the same configuration.
        whole: by the sweep file, which does not depend on what ships.
        file: text of the sweep file, and `path` of it below the report's folder.
    """

    short: str | None
    whole: str
    file: str
    path: str


def reproduction(run: schema.Run, study: str) -> Reproduction:
    """Commands that lead to exactly this configuration. The home folder is left out: it is this machine's."""
    run = dataclasses.replace(run, home=None, storage=None)
    option = study.replace("/", "-")
    whole = [f"sweep={option}", f"sweep.name={_text(run.sweep.name)}", *_beyond_a_sweep(run)]
    overrides = _overrides(run)
    return Reproduction(
        short=None if overrides is None else _command(overrides),
        whole=_command(["--config-dir", FOLDER, *whole]),
        file=f"# @package _global_\n# {' '.join(run.sweep.question.split())}\n{config.snapshot(run)}",
        path=f"{FOLDER}/sweep/{option}.yaml",
    )


def _beyond_a_sweep(run: schema.Run) -> list[str]:
    """Overrides for what a sweep file cannot set: names of options, and the last words of `config.yaml`."""
    wanted, given = schema.to_dict(run), schema.to_dict(config.load([], require_sweep=False))
    names = [
        f"{group}.name={_text(wanted[group]['name'])}"
        for group in _GROUPS
        if wanted[group]["name"] != given[group]["name"]
    ]
    return names + [f"{key}={_text(wanted[key])}" for key in ("seed", "plugins") if wanted[key] != given[key]]


def _overrides(run: schema.Run) -> list[str] | None:
    """Overrides that compose to `run`; None where nothing that ships does."""
    wanted = _values(run)
    found = [f"sweep={run.sweep.name}"]
    try:
        values = _values(config.load(found))
        for group in (*_GROUPS, *schema.SLOT_GROUPS):
            if values[group]["name"] != wanted[group]["name"]:
                found.append(f"{group}={wanted[group]['name']}")
        if len(found) > 1:
            values = _values(config.load(found))
        changes = list(_changes(values, wanted))
        if changes and _values(config.load([*found, *changes])) != wanted:
            return None
    except BadInputError:
        return None
    return [*found, *changes]


def _values(run: schema.Run) -> dict[str, Any]:
    values = copy.deepcopy(schema.to_dict(run))
    del values["home"], values["storage"]
    sweep = values["sweep"]
    if sweep["design"] not in ("arms", "search"):  # what the design generates needs no override
        made, _ = designs.arms(sweep["design"], sweep["factors"], sweep["resolution"])
        sweep["arms"] = {name: arm for name, arm in sweep["arms"].items() if name not in made}
    return values


def _changes(have: dict[str, Any], want: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name in [*have, *(name for name in want if name not in have)]:
        key = f"{prefix}{name}"
        if name not in want:
            yield f"~{key}"
        elif isinstance(want[name], dict) and isinstance(have.get(name), dict) and prefix not in _WHOLE:
            yield from _changes(have[name], want[name], f"{key}.")
        elif want[name] != have.get(name):
            yield f"{key}={_text(want[name])}"


def _text(value: Any) -> str:
    """A value in Hydra's override grammar."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}: {_text(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_text, value)) + "]"
    if isinstance(value, str) and not value.isidentifier():
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"'{escaped}'"
    return str(value)


def _command(words: list[str]) -> str:
    return " ".join(["ablate run", *map(shlex.quote, words)])
