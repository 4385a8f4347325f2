import pytest
import torch
from attention_sites import inputs, make_part, make_site, randomise
from torch import Tensor

from components.indexer.lightning import Lightning, highest
from components.slots import Indexer, Position
from components.spec import Site


def unasked(seen: Tensor) -> Tensor:
    """Stands for attention where nobody should ask it."""
    raise AssertionError(f"attention was asked about {tuple(seen.shape)}")


def _indexer(site: Site) -> tuple[Lightning, Position]:
    layer, rope = make_part("indexer", site, train="none").double(), make_part("position", site)
    randomise(layer)
    assert isinstance(layer, Lightning)
    assert isinstance(rope, Position)
    return layer, rope


def _latent(site: Site, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, length, site.dims.q_lora_rank, generator=generator, dtype=torch.float64)


def _visible(length: int, ratio: int = 4) -> Tensor:
    return torch.arange(1, length + 1) // ratio


def test_the_highest_of_the_visible_entries_are_chosen_for_each_query_by_itself() -> None:
    site = make_site("csa")
    layer, rope = _indexer(site)
    x, latent = inputs(site, 41), _latent(site, 41)
    chosen, aux = layer(x, latent, _visible(41), rope, unasked)
    assert chosen.shape == (2, 41, 10)
    assert aux == {}
    keys = layer.compressor(x, rope)
    queries = rope.rotate((latent @ layer.q_b.T).unflatten(-1, (3, 8)), torch.arange(41))
    weights = x @ layer.weights.T / (8 * 3) ** 0.5
    for b in range(2):
        for t in range(41):
            scores = [
                sum(weights[b, t, h] * torch.relu(queries[b, t, h] @ keys[b, i]) for h in range(3))
                for i in range((t + 1) // 4)
            ]
            best = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:3]
            assert chosen[b, t].nonzero().flatten().tolist() == sorted(best)
    assert len({tuple(row.tolist()) for row in chosen[0, 20:]}) > 3


def test_of_equal_scores_the_earliest_are_chosen() -> None:
    scores = torch.tensor([[0.0, 2.0, 0.0, -0.0, 2.0, 0.0], [-1.0, -1.0, -1.0, -1.0, -1.0, -1.0]])
    assert highest(scores, 4).int().tolist() == [[1, 1, 1, 0, 1, 0], [1, 1, 1, 1, 0, 0]]


def test_weights_keep_their_sign() -> None:
    site = make_site("csa")
    layer, rope = _indexer(site)
    x, latent = inputs(site, 41), _latent(site, 41)
    before = layer(x, latent, _visible(41), rope, unasked)[0]
    with torch.no_grad():
        layer.weights.neg_()
    after = layer(x, latent, _visible(41), rope, unasked)[0]
    assert not torch.equal(before, after)
    assert torch.equal(before.sum(-1), after.sum(-1))


def test_with_enough_room_every_visible_entry_is_chosen_without_a_score() -> None:
    site = make_site("csa", {"topk": 10})
    layer, rope = _indexer(site)
    with torch.no_grad():
        layer.q_b.fill_(torch.nan)
    chosen = layer(inputs(site, 41), _latent(site, 41), _visible(41), rope, unasked)[0]
    assert torch.equal(chosen.sum(-1), _visible(41).expand(2, -1))
    dense = make_part("indexer", site, "dense")
    assert isinstance(dense, Indexer)
    assert torch.equal(dense(inputs(site, 41), _latent(site, 41), _visible(41), rope, unasked)[0], chosen)


def test_no_gradient_passes() -> None:
    site = make_site("csa")
    layer, rope = _indexer(site)
    x, latent = inputs(site, 41).requires_grad_(), _latent(site, 41).requires_grad_()
    assert not layer(x, latent, _visible(41), rope, unasked)[0].requires_grad


def test_impossible_sizes_are_named_and_an_idle_indexer_is_told() -> None:
    none, sparse = Lightning.Config(train="none"), Lightning.Config()
    with pytest.raises(ValueError, match="index_head_dim=2 must be even and at least qk_rope_head_dim=4"):
        Lightning.check(none, make_site("csa", index_head_dim=2), 64)
    with pytest.raises(ValueError, match="index_topk=0 must be at least 1"):
        Lightning.check(none, make_site("csa", {"topk": 0}), 64)
    assert Lightning.warnings(sparse, make_site("csa"), 64) == []
    assert "as random as it starts" in Lightning.warnings(none, make_site("csa"), 64)[0]
    assert (
        "all visible entries" in Lightning.warnings(Lightning.Config(train="dense"), make_site("csa"), 64)[0]
    )
    told = Lightning.warnings(none, make_site("csa", {"topk": 16}), 64)
    assert told == [
        "index_topk=16 has no effect: 64 tokens have only 16 compressed entries at ratio 4, "
        "and queries attend to all that they may see"
    ]
