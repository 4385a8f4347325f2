"""What only an auxiliary loss reaches is trained by it, and nothing is trained that has none."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_training import Purse, _spec
from test_training import corpus as corpus

from ablate import schema, training
from ablate.data import Corpus
from ablate.model import LanguageModel, initialise
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
