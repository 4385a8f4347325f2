"""Packed documents and decoding in the whole model."""

from typing import Any

import pytest
import torch
from torch import Tensor
from variants import make_variant

from ablate.model import LanguageModel, build_model
from ablate.schema import Slot
from components import registry
from components.cache import CannotDecodeError
from components.slots import Router

LENGTHS = [[1, 3, 19, 2, 1, 14], [8, 7, 9, 16]]
VARIANTS: dict[str, dict[str, Any]] = {
    f"{schedule}-{router}": {"compress_ratios": schedule, "num_hash_layers": hashed, "router": Slot(router)}
    for schedule in ("swa,csa@4,hca@8,csa@4,swa", "dense*5")
    for router, hashed in (
        ("learned", 5),
        *(
            (entry.name, 0)
            for entry in registry.entries("router")
            if issubclass(entry.cls, Router) and entry.cls.causal and entry.name != "hash"
        ),
    )
}


def _model(**changes: Any) -> LanguageModel:
    """In double precision, with weights large enough to matter."""
    model = build_model(make_variant(**changes)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    return model


def _tokens(length: int = 40, batch: int = 2) -> Tensor:
    return torch.randint(31, (batch, length), generator=torch.Generator().manual_seed(0))


def _doc_ids() -> Tensor:
    return torch.stack([torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in LENGTHS])


def _documents(doc_ids: Tensor) -> list[tuple[int, Tensor]]:
    """Sequence and mask of each."""
    return [(b, ids == number) for b, ids in enumerate(doc_ids) for number in ids.unique()]


@pytest.mark.parametrize("name", VARIANTS)
def test_packed_documents_get_the_logits_that_they_get_alone(name: str) -> None:
    model, tokens, doc_ids = _model(**VARIANTS[name]), _tokens(), _doc_ids()
    packed = model(tokens, doc_ids=doc_ids).logits
    for b, own in _documents(doc_ids):
        alone = model(tokens[b : b + 1, own]).logits[0]
        torch.testing.assert_close(packed[b, own], alone, rtol=0, atol=1e-10)
    assert (packed - model(tokens).logits).abs().max() > 1e-3


def test_one_document_in_each_sequence_is_what_no_ids_are() -> None:
    model, tokens = _model(), _tokens()
    assert torch.equal(model(tokens, doc_ids=torch.ones_like(tokens)).logits, model(tokens).logits)


def test_packed_documents_train_as_they_do_alone() -> None:
    """The gradient of their mean loss is the mean of their gradients, weighted by tokens that predict."""
    tokens, doc_ids = _tokens(), _doc_ids()
    labels = tokens.roll(-1, dims=1)
    labels[:, -1] = -100
    labels[:, :-1][doc_ids[:, 1:] != doc_ids[:, :-1]] = -100
    model = _model()
    model(tokens, labels, doc_ids).loss.backward()
    packed = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    counted = int((labels != -100).sum())
    for b, own in _documents(doc_ids):
        targets = labels[b : b + 1, own]
        if (targets != -100).any():
            loss = model(tokens[b : b + 1, own], targets).loss
            (loss * (targets != -100).sum() / counted).backward()
    for key, p in model.named_parameters():
        assert (p.grad is None) == (key not in packed), key
        if p.grad is not None:
            torch.testing.assert_close(p.grad, packed[key], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("split", [[3, 5, 32], [1] * 40], ids=["chunks", "tokens"])
def test_decoding_gives_the_logits_of_one_pass(name: str, split: list[int]) -> None:
    model, tokens = _model(**VARIANTS[name]), _tokens()
    caches, found = None, []
    for piece in tokens.split(split, dim=1):
        logits, caches = model.decode(piece, caches)
        found.append(logits)
    torch.testing.assert_close(torch.cat(found, dim=1), model(tokens).logits, rtol=0, atol=1e-10)
    assert caches is not None
    assert sum(cache.kv_bytes for cache in caches) == model.variant.costs(40).total.kv_bytes


def test_a_model_that_cannot_decode_names_the_component() -> None:
    model = build_model(make_variant(indexer=Slot("oracle")))
    with pytest.raises(CannotDecodeError, match="indexer=oracle cannot decode"):
        model.decode(_tokens())
    model = build_model(make_variant(router=Slot("expert_choice")))
    with pytest.raises(CannotDecodeError, match="router=expert_choice cannot decode: it is not causal"):
        model.decode(_tokens())
