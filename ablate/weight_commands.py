"""Commands that make and move weights: `init`, `import`, `export`, `slice`."""

from pathlib import Path
from typing import Annotated

import typer

from ablate.jsonable import jsonable
from ablate.options import AsJson, ConfigDirs, HomeOption, Overrides, TrainedName, home_at, print_json

app = typer.Typer()

Out = Annotated[Path, typer.Option("--out", help="New folder to write to.", show_default=False)]
ShardGb = Annotated[float, typer.Option("--shard-gb", help="Largest file of weights, in 10^9 bytes.")]


@app.command("import")
def import_(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="Checkpoint of DeepSeek-V4: official, or of transformers.",
            show_default=False,
        ),
    ],
    out: Out,
    dtype: Annotated[
        str, typer.Option("--dtype", help="stored: exact (quantised weights become BF16); or bf16.")
    ] = "stored",
    shard_gb: ShardGb = 5.0,
    as_json: AsJson = False,
) -> None:
    """Read a DeepSeek-V4 checkpoint (FP8, FP4, BF16, in any number of files) into a folder of our own."""
    _convert(str(source), "ablate", out, None, dtype, shard_gb, as_json)


@app.command()
def export(
    trained: TrainedName,
    out: Out,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="hf: a model and tokenizer that stock transformers loads; official: DeepSeek's names.",
        ),
    ] = "hf",
    dtype: Annotated[
        str, typer.Option("--dtype", help="stored, or bf16; for official also fp8, and fp4 for experts.")
    ] = "stored",
    shard_gb: ShardGb = 5.0,
    home: HomeOption = None,
    as_json: AsJson = False,
) -> None:
    """Write the weights of a trained trial, or of a checkpoint, as a folder that other programs load."""
    _convert(trained, form, out, home, dtype, shard_gb, as_json)


@app.command()
def init(
    out: Out,
    overrides: Overrides = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option("--tokenizer", help="Folder with the tokenizer that goes with it.", show_default=False),
    ] = None,
    form: Annotated[str, typer.Option("--format", help="hf, official or ablate.")] = "hf",
    dtype: Annotated[str, typer.Option("--dtype", help="As for export; `stored` is FP32 here.")] = "bf16",
    seed: Annotated[int, typer.Option("--seed", help="Of the random numbers.")] = 0,
    shard_gb: ShardGb = 5.0,
    config_dir: ConfigDirs = None,
    as_json: AsJson = False,
) -> None:
    """Write a randomly initialised model (model=NAME) as a folder, layer by layer: memory holds one of them."""
    from ablate import fresh

    chosen = overrides or []
    _say(form, fresh.init(chosen, config_dir or [], out, tokenizer, form, dtype, seed, shard_gb), as_json)


@app.command("slice")
def slice_(
    source: Annotated[
        Path, typer.Option("--from", help="Checkpoint folder of the larger model.", show_default=False)
    ],
    to: Annotated[
        list[str],
        typer.Option(
            "--to", help="The smaller one: model=NAME and overrides (repeatable).", show_default=False
        ),
    ],
    out: Out,
    policy: Annotated[
        str, typer.Option("--policy", help="What is kept: even, magnitude, or activation (needs --text).")
    ] = "magnitude",
    text: Annotated[
        Path | None,
        typer.Option(
            "--text",
            help="Text on which both models are evaluated, and activations measured.",
            show_default=False,
        ),
    ] = None,
    form: Annotated[str, typer.Option("--format", help="hf, official or ablate.")] = "ablate",
    dtype: Annotated[str, typer.Option("--dtype", help="As for export.")] = "stored",
    seed: Annotated[int, typer.Option("--seed", help="Of what starts anew.")] = 0,
    shard_gb: ShardGb = 5.0,
    config_dir: ConfigDirs = None,
    as_json: AsJson = False,
) -> None:
    """Cut a smaller model out of a larger one: channels, heads, ranks, experts, layers; and say what was kept."""
    from ablate import slice_run
    from ablate.console import slice_screen

    report = slice_run.run(source, to, config_dir or [], out, policy, text, form, dtype, seed, shard_gb)
    if as_json:
        print_json(report)
    else:
        slice_screen.sliced(report, out)


def _convert(
    trained: str, form: str, out: Path, home: str | None, dtype: str, shard_gb: float, as_json: bool
) -> None:
    from ablate import export as exporting

    _say(form, exporting.export(trained, form, out, home_at(home), dtype, shard_gb), as_json)


def _say(form: str, files: list[Path], as_json: bool) -> None:
    if as_json:
        print_json({"format": form, "files": jsonable(files)})
    else:
        print("\n".join(map(str, files)))
