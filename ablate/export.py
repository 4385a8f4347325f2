"""A trained trial as a folder that other programs load: `ablate export`."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate import generate
from ablate.errors import BadInputError
from ablate.home import Home
from components import registry

if TYPE_CHECKING:
    from ablate.generate import Trained

FORMATS = ("hf",)
"""`hf`: what `AutoModelForCausalLM` and `AutoTokenizer` of transformers load."""


def export(trained: str, form: str, to: Path, home: Home) -> list[Path]:
    """Write weights, configuration and tokenizer of a checkpoint, or of a study's best trial, into `to`.

    Returns:
        The files.

    Raises:
        BadInputError: nothing to export, no such format, a component that the format cannot express, or a
            folder that already holds something.
    """
    if form not in FORMATS:
        raise BadInputError(f"format={form}: {registry.unknown('format', form, FORMATS)}")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise BadInputError(f"out={to} already holds something. Name a new or an empty folder.")
    model = generate.load(generate.find(trained, home), home)
    part = to.with_name(f".{to.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        _write_transformers(model, part)
        if to.exists():
            to.rmdir()
        part.rename(to)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return sorted(to.iterdir())


def _write_transformers(trained: "Trained", folder: Path) -> None:
    try:
        from transformers import GenerationConfig, PreTrainedTokenizerFast
        from transformers.utils import logging

        from ablate.interop import hf
    except ImportError as error:
        raise BadInputError(f"format=hf needs transformers ({error}). Install it: ablate[hf].") from error
    model: Any = hf.to_transformers(trained.model)
    end = trained.corpus.facts["end_id"]
    # Documents follow each other with one end token between them: it is what a new one begins after.
    # No padding token: transformers would train neither its embedding nor, as a label, the end of a text.
    ends = {"bos_token_id": end, "eos_token_id": end}
    for name, value in ends.items():
        setattr(model.config, name, value)
    # Ids that stand for no text are never drawn.
    spare = list(range(trained.corpus.vocab_size, trained.model.variant.dims.vocab_size))
    model.generation_config = GenerationConfig(
        do_sample=True, suppress_tokens=spare or None, pad_token_id=end, **ends
    )
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    token = trained.tokenizer.id_to_token(end)
    PreTrainedTokenizerFast(
        tokenizer_file=str(trained.corpus.tokenizer_path),
        bos_token=token,
        eos_token=token,
        model_max_length=trained.model.variant.dims.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
