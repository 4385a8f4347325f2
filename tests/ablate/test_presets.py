"""The ladder of presets: every rung plans, is what it says it is, and keeps the architecture's proportions."""

import functools
import itertools
import re

import pytest

from ablate import config
from ablate.home import Home
from ablate.model import build_model
from ablate.planning import make_plan
from ablate.variant import Variant

LADDER = ("micro", "tiny", "small", "base", "v4_mini_3b")
GPU = ["trainer=gpu", "trainer.device=cpu"]


@functools.cache
def _variant(name: str) -> Variant:
    return Variant.from_run(config.load([f"model={name}", *GPU], require_sweep=False), 2048)


@pytest.mark.parametrize("name", LADDER)
def test_every_rung_has_the_whole_architecture_in_its_proportions(name: str) -> None:
    variant, dims = _variant(name), _variant(name).dims
    assert {layer.attention for layer in variant.layers} == {"sliding_window", "csa", "hca"}
    assert {layer.router for layer in variant.layers} == {"hash", "learned"}
    assert variant.layers[0].attention == "sliding_window"
    assert all(layer.ratio == 4 and layer.overlap for layer in variant.layers if layer.attention == "csa")
    assert dims.num_attention_heads * dims.head_dim == dims.hidden_size
    assert dims.qk_rope_head_dim * 2 == dims.head_dim
    assert dims.num_attention_heads % dims.o_groups == 0
    assert dims.n_shared_experts == 1
    assert dims.num_experts_per_tok < dims.n_routed_experts


@pytest.mark.parametrize("name", ["small", "base"])
def test_the_upper_rungs_are_the_mini_model_scaled(name: str) -> None:
    small, mini = _variant(name), _variant("v4_mini_3b")
    scale = mini.dims.hidden_size // small.dims.hidden_size
    for size in ("q_lora_rank", "o_lora_rank", "moe_intermediate_size"):
        assert getattr(small.dims, size) * scale == getattr(mini.dims, size), size
    assert small.layers[2].topk * scale == mini.layers[2].topk
    for size in ("n_routed_experts", "num_experts_per_tok", "sliding_window", "o_groups"):
        assert getattr(small.dims, size) == getattr(mini.dims, size), size
    assert small.dims.index_head_dim * 2 == small.dims.head_dim * 3
    assert small.dims.index_n_heads * 3 == small.dims.num_attention_heads * 2
    repeats = re.compile(r"\)\*\d+")
    assert repeats.sub("", small.schedule) == repeats.sub("", mini.schedule)
    assert len(small.prediction_layers) == len(mini.prediction_layers)


def test_every_rung_is_several_times_the_one_below() -> None:
    active = [_variant(name).costs(1024).total.active_params for name in LADDER]
    for below, above in itertools.pairwise(active):
        assert 4 < above / below < 11


@pytest.mark.parametrize(("name", "total", "active"), [("small", 80e6, 23e6), ("base", 0.5e9, 0.14e9)])
def test_headers_say_the_sizes_that_are_built(name: str, total: float, active: float) -> None:
    model = build_model(name, device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(total, rel=0.05)
    assert model.variant.costs(1024).total.active_params == pytest.approx(active, rel=0.05)
    assert "As in v4_mini_3b:" in _text(name)
    assert "Different:" in _text(name)


def _text(name: str) -> str:
    path = config.file_of("model", name)
    assert path is not None
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["small", "base"])
def test_the_upper_rungs_plan(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    files = tmp_path_factory.getbasetemp() / "presets.txt"
    files.write_text("A line of text.\n" * 50)
    run = config.load(
        [
            "sweep=residual",
            f"model={name}",
            *GPU,
            "budget.per_trial=1e17",
            "data=text",
            f"data.files=[{files}]",
            "data.vocab_size=300",
        ]
    )
    plan = make_plan(run, Home(tmp_path_factory.getbasetemp() / "no-home"))
    assert {arm.name for arm in plan.arms} == {"prenorm", "hyper_connections", "mhc"}
    assert all(arm.steps > 0 for arm in plan.arms)
