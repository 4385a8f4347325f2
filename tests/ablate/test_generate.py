"""Text from trained weights: the command, and what is drawn."""

import dataclasses
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import small_studies
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner
from variants import make_run, make_variant

from ablate import data, generate, schema, study
from ablate.checkpoint import CONFIG, WEIGHTS
from ablate.cli import app
from ablate.errors import BadInputError
from ablate.home import Home
from ablate.model import LanguageModel, build_model, initialise
from ablate.variant import Variant

SENTENCE = "The quick brown fox jumps over a lazy dog. "
SMALL: dict[str, Any] = {
    "num_hidden_layers": 2,
    "compress_ratios": "csa@4,swa",
    "num_hash_layers": 0,
    "residual": schema.Slot("prenorm"),
    "ffn": schema.Slot("swiglu"),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home with a trial in `trained` that knows one sentence by heart, in bytes."""
    home = Home(tmp_path_factory.mktemp("home"))
    files = home.root / "text.json"
    files.write_text("\n".join(json.dumps({"text": SENTENCE * n}) for n in range(1, 60)))
    corpus = schema.Data(name="fox", source="json", files=[str(files)], tokenizer="bytes", val_fraction=0.2)
    run = dataclasses.replace(make_run(vocab_size=264, **SMALL), data=corpus)
    end = data.prepare(corpus, home).facts["end_id"]
    torch.manual_seed(0)
    model = LanguageModel(Variant.from_run(run))
    initialise(model, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    text = torch.tensor([[end, *SENTENCE.encode(), end]])
    for _ in range(60):
        loss = model(text[:, :-1], text[:, 1:]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.1
    _save(model, run, home.root / "trained")
    return home


def _save(model: LanguageModel, run: schema.Run, folder: Path) -> None:
    folder.mkdir(parents=True)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(schema.to_dict(run)))


def _ablate(*args: str) -> str:
    done = CliRunner().invoke(app, ["generate", *args], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_the_command_goes_on_from_a_prompt_to_the_end_of_the_document(home: Home) -> None:
    at = ["--home", str(home.root), "--temperature", "0"]
    trained = str(home.root / "trained")
    assert _ablate(trained, *at, "--prompt", SENTENCE[:20]) == SENTENCE + "\n"
    assert _ablate(trained, *at) == SENTENCE + "\n"
    assert _ablate(trained, *at, "--tokens", "9") == SENTENCE[:9] + "\n"
    found = json.loads(_ablate(trained, *at, "--prompt", SENTENCE[:20], "--json"))
    assert found == {"checkpoint": trained, "prompt": SENTENCE[:20], "text": SENTENCE[20:]}


def test_what_is_drawn_is_a_function_of_the_seed(home: Home) -> None:
    trained = generate.load(home.root / "trained", home)
    first, again, other = ("".join(trained.write("The", 60, 3.0, seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_tokens_are_drawn_with_their_shares_of_the_softmax() -> None:
    model = build_model(make_variant(**SMALL)).eval()
    with torch.no_grad():
        model.head.mul_(40)
    logits = model(torch.tensor([[3, 5, 7]])).logits[0, -1, :29].double()
    expected = (logits / 1.5).softmax(-1)
    drawn = Counter(next(generate.draws(model, [3, 5, 7], 1, 1.5, seed, 29)) for seed in range(300))
    assert max(drawn) < 29
    assert expected.max() < 0.9
    for token, share in enumerate(expected.tolist()):
        spread = math.sqrt(share * (1 - share) / 300)
        assert drawn[token] / 300 == pytest.approx(share, abs=4.5 * spread + 1 / 300)


def test_long_prompts_go_through_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(make_variant(**SMALL)).double().eval()
    prompt = torch.randint(31, (50,), generator=torch.Generator().manual_seed(0)).tolist()
    whole = list(generate.draws(model, prompt, 12, 1.0, 0, 31))
    monkeypatch.setattr(generate, "PREFILL", 7)
    assert list(generate.draws(model, prompt, 12, 1.0, 0, 31)) == whole
    ids = prompt + whole
    for i in range(12):
        logits = model(torch.tensor([ids[: 50 + i]])).logits[0, -1]
        best = generate.draws(model, ids[: 50 + i], 1, 0.0, 0, 31)
        assert next(best) == int(logits.argmax())


def test_of_a_study_the_best_trial_that_kept_its_weights_is_taken(home: Home, tmp_path: Path) -> None:
    at = Home(tmp_path)
    plan = small_studies.plan()
    study.create(plan, at)
    with pytest.raises(
        BadInputError, match=r"no trial of study engine-00000001 has kept .*keep_weights=confirm"
    ):
        generate.find("engine", at)
    view = small_studies.finish(at, plan)
    losses = {row.number: row.result.val_loss for row in view.trials if row.result}
    kept = sorted(losses, key=lambda number: losses[number] or math.inf)[2:5]
    for number in kept:
        at.trial(view.name, number).mkdir(parents=True, exist_ok=True)
        (at.trial(view.name, number) / WEIGHTS).write_bytes(b"")
    assert generate.find("engine", at) == at.trial(view.name, kept[0])


def test_bad_input_is_named(home: Home, tmp_path: Path) -> None:
    trained = home.root / "trained"
    with pytest.raises(BadInputError, match=r"has no model\.safetensors"):
        generate.find(str(tmp_path), home)
    with pytest.raises(BadInputError, match=r"has no corpus .* of data=fox"):
        generate.load(trained, Home(tmp_path))
    model = generate.load(trained, home).model
    for count, temperature, message in ((0, 1.0, "tokens=0"), (1, -1.0, "temperature=-1.0")):
        with pytest.raises(BadInputError, match=message):
            generate.draws(model, [1], count, temperature, 0, 257)
    oracle = build_model(make_variant(indexer=schema.Slot("oracle")))
    with pytest.raises(BadInputError, match="indexer=oracle cannot decode"):
        generate.draws(oracle, [1], 1, 0.0, 0, 31)
