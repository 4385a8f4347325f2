"""Arguments and options that subcommands share, and what they are resolved to. Imports nothing heavy."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ablate.home import Home
    from ablate.records import StudyView


def complete_override(incomplete: str) -> list[str]:
    """Words of an override that go on from what was typed."""
    try:
        from ablate.completion import complete_word

        return complete_word(incomplete, os.environ)
    except Exception:  # a completion that fails must not print into the user's prompt
        return []


def complete_study(incomplete: str) -> list[str]:
    """Studies of the usual home whose names go on from what was typed."""
    try:
        from ablate import study
        from ablate.home import Home

        return [name for name in study.names(Home.at(None)) if name.startswith(incomplete)]
    except Exception:  # as above
        return []


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[OVERRIDE]...",
        help="sweep=NAME, group=option, or dotted.key=value",
        autocompletion=complete_override,
        show_default=False,
    ),
]
ConfigDirs = Annotated[
    list[Path] | None,
    typer.Option(
        "--config-dir", help="Folder with your own sweeps, models, ... (repeatable).", show_default=False
    ),
]
HomeOption = Annotated[
    str | None,
    typer.Option("--home", help="Folder of all results [ABLATE_HOME, or ./runs].", show_default=False),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force", help="Go on although configuration, data or code have changed; recorded with the verdicts."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
StudyName = Annotated[
    str | None,
    typer.Argument(
        metavar="[STUDY]",
        help="Name or beginning of a name; the newest study if left out.",
        autocompletion=complete_study,
        show_default=False,
    ),
]
TrainedName = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT|STUDY",
        help="Folder of a trial's weights, or a study: its best trial that has kept them.",
        autocompletion=complete_study,
        show_default=False,
    ),
]


def home_at(value: str | None) -> "Home":
    """The home folder that an option names, or the usual one."""
    from ablate.home import Home

    return Home.at(value)


def find_study(prefix: str | None, home: "Home") -> str:
    """Full name of a study, by a beginning of it; the newest one if none is given."""
    from ablate import study

    return study.find(home, prefix or "")


def view_study(prefix: str | None, home: str | None) -> "StudyView":
    """A study as it stands, by a beginning of its name."""
    from ablate import study

    at = home_at(home)
    return study.view(find_study(prefix, at), at)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(value, indent=2, ensure_ascii=False))
