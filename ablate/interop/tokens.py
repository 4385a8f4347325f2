"""Tokenizers and what generation needs to know of them, beside weights in a folder."""

import json
import shutil
from pathlib import Path
from typing import Any

from ablate.checkpoint import CONFIG
from ablate.data import Corpus
from ablate.errors import BadInputError
from ablate.interop.shards import read_json

TOKENIZER, GENERATION = "tokenizer.json", "generation_config.json"
FILES = (
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
"""Files of tokenizers. Those with code are none of them."""

ENDS = ("bos_token_id", "eos_token_id")


def copy(source: Path, to: Path, ends: dict[str, Any]) -> list[Path]:
    """Copy the tokenizer of a folder; `generation_config.json` is copied, or made of `ends`."""
    files = [to / name for name in FILES if (source / name).is_file()]
    for file in files:
        shutil.copyfile(source / file.name, file)
    told = read_json(source / GENERATION) if (source / GENERATION).is_file() else ends
    (to / GENERATION).write_text(json.dumps(told, indent=2) + "\n")
    return [*files, to / GENERATION]


def ends_of(folder: Path) -> dict[str, Any]:
    """First and last token of a text, as far as a folder says."""
    told: dict[str, Any] = {}
    for name in (CONFIG, GENERATION):
        if (folder / name).is_file():
            told |= read_json(folder / name)
    return {key: told.get(key) for key in ENDS}


def end_id(folder: Path) -> int:
    """The id that ends a text.

    Raises:
        BadInputError: the folder does not say.
    """
    ends = ends_of(folder)["eos_token_id"]
    end = ends[0] if isinstance(ends, list) and ends else ends
    if not isinstance(end, int):
        raise BadInputError(
            f"{folder} says of no token that it ends a text: eos_token_id={ends} in {CONFIG}."
        )
    return end


def examine(folder: Path) -> tuple[int, dict[str, Any]]:
    """How many tokens the tokenizer of a folder has, and which of them begin and end a text.

    Raises:
        BadInputError: there is none that can be read without running code of the folder.
    """
    if not any((folder / name).is_file() for name in FILES[:2]):
        raise BadInputError(f"tokenizer={folder} has neither {FILES[0]} nor {FILES[1]}.")
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise BadInputError(f"a tokenizer needs transformers ({error}). Install it: ablate[hf].") from error
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # whatever a file of somebody else's makes of its reader
        raise BadInputError(f"tokenizer={folder} cannot be read: {error}") from error
    return len(tokenizer), {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}


def of_corpus(corpus: Corpus, to: Path, vocab_size: int, longest: int) -> list[Path]:
    """Write the tokenizer of a corpus as transformers has them.

    Args:
        vocab_size: of the model; ids that stand for no text are never drawn.
        longest: tokens that the model takes at most.
    """
    try:
        from transformers import GenerationConfig, PreTrainedTokenizerFast
    except ImportError as error:
        raise BadInputError(f"a tokenizer needs transformers ({error}). Install it: ablate[hf].") from error
    ends = ends_in(corpus)
    spare = list(range(corpus.vocab_size, vocab_size))
    drawing = GenerationConfig(
        do_sample=True, suppress_tokens=spare or None, pad_token_id=ends["eos_token_id"], **ends
    )
    drawing.save_pretrained(to)
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_file=str(corpus.tokenizer_path),
        model_max_length=longest,
        clean_up_tokenization_spaces=False,
    )
    token = tokenizer.convert_ids_to_tokens(ends["eos_token_id"])
    tokenizer.bos_token = tokenizer.eos_token = token
    return [to / GENERATION, *map(Path, tokenizer.save_pretrained(to))]


def ends_in(corpus: Corpus) -> dict[str, Any]:
    """First and last token of a document of a corpus.

    Documents follow each other with one end token between them: it is what a new one begins after. There is no
    padding token: transformers would train neither its embedding nor, as a label, the end of a text.
    """
    return dict.fromkeys(ENDS, corpus.facts["end_id"])
