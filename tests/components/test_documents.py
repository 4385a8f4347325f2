"""Packed documents: every attention entry treats each one as if it were alone."""

import pytest
import torch
from attention_sites import inputs, make_attention, make_site
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from components import registry
from components.documents import Documents

ENTRIES = [entry.name for entry in registry.entries("attention")]
LENGTHS = [[1, 3, 30, 2, 1, 17, 6], [9, 9, 8, 1, 33]]
"""Lengths of documents in two sequences of 60 tokens: shorter than a window, a ratio, a block, and longer."""


def _ids(lengths: list[list[int]]) -> Tensor:
    rows = [torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in lengths]
    return 5 + 3 * torch.stack(rows)


def _pieces(lengths: list[list[int]]) -> list[tuple[int, slice]]:
    ends = [torch.tensor(row).cumsum(0).tolist() for row in lengths]
    return [
        (b, slice(end - length, end))
        for b, row in enumerate(lengths)
        for length, end in zip(row, ends[b], strict=True)
    ]


@pytest.mark.parametrize("attention", ENTRIES)
def test_documents_are_mixed_as_if_each_were_alone(attention: str) -> None:
    site = make_site(attention)
    layer, x = make_attention(site), inputs(site, 60).requires_grad_()
    packed, _ = Documents.of(_ids(LENGTHS)).each(layer, x)
    for b, piece in _pieces(LENGTHS):
        alone = layer(x[b : b + 1, piece])[0]
        torch.testing.assert_close(packed[b : b + 1, piece], alone, rtol=0, atol=1e-10)
    assert (packed - layer(x)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("attention", ENTRIES)
def test_no_gradient_crosses_documents(attention: str) -> None:
    site = make_site(attention)
    layer, x = make_attention(site), inputs(site, 60).requires_grad_()
    packed, _ = Documents.of(_ids(LENGTHS)).each(layer, x)
    for b, piece in _pieces(LENGTHS):
        (gradient,) = torch.autograd.grad(packed[b, piece].square().sum(), x, retain_graph=True)
        own = torch.zeros(2, 60, dtype=torch.bool)
        own[b, piece] = True
        assert not gradient[~own].any()
        assert gradient[own].any(-1).all()
        (alone,) = torch.autograd.grad(layer(x[b : b + 1, piece])[0].square().sum(), x)
        torch.testing.assert_close(gradient, alone, rtol=1e-9, atol=1e-10)


def _sums(x: Tensor, real: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    return x.cumsum(1), {"diag/mean": x[real].mean()}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=12), min_size=1, max_size=3))
def test_any_lengths_at_most_double_the_work(lengths: list[list[int]]) -> None:
    longest = max(map(sum, lengths))
    lengths = [[*row, longest - sum(row)] if sum(row) < longest else row for row in lengths]
    documents = Documents.of(_ids(lengths))
    x = torch.randn(len(lengths), longest, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y, aux = documents.each(_sums, x)
    for b, piece in _pieces(lengths):
        torch.testing.assert_close(y[b, piece], x[b, piece].cumsum(0))
    torch.testing.assert_close(aux["diag/mean"], x.mean())
    assert sum(group.numel() for group in documents.groups) < 2 * x.numel()


def test_what_fills_up_rows_teaches_no_indexer() -> None:
    """Four documents of 33 tokens and four of 36 share a group; alone they do not."""
    site = make_site("csa")
    layer, x = make_attention(site), inputs(site, 4 * 69, batch=1)
    _, aux = Documents.of(_ids([[33, 36] * 4])).each(layer, x)
    found = {"loss/indexer": 0.0, "diag/indexer_kl": 0.0}
    queries = 0
    for _, piece in _pieces([[33, 36] * 4]):
        values = layer(x[:, piece])[1]
        teaching = piece.stop - piece.start - 3
        queries += teaching
        found = {key: total + teaching * values[key].item() for key, total in found.items()}
    for key, total in found.items():
        assert aux[key].item() == pytest.approx(total / queries, rel=1e-9)


def test_documents_in_two_pieces_are_refused() -> None:
    with pytest.raises(ValueError, match="doc_ids decrease along a sequence"):
        Documents.of(torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1]]))
