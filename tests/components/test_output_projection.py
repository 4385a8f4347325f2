import pytest
import torch
from attention_sites import make_part, make_site, randomise

from components.output_projection.grouped import Grouped
from components.slots import OutputProjection
from components.spec import NoOptions


@pytest.mark.parametrize("name", ["grouped", "dense"])
def test_every_head_reaches_the_output(name: str) -> None:
    site = make_site("sliding_window")
    layer = make_part("output_projection", site, name).double()
    randomise(layer)
    assert isinstance(layer, OutputProjection)
    heads = torch.randn(2, 5, 4, 12, dtype=torch.float64, requires_grad=True)
    y = layer(heads)
    assert y.shape == (2, 5, 24)
    y.sum().backward()
    assert heads.grad is not None
    assert heads.grad.all()


def test_groups_are_consecutive_heads() -> None:
    site = make_site("sliding_window")
    layer = Grouped(NoOptions(), site).double()
    randomise(layer)
    heads = torch.randn(2, 5, 4, 12, dtype=torch.float64)
    first = heads[:, :, :2].flatten(2) @ layer.a[:7].T
    second = heads[:, :, 2:].flatten(2) @ layer.a[7:].T
    torch.testing.assert_close(layer(heads), torch.cat((first, second), -1) @ layer.b.T)
    with torch.no_grad():
        layer.a[:7] = 0
    changed = heads.clone()
    changed[:, :, :2] += 1
    assert torch.equal(layer(changed), layer(heads))
    changed[:, :, 2:] += 1
    assert not torch.equal(layer(changed), layer(heads))


def test_groups_must_divide_heads_and_ranks_above_full_are_told() -> None:
    with pytest.raises(ValueError, match=r"o_groups=3 .* num_attention_heads=4\. Allowed: 1, 2, 4"):
        Grouped.check(NoOptions(), make_site("csa", o_groups=3), 32)
    with pytest.raises(ValueError, match="o_lora_rank=0 must be at least 1"):
        Grouped.check(NoOptions(), make_site("csa", o_lora_rank=0), 32)
    assert Grouped.warnings(NoOptions(), make_site("csa"), 32) == []
    assert "24 channels" in Grouped.warnings(NoOptions(), make_site("csa", o_lora_rank=25), 32)[0]
