"""What `ablate slice` does around the slicing: both configurations, the folder, the loss before and after on a text."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ablate import config, schema
from ablate.activity import activity
from ablate.errors import BadInputError
from ablate.export import limit, new_folder, watched
from ablate.interop import tokens, writing
from ablate.interop.folders import Folder, load_model
from ablate.jsonable import jsonable
from ablate.slicing import Sliced, activation
from ablate.variant import Variant

REPORT = "slice.json"
TOKENS, WINDOW = 8192, 256
"""Of a text at most, and at once: they bound time and memory."""


def run(
    source: Path,
    to: Sequence[str],
    config_dirs: Sequence[Path],
    out: Path,
    policy: str,
    text: Path | None,
    form: str,
    dtype: str,
    seed: int,
    shard_gb: float,
) -> dict[str, Any]:
    """Write the smaller model into `out` and say what became of it.

    Memory holds one file that is written, one layer that starts anew, and a piece of a tensor; with a text, also
    one of the two models at a time.

    Args:
        to: overrides of the configuration that name the smaller model.
        text: file on which both are evaluated, and activations measured.

    Returns:
        The report, which is also in the folder.

    Raises:
        BadInputError: a folder, configuration, policy or format that cannot be.
    """
    writing.check(form, dtype)
    larger = Folder(source)
    chosen = dataclasses.replace(config.load(to, config_dirs, require_sweep=False), data=schema.Data())
    chosen.model.vocab_size = chosen.model.vocab_size or larger.variant.dims.vocab_size
    variant = Variant.from_run(chosen)
    variant.check(variant.dims.max_position_embeddings, "model.max_position_embeddings")
    held = None if text is None else _tokens(source, text, larger.variant.dims.vocab_size)
    measured = None
    if policy == activation.__name__:
        if held is None:
            raise BadInputError(f"policy={policy} needs a text to measure on: --text FILE.")
        measured = activity(load_model(larger).eval(), held)
    with new_folder(out) as part:
        smaller = Sliced(larger, variant, policy, seed, measured)
        ends = tokens.ends_of(source)
        writing.write(smaller, chosen, part, form, dtype, limit(shard_gb), ends, watched)
        tokens.copy(source, part, ends)
        report = jsonable(smaller.report)
        if held is not None:
            before, after = _loss(source, held), _loss(part, held)
            report["loss"] = {"before": before, "after": after, "tokens": held.numel() - len(held)}
        (part / REPORT).write_text(json.dumps(report, indent=2) + "\n")
    return report


def _tokens(folder: Path, text: Path, vocab_size: int) -> torch.Tensor:
    """A text in rows of equal length."""
    from tokenizers import Tokenizer

    if not (folder / tokens.TOKENIZER).is_file():
        raise BadInputError(f"text={text}: {folder} has no {tokens.TOKENIZER} to read it with.")
    try:
        words = text.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise BadInputError(f"text={text} cannot be read: {error}") from error
    tokenizer = Tokenizer.from_file(str(folder / tokens.TOKENIZER))
    ids = tokenizer.encode(words, add_special_tokens=False).ids[:TOKENS]
    if len(ids) < WINDOW or max(ids) >= vocab_size:
        raise BadInputError(
            f"text={text} has {len(ids)} tokens. Allowed: {WINDOW} or more, of {vocab_size} kinds."
        )
    return torch.tensor(ids[: len(ids) // WINDOW * WINDOW]).view(-1, WINDOW)


@torch.no_grad()
def _loss(folder: Path, held: torch.Tensor) -> float:
    """Mean nats per token."""
    model = load_model(Folder(folder)).eval()
    losses = [float(model(row[None, :-1], row[None, 1:]).loss) for row in held]
    return sum(losses) / len(losses)
