"""What `ablate export` writes is loaded by stock transformers, with our logits, our tokens, our text."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner
from variants import make_run

from ablate import data, generate, schema
from ablate.checkpoint import CONFIG, WEIGHTS
from ablate.cli import app
from ablate.errors import BadInputError
from ablate.export import export
from ablate.home import Home
from ablate.model import LanguageModel, initialise
from ablate.schema import Slot
from ablate.variant import Variant

SENTENCE = "The quick brown fox jumps over a lazy dog; naïvely. "


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("home"))
    data.prepare(_corpus(home), home)
    return home


def _corpus(home: Home) -> schema.Data:
    files = home.root / "text.json"
    if not files.exists():
        files.write_text("\n".join(json.dumps({"text": SENTENCE * n}) for n in range(1, 60)))
    return schema.Data(name="fox", source="json", files=[str(files)], vocab_size=280, val_fraction=0.2)


def _trained(home: Home, name: str, **changes: Any) -> Path:
    """A trial's folder. Large weights, so that logits differ and no two are nearly equal."""
    run = dataclasses.replace(make_run(vocab_size=300, index_n_heads=16, **changes), data=_corpus(home))
    model, generator = LanguageModel(Variant.from_run(run)), torch.Generator().manual_seed(0)
    initialise(model, 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    folder = home.root / name
    folder.mkdir()
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(schema.to_dict(run)))
    return folder


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("every mechanism", {"num_nextn_predict_layers": 1}),
        (
            "unusual numbers",
            {
                "position": Slot("rope", {"yarn_factor": 16.0, "yarn_original": 64}),
                "ffn": Slot("moe", {"swiglu_limit": 0.0}),
                "residual": Slot("mhc", {"hc_mult": 2}),
                "compress_ratios": "csa@3,hca@7,csa@3,swa,csa@3",
                "num_hash_layers": 2,
            },
        ),
    ],
)
def test_stock_transformers_loads_it_with_equal_logits_tokens_and_text(
    home: Home, tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    folder = _trained(home, name, **changes)
    done = CliRunner().invoke(
        app,
        ["export", str(folder), "--format", "hf", "--out", str(tmp_path / "out"), "--home", str(home.root)],
        catch_exceptions=False,
    )
    assert done.exit_code == 0
    assert {Path(line).name for line in done.stdout.split()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    ours = generate.load(folder, home)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()

    ids = tokenizer(SENTENCE * 2, return_tensors="pt").input_ids
    assert ids[0].tolist() == ours.tokenizer.encode(SENTENCE * 2).ids
    assert tokenizer.decode(ids[0]) == SENTENCE * 2
    with torch.no_grad():
        wanted = ours.model(ids).logits
        assert wanted.std() > 0.1
        assert (theirs(ids).logits - wanted).abs().max() < 2e-5 * wanted.abs().max()

    # Their cache, their sampler, our end of a document and our unused ids.
    text = theirs.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    mine = list(generate.draws(ours.model, ids[0].tolist(), 12, 0.0, 0, ours.vocab_size))
    end = ours.end_id
    mine = mine[: mine.index(end) + 1] if end in mine else mine
    assert text.tolist() == mine
    assert theirs.generation_config.eos_token_id == end == tokenizer.eos_token_id


def test_a_component_that_transformers_has_not_is_named_and_nothing_is_left(
    home: Home, tmp_path: Path
) -> None:
    folder = _trained(home, "other residual", residual=Slot("rezero"))
    with pytest.raises(BadInputError, match=r"residual=rezero.*only has mhc"):
        export(str(folder), "hf", tmp_path / "out", home)
    assert not list(tmp_path.iterdir())


def test_bad_input_is_named(home: Home, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"format=gguf.*Allowed: ablate, hf"):
        export(str(home.root), "gguf", tmp_path / "out", home)
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(BadInputError, match="already holds something"):
        export(str(home.root), "hf", tmp_path, home)
    assert (tmp_path / "mine").read_text() == "kept"
