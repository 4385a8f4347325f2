"""Indexers that know nothing or everything: random and oracle."""

import math

import pytest
import torch
from attention_sites import inputs, make_attention, make_part, make_site, total_cost
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from components import native
from components.cache import CannotDecodeError
from components.indexer.oracle import Oracle
from components.indexer.random import Random, scramble
from components.slots import Indexer, Position
from components.spec import NoOptions, Site
from components.watching import watching


def _visible(length: int, ratio: int = 4) -> Tensor:
    return torch.arange(1, length + 1) // ratio


def _random(site: Site, length: int, **options: int) -> Tensor:
    indexer, rope = make_part("indexer", site, "random", **options), make_part("position", site)
    assert isinstance(indexer, Indexer)
    assert isinstance(rope, Position)

    def mass(seen: Tensor) -> Tensor:
        raise AssertionError("a random choice in training has no use for attention")

    x = inputs(site, length)
    return indexer(x, x[..., :10], _visible(length), rope, mass)[0]


def test_random_choices_are_visible_enough_and_even() -> None:
    site = make_site("csa")
    chosen = _random(site, 4003)[0]
    count = _visible(4003)
    assert torch.equal(chosen.sum(-1), count.clamp(max=3))
    assert not (chosen & (torch.arange(1000) >= count.unsqueeze(1))).any()
    # Of 3 among n entries each has 3/n: in the last quarter of queries, thirds of what they see get a third.
    late = chosen[3000:3200, :750]
    shares = late.unflatten(1, (3, 250)).sum((0, 2)) / late.sum()
    assert (shares - 1 / 3).abs().max() < 4 * math.sqrt(2 / 9 / 600)
    assert late.sum(0).max() <= 8
    neighbours = (chosen[3000:3999] & chosen[3001:4000]).sum() / (999 * 3)
    assert neighbours < 0.02


def test_random_choices_are_a_function_of_seed_layer_and_place() -> None:
    site = make_site("csa")
    chosen = _random(site, 201)
    assert torch.equal(chosen, _random(site, 201))
    assert torch.equal(chosen[0], chosen[1])
    assert torch.equal(chosen[:, :120, :30], _random(site, 121)[:, :120, :30])
    other = Site(dims=site.dims, layer=type(site.layer)(index=1, attention="csa", ratio=4, topk=3))
    for different in (_random(site, 201, seed=1), _random(other, 201)):
        assert (chosen & different).sum() < 0.5 * chosen.sum()


def test_scrambled_numbers_are_permuted_and_spread() -> None:
    numbers = scramble(torch.arange(1 << 16))
    assert numbers.unique().numel() == 1 << 16
    assert (numbers >= 0).all()
    assert (numbers < 1 << 32).all()
    for bit in range(32):
        assert abs((numbers >> bit & 1).double().mean().item() - 0.5) < 0.01


def test_random_steps_continue_the_sequence() -> None:
    site = make_site("csa")
    attention, x = make_attention(site, indexer="random"), inputs(site, 45)
    with torch.no_grad():
        whole = attention(x)[0]
        cache, outputs, at = None, [], 0
        for size in (1, 3, 20, 1, 1, 19):
            y, cache = attention.step(x[:, at : at + size], cache)
            outputs.append(y)
            at += size
    torch.testing.assert_close(torch.cat(outputs, dim=1), whole)


def _mass(layer, x: Tensor) -> Tensor:
    """Attention of one sequence to every entry, summed over heads, by one query and key at a time."""
    positions = torch.arange(len(x))
    latent = layer.q_a_norm * _normed(x @ layer.q_a.T)
    queries = layer.position.rotate(_normed((latent @ layer.q_b.T).unflatten(-1, (4, 12)))[None], positions)[
        0
    ]
    kv = layer.position.rotate((layer.kv_norm * _normed(x @ layer.kv.T))[None], positions)[0]
    entries = layer.compressor(x[None], layer.position)[0]
    mass = torch.zeros(len(x), len(entries), dtype=x.dtype)
    for t in range(len(x)):
        visible = entries[: (t + 1) // 4]
        for h in range(4):
            window = torch.exp(kv[max(0, t - 4) : t + 1] @ queries[t, h] / math.sqrt(12)).sum()
            given = torch.exp(visible @ queries[t, h] / math.sqrt(12))
            mass[t, : len(visible)] += given / (given.sum() + window + layer.sink.sinks[h].exp())
    return mass


def _normed(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def test_the_oracle_chooses_what_attention_gives_most_to() -> None:
    site = make_site("csa")
    layer, x = make_attention(site, indexer="oracle"), inputs(site, 41)
    dense = make_attention(site, indexer="dense")
    dense.load_state_dict(layer.state_dict())
    found: list[Tensor] = []
    layer.indexer.register_forward_hook(lambda module, args, output: found.append(output[0]))  # type: ignore[union-attr]
    with torch.no_grad():
        layer(x)
        mass = _mass(dense, x[1])
    for t in range(41):
        best = sorted(range((t + 1) // 4), key=lambda i: -float(mass[t, i]))[:3]
        assert found[0][1, t].nonzero().flatten().tolist() == sorted(best)


def test_no_choice_keeps_more_attention_than_the_oracle() -> None:
    site = make_site("csa")
    recalls = {}
    for name in ("oracle", "lightning", "random"):
        layer = make_attention(site, indexer=name).eval()
        shared = make_attention(site, indexer="random").state_dict()
        layer.load_state_dict(shared, strict=False)
        with watching(layer):
            found = layer(inputs(site, 101))[1]
        recalls[name] = found["diag/indexer_mass_recall"].item()
        assert (found["diag/indexer_skill"].item() == 1) == (name == "oracle")
    assert recalls["oracle"] > max(recalls["lightning"], recalls["random"]) + 0.05
    assert recalls["oracle"] <= 1


def test_the_oracle_has_no_way_to_decode() -> None:
    site = make_site("csa")
    with pytest.raises(CannotDecodeError, match="indexer=oracle"):
        make_attention(site, indexer="oracle").step(inputs(site, 5))


@pytest.mark.parametrize("topk", [3, 50])
@pytest.mark.parametrize("name", ["random", "oracle"])
def test_parameters_and_kernel_work_are_exact(name: str, topk: int) -> None:
    for length in (3, 8, 33, 100):
        site = make_site("csa", {"topk": topk})
        layer, cost = make_attention(site, indexer=name), total_cost(site, length, indexer=name)
        assert cost.params == sum(p.numel() for p in layer.parameters())
        with native.switched_off(), FlopCounterMode(display=False) as counter, torch.no_grad():
            layer(inputs(site, length, batch=3))
        assert counter.get_total_flops() == 3 * cost.kernel_flops


def test_random_is_free_and_an_oracle_costs_the_scores_of_everything() -> None:
    site, pairs = make_site("csa"), sum(min(5, t + 1) + (t + 1) // 4 for t in range(100))
    free, all_scores = (total_cost(site, 100, indexer=name) for name in ("random", "oracle"))
    assert free.frozen_flops == 0
    assert all_scores.frozen_flops == 2 * 4 * 12 * pairs
    assert all_scores.flops == free.flops


def test_no_output_depends_on_later_tokens_and_no_gradient_passes() -> None:
    for name in ("random", "oracle"):
        site = make_site("csa")
        layer, x = make_attention(site, indexer=name), inputs(site, 38)
        with torch.no_grad():
            before = layer(x)[0]
            for t in range(0, 38, 3):
                changed = x.clone()
                changed[:, t:] += 3.0
                assert torch.equal(layer(changed)[0][:, :t], before[:, :t])
        assert not list(layer.indexer.parameters())  # type: ignore[union-attr]


def test_an_idle_choice_is_told_and_an_empty_one_refused() -> None:
    for cls, config in ((Random, Random.Config()), (Oracle, NoOptions())):
        with pytest.raises(ValueError, match="index_topk=0 must be at least 1"):
            cls.check(config, make_site("csa", {"topk": 0}), 64)
        assert cls.warnings(config, make_site("csa"), 64) == []
        assert "index_topk=16 has no effect" in cls.warnings(config, make_site("csa", {"topk": 16}), 64)[0]
