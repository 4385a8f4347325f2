"""Commands that answer a question about studies: `verdict`, `multiplier`, `compare`, `ledger`."""

from typing import Annotated

import typer

from ablate.errors import EXIT_DONE, EXIT_FAILED
from ablate.jsonable import jsonable
from ablate.options import AsJson, HomeOption, StudyName, find_study, home_at, print_json, view_study

app = typer.Typer()


@app.command()
def verdict(study: StudyName = None, home: HomeOption = None, as_json: AsJson = False) -> None:
    """What a study found: verdicts, effects of factors, what was registered, and what deviated from it."""
    from ablate import registration
    from ablate.console import verdict_screen

    view = view_study(study, home)
    if as_json:
        print_json(registration.answer(view))
    else:
        verdict_screen.verdict(view)


@app.command()
def multiplier(
    studies: Annotated[
        list[str],
        typer.Argument(metavar="STUDY...", help="Three studies or more of different compute per trial."),
    ],
    home: HomeOption = None,
    as_json: AsJson = False,
) -> None:
    """How much compute each arm is worth, from studies of the same arms at several sizes."""
    from ablate import console
    from ablate import multiplier as over_sizes

    found = over_sizes.multipliers([view_study(name, home) for name in studies])
    if as_json:
        print_json(jsonable(list(found)))
    else:
        console.multipliers(found)


@app.command()
def compare(
    a: Annotated[
        str,
        typer.Argument(
            metavar="A", help="A study, or overrides of a model in quotes, such as 'model=tiny residual=mhc'."
        ),
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="What it is compared with, of the same kind.")],
    home: HomeOption = None,
    as_json: AsJson = False,
) -> None:
    """Whether two studies, or two models, can be compared: what differs beyond the factor, and why it matters."""
    from ablate import fairness
    from ablate.console import verdict_screen

    found = fairness.compare(a, b, home_at(home))
    if as_json:
        print_json(fairness.answer(found))
    else:
        verdict_screen.comparison(found)
    raise typer.Exit(EXIT_FAILED if found.refused else EXIT_DONE)


@app.command()
def ledger(
    study: StudyName = None,
    home: HomeOption = None,
    events: Annotated[bool, typer.Option("--events", help="Also every entry of the ledger.")] = False,
    as_json: AsJson = False,
) -> None:
    """Where a study's compute went, per phase and arm, proved from the ledger's entries; fails where it is not."""
    from ablate import account
    from ablate.console import ledger_screen

    at = home_at(home)
    found = account.account(find_study(study, at), at, with_events=events)
    if as_json:
        print_json(account.answer(found))
    else:
        ledger_screen.ledger(found, with_events=events)
    raise typer.Exit(EXIT_FAILED if found.fault else EXIT_DONE)
