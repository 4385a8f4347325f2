"""The `ablate` command. Every subcommand imports what it needs when it runs: `--help` answers at once."""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from ablate.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_RESUMABLE, AblateError
from ablate.jsonable import jsonable
from ablate.options import (
    AsJson,
    ConfigDirs,
    Force,
    HomeOption,
    Overrides,
    StudyName,
    TrainedName,
    complete_override,
    find_study,
    home_at,
    print_json,
    view_study,
)
from ablate.questions import app as questions_app
from ablate.weight_commands import app as weights_app

app = typer.Typer(
    name="ablate",
    help="Does this architectural component help, at equal compute, and how sure are we?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

data_app = typer.Typer(name="data", help="The text that models train on.", no_args_is_help=True)
app.add_typer(data_app)
mlflow_app = typer.Typer(name="mlflow", help="The mirror of studies in MLflow.", no_args_is_help=True)
app.add_typer(mlflow_app)
app.add_typer(questions_app)
app.add_typer(weights_app)


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks of errors that have a message.")
    ] = False,
) -> None:
    _state["debug"] = debug


_state = {"debug": False}


@app.command()
def run(overrides: Overrides = None, config_dir: ConfigDirs = None, force: Force = False) -> None:
    """Run a sweep to its verdicts: plan, train, confirm, report. Finished trials are never paid for twice."""
    from ablate import flow

    raise typer.Exit(flow.run(overrides or [], config_dir or [], force))


@app.command()
def plan(
    overrides: Overrides = None,
    config_dir: ConfigDirs = None,
    detect: Annotated[
        float | None,
        typer.Option(
            "--detect",
            metavar="NATS",
            help="Also show the seeds that a difference of that size takes.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a sweep will do, cost and be able to detect. Spends nothing, writes nothing."""
    from ablate import config, console, ladder, readings
    from ablate.detection import detection
    from ablate.home import Home

    loaded = config.load(overrides or [], config_dir or [])
    sizes = ladder.plans(
        ladder.rungs(loaded, overrides or [], config_dir or []), Home.at(loaded.home, loaded.storage)
    )
    made = sizes[-1]
    wanted = None if detect is None else detection(made, detect)
    if as_json:
        below: dict[str, object] = {"ladder": [plan.study for plan in sizes[:-1]]} if len(sizes) > 1 else {}
        below["second_reading"] = jsonable(readings.foreseen(made))
        print_json(jsonable(made) | below | ({"detect": jsonable(wanted)} if wanted else {}))
    else:
        console.plan(made, wanted)
        if len(sizes) > 1:
            console.ladder(sizes)


@app.command()
def resume(
    study: StudyName = None,
    overrides: Overrides = None,
    home: HomeOption = None,
    force: Force = False,
) -> None:
    """Go on with a study that was stopped; the ledger and every checkpoint are where they were."""
    from ablate import flow

    at, changes = home_at(home), overrides or []
    if study is not None and "=" in study:  # the newest study, and what to change
        study, changes = None, [study, *changes]
    raise typer.Exit(flow.resume(find_study(study, at), at, changes, force))


@app.command()
def worker(
    study: StudyName = None,
    home: HomeOption = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of this worker [host-pid].", show_default=False)
    ] = None,
) -> None:
    """Join a study as one more worker process, here or on another machine that sees the same home."""
    import socket

    from ablate import worker as loop

    at = home_at(home)
    loop.main(at, find_study(study, at), name or f"{socket.gethostname()}-{os.getpid()}")


@app.command()
def status(study: StudyName = None, home: HomeOption = None, as_json: AsJson = False) -> None:
    """Where a study stands: arms so far, alarms, compute spent, workers, events."""
    from ablate import alarms, console

    view = view_study(study, home)
    if as_json:
        print_json({**jsonable(view), "alarms": jsonable(alarms.of_study(view))})
    else:
        console.status(view)


@app.command()
def report(
    study: StudyName = None,
    home: HomeOption = None,
    to: Annotated[Path | None, typer.Option("--to", help="Folder to write to.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Write a study's report (HTML, Markdown, CSV, JSON) from what is known now, and print its verdicts."""
    from ablate import console
    from ablate import report as reports

    view = view_study(study, home)
    paths = reports.write(view, to or home_at(home).report(view.name))
    if as_json:
        verdicts = [jsonable(verdict) for verdict in view.verdicts]
        print_json({"study": view.name, "state": view.state, "verdicts": verdicts, "files": jsonable(paths)})
    else:
        console.final(view, {kind: str(path) for kind, path in paths.items()})


@app.command()
def dashboard(
    study: StudyName = None,
    home: HomeOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8720,
) -> None:
    """Serve the live page, the Optuna dashboard and the MLflow comparison behind one address."""
    import importlib

    at = home_at(home)
    portal = importlib.import_module("dashboards.portal")  # by name: `ablate` does not depend on `dashboards`
    portal.serve(at, find_study(study, at), host, port)


@mlflow_app.command("sync")
def mlflow_sync(study: StudyName = None, home: HomeOption = None, as_json: AsJson = False) -> None:
    """Bring a study's mirror up to date from the study database, or make it anew where it is gone."""
    from ablate import tracking

    view, at = view_study(study, home), home_at(home)
    settings = view.plan.run.tracking
    changed = tracking.Exporter(at, settings).sync(view)
    store, pages = tracking.where(at, settings), tracking.links(at, settings, view)
    if as_json:
        print_json({"study": view.name, "store": store, "changed": changed, "links": pages})
    else:
        print(f"{view.name}: {changed} runs written to {store}")
        print("\n".join(f"  {title:<28}{url}" for title, url in pages.items()))


@app.command("list")
def list_(
    what: Annotated[
        str,
        typer.Argument(
            metavar="components|SLOT|models|data|budgets|optimizers|trainers|launchers|tracking|sweeps|studies",
            help="What to list.",
            show_default=False,
        ),
    ],
    overrides: Overrides = None,
    config_dir: ConfigDirs = None,
    home: HomeOption = None,
    as_json: AsJson = False,
) -> None:
    """List what can be chosen: components with what they cost in a model, config groups, studies."""
    from ablate import catalogue

    rows = catalogue.rows(what, overrides or [], config_dir or [], home)
    if as_json:
        print_json(rows)
    else:
        catalogue.print_rows(rows)


@app.command()
def show(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="model=NAME | SLOT/NAME | sweep=NAME [OVERRIDE]...",
            help="What to show, and overrides of it.",
            autocompletion=complete_override,
            show_default=False,
        ),
    ],
    config_dir: ConfigDirs = None,
    as_json: AsJson = False,
) -> None:
    """Show a model's parameters, FLOPs and layers (nothing is allocated), a component, or a sweep."""
    from ablate import show as shows

    shown = shows.show(what, config_dir or [])
    if as_json:
        print_json(shown.data)
    else:
        shown.print()


@data_app.command("show")
def data_show(overrides: Overrides = None, config_dir: ConfigDirs = None, as_json: AsJson = False) -> None:
    """Show a corpus (documents, tokens, sample; tokenised on first use) or a probe (options, one sequence)."""
    from ablate import config
    from ablate.data import description
    from ablate.home import Home

    loaded = config.load(overrides or [], config_dir or [], require_sweep=False)
    facts = description.describe(loaded.data, Home.at(loaded.home, loaded.storage), loaded.trainer.seq_len)
    if as_json:
        print_json(facts)
    else:
        description.show(facts)


@app.command()
def generate(
    trained: TrainedName,
    prompt: Annotated[str, typer.Option("--prompt", help="Text to go on from.")] = "",
    tokens: Annotated[int, typer.Option("--tokens", help="Tokens to draw at most.")] = 100,
    temperature: Annotated[
        float, typer.Option("--temperature", help="Divisor of logits; 0 always takes the most likely token.")
    ] = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="Another seed draws another text.")] = 0,
    home: HomeOption = None,
    as_json: AsJson = False,
) -> None:
    """Write text with the weights of a trained trial, up to the end of a document."""
    from ablate import generate as writing

    at = home_at(home)
    model = writing.load(writing.find(trained, at), at)
    pieces = model.write(prompt, tokens, temperature, seed)
    if as_json:
        print_json({"checkpoint": str(model.folder), "prompt": prompt, "text": "".join(pieces)})
        return
    print(prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


@app.command()
def bench(
    overrides: Overrides = None,
    config_dir: ConfigDirs = None,
    arms: Annotated[
        str | None,
        typer.Option("--arms", metavar="sweep=NAME", help="Measure the arms of a sweep.", show_default=False),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option("--against", help="transformers: also measure its implementation.", show_default=False),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", help="Interleaved repeats.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Measure a training step of every model=NAME given, or of a sweep's arms: speed, memory, components."""
    from ablate import bench as benches

    report = benches.bench(overrides or [], config_dir or [], arms, against, rounds)
    if as_json:
        print_json(jsonable(report))
    else:
        benches.show(report)


@app.command()
def doctor(home: HomeOption = None, as_json: AsJson = False) -> None:
    """Check this machine: versions, cores, devices, home folder, database."""
    from ablate import doctor as checks

    found = checks.examine(home_at(home))
    if as_json:
        print_json([dataclasses.asdict(check) for check in found])
    else:
        checks.show(found)
    raise typer.Exit(EXIT_DONE if all(check.ok for check in found) else EXIT_FAILED)


def main() -> None:
    """Entry point: run the command and turn understandable errors into one message and an exit code."""
    try:
        app()
    except AblateError as error:
        if _state["debug"]:
            raise
        print(f"ablate: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("ablate: interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # `ablate list components | head`
        sys.stderr.close()
        sys.exit(EXIT_DONE)


__all__ = ["EXIT_RESUMABLE", "app", "main"]

if __name__ == "__main__":
    main()
