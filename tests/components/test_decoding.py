"""Decoding from caches: any split of a sequence gives one pass's outputs, at the declared bytes."""

from collections.abc import Iterator

import pytest
import torch
from attention_sites import PARTS, inputs, make_attention, make_site, total_cost
from torch import Tensor

from components import registry
from components.cache import Cache, CannotDecodeError
from components.slots import Attention

ENTRIES = [entry.name for entry in registry.entries("attention")]
CANNOT = {"oracle"}
"""Indexers that need all of attention to choose."""

CHOICES = [
    (attention.name, part)
    for attention in registry.entries("attention")
    for part in (None, *registry.entries())
    if part is None or (part.slot in attention.cls.uses and part.name not in {*PARTS.values(), *CANNOT})
]
SPLITS = [[1] * 45, [3, 5, 37], [8, 7, 1, 13, 2, 14], [45]]


def _steps(layer: Attention, x: Tensor, split: list[int]) -> Iterator[tuple[Tensor, Cache]]:
    cache = None
    for piece in x.split(split, dim=1):
        y, cache = layer.step(piece, cache)
        yield y, cache


def _measured(cache: Cache) -> int:
    """Bytes of one sequence in half precision."""
    kept = sum(tensor.to(torch.bfloat16).nbytes // len(tensor) for tensor in cache.kept.values())
    return kept + sum(_measured(part) for part in cache.parts.values())


def _pending(cache: Cache) -> int:
    own = sum(tensor[0].numel() for tensor in cache.pending.values())
    return own + sum(_pending(part) for part in cache.parts.values())


@pytest.mark.parametrize(
    ("attention", "part"), CHOICES, ids=lambda value: getattr(value, "name", value) or "official"
)
def test_every_split_gives_what_one_pass_gives(attention: str, part: registry.Entry | None) -> None:
    site, names = make_site(attention), {part.slot: part.name} if part else {}
    layer, x = make_attention(site, **names).eval(), inputs(site, 45)
    with torch.no_grad():
        whole = layer(x)[0]
        for split in SPLITS:
            steps = torch.cat([y for y, _ in _steps(layer, x, split)], dim=1)
            torch.testing.assert_close(steps, whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize("attention", ENTRIES)
def test_what_is_kept_has_the_declared_bytes_at_every_length(attention: str) -> None:
    site = make_site(attention)
    layer, x = make_attention(site), inputs(site, 45)
    with torch.no_grad():
        for length, (_, cache) in enumerate(_steps(layer, x, [1] * 45), start=1):
            assert cache.length == length
            assert cache.kv_bytes == _measured(cache) == total_cost(site, length).kv_bytes


@pytest.mark.parametrize(("attention", "blocks", "widths"), [("csa", 2, 4 * (12 + 8)), ("hca", 1, 2 * 12)])
def test_unfinished_blocks_do_not_grow(attention: str, blocks: int, widths: int) -> None:
    """Values and gates of fewer tokens than a block, and with overlap of the block before."""
    site = make_site(attention)
    layer, x, ratio = make_attention(site), inputs(site, 45), site.layer.ratio
    with torch.no_grad():
        held = [_pending(cache) for _, cache in _steps(layer, x, [1] * 45)]
    assert held == [widths * (n % ratio + (blocks - 1) * ratio * (n >= ratio)) for n in range(1, 46)]


@pytest.mark.parametrize("attention", ENTRIES)
def test_a_cache_is_never_changed(attention: str) -> None:
    """One beginning can be gone on from twice."""
    site = make_site(attention)
    layer, x = make_attention(site), inputs(site, 45)
    with torch.no_grad():
        _, cache = layer.step(x[:, :22])
        first, _ = layer.step(x[:, 22:], cache)
        layer.step(-x[:, 22:], cache)
        assert torch.equal(layer.step(x[:, 22:], cache)[0], first)


@pytest.mark.parametrize("attention", ENTRIES)
def test_single_precision_is_close(attention: str) -> None:
    site = make_site(attention, {"topk": 99} if attention == "csa" else {})
    layer, x = make_attention(site, torch.float32), inputs(site, 45).float()
    with torch.no_grad():
        steps = torch.cat([y for y, _ in _steps(layer, x, [1] * 45)], dim=1)
        torch.testing.assert_close(steps, layer(x)[0], rtol=1e-4, atol=1e-4)


def test_an_entry_without_a_cache_is_named() -> None:
    site = make_site("csa")
    with pytest.raises(CannotDecodeError, match="indexer=oracle cannot decode"):
        make_attention(site, indexer="oracle").step(inputs(site, 9))
