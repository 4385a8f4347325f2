"""A sliced model: what is cut agrees wherever it meets, nothing is lost that does nothing, and every change is told."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_init import tokenizer as tokenizer
from torch import Tensor
from typer.testing import CliRunner
from variants import make_variant

from ablate.activity import activity
from ablate.axes import Axes
from ablate.cli import app
from ablate.errors import BadInputError
from ablate.interop.folders import Folder, load_model, whole
from ablate.interop.layout import Place, places
from ablate.model import LanguageModel, build_model
from ablate.slicing import POLICIES, Sliced

SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "compress_ratios": "swa,csa@4,hca@8",
    "num_attention_heads": 2,
    "head_dim": 8,
    "qk_rope_head_dim": 4,
    "q_lora_rank": 12,
    "o_lora_rank": 6,
    "index_n_heads": 1,
    "index_head_dim": 8,
    "moe_intermediate_size": 10,
    "n_routed_experts": 3,
    "num_experts_per_tok": 1,
    "num_nextn_predict_layers": 1,
}


class InMemory:
    """A model's weights in pieces."""

    def __init__(self, model: LanguageModel) -> None:
        self.variant, self.tensors = model.variant, model.state_dict()

    def piece(self, place: Place, index: int) -> Tensor:
        return self.tensors[place.ours].view(len(place.official), *place.piece_shape)[index]


def source(**changes: Any) -> LanguageModel:
    """A model with every tensor random, and two prediction layers."""
    model = build_model(make_variant(num_nextn_predict_layers=2, **changes)).double()
    generator = torch.Generator().manual_seed(1)
    for tensor in model.parameters():
        tensor.data.add_(0.3 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
    return model


def built(sliced: Sliced) -> LanguageModel:
    model = LanguageModel(sliced.variant).double()
    model.load_state_dict({place.ours: whole(sliced, place) for place in places(sliced.variant)})
    return model


def ids(length: int = 40) -> Tensor:
    return torch.randint(31, (2, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("policy", POLICIES)
def test_a_slice_of_the_same_size_is_the_model(policy: str) -> None:
    model = source()
    sliced = Sliced(InMemory(model), model.variant, policy)
    for name, tensor in built(sliced).state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    assert not sliced.report.fresh
    assert all(new == old for new, old in sliced.report.layers.items())


@pytest.mark.parametrize("policy", POLICIES)
def test_a_smaller_model_runs_and_every_tensor_is_a_part_of_the_source(policy: str) -> None:
    """Every row of every matrix is a part of one row of the source's, with its order kept."""
    model = source()
    sliced = Sliced(InMemory(model), make_variant(**SMALL), policy)
    small = built(sliced)
    out = small(ids(), ids())
    assert out.loss.isfinite()
    assert set(sliced.report.fresh) == {"a table of the source names experts by old numbers"}
    assert list(sliced.report.layers.items()) == [
        ("layers.0", "layers.0"),
        ("layers.1", "layers.1"),
        ("layers.2", "layers.2"),
        ("mtp.0", "mtp.0"),
    ]
    anew = {name for names in sliced.report.fresh.values() for name in names}
    for name, tensor in small.state_dict().items():
        if name not in anew:
            assert set(tensor.flatten().tolist()) <= set(model.state_dict()[name].flatten().tolist()), name


@pytest.mark.parametrize("policy", POLICIES)
def test_tensors_that_meet_are_cut_at_the_same_places(policy: str) -> None:
    """With every index written into the weights, what is left says which were kept: the same everywhere."""
    model = source()
    sizes = Axes.of(model.variant)
    for place in places(model.variant):
        tensor = model.state_dict()[place.ours]
        if place.ours.endswith("tid2eid"):
            continue
        for index in range(len(place.official)):
            names = sizes.names(place, index)
            part = tensor.view(len(place.official), *place.piece_shape)[index]
            shape = sizes.shape(names, tuple(part.shape))
            code = torch.zeros(shape, dtype=torch.float64)
            for axis, size in enumerate(shape):
                at = torch.arange(size, dtype=torch.float64).view(
                    [-1 if i == axis else 1 for i in range(len(shape))]
                )
                code = code + (1 + at) * 100.0**axis
            part.copy_(code.reshape(part.shape))
    sliced = Sliced(InMemory(model), make_variant(**SMALL), policy)
    new = Axes.of(sliced.variant)
    seen: dict[tuple[str, str], set[tuple[int, ...]]] = {}
    anew = {name for names in sliced.report.fresh.values() for name in names}
    for place in places(sliced.variant):
        if place.ours in anew:
            continue
        for index in range(len(place.official)):
            names = new.names(place, index)
            part = sliced.piece(place, index)
            part = part.reshape(new.shape(names, tuple(part.shape)))
            for axis, name in enumerate(names):
                if name == "*":
                    continue
                at = part // 100.0**axis % 100 - 1
                lines = at.movedim(axis, 0).reshape(part.shape[axis], -1)
                assert (lines == lines[:, :1]).all(), (place.ours, name)
                layer = "" if name == "hidden" else ".".join(place.ours.split(".")[:2])
                seen.setdefault((layer, name), set()).add(tuple(int(x) for x in lines[:, 0]))
    for key, kept in seen.items():
        assert len(kept) == 1, key
        assert list(next(iter(kept))) == sorted(set(next(iter(kept)))), key


def test_what_does_nothing_can_go_without_a_change() -> None:
    """Larger than it need be, by inner channels, heads, ranks and experts that add nothing, among the others."""
    least = {"n_routed_experts": 3, "moe_intermediate_size": 9, "num_attention_heads": 4, "o_lora_rank": 7}
    small = source(**least)
    large = LanguageModel(make_variant(num_nextn_predict_layers=2)).double()
    generator, old, new = torch.Generator().manual_seed(2), Axes.of(large.variant), Axes.of(small.variant)
    where = {
        name: torch.randperm(old.sizes[name], generator=generator)[: new.sizes[name]].sort().values
        for name in ("experts", "width", "heads", "ranks")
    }
    inside = {place.ours: place for place in places(small.variant)}
    for place in places(large.variant):
        target, tensor = inside[place.ours], large.state_dict()[place.ours]
        from_ = InMemory(small)
        if place.ours.endswith("tid2eid"):
            tensor.copy_(where["experts"][from_.tensors[place.ours]])
            continue
        tensor.fill_(-1e9) if place.ours.endswith("correction_bias") else tensor.zero_()
        pieces = tensor.view(len(place.official), *place.piece_shape)
        halves = len(place.official) // old.sizes["experts"]
        for index in range(len(target.official)):
            at = int(where["experts"][index // halves]) * halves + index % halves if halves else index
            names = old.names(place, at)
            shape = old.shape(names, place.piece_shape)
            known = [
                where.get(name.partition("/")[0], torch.arange(size))
                for name, size in zip(names, shape, strict=True)
            ]
            pieces[at].view(shape)[torch.meshgrid(*known, indexing="ij")] = from_.piece(target, index).view(
                [len(rows) for rows in known]
            )
    with torch.no_grad():
        wanted = small(ids()).logits
        assert (large(ids()).logits - wanted).abs().max() < 1e-9 * wanted.abs().max()
        again = built(Sliced(InMemory(large), small.variant, "magnitude"))
        for name, tensor in again.state_dict().items():
            if not name.endswith("tid2eid"):
                assert torch.equal(tensor, small.state_dict()[name]), name


def test_activation_keeps_the_experts_that_are_used_and_the_channels_that_are_read() -> None:
    """However large the weights of the others are."""
    model = source(num_hash_layers=0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("correction_bias"):
                tensor.copy_(torch.tensor([-9.0, 9.0, -9.0, 9.0]))
            elif name.endswith(("attention_norm.weight", "ffn_norm.weight")):
                tensor[::2] = 0.0
            elif name.endswith(("ffn.gate_up", "ffn.down")):
                tensor[::2] *= 100
    measured = activity(model, ids(30))
    assert measured["layers.4", "experts"].tolist() == [
        0,
        58,
        0,
        58,
    ]  # two rows of 29 tokens, all to two experts
    changes = {"hidden_size": 16, "n_routed_experts": 2, "num_hash_layers": 0, "num_nextn_predict_layers": 2}
    small = built(
        Sliced(InMemory(model), make_variant(**changes), "activation", measured=measured)
    ).state_dict()
    assert torch.equal(small["embedding"], model.embedding[:, 1::2])
    assert torch.equal(
        small["layers.4.ffn.router.weight"], model.state_dict()["layers.4.ffn.router.weight"][1::2, 1::2]
    )
    assert torch.equal(small["mtp.1.block.ffn.down"], model.state_dict()["mtp.1.block.ffn.down"][1::2, 1::2])
    by_size = built(Sliced(InMemory(model), make_variant(**changes), "magnitude")).state_dict()
    assert torch.equal(
        by_size["layers.4.ffn.router.e_score_correction_bias"], torch.full((2,), -9.0, dtype=torch.float64)
    )


def test_rotary_pairs_keep_their_frequencies() -> None:
    model = source(head_dim=24, qk_rope_head_dim=16)
    small = make_variant(head_dim=12, qk_rope_head_dim=8, num_nextn_predict_layers=2)
    channels = Sliced(InMemory(model), small, "even")._kept["layers.1", "channels"]
    turning = (channels[channels >= 8] - 8).view(-1, 2)
    assert (turning[:, 1] == turning[:, 0] + 1).all()

    def rates_of(model: LanguageModel) -> list[float]:
        position: Any = model.get_submodule("layers.1.attention.position")
        return position.rates

    old, new = rates_of(model), rates_of(LanguageModel(small))
    assert new == [old[pair] for pair in (turning[:, 0] // 2).tolist()]


def test_what_starts_anew_is_told_with_its_reason() -> None:
    model = source()
    other = make_variant(**{**SMALL, "compress_ratios": "csa@4,hca@6,swa", "num_hash_layers": 2})
    report = Sliced(InMemory(model), other, "even").report
    assert report.layers == {
        "layers.0": "layers.1",
        "layers.1": "layers.2",
        "layers.2": "layers.0",
        "mtp.0": "mtp.0",
    }
    told = {name: reason for reason, names in report.fresh.items() for name in names}
    assert told.pop("layers.1.attention.compressor.ape") == "biases of 8 positions in a block are none of 6"
    assert set(told.values()) == {"no layer of the source has it"}
    assert set(told) == {
        "layers.0.ffn.router.tid2eid",
        "layers.1.ffn.router.tid2eid",
        "layers.2.ffn.router.e_score_correction_bias",
    }


@pytest.mark.parametrize(
    ("changes", "policy", "said"),
    [
        ({"hidden_size": 48}, "even", r"hidden=48.*1 to 32"),
        ({"vocab_size": 30}, "even", r"vocab=30.*31, as in"),
        ({"head_dim": 16, "qk_rope_head_dim": 10}, "even", r"qk_rope_head_dim=10.*0 to 8"),
        ({}, "evne", r"no policy named 'evne'.*'even'"),
    ],
)
def test_what_cannot_be_cut_is_named(changes: dict[str, Any], policy: str, said: str) -> None:
    with pytest.raises(BadInputError, match=said):
        Sliced(InMemory(source()), make_variant(**changes), policy)


def test_the_command_slices_and_measures_on_a_text(tokenizer: Path, tmp_path: Path) -> None:
    large, small, text = tmp_path / "large", tmp_path / "small", tmp_path / "text"
    text.write_text("a fox and another fox. " * 20)

    def ablate(*args: str | Path) -> str:
        done = CliRunner().invoke(app, [str(arg) for arg in args], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    ablate("init", "model=micro", "--tokenizer", tokenizer, "--out", large)
    half = ["--to", "model=micro", "--to", "model.hidden_size=32", "--to", "model.moe_intermediate_size=32"]
    told = ablate("slice", "--from", large, *half, "--text", text, "--format", "hf", "--out", small)
    assert "hidden" in told
    assert "32 of 64" in told
    report = json.loads((small / "slice.json").read_text())
    assert report["loss"]["before"] > 0
    assert f"{report['loss']['after']:.4f} after" in told
    with pytest.raises(BadInputError, match="o_groups=2 does not divide num_attention_heads=3"):
        ablate(
            "slice",
            "--from",
            large,
            *half,
            "--to",
            "model.num_attention_heads=3",
            "--out",
            tmp_path / "other",
        )
    with pytest.raises(BadInputError, match="needs a text"):
        ablate("slice", "--from", large, *half, "--policy", "activation", "--out", tmp_path / "other")
    ablate(
        "slice", "--from", large, *half, "--policy", "activation", "--text", text, "--out", tmp_path / "other"
    )
    assert (
        json.loads((tmp_path / "other" / "slice.json").read_text())["loss"]["before"]
        == report["loss"]["before"]
    )
    # More window layers than there are: they start from the same one.
    windows = ["--to", "model=micro", "--to", "model.compress_ratios=swa*3,csa@4"]
    ablate("slice", "--from", large, *windows, "--out", tmp_path / "windows")
    layers = load_model(Folder(tmp_path / "windows")).state_dict()
    assert torch.equal(layers["layers.0.attention.q_a_norm"], layers["layers.2.attention.q_a_norm"])
    assert torch.equal(layers["layers.0.ffn.down"], layers["layers.2.ffn.down"])
    assert ablate("generate", small, "--prompt", "a fox", "--tokens", "3").startswith("a fox")
