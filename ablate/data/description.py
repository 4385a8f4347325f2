"""`ablate data show`: what a corpus is, in facts that a person or a program can check."""

from typing import Any

from ablate import schema, units
from ablate.data.preparation import prepare
from ablate.home import Home

_SAMPLE_TOKENS = 96


def describe(data: schema.Data, home: Home) -> dict[str, Any]:
    """Sizes, compression, fingerprint and the first words of the held-out text; tokenises on first use.

    Raises:
        BadInputError: the data cannot be prepared.
    """
    corpus = prepare(data, home)
    return {
        "name": data.name,
        **corpus.facts,
        "bytes_per_token": corpus.bytes_per_token,
        "folder": str(corpus.folder),
        "sample": corpus.decode(corpus.val[:_SAMPLE_TOKENS]),
    }


def show(facts: dict[str, Any]) -> None:
    """Print what `describe` found."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("", "documents", "tokens", "text"):
        table.add_column(heading, justify="right" if heading else "left")
    for key, name in (("train", "training"), ("val", "held out")):
        part = facts[key]
        table.add_row(name, f"{part['documents']:,}", f"{part['tokens']:,}", units.size(part["bytes"]))
    console = Console(highlight=False)
    console.print(
        f"[bold]{escape(facts['name'])}[/]: source {escape(facts['source'])}, "
        f"tokenizer {escape(facts['tokenizer'])} with {facts['vocab_size']:,} tokens, "
        f"{facts['bytes_per_token']:.3f} bytes per token"
    )
    console.print(table)
    console.print(f"fingerprint {facts['fingerprint']}, in {escape(facts['folder'])}", soft_wrap=True)
    console.print("\nHeld-out text begins:", style="dim")
    console.print(escape(facts["sample"]))
