"""Checkpoints in DeepSeek-V4's own formats come in exactly, and go out again, checked by name before they are read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import official_checkpoint as official
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner
from variants import make_variant

from ablate.cli import app
from ablate.errors import BadInputError
from ablate.export import export
from ablate.home import Home
from ablate.interop import hf
from ablate.interop.folders import Folder, load_model
from ablate.interop.quantised import dequantised, to_fp4, to_fp8
from ablate.model import LanguageModel, initialise


@pytest.fixture(scope="module")
def made() -> official.Maker:
    return official.make()


@pytest.fixture(scope="module")
def source(made: official.Maker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("official")
    official.write(folder, made.entries)
    return folder


def values(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of a folder by its official name, in double precision."""
    opened = Folder(folder)
    return {
        name: opened.piece(place, index).double().numpy()
        for place in opened.places
        for index, name in enumerate(place.official)
    }


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert np.array_equal(found[name], value), name


def ablate(*args: str | Path) -> None:
    done = CliRunner().invoke(app, [str(arg) for arg in args], catch_exceptions=False)
    assert done.exit_code == 0, done.output


def test_an_official_checkpoint_comes_in_with_exactly_its_values(made: official.Maker, source: Path) -> None:
    assert_same(values(source), made.values)
    model = load_model(Folder(source)).state_dict()
    at = {
        "layers.1.attention.indexer.q_b": "layers.1.attn.indexer.wq_b.weight",
        "layers.2.attention.compressor.ape": "layers.2.attn.compressor.ape",
        "layers.0.ffn.router.tid2eid": "layers.0.ffn.gate.tid2eid",
        "mtp.0.join.h_proj": "mtp.0.h_proj.weight",
        "mtp.0.block.ffn.router.e_score_correction_bias": "mtp.0.ffn.gate.bias",
        "mtp.0.collapse.fn": "mtp.0.hc_head_fn",
    }
    for ours, theirs in at.items():
        assert np.array_equal(model[ours].double().numpy(), made.values[theirs]), ours
    expert = "layers.3.ffn.experts.2"
    assert np.array_equal(model["layers.3.ffn.gate_up"][2, :32].numpy(), made.values[f"{expert}.w1.weight"])
    assert np.array_equal(model["layers.3.ffn.gate_up"][2, 32:].numpy(), made.values[f"{expert}.w3.weight"])
    assert np.array_equal(model["layers.3.ffn.down"][2].numpy(), made.values[f"{expert}.w2.weight"])


@pytest.mark.parametrize(("form", "dtype"), [("official", "fp4"), ("official", "bf16"), ("hf", "bf16")])
def test_it_goes_out_again_with_the_same_values(
    made: official.Maker, source: Path, tmp_path: Path, form: str, dtype: str
) -> None:
    """In several files, by way of our own format and back, prediction layer and configuration included."""
    inside, out = tmp_path / "inside", tmp_path / "out"
    ablate("import", source, "--out", inside, "--shard-gb", "0.0005")
    assert len(list(inside.glob("model-*.safetensors"))) > 1
    assert_same(values(inside), made.values)
    ablate("export", inside, "--format", form, "--dtype", dtype, "--out", out, "--shard-gb", "0.0003")
    assert_same(values(out), made.values)
    assert Folder(out).variant == Folder(source).variant
    told = json.loads((out / "config.json").read_text())
    if dtype == "fp4":
        assert {key: told[key] for key in official.CONFIG} == official.CONFIG
        kinds = {name: header.dtype for name, header in Folder(out).shards.headers.items()}
        assert kinds == {name: kind for name, (kind, _, _) in made.entries.items()}
        size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
        assert size < 1.02 * sum(path.stat().st_size for path in source.glob("*.safetensors"))
    assert [told["bos_token_id"], told["eos_token_id"]] == [0, 1]


@pytest.mark.parametrize("form", ["official", "hf"])
def test_stock_transformers_has_our_logits(source: Path, tmp_path: Path, form: str) -> None:
    ablate("export", source, "--format", form, "--dtype", "bf16", "--out", tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float64, attn_implementation="eager", experts_implementation="eager"
    )
    ours = load_model(Folder(source)).double().eval()
    ids = torch.randint(50, (2, 150), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = ours(ids).logits
        found = theirs.double().eval()(ids, use_cache=False).logits
    assert wanted.std() > 0.1
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_the_names_of_a_state_dict_of_transformers_come_in_too(tmp_path: Path) -> None:
    model = LanguageModel(make_variant())
    initialise(model, 0)
    theirs: Any = hf.to_transformers(model)
    theirs.config.save_pretrained(tmp_path)
    save_file(
        {name: tensor.clone() for name, tensor in theirs.state_dict().items()}, tmp_path / "model.safetensors"
    )
    found = load_model(Folder(tmp_path))
    assert found.variant == model.variant
    for name, tensor in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


def nearest(value: float, grid: np.ndarray) -> set[float]:
    """The numbers of a format that are nearest to a value."""
    away = np.abs(grid - value)
    return {float(grid[i]) for i in np.flatnonzero(away == away.min())}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-6, 1.0, 300.0]))
def test_quantised_values_are_nearest_to_what_they_were(seed: int, scale: float) -> None:
    """By search through all numbers of a format, and under the smallest scale that holds the largest value."""
    drawn = torch.randn(4, 64, generator=torch.Generator().manual_seed(seed)) * scale
    drawn[0, :8] = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0])  # ties
    fp8 = official.FP8[~np.isnan(official.FP8)]
    for pair, grid, width in ((to_fp8(drawn), fp8, 64), (to_fp4(drawn), official.FP4, 32)):
        powers = pair[1].view(torch.uint8).numpy().astype(int) - 127
        spread = 2.0 ** np.repeat(np.repeat(powers, 4 // len(powers), 0), width, 1)
        found = dequantised(*pair).double().numpy()
        for row, column in np.ndindex(4, 64):
            value, unit = float(drawn[row, column]), spread[row, column]
            assert found[row, column] / unit in nearest(float(value / unit), grid)
        for block in np.unique(spread):
            largest = np.abs(drawn.double().numpy()[spread == block]).max()
            assert largest <= grid.max() * block
        tight = np.abs(drawn.double().numpy()).reshape(*powers.shape, -1) if width == 32 else None
        if tight is None:
            assert float(drawn.abs().max()) > grid.max() * 2.0 ** int(powers[0, 0]) / 2
        else:
            assert (tight.max(-1) > grid.max() * 2.0 ** powers.astype(float) / 2).all()


Change = Callable[[dict[str, official.Entry], dict[str, Any]], None]


def renamed(entries: dict[str, official.Entry], config: dict[str, Any]) -> None:
    entries["layers.1.attn.wq_aa.weight"] = entries.pop("layers.1.attn.wq_a.weight")


def extra(entries: dict[str, official.Entry], config: dict[str, Any]) -> None:
    entries["layers.1.attn.wq_c.weight"] = ("F32", [1], bytes(4))


def reshaped(entries: dict[str, official.Entry], config: dict[str, Any]) -> None:
    kind, (rows, columns), data = entries["layers.0.attn.wkv.weight"]
    entries["layers.0.attn.wkv.weight"] = (kind, [columns, rows], data)


def unscaled(entries: dict[str, official.Entry], config: dict[str, Any]) -> None:
    del entries["layers.0.attn.wkv.scale"]


def odd_scale(entries: dict[str, official.Entry], config: dict[str, Any]) -> None:
    entries["layers.0.attn.wkv.scale"] = ("F8_E8M0", [2], bytes(2))


def packed(entries: dict[str, official.Entry], config: dict[str, Any]) -> None:
    entries["embed.weight"] = ("I8", [50, 160], bytes(50 * 160))


def told(**changes: Any) -> Change:
    return lambda entries, config: config.update(changes)


def untold(entries: dict[str, official.Entry], config: dict[str, Any]) -> None:
    config["hidden_sizes"] = config.pop("hidden_size")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (renamed, r"no tensor 'layers.1.attn.wq_a.weight'.*nearest name is 'layers.1.attn.wq_aa.weight'"),
        (extra, r"1 tensors that the model.*'layers.1.attn.wq_c.weight'.*is 'layers.1.attn.wq_[ab].weight'"),
        (reshaped, r"'layers.0.attn.wkv.weight' has shape \[160, 48\].*\[48, 160\]"),
        (unscaled, r"'layers.0.attn.wkv.weight' is F8_E4M3 and has no scales"),
        (odd_scale, r"'layers.0.attn.wkv.scale' has shape \[2\].*\[1, 2\]"),
        (packed, r"'embed.weight' has numbers I8.*F32, BF16, F16"),
        (told(hidden_size="160"), "hidden_size='160'.*an integer"),
        (told(hidden_size=192), r"has shape .*160"),
        (told(n_routed_experts=10**9), "n_routed_experts=1000000000"),
        (told(scoring_func="softmax"), "scoring_func=softmax.*Allowed: sqrtsoftplus"),
        (told(o_groups=3), "o_groups=3 does not divide num_attention_heads=4"),
        (told(compress_ratios=[0, 4]), "2 entries, expected 4"),
        (told(compress_ratios=[0, 4, 128, 4, 4]), "must be 0"),
        (told(quantization_config={"weight_block_size": [1, 128]}), "weight_block_size=.*128, 128"),
        (told(rope_scaling={"type": "linear", "factor": 2}), "rope_scaling.type=linear.*yarn"),
        (untold, "no field named 'hidden_size'.*'hidden_sizes'"),
    ],
)
def test_what_does_not_fit_is_named_before_anything_is_read(
    made: official.Maker, tmp_path: Path, change: Change, said: str
) -> None:
    entries, config = dict(made.entries), dict(official.CONFIG)
    change(entries, config)
    official.write(tmp_path, entries, config)
    with pytest.raises(BadInputError, match=said):
        Folder(tmp_path)


def test_numbers_that_are_none_and_tables_that_route_nowhere_are_named(
    made: official.Maker, tmp_path: Path
) -> None:
    def changed(name: str, at: int, to: bytes) -> None:
        kind, shape, data = made.entries[name]
        entries = {**made.entries, name: (kind, shape, data[:at] + to + data[at + len(to) :])}
        official.write(tmp_path, entries)
        with pytest.raises(BadInputError, match=rf"{name.removesuffix('scale')}\w*: a (value|row)"):
            values(tmp_path)

    changed("layers.2.attn.wo_a.weight", 7, b"\x7f")
    changed("layers.2.ffn.experts.1.w2.scale", 3, b"\xff")
    changed("norm.weight", 0, b"\xc0\x7f")
    changed("layers.0.ffn.gate.tid2eid", 0, made.entries["layers.0.ffn.gate.tid2eid"][2][8:16])
    changed("layers.0.ffn.gate.tid2eid", 0, (3).to_bytes(8, "little"))


def test_files_that_are_damaged_missing_elsewhere_or_may_run_code_are_refused(
    made: official.Maker, tmp_path: Path
) -> None:
    official.write(tmp_path, made.entries)
    index, first = tmp_path / "model.safetensors.index.json", tmp_path / "model-00001-of-00003.safetensors"
    whole = first.read_bytes()
    first.write_bytes(whole[:-100])
    with pytest.raises(BadInputError, match=r"00001.*cannot be read as safetensors"):
        Folder(tmp_path)
    first.unlink()
    with pytest.raises(BadInputError, match=r"lists model-00001-of-00003.safetensors, which is not there"):
        Folder(tmp_path)
    (tmp_path.parent / "elsewhere.safetensors").write_bytes(whole)
    listed = json.loads(index.read_text())
    for file in (
        "../elsewhere.safetensors",
        str(tmp_path.parent / "elsewhere.safetensors"),
        "weights.bin",
        3,
    ):
        index.write_text(json.dumps({"weight_map": listed["weight_map"] | {"embed.weight": file}}))
        with pytest.raises(BadInputError, match=r"'embed.weight' is said to be in"):
            Folder(tmp_path)
    index.unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(BadInputError, match=r"pytorch_model.bin, which may run code.*Allowed: safetensors"):
        Folder(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(BadInputError, match="no JSON object"):
        Folder(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(BadInputError, match="describes no DeepSeek-V4 model"):
        Folder(tmp_path)


def test_a_format_that_cannot_hold_it_is_refused_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    home = Home(tmp_path)
    with pytest.raises(BadInputError, match="no dtype of format=hf named 'fp8'"):
        export(str(source), "hf", tmp_path / "out", home, "fp8")
    with pytest.raises(BadInputError, match=r"shard-gb=0\.0"):
        export(str(source), "hf", tmp_path / "out", home, shard_gb=0.0)
    model = LanguageModel(make_variant(compress_ratios="swa,csa@4,hca@8,csa@4,swa"))
    initialise(model, 0)
    theirs: Any = hf.to_transformers(model)
    theirs.save_pretrained(tmp_path / "odd")
    with pytest.raises(BadInputError, match=r"dtype=fp4: .*32.*Allowed for it: fp8"):
        export(str(tmp_path / "odd"), "official", tmp_path / "out", home, "fp4")
    assert [path.name for path in tmp_path.iterdir()] == ["odd"]


def test_files_are_as_large_as_asked_and_hold_each_tensor_once(source: Path, tmp_path: Path) -> None:
    export(str(source), "official", tmp_path / "out", Home(tmp_path), "stored", 0.0002)
    listed = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    held: dict[str, Tensor] = {}
    for path in sorted((tmp_path / "out").glob("*.safetensors")):
        tensors = load_file(path)
        assert sum(t.nbytes for t in tensors.values()) <= 200_000 or len(tensors) == 1
        assert {name: listed["weight_map"][name] for name in tensors} == dict.fromkeys(tensors, path.name)
        assert not held.keys() & tensors.keys()
        held |= tensors
    assert held.keys() == listed["weight_map"].keys()
    assert sum(t.nbytes for t in held.values()) == listed["metadata"]["total_size"]
