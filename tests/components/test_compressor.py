import pytest
import torch
from attention_sites import inputs, make_part, make_site, randomise
from torch import Tensor

from components.compressor.gated import Gated
from components.compressor.strided_conv import StridedConv
from components.position.nope import Nope
from components.slots import Compressor, Position
from components.spec import NoOptions, Site

NOPE = Nope(NoOptions(), make_site("csa"))


def _compressor(site: Site, name: str = "gated") -> Compressor:
    part = make_part("compressor", site, name).double()
    randomise(part)
    assert isinstance(part, Compressor)
    return part


def _pooled(layer: Gated, x: Tensor, site: Site) -> list[Tensor]:
    """Entries of one sequence [s, d] before rotation, channel by channel."""
    m, c = site.layer.ratio, site.dims.head_dim
    values, gates = x @ layer.kv.T, x @ layer.gate.T
    entries = []
    for i in range(len(x) // m):
        entry = torch.zeros(c, dtype=x.dtype)
        for channel in range(c):
            weighted = total = 0.0
            for t in range((i - 1) * m if site.layer.overlap else i * m, (i + 1) * m):
                if t < 0:
                    continue
                column = channel + (c if site.layer.overlap and t >= i * m else 0)
                weight = torch.exp(gates[t, column] + layer.ape[t % m, column])
                weighted, total = weighted + weight * values[t, column], total + weight
            entry[channel] = weighted / total
        rms = torch.sqrt((entry**2).mean() + site.dims.rms_norm_eps)
        entries.append(layer.norm * entry / rms)
    return entries


@pytest.mark.parametrize("attention", ["csa", "hca"])
def test_entries_follow_the_equations(attention: str) -> None:
    site = make_site(attention)
    layer, x = _compressor(site), inputs(site, 30, batch=1)
    assert isinstance(layer, Gated)
    torch.testing.assert_close(layer(x, NOPE)[0], torch.stack(_pooled(layer, x[0], site)))


@pytest.mark.parametrize("attention", ["csa", "hca"])
def test_entries_turn_by_the_first_position_of_their_own_block(attention: str) -> None:
    site = make_site(attention)
    rope = make_part("position", site)
    assert isinstance(rope, Position)
    layer, x = _compressor(site), inputs(site, 30)
    plain = layer(x, NOPE)
    for i in range(plain.shape[1]):
        expected = rope.rotate(plain[:, i : i + 1], torch.tensor([i * site.layer.ratio]))
        torch.testing.assert_close(layer(x, rope)[:, i : i + 1], expected)


def test_second_half_of_the_channels_goes_to_the_tokens_own_block() -> None:
    site = make_site("csa")
    layer, x = _compressor(site), inputs(site, 12)
    assert isinstance(layer, Gated)
    with torch.no_grad():
        layer.kv[12:] = 0
    entries = layer(x, NOPE)
    assert not entries[:, 0].any()
    assert entries[:, 1].all()


@pytest.mark.parametrize("name", ["gated", "mean_pool", "strided_conv"])
@pytest.mark.parametrize(("attention", "length", "count"), [("csa", 31, 7), ("hca", 34, 4), ("hca", 6, 0)])
def test_only_complete_blocks_have_entries(name: str, attention: str, length: int, count: int) -> None:
    site = make_site(attention)
    layer, x = _compressor(site, name), inputs(site, length)
    entries = layer(x, NOPE)
    assert entries.shape == (2, count, 12)
    assert torch.equal(entries, layer(x[:, : count * site.layer.ratio], NOPE))


@pytest.mark.parametrize("attention", ["csa", "hca"])
def test_the_mean_is_gating_with_equal_gates(attention: str) -> None:
    site = make_site(attention)
    gated, mean, x = _compressor(site), _compressor(site, "mean_pool"), inputs(site, 30)
    with torch.no_grad():
        gated.gate.zero_(), gated.ape.zero_()
    mean.load_state_dict({name: gated.state_dict()[name] for name in ("kv", "norm")})
    torch.testing.assert_close(mean(x, NOPE), gated(x, NOPE))


@pytest.mark.parametrize("attention", ["csa", "hca"])
def test_a_strided_convolution_weighs_channels_by_their_place_in_the_block(attention: str) -> None:
    site = make_site(attention)
    layer, x = _compressor(site, "strided_conv"), inputs(site, 30, batch=1)
    assert isinstance(layer, StridedConv)
    m, c, overlap = site.layer.ratio, site.dims.head_dim, site.layer.overlap
    values, found = x[0] @ layer.kv.T, layer(x, NOPE)[0]
    for i in range(30 // m):
        entry = torch.zeros(c, dtype=x.dtype)
        for t in range(max(0, (i - overlap) * m), (i + 1) * m):
            own = c if overlap and t >= i * m else 0
            for channel in range(c):
                entry[channel] += layer.kernel[t % m, own + channel] * values[t, own + channel]
        rms = torch.sqrt((entry**2).mean() + site.dims.rms_norm_eps)
        torch.testing.assert_close(found[i], layer.norm * entry / rms)


@pytest.mark.parametrize("attention", ["csa", "hca"])
def test_a_strided_convolution_starts_as_the_mean(attention: str) -> None:
    site = make_site(attention)
    mean, conv = (make_part("compressor", site, name).double() for name in ("mean_pool", "strided_conv"))
    with torch.no_grad():  # large enough for the epsilon of the norm not to matter
        conv.kv.copy_(500 * mean.kv)  # type: ignore[operator]
        mean.kv.mul_(500)  # type: ignore[operator]
    x = inputs(site, 30)
    torch.testing.assert_close(conv(x, NOPE), mean(x, NOPE), atol=1e-6, rtol=1e-6)


def test_cost_of_a_narrower_compressor_is_that_of_its_parameters() -> None:
    site = make_site("csa")
    layer = Gated(NoOptions(), site, width=8)
    assert Gated.cost(NoOptions(), site, 32, 8).params == sum(p.numel() for p in layer.parameters())
    assert layer.ape.shape == (4, 16)
    assert layer.kv.shape == layer.gate.shape == (16, 24)
