"""`ablate data show`: what a corpus or a probe is, in facts that a person or a program can check."""

from typing import Any

from ablate import schema, units
from ablate.data.generated import HELD_OUT, Generated
from ablate.data.preparation import prepare
from ablate.home import Home
from components.spec import LEFT_OUT

_SAMPLE_TOKENS = 96


def describe(data: schema.Data, home: Home, seq_len: int) -> dict[str, Any]:
    """Sizes, compression, fingerprint and the first words of the held-out text; tokenises on first use.

    Args:
        seq_len: of the held-out sequence that is shown of a probe.

    Raises:
        BadInputError: the data cannot be prepared.
    """
    corpus = prepare(data, home)
    if isinstance(corpus, Generated):
        return _probe(data, corpus, seq_len)
    return {
        "name": data.name,
        **corpus.facts,
        "bytes_per_token": corpus.bytes_per_token,
        "folder": str(corpus.folder),
        "sample": corpus.decode(corpus.val[:_SAMPLE_TOKENS]),
    }


def _probe(data: schema.Data, probe: Generated, seq_len: int) -> dict[str, Any]:
    probe.check(seq_len)
    made = probe.sequences(HELD_OUT, 0, 1, seq_len)
    labels = made.labels[0].tolist()
    return {
        "name": data.name,
        "source": data.source,
        "args": data.args,
        "vocab_size": probe.vocab_size,
        "fingerprint": probe.fingerprint,
        "questions": sum(label != LEFT_OUT for label in labels),
        "sample": {"inputs": made.inputs[0].tolist(), "labels": labels},
    }


def show(facts: dict[str, Any]) -> None:
    """Print what `describe` found."""
    if "questions" in facts:
        _show_probe(facts)
    else:
        _show_corpus(facts)


def _show_probe(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    inputs, labels = facts["sample"]["inputs"], facts["sample"]["labels"]
    options = ", ".join(f"{key}={value}" for key, value in facts["args"].items())
    told = f" with {options or 'no options'}: {facts['vocab_size']:,} tokens, made by seed and number"
    console.print(Text(facts["source"], style="bold").append(told, style="not bold"))
    console.print(Text(f"fingerprint {facts['fingerprint']}"))
    asked = f"{facts['questions']} of {len(inputs)} tokens ask for what follows (token→answer)"
    console.print(Text(f"\nFirst held-out sequence; {asked}:", style="dim"))
    words = [f"{a}→{b}" if b != LEFT_OUT else str(a) for a, b in zip(inputs, labels, strict=True)]
    console.print(Text(" ".join(words)))


def _show_corpus(facts: dict[str, Any]) -> None:
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
