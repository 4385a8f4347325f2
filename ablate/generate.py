"""Text from a trained trial: weights and tokenizer found, tokens drawn one at a time from a cache."""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ablate import data, schema
from ablate.checkpoint import CONFIG, INDEX, WEIGHTS
from ablate.data import Corpus
from ablate.errors import BadInputError
from ablate.home import Home
from ablate.model import LanguageModel
from ablate.variant import Variant
from components.cache import Cache, CannotDecodeError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PREFILL = 256
"""Tokens of a prompt that go through the model at once: bounds memory, changes nothing else."""


@dataclass(frozen=True)
class Trained:
    """A model, and the tokenizer it was trained with.

    Attributes:
        vocab_size: ids from here on stand for no text.
        end_id: ends a document, and a new one begins after it.
    """

    folder: Path
    model: LanguageModel
    tokenizer: "Tokenizer"
    vocab_size: int
    end_id: int

    def write(self, prompt: str, count: int, temperature: float, seed: int) -> Iterator[str]:
        """Text after `prompt`, in pieces of whole characters, up to `count` tokens or the document's end.

        After an empty prompt it is a new document.

        Raises:
            BadInputError: as `draws`.
        """
        ids = self.tokenizer.encode(prompt, add_special_tokens=False).ids or [self.end_id]
        drawn = draws(self.model, ids, count, temperature, seed, self.vocab_size)
        return self._text(itertools.takewhile(lambda token: token != self.end_id, drawn))

    def _text(self, ids: Iterable[int]) -> Iterator[str]:
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=True)
        pieces = (stream.step(self.tokenizer, token) for token in ids)
        return (piece for piece in pieces if piece)


def find(text: str, home: Home) -> Path:
    """Folder with the weights that `text` means: itself, or the best trial of a study that still has them.

    A folder may be a trial's or a checkpoint of any format that `ablate import` reads.

    Raises:
        BadInputError: there is no such folder or study, or it has no weights.
    """
    folder = Path(text).expanduser()
    if any((folder / name).is_file() for name in (WEIGHTS, INDEX)):
        return folder
    if folder.is_dir():
        raise BadInputError(
            f"{folder} has no {WEIGHTS} and no {INDEX}. Name a trial's folder below trials/, a checkpoint, or a study."
        )
    from ablate import study

    view = study.view(study.find(home, text), home, with_verdicts=False)
    kept = [
        (row.result.val_loss, home.trial(view.name, row.number))
        for row in view.trials
        if row.result is not None
        and row.result.val_loss is not None
        and (home.trial(view.name, row.number) / WEIGHTS).is_file()
    ]
    if not kept:
        raise BadInputError(
            f"no trial of study {view.name} has kept its weights "
            f"(trainer.keep_weights={view.plan.run.trainer.keep_weights}, {len(view.trials)} trials). "
            "Allowed values of trainer.keep_weights that keep some: confirm, search, all."
        )
    return min(kept)[1]


def load(folder: Path, home: Home) -> Trained:
    """The model whose weights are in `folder`, in evaluation mode.

    Raises:
        BadInputError: it is no checkpoint, or has no tokenizer and its corpus with one is not in `home`.
    """
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    from ablate.interop import folders, tokens

    if (folder / tokens.TOKENIZER).is_file():
        tokenizer = Tokenizer.from_file(str(folder / tokens.TOKENIZER))
        model = folders.load_model(folders.Folder(folder))
        return Trained(folder, model.eval(), tokenizer, tokenizer.get_vocab_size(), tokens.end_id(folder))
    run = schema.from_dict(json.loads((folder / CONFIG).read_text()))
    corpus = corpus_of(folder, run, home)
    model = LanguageModel(Variant.from_run(run, run.model.vocab_size or corpus.vocab_size))
    model.load_state_dict(load_file(folder / WEIGHTS))
    tokenizer = Tokenizer.from_file(str(corpus.tokenizer_path))
    return Trained(folder, model.eval(), tokenizer, corpus.vocab_size, corpus.facts["end_id"])


def corpus_of(folder: Path, run: schema.Run, home: Home) -> Corpus:
    """What a trial was trained on, with its tokenizer.

    Raises:
        BadInputError: it is not in `home`, or no text.
    """
    if run.data.is_probe:
        raise BadInputError(f"{folder} was trained on data.source={run.data.source}, which is no text.")
    tokens = home.tokens / data.fingerprint(run.data)
    if not tokens.is_dir():
        raise BadInputError(
            f"home={home.root} has no corpus {tokens.name} of data={run.data.name}, which the tokenizer of "
            f"{folder} belongs to. Name the home that the trial was trained in with --home."
        )
    return Corpus.load(tokens)


def draws(
    model: LanguageModel, prompt: Sequence[int], count: int, temperature: float, seed: int, vocab_size: int
) -> Iterator[int]:
    """`count` tokens after `prompt`, each drawn from `softmax(logits / temperature)`; of 0 the most likely.

    Args:
        vocab_size: ids from here on stand for no text and are never drawn.

    Raises:
        BadInputError: a value out of range, or a component of the model that cannot decode.
    """
    if count < 1:
        raise BadInputError(f"tokens={count} must be at least 1.")
    if not 0 <= temperature < float("inf"):
        raise BadInputError(
            f"temperature={temperature} must be 0 (the most likely token) or more, and finite."
        )
    caches, logits = None, torch.empty(0)
    try:
        for piece in torch.tensor([prompt]).split(PREFILL, dim=1):
            logits, caches = model.decode(piece, caches)
    except CannotDecodeError as error:
        raise BadInputError(f"this model generates no text: {error}.") from error
    generator = torch.Generator().manual_seed(seed)

    def one_by_one(logits: Tensor, caches: Sequence[Cache] | None) -> Iterator[int]:
        for left in range(count, 0, -1):
            token = _draw(logits[0, -1, :vocab_size], temperature, generator)
            yield token
            if left > 1:
                logits, caches = model.decode(torch.tensor([[token]]), caches)

    return one_by_one(logits, caches)


def _draw(logits: Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    # In double precision and shifted, no temperature overflows.
    shares = ((logits.double() - logits.max()) / temperature).softmax(-1)
    return int(torch.multinomial(shares, 1, generator=generator))
