"""Position encodings that DeepSeek-V4's is compared with: full rotation, and biases in every place with scores."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from attention_sites import inputs, make_attention, make_part, make_site
from torch import Tensor
from variants import make_variant

from ablate.errors import BadInputError
from ablate.schema import Slot
from components import native
from components.attention.core import Blocks, entry_mass, joint_attention
from components.position.alibi import Alibi
from components.position.full_rope import FullRope
from components.position.rotary import Rotary
from components.slots import Position
from components.spec import NoOptions


def position(name: str, attention: str, **dims: Any) -> Any:
    part = make_part("position", make_site(attention, **dims), name)
    assert isinstance(part, Position)
    return part


@pytest.mark.parametrize("width", [12, 8])
@pytest.mark.parametrize(("attention", "base"), [("sliding_window", 10000.0), ("csa", 160000.0)])
def test_all_channels_turn_in_pairs_at_rates_of_their_own_width(
    attention: str, base: float, width: int
) -> None:
    rope = position("full_rope", attention)
    x = torch.randn(2, 3, 4, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    places = torch.tensor([0, 5, 311])
    turned = rope.rotate(x, places)
    for s, p in enumerate(places.tolist()):
        for i in range(width // 2):
            angle = p * base ** (-2 * i / width)
            a, b = x[:, s, :, 2 * i], x[:, s, :, 2 * i + 1]
            torch.testing.assert_close(turned[:, s, :, 2 * i], a * math.cos(angle) - b * math.sin(angle))
            torch.testing.assert_close(turned[:, s, :, 2 * i + 1], a * math.sin(angle) + b * math.cos(angle))
    torch.testing.assert_close(rope.unrotate(turned, places), x)
    if native.available():
        torch.testing.assert_close(rope.rotate(x.float(), places), turned.float(), atol=1e-4, rtol=0)


def test_full_rotation_of_as_many_channels_as_rope_is_rope() -> None:
    site = make_site("csa", qk_rope_head_dim=12, index_head_dim=12)
    full, rope = (make_attention(site, position=name) for name in ("full_rope", "rope"))
    x = inputs(site, 30)
    assert torch.equal(full(x)[0], rope(x)[0])
    assert "the same as rope" in FullRope.warnings(Rotary.Config(), site, 30)[0]
    assert "the same as rope" in FullRope.warnings(Rotary.Config(), make_site("mla"), 30)[0]
    assert not FullRope.warnings(Rotary.Config(), make_site("csa"), 30)
    with pytest.raises(ValueError, match="index_head_dim=7 must be even"):
        FullRope.check(Rotary.Config(), make_site("csa", index_head_dim=7), 32)


@pytest.mark.parametrize("attention", ["dense", "sliding_window", "csa", "hca"])
@pytest.mark.parametrize("name", ["full_rope", "alibi"])
def test_distances_alone_matter(attention: str, name: str) -> None:
    """A shorter past gives the same to queries that cannot look back further."""
    site = make_site(attention, {"ratio": 4} if attention in ("csa", "hca") else None)
    layer, x = make_attention(site, position=name), inputs(site, 40)
    if attention == "sliding_window":
        torch.testing.assert_close(layer(x)[0][:, 12:], layer(x[:, 8:])[0][:, 4:])
    layer.position = Nothing(layer.position)
    assert (layer(x)[0] - make_attention(site, position="nope")(x)[0]).abs().max() < 1e-12
    assert (layer(x)[0] - make_attention(site, position=name)(x)[0]).abs().max() > 1e-3


class Nothing(torch.nn.Module):
    """No rotation and no bias."""

    bias = None

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        return x

    unrotate = rotate


def mixed_by_hand(
    queries: Tensor, tokens: Tensor, window: int, sink: Tensor, entries: Tensor, seen: Tensor, ratio: int
) -> tuple[Tensor, Tensor]:
    """Outputs [b s h c] and mass of entries [b s t], one score at a time."""
    batch, length, heads, width = queries.shape
    out, mass = torch.zeros_like(queries), torch.zeros(batch, length, entries.shape[1], dtype=queries.dtype)
    for b in range(batch):
        for t in range(length):
            for h in range(heads):
                slope = 2 ** (-8 * (h + 1) / heads)
                found = [(tokens[b, p], p, None) for p in range(length) if t - window < p <= t] + [
                    (entries[b, i], i * ratio, i) for i in range(entries.shape[1]) if seen[b, t, i]
                ]
                scores = [
                    math.exp(float(queries[b, t, h] @ key) / math.sqrt(width) - slope * (t - p))
                    for key, p, _ in found
                ]
                total = sum(scores) + math.exp(float(sink[h]))
                for (key, _, entry), score in zip(found, scores, strict=True):
                    out[b, t, h] += score / total * key
                    if entry is not None:
                        mass[b, t, entry] += score / total
    return out, mass


@pytest.mark.parametrize("blocks", [None, Blocks.whole(22), Blocks(6, 4, 2), Blocks(3, 8, 1)])
def test_biases_fall_with_the_distance_to_tokens_and_to_the_first_token_of_entries(
    blocks: Blocks | None,
) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, tokens, entries = (
        torch.randn(shape, dtype=torch.float64, generator=generator)
        for shape in ((2, 22, 3, 4), (2, 22, 4), (2, 5, 4))
    )
    sink = torch.randn(3, dtype=torch.float64, generator=generator)
    ended = torch.arange(1, 23) // 4
    seen = (torch.arange(5) < ended.unsqueeze(1)) & (torch.rand(2, 22, 5, generator=generator) < 0.7)
    bias = position("alibi", "csa", num_attention_heads=3).bias
    wanted, mass = mixed_by_hand(queries, tokens, 6, sink, entries, seen, 4)
    found = joint_attention(queries, tokens, 6, sink, entries, seen, blocks, bias, 4)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(entry_mass(queries, tokens, 6, sink, entries, seen, bias, 4), mass)
    narrow = (x.float() for x in (queries, tokens, sink, entries))
    q, kv, s, e = narrow
    fused = joint_attention(q, kv, 6, s, e, seen, blocks, bias, 4)
    torch.testing.assert_close(fused, wanted.float(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shared", [1, 2, 4])
def test_heads_that_share_keys_keep_slopes_of_their_own(shared: int) -> None:
    site = make_site("dense", num_key_value_heads=shared)
    layer: Any = make_attention(site, position="alibi", output_projection="dense").requires_grad_(False)
    x, heads, c = inputs(site, 9), 4, 12
    q, k, v = ((x @ w.T).unflatten(-1, (-1, c)) for w in (layer.q, layer.k, layer.v))
    mixed, sink = torch.zeros(2, 9, heads, c, dtype=torch.float64), layer.sink.logits()
    for b in range(2):
        for t in range(9):
            for h in range(heads):
                g = h // (heads // shared)
                scores = [
                    math.exp(float(q[b, t, h] @ k[b, p, g]) / math.sqrt(c) - 2 ** (-2 * (h + 1)) * (t - p))
                    for p in range(t + 1)
                ]
                total = sum(scores) + math.exp(float(sink[h]))
                for p, score in enumerate(scores):
                    mixed[b, t, h] += score / total * v[b, p, g]
    torch.testing.assert_close(layer(x)[0], layer.output_projection(mixed))


@pytest.mark.parametrize("attention", ["dense", "sliding_window", "csa", "hca"])
def test_decoding_has_the_same_biases(attention: str) -> None:
    site = make_site(attention)
    layer, x, cache, found = make_attention(site, position="alibi"), inputs(site, 30), None, []
    for piece in x.split([3, 1, 9, 17], dim=1):
        y, cache = layer.step(piece, cache)
        found.append(y)
    torch.testing.assert_close(torch.cat(found, dim=1), layer(x)[0])


def test_attention_without_biases_is_refused() -> None:
    with pytest.raises(ValueError, match=r"attention moba adds no bias.* csa, dense, hca, sliding_window"):
        Alibi.check(NoOptions(), make_site("moba"), 32)
    variant = make_variant(compress_ratios="swa*4,mla", position=Slot("alibi"))
    with pytest.raises(BadInputError, match="layer 4, position/alibi: attention mla adds no bias"):
        variant.check(32)
    mixed = dataclasses.replace(
        variant, layers=make_variant(compress_ratios="swa*4,gated_deltanet", position=Slot("alibi")).layers
    )
    assert [layer.attention for layer in mixed.layers] == ["sliding_window"] * 4 + ["gated_deltanet"]
