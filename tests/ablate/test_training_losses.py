"""What only an auxiliary loss reaches is trained by it, and nothing is trained that has none."""

from pathlib import Path
from typing import Any

import pytest
import torch
import variants
from safetensors.torch import load_file
from test_training import Purse, _spec
from test_training import corpus as corpus

from ablate import schema, training
from ablate.data import Corpus
from ablate.errors import BadInputError
from ablate.model import LanguageModel, build_model, initialise
from ablate.prediction import Prediction
from ablate.variant import Variant


@pytest.mark.parametrize("stage", ["none", "sparse"])
def test_indexers_learn_where_they_should_and_prediction_layers_learn(
    corpus: Corpus, tmp_path: Path, stage: str
) -> None:
    spec = _spec(
        corpus,
        steps=3,
        indexer=schema.Slot("lightning", {"train": stage}),
        num_nextn_predict_layers=1,
    )
    training.train(spec, corpus, tmp_path, Purse())
    run = schema.from_dict(spec.run)
    start = LanguageModel(Variant.from_run(run, run.model.vocab_size))
    initialise(start, spec.seed)
    trained = load_file(tmp_path / "model.safetensors")
    for name, parameter in start.named_parameters():
        moved = not torch.equal(trained[name], parameter)
        assert moved == (".indexer." not in name or stage == "sparse"), name


def test_the_weight_of_prediction_falls_with_the_learning_rate_also_after_a_resume(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    losses = Prediction.losses

    def noting(self: Prediction, *args: Any) -> Any:
        if torch.is_grad_enabled():
            seen.append(self.weight)
        return losses(self, *args)

    monkeypatch.setattr(Prediction, "losses", noting)
    options = {"weight": 0.4, "decay_weight": 0.15}
    spec = _spec(corpus, steps=12, num_nextn_predict_layers=1, mtp=schema.Slot("v4", options))
    assert schema.from_dict(spec.run).optimizer.decay == 0.3
    training.train(spec, corpus, tmp_path / "whole", Purse())
    # Steps are judged by their middles: the ninth, at 8.5 of 12, is the first after 70 %.
    assert seen == [0.4] * 8 + [0.15] * 4
    training.train(spec, corpus, tmp_path / "parts", Purse(stop_before=10))
    del seen[:]
    training.train(spec, corpus, tmp_path / "parts", Purse())
    assert seen == [0.15] * 2
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_weights_that_are_equal_never_change_and_others_must_be_positive() -> None:
    constant = build_model(
        variants.make_variant(
            num_nextn_predict_layers=1, mtp=schema.Slot("v3", {"weight": 0.2, "decay_weight": 0.2})
        )
    )
    for does in (True, False):
        constant.mtp.decaying(does)
        assert constant.mtp.weight == 0.2
    without = build_model(variants.make_variant())
    without.mtp.decaying(True)
    assert without.mtp.weight == 0.0
    with pytest.raises(BadInputError, match="decay_weight=0"):
        variants.make_variant(num_nextn_predict_layers=1, mtp=schema.Slot("v4", {"decay_weight": 0}))
