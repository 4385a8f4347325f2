"""Weights to a folder in any of the formats, one file at a time."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ablate import schema
from ablate.checkpoint import CONFIG
from ablate.errors import BadInputError
from ablate.interop import layout, official, quantised
from ablate.interop.folders import Weights, whole
from ablate.interop.layout import Place
from ablate.interop.shards import Writer
from components import registry

FORMATS = ("hf", "official", "ablate")
"""`hf`: what transformers loads; `official`: names and configuration of DeepSeek's files; `ablate`: our own."""

DTYPES = {
    "hf": ("stored", "bf16"),
    "official": ("stored", "bf16", "fp8", "fp4"),
    "ablate": ("stored", "bf16"),
}
"""Number formats by file format. `stored`: as they come; `bf16`: BF16 but for what official files have in FP32;
`fp8`: linear maps in FP8 blocks; `fp4`: the same, and routed experts in FP4."""


def check(form: str, dtype: str) -> None:
    """Raise `BadInputError` for a format that does not exist, or not in these numbers."""
    if form not in FORMATS:
        raise BadInputError(f"format={form}: {registry.unknown('format', form, FORMATS)}")
    if dtype not in DTYPES[form]:
        raise BadInputError(
            f"dtype={dtype}: {registry.unknown(f'dtype of format={form}', dtype, DTYPES[form])}"
        )


def write(
    weights: Weights,
    run: schema.Run,
    folder: Path,
    form: str,
    dtype: str,
    limit: int,
    ends: dict[str, Any],
    watch: Callable[[Iterable[Place], int], Iterable[Place]] = lambda places, _: places,
) -> list[Path]:
    """Write weights and `config.json` of a variant that DeepSeek-V4 can express.

    Args:
        run: the configuration that the variant is of.
        limit: bytes of one file at most, unless a single tensor is larger.
        ends: `bos_token_id` and `eos_token_id`.
        watch: goes through the tensors' places, of which it is told the number, and may show how far it is.

    Returns:
        The files.

    Raises:
        BadInputError: something that the format cannot express.
    """
    places = layout.places(weights.variant)
    config = _config(weights, run, form, dtype, ends)
    writer = Writer(folder, limit)
    for place in watch(places, len(places)):
        if form == "ablate":
            writer.add(place.ours, _stored(place, whole(weights, place), dtype))
            continue
        for index, name in enumerate(place.official if form == "official" else place.saved):
            for key, tensor in _numbers(place, name, weights.piece(place, index), dtype):
                writer.add(key, tensor)
    paths = writer.close()
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    return [*paths, folder / CONFIG]


def _numbers(place: Place, name: str, piece: Tensor, dtype: str) -> Iterable[tuple[str, Tensor]]:
    """A piece as the format stores it, and its scales."""
    fp4 = dtype == "fp4" and place.kind == layout.EXPERT
    if dtype not in ("fp8", "fp4") or place.kind not in (layout.BLOCKS, layout.EXPERT):
        return [(name, _stored(place, piece, dtype))]
    try:
        values, scales = quantised.to_fp4(piece) if fp4 else quantised.to_fp8(piece)
    except BadInputError as error:
        raise BadInputError(f"dtype={dtype}: {name}: {error}. Allowed for it: fp8.") from error
    return [(name, values), (name.removesuffix("weight") + "scale", scales)]


def _stored(place: Place, tensor: Tensor, dtype: str) -> Tensor:
    if place.kind == layout.TABLE or dtype == "stored":
        return tensor
    return tensor.float() if place.kind == layout.WIDE else tensor.bfloat16()


def _config(weights: Weights, run: schema.Run, form: str, dtype: str, ends: dict[str, Any]) -> dict[str, Any]:
    variant = weights.variant
    if form == "ablate":
        values = schema.to_dict(run)
        values["model"]["vocab_size"] = variant.dims.vocab_size
        return values
    plain = weights.piece(layout.places(variant)[0], 0).dtype
    named = "bfloat16" if dtype != "stored" else str(plain).removeprefix("torch.")
    if form == "official":
        config = official.config_of(variant) | {"torch_dtype": named} | ends
        if dtype in ("fp8", "fp4"):
            config |= {"quantization_config": official.QUANTISED, "expert_dtype": dtype}
        return config
    try:
        from ablate.interop import hf
    except ImportError as error:
        raise BadInputError(f"format=hf needs transformers ({error}). Install it: ablate[hf].") from error
    made: Any = hf.config_of(variant)
    made.architectures = ["DeepseekV4ForCausalLM"]
    made.dtype = getattr(torch, named)
    made.num_nextn_predict_layers = len(variant.prediction_layers)
    for key, value in ends.items():
        setattr(made, key, value)
    return json.loads(made.to_json_string(use_diff=False))
