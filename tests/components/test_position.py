import math

import pytest
import torch
from attention_sites import inputs, make_attention, make_part, make_site

from components.position.nope import Nope
from components.position.rotary import Rotary, rates
from components.slots import Position
from components.spec import NoOptions


def _rope(attention: str = "sliding_window", name: str = "rope", **options) -> Position:
    part = make_part("position", make_site(attention), name, **options)
    assert isinstance(part, Position)
    return part


def test_pairs_are_interleaved_and_only_the_last_channels_turn() -> None:
    rope = _rope()
    x = torch.eye(12, dtype=torch.float64).view(12, 1, 12)
    turned = rope.rotate(x, torch.tensor([1])).view(12, 12)
    assert torch.equal(turned[:8], x.view(12, 12)[:8])
    for pair, rate in enumerate((1.0, 10000**-0.5)):
        i = 8 + 2 * pair
        expected = torch.zeros(2, 12, dtype=torch.float64)
        expected[0, i], expected[0, i + 1] = math.cos(rate), math.sin(rate)
        expected[1, i], expected[1, i + 1] = -math.sin(rate), math.cos(rate)
        torch.testing.assert_close(turned[i : i + 2], expected)


@pytest.mark.parametrize("yarn", [1.0, 16.0])
def test_lengths_stay_and_products_depend_on_distance_only(yarn: float) -> None:
    rope = _rope("csa", yarn_factor=yarn)
    q, k = torch.randn(2, 3, 1, 12, dtype=torch.float64).unbind()
    near = rope.rotate(q, torch.tensor([9])) * rope.rotate(k, torch.tensor([2]))
    far = rope.rotate(q, torch.tensor([109])) * rope.rotate(k, torch.tensor([102]))
    torch.testing.assert_close(near.sum(-1), far.sum(-1))
    torch.testing.assert_close(rope.rotate(q, torch.tensor([9])).norm(dim=-1), q.norm(dim=-1))


def test_unrotate_is_the_inverse_and_is_missing_in_rope_no_inverse() -> None:
    x, positions = torch.randn(2, 5, 4, 12, dtype=torch.float64), torch.arange(5) + 30
    rope = _rope()
    torch.testing.assert_close(rope.unrotate(rope.rotate(x, positions), positions), x)
    assert torch.equal(_rope(name="rope_no_inverse").rotate(x, positions), rope.rotate(x, positions))
    assert torch.equal(_rope(name="rope_no_inverse").unrotate(x, positions), x)
    assert torch.equal(_rope(name="nope").rotate(x, positions), x)


def test_each_kind_of_layer_has_one_base_and_only_compressing_ones_have_yarn() -> None:
    # So short a context that YaRN would slow down a pair of either base.
    plain, yarn = Rotary.Config(), Rotary.Config(yarn_factor=16.0, yarn_original=64)
    window, csa = make_site("sliding_window"), make_site("csa")
    assert rates(plain, window) == rates(yarn, window) == [1.0, 10000**-0.5]
    assert rates(plain, csa) == [1.0, 160000**-0.5]
    assert rates(yarn, csa) != rates(plain, csa)


def test_yarn_of_the_official_sizes_goes_over_between_pairs_15_and_25() -> None:
    site = make_site("csa", head_dim=512, qk_rope_head_dim=64)
    slowed = rates(Rotary.Config(yarn_factor=16.0), site)
    plain = rates(Rotary.Config(), site)
    ratios = [b / a for a, b in zip(slowed, plain, strict=True)]
    assert ratios[:16] == pytest.approx([1.0] * 16)
    assert ratios[25:] == pytest.approx([16.0] * 7)
    assert 1 < ratios[16] < ratios[20] < ratios[24] < 16
    assert slowed[20] == pytest.approx(plain[20] * (0.5 / 16 + 0.5))


def test_half_precision_of_the_model_does_not_reach_the_angles() -> None:
    rope = _rope().to(torch.bfloat16)
    x, position = torch.randn(1, 1, 12, dtype=torch.float64), torch.tensor([501])
    angles = 501 * torch.tensor([1.0, 0.01], dtype=torch.float64)
    turned = torch.view_as_complex(x[..., 8:].unflatten(-1, (2, 2))) * torch.exp(1j * angles)
    exact = torch.cat([x[..., :8], torch.view_as_real(turned).flatten(-2)], dim=-1)
    for dtype, error in ((torch.float64, 1e-12), (torch.float32, 1e-4), (torch.bfloat16, 2e-2)):
        found = rope.rotate(x.to(dtype), position)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), exact, atol=error, rtol=error)


class _Shifted(Nope):
    def __init__(self, rope: Position, by: int) -> None:
        super().__init__(NoOptions(), make_site("csa"))
        self.rope, self.by = rope, by

    def rotate(self, x, positions):
        return self.rope.rotate(x, positions + self.by)

    def unrotate(self, x, positions):
        return self.rope.unrotate(x, positions + self.by)


@pytest.mark.parametrize(("name", "relative"), [("rope", True), ("rope_no_inverse", False), ("nope", True)])
@pytest.mark.parametrize("attention", ["sliding_window", "csa", "hca"])
def test_with_the_inverse_only_distances_matter(attention: str, name: str, relative: bool) -> None:
    site = make_site(attention)
    layer, x = make_attention(site, position=name), inputs(site, 30)
    before = layer(x)[0]
    layer.position = _Shifted(layer.position, 37)
    assert torch.allclose(layer(x)[0], before, atol=1e-9) is relative


def test_impossible_sizes_and_options_are_named() -> None:
    with pytest.raises(ValueError, match="qk_rope_head_dim=14 must be even and at most head_dim=12"):
        Rotary.check(Rotary.Config(), make_site("csa", qk_rope_head_dim=14), 32)
    with pytest.raises(ValueError, match="qk_rope_head_dim=3"):
        Rotary.check(Rotary.Config(), make_site("csa", qk_rope_head_dim=3), 32)
    with pytest.raises(ValueError, match=r"yarn_factor=0\.5 must be at least 1"):
        Rotary.Config(yarn_factor=0.5)
    with pytest.raises(ValueError, match="rope_theta=-3"):
        Rotary.Config(rope_theta=-3.0)
    assert "nope" in Rotary.warnings(Rotary.Config(), make_site("csa", qk_rope_head_dim=0), 32)[0]
