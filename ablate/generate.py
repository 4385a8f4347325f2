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
from ablate.checkpoint import CONFIG, WEIGHTS
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
    """A model, and the tokenizer it was trained with."""

    folder: Path
    model: LanguageModel
    tokenizer: "Tokenizer"
    corpus: Corpus

    def write(self, prompt: str, count: int, temperature: float, seed: int) -> Iterator[str]:
        """Text after `prompt`, in pieces of whole characters, up to `count` tokens or the document's end.

        After an empty prompt it is a new document.

        Raises:
            BadInputError: as `draws`.
        """
        end = self.corpus.facts["end_id"]
        ids = self.tokenizer.encode(prompt, add_special_tokens=False).ids or [end]
        drawn = draws(self.model, ids, count, temperature, seed, self.corpus.vocab_size)
        return self._text(itertools.takewhile(lambda token: token != end, drawn))

    def _text(self, ids: Iterable[int]) -> Iterator[str]:
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=True)
        pieces = (stream.step(self.tokenizer, token) for token in ids)
        return (piece for piece in pieces if piece)


def find(text: str, home: Home) -> Path:
    """Folder with the weights that `text` means: itself, or the best trial of a study that still has them.

    Raises:
        BadInputError: there is no such folder or study, or it has no weights.
    """
    folder = Path(text).expanduser()
    if (folder / WEIGHTS).is_file():
        return folder
    if folder.is_dir():
        raise BadInputError(f"{folder} has no {WEIGHTS}. Name a trial's folder below trials/, or a study.")
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
        BadInputError: the configuration is missing, or the corpus with its tokenizer is not in `home`.
    """
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    if not (folder / CONFIG).is_file():
        raise BadInputError(f"{folder} has no {CONFIG} beside its {WEIGHTS}.")
    run = schema.from_dict(json.loads((folder / CONFIG).read_text()))
    if run.data.is_probe:
        raise BadInputError(f"{folder} was trained on data.source={run.data.source}, which is no text.")
    tokens = home.tokens / data.fingerprint(run.data)
    if not tokens.is_dir():
        raise BadInputError(
            f"home={home.root} has no corpus {tokens.name} of data={run.data.name}, which the tokenizer of "
            f"{folder} belongs to. Name the home that the trial was trained in with --home."
        )
    corpus = Corpus.load(tokens)
    model = LanguageModel(Variant.from_run(run, run.model.vocab_size or corpus.vocab_size))
    model.load_state_dict(load_file(folder / WEIGHTS))
    return Trained(folder, model.eval(), Tokenizer.from_file(str(corpus.tokenizer_path)), corpus)


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
