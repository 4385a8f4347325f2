"""A fresh checkpoint folder is the model of its seed, and what stock transformers loads, reads and writes with."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from typer.testing import CliRunner
from variants import make_variant

from ablate.cli import app
from ablate.errors import BadInputError
from ablate.fresh import Fresh
from ablate.interop.folders import Folder, load_model, whole
from ablate.interop.layout import places
from ablate.model import build_model
from ablate.schema import Slot

SIZES = ("model.num_nextn_predict_layers=1", "model.index_n_heads=16")
"""Many heads: few of them often leave scores at exactly 0, and ties may be broken either way."""
CHAT = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer that chats, and a file of code that has to stay where it is."""
    folder = tmp_path_factory.mktemp("tokenizer")
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    pieces.train_from_iterator(
        ["a fox"],
        trainers.BpeTrainer(special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False),
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=pieces, bos_token="<s>", eos_token="</s>")
    fast.chat_template = CHAT
    fast.save_pretrained(folder)
    (folder / "tokenization.py").write_text("raise SystemExit")
    return folder


def init(*args: str | Path) -> str:
    done = CliRunner().invoke(app, ["init", *map(str, args)])
    if isinstance(done.exception, BadInputError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def test_values_are_those_of_the_model_with_that_seed() -> None:
    variant = make_variant(
        num_nextn_predict_layers=2, num_hash_layers=2, residual=Slot("mhc", {"hc_init": "identity"})
    )
    fresh, model = Fresh(variant, 7), build_model(variant, seed=7).state_dict()
    for place in places(variant):
        assert torch.equal(whole(fresh, place), model.pop(place.ours)), place.ours
    assert not model


def test_transformers_goes_through_the_quick_start(tokenizer: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    printed = init("model=micro", *SIZES, "--tokenizer", tokenizer, "--out", out)
    assert {Path(line).name for line in printed.split()} == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    words = AutoTokenizer.from_pretrained(out)
    model: Any
    model, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)  # pyright: ignore[reportGeneralTypeIssues]
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.bfloat16
    ids = words.apply_chat_template(
        [{"role": "user", "content": "a fox " * 20}], return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        assert model(ids).logits.shape == (1, ids.shape[1], len(words))
        found = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)(ids).logits
        wanted = load_model(Folder(out)).eval()(ids).logits
    assert wanted.std() > 0.05
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()
    text = model.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert text.shape[1] == ids.shape[1] + 5
    assert model.generation_config.eos_token_id == words.eos_token_id == 1
    # and ours reads the same folder
    done = CliRunner().invoke(app, ["generate", str(out), "--prompt", "a fox", "--tokens", "4"])
    assert done.exit_code == 0
    assert done.stdout.startswith("a fox")


def test_a_vocabulary_that_does_not_fit_or_a_tokenizer_that_is_none_is_named(
    tokenizer: Path, tmp_path: Path
) -> None:
    out = ("--out", tmp_path / "out")
    with pytest.raises(BadInputError, match=r"has 2\d\d tokens, but model.vocab_size=100.*or 0"):
        init("model=micro", "model.vocab_size=100", "--tokenizer", tokenizer, *out)
    with pytest.raises(BadInputError, match=r"neither tokenizer.json nor tokenizer_config.json"):
        init("model=micro", "--tokenizer", tmp_path, *out)
    with pytest.raises(BadInputError, match=r"vocab_size=0 leaves the size to a tokenizer"):
        init("model=micro", *out)
    with pytest.raises(BadInputError, match=r"no residual=prenorm"):
        init("model=micro", "model.vocab_size=300", "residual=prenorm", *out)
    assert not list(tmp_path.iterdir())
