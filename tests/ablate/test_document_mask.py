"""`data.document_mask`: training and evaluation in which each document is alone, charged as whole sequences."""

import copy
import dataclasses
import itertools
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_training import Purse, _spec, short_documents
from torch.nn import functional as F
from variants import make_variant

from ablate import training
from ablate.data import Corpus
from ablate.evaluation import evaluate
from ablate.model import LanguageModel, build_model
from ablate.records import TrialSpec


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return short_documents(tmp_path_factory.mktemp("corpus"))


def _masked(spec: TrialSpec) -> TrialSpec:
    run = copy.deepcopy(spec.run)
    run["data"]["document_mask"] = True
    return dataclasses.replace(spec, run=run, fingerprint=spec.fingerprint + " masked")


def _model(corpus: Corpus) -> LanguageModel:
    model = build_model(make_variant(vocab_size=corpus.vocab_size)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    return model.eval()


def test_evaluation_is_that_of_every_document_alone(corpus: Corpus) -> None:
    model, held = _model(corpus), corpus.validation(32, 1024, separate=True)
    end = corpus.facts["end_id"]
    nats, counted, size = 0.0, 0, 0
    for inputs in held.inputs:
        for document in _pieces(inputs, end):
            if len(document) > 1:
                logits = model(document[None, :-1]).logits[0]
                nats += F.cross_entropy(logits, document[1:], reduction="sum").item()
                counted += len(document) - 1
                size += sum(int(token != end) for token in document[1:])  # a byte per token, none at an end
    # The last label of a block is outside its inputs, and there if the block does not end with a document.
    last = [
        (row, label) for row, label in zip(held.inputs, held.labels[:, -1], strict=True) if row[-1] != end
    ]
    for row, label in last:
        document = _pieces(row, end)[-1]
        nats += F.cross_entropy(model(document[None]).logits[0, -1:], label[None]).item()
        counted += 1
        size += int(label != end)
    assert (held.inputs == end).any()
    found = evaluate(model, held)
    assert held.counted == counted < held.labels.numel()
    assert held.bytes == size
    assert found.loss == pytest.approx(nats / counted, rel=1e-12)
    assert found.bpb == pytest.approx(nats / math.log(2) / size, rel=1e-12)
    whole = evaluate(model, corpus.validation(32, 1024))
    assert abs(whole.loss - found.loss) > 1e-4


def _pieces(row: torch.Tensor, end: int) -> list[torch.Tensor]:
    """A block's documents, each with its end token where that is in the block."""
    borders = [0, *((row == end).nonzero().flatten() + 1).tolist(), len(row)]
    return [row[a:b] for a, b in itertools.pairwise(borders) if b > a]


def test_only_what_follows_an_end_token_is_left_out(corpus: Corpus) -> None:
    end = corpus.facts["end_id"]
    batch = corpus.batch(1, 0, 40, 32)
    labels = corpus.without_borders(batch.inputs, batch.labels)
    left = labels == -100
    assert left.any()
    assert torch.equal(left, batch.inputs == end)
    assert torch.equal(labels[~left], batch.labels[~left])
    inside = batch.documents[:, 1:] == batch.documents[:, :-1]
    assert torch.equal(left[:, :-1], ~inside)


def test_a_trial_is_charged_as_without_repeats_and_resumes_bit_for_bit(
    corpus: Corpus, tmp_path: Path
) -> None:
    plain = _spec(corpus, steps=10, num_nextn_predict_layers=1)
    spec = _masked(plain)
    result = training.train(spec, corpus, tmp_path / "whole", Purse())
    training.train(spec, corpus, tmp_path / "parts", Purse(stop_before=6))
    resumed = training.train(spec, corpus, tmp_path / "parts", Purse())
    unmasked = training.train(plain, corpus, tmp_path / "plain", Purse())
    assert resumed.val_loss == result.val_loss != unmasked.val_loss
    assert resumed.tokens_hash == result.tokens_hash == unmasked.tokens_hash
    assert result.useful_mflop == unmasked.useful_mflop == spec.allowance_mflop
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts", "plain")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]["head"], weights[2]["head"])
