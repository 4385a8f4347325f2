"""Batches are a pure function of seed and sequence index: pairing, resuming, no token twice in an epoch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from corpora import corpus as generated
from hypothesis import given, settings
from hypothesis import strategies as st

from ablate import data
from ablate.errors import BadInputError

S = 16


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> data.Corpus:
    return generated(tmp_path_factory.mktemp("stream"))


def _rows(corpus: data.Corpus, seed: int, count: int, batch: int = 1, seq_len: int = S) -> torch.Tensor:
    steps = -(-count // batch)
    return torch.cat([corpus.batch(seed, step, batch, seq_len).inputs for step in range(steps)])[:count]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**40), batch=st.integers(1, 40), step=st.integers(0, 60))
def test_a_batch_depends_on_the_index_of_its_sequences_alone(
    corpus: data.Corpus, seed: int, batch: int, step: int
) -> None:
    together = corpus.batch(seed, step, batch, S)
    singly = [corpus.batch(seed, step * batch + row, 1, S) for row in reversed(range(batch))][::-1]
    for name in ("inputs", "labels", "documents"):
        assert torch.equal(getattr(together, name), torch.cat([getattr(one, name) for one in singly]))
        assert getattr(together, name).dtype == torch.int64


def test_another_process_object_resumes_the_same_stream_at_any_step(corpus: data.Corpus) -> None:
    again = data.Corpus.load(corpus.folder)
    for step in (900, 0, 37):
        assert torch.equal(again.batch(5, step, 3, S).inputs, corpus.batch(5, step, 3, S).inputs)


def test_labels_are_the_next_tokens_of_the_text(corpus: data.Corpus) -> None:
    text = np.asarray(corpus.train, dtype=np.int64)
    windows = {w.tobytes() for w in np.lib.stride_tricks.sliding_window_view(text, S + 1)}
    batch = corpus.batch(3, 2, 8, S)
    assert torch.equal(batch.inputs[:, 1:], batch.labels[:, :-1])
    for inputs, last in zip(batch.inputs, batch.labels[:, -1:], strict=True):
        assert torch.cat([inputs, last]).numpy().tobytes() in windows


def _numbered(folder: Path, tokens: int) -> data.Corpus:
    """A corpus whose token at position i is i: what a batch holds tells where it was cut."""
    from dataclasses import replace

    source = generated(folder)
    copy = folder / "numbered"
    copy.mkdir()
    for name in ("train.bin", "val.bin"):
        np.arange(tokens, dtype=np.uint32).tofile(copy / name)
    np.ones(tokens, dtype=np.uint32).tofile(copy / "val_bytes.bin")
    facts = {**source.facts, "dtype": "uint32", "end_id": tokens + 1}
    return replace(source, folder=copy, facts=facts, train_tokens=tokens, val_tokens=tokens)


@pytest.mark.parametrize("tokens", [S + 1, 2 * S - 1, 2 * S, 20 * S, 20 * S + 7])
def test_an_epoch_has_every_label_at_most_once_and_misses_less_than_two_blocks(
    tmp_path: Path, tokens: int
) -> None:
    corpus = _numbered(tmp_path, tokens)
    blocks = round(1 / corpus.epochs(1, 1, S))
    for epoch in range(3):
        steps = range(epoch * blocks, (epoch + 1) * blocks)
        labels = torch.cat([corpus.batch(1, step, 1, S).labels for step in steps]).flatten()
        assert len(labels.unique()) == len(labels) > tokens - 1 - 2 * S
        assert int(labels.max()) < tokens


def test_epochs_differ_in_order_and_borders_and_seeds_in_both(tmp_path: Path) -> None:
    corpus = _numbered(tmp_path, 200 * S)
    blocks = round(1 / corpus.epochs(1, 1, S))
    firsts = [_rows(corpus, seed, 4 * blocks, 7)[:, 0].view(4, blocks) for seed in range(4)]
    borders = {int(epoch[0]) % S for one in firsts for epoch in one}
    assert len(borders) > 4
    for one in firsts:
        assert all((epoch % S == epoch[0] % S).all() for epoch in one)
    orders = {tuple((epoch // S).tolist()) for one in firsts for epoch in one}
    assert len(orders) == 16
    order = np.array(next(iter(orders)))
    assert abs(np.corrcoef(order, np.arange(blocks))[0, 1]) < 0.3  # 4 standard errors of no correlation


def test_epochs_counts_passes_over_the_text(corpus: data.Corpus) -> None:
    assert corpus.epochs(300, 4, S) == pytest.approx(
        300 * 4 * S / corpus.train_tokens, rel=3 * S / corpus.train_tokens
    )


def test_documents_are_numbered_by_the_end_tokens_before_a_position(corpus: data.Corpus) -> None:
    batch = corpus.batch(0, 0, 64, 128)
    end = corpus.facts["end_id"]
    assert int(batch.documents.max()) > 0
    for inputs, documents in zip(batch.inputs.tolist(), batch.documents.tolist(), strict=True):
        assert documents == [inputs[:i].count(end) for i in range(128)]


@pytest.mark.parametrize(("seq_len", "tokens"), [(S, 10**9), (S, 5 * S + 3), (7, 7), (200, 1000)])
def test_validation_is_fixed_blocks_spread_over_the_held_out_text(
    tmp_path: Path, seq_len: int, tokens: int
) -> None:
    corpus = _numbered(tmp_path, 100 * S)
    held = corpus.validation(seq_len, tokens)
    assert held.tokens == held.labels.numel() <= tokens
    assert held.tokens > min(tokens, 100 * S - 1) - seq_len
    assert torch.equal(held.labels, held.inputs + 1)
    assert len(held.labels.unique()) == held.labels.numel()
    starts = held.inputs[:, 0]
    if len(starts) > 1:
        gaps = starts.diff()
        assert int(gaps.max() - gaps.min()) <= seq_len
        assert int(starts[-1]) + int(gaps.max()) + seq_len >= 100 * S - 1
    assert held.bytes == held.tokens  # every token of this corpus counts as one byte


def test_a_text_smaller_than_a_block_is_refused_with_the_sizes(corpus: data.Corpus) -> None:
    for use in (
        lambda n: corpus.batch(0, 0, 1, n),
        lambda n: corpus.epochs(1, 1, n),
        lambda n: corpus.validation(n, 10**9),
    ):
        with pytest.raises(BadInputError, match=r"trainer\.seq_len=1000000 .* at most (\d+)") as caught:
            use(1_000_000)
        assert str(corpus.train_tokens) in str(caught.value)
        assert str(corpus.val_tokens) in str(caught.value)
        largest = int(str(caught.value).split("at most ")[1].split(" ")[0])
        use(largest)
        with pytest.raises(BadInputError, match=r"trainer\.seq_len"):
            use(largest + 1)
    with pytest.raises(BadInputError, match=r"data\.val_tokens=15 .*trainer\.seq_len=16.* at least 16"):
        corpus.validation(16, 15)
