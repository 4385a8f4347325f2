"""Checkpoint folders of any origin as weights of one of our variants: official, of transformers, and our own.

Everything that a folder says is checked against its configuration before a tensor is read: names, shapes, number
formats, scales. Weights are then read one piece at a time.
"""

import dataclasses
import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ablate import schema
from ablate.checkpoint import CONFIG
from ablate.errors import BadInputError
from ablate.interop import layout, official, quantised
from ablate.interop.layout import Place
from ablate.interop.shards import Shards, read_json
from ablate.model import LanguageModel
from ablate.variant import Variant

_FLOATS, _INTEGERS = ("F32", "BF16", "F16"), ("I64", "I32")
_SCALES = ("scale", "weight_scale_inv")
"""Names of scales beside a `weight`."""


class Weights(Protocol):
    """Weights of a variant, from wherever they come, in pieces as official files have them."""

    variant: Variant

    def piece(self, place: Place, index: int) -> Tensor:
        """The piece of that index of a tensor."""
        ...


def whole(weights: Weights, place: Place) -> Tensor:
    """A tensor as our model has it."""
    if len(place.official) == 1:
        return weights.piece(place, 0)
    return torch.cat([weights.piece(place, i) for i in range(len(place.official))]).view(place.shape)


class Folder:
    """A checkpoint folder.

    Attributes:
        run: its configuration as ours, with the size of its vocabulary.
    """

    def __init__(self, path: Path, further: bool = True) -> None:
        """Read configuration and headers, and check one against the other.

        Args:
            further: whether prediction layers count; without them their tensors are passed over.

        Raises:
            BadInputError: no checkpoint, or one that is not what its configuration says, by name.
        """
        if not (path / CONFIG).is_file():
            raise BadInputError(f"{path} is no checkpoint folder: it has no {CONFIG}.")
        self.path, self.shards = path, Shards(path)
        self.run = _run(read_json(path / CONFIG), self.shards)
        if self.run.model.n_routed_experts > len(
            self.shards.headers
        ):  # before names are made up for all of them
            raise BadInputError(
                f"{path}: n_routed_experts={self.run.model.n_routed_experts}, but there are only "
                f"{len(self.shards.headers)} tensors."
            )
        self.variant = Variant.from_run(self.run)
        self.variant.check(self.variant.dims.max_position_embeddings, "model.max_position_embeddings")
        if not further:
            self.variant = dataclasses.replace(self.variant, prediction_layers=())
        self.places = layout.places(self.variant)
        self._names = dict(self._found(further))

    @staticmethod
    def predicts(path: Path) -> bool:
        """Whether prediction layers, if there are any, are DeepSeek-V4's; one of ours may have others."""
        mtp = read_json(path / CONFIG).get("mtp")
        return not isinstance(mtp, dict) or mtp.get("name") == "v4"

    def piece(self, place: Place, index: int) -> Tensor:
        """A piece in exact numbers: BF16 where it was quantised, else as it is stored.

        Raises:
            BadInputError: a value is no finite number, or a table's row does not name distinct experts.
        """
        names = self._names[place.ours]
        name = names[index] if len(names) == len(place.official) else names[0]
        where = () if len(names) == len(place.official) else _part(place, index)
        tensor = self.shards.read(name, where)
        if scale := self._scale(name):
            try:
                return quantised.dequantised(tensor, self.shards.read(scale))
            except BadInputError as error:
                raise BadInputError(f"{self.path}: {name}: {error}.") from error
        if place.kind == layout.TABLE:
            rows = tensor.long().sort(-1).values
            experts = self.variant.dims.n_routed_experts
            if (rows < 0).any() or (rows >= experts).any() or (rows.diff() == 0).any():
                raise BadInputError(
                    f"{self.path}: {name}: a row does not name distinct experts from 0 to {experts - 1}."
                )
            return tensor.long()
        if not tensor.isfinite().all():
            raise BadInputError(f"{self.path}: {name}: a value is not a number.")
        return tensor.reshape(place.piece_shape)

    def _found(self, further: bool) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Names of every tensor here, after all checks."""
        left = dict(self.shards.headers)
        for place in self.places:
            spellings = (place.official, place.saved, place.native, (place.ours,))
            names = next((names for names in spellings if names and names[0] in left), place.official)
            for name in names:
                if name not in left:
                    raise BadInputError(f"{self.path} has no tensor '{name}'.{_nearest(name, left)}")
                for used in (name, *self._check(place, name, len(names))):
                    left.pop(used)
            yield place.ours, names
        if not further:
            left = {name: header for name, header in left.items() if not name.startswith("mtp.")}
        if left:
            known = (name for place in self.places for name in (*place.official, *place.saved))
            first = min(left)
            raise BadInputError(
                f"{self.path} has {len(left)} tensors that the model of its {CONFIG} has not, such as "
                f"'{first}'.{_nearest(first, known)}"
            )

    def _check(self, place: Place, name: str, names: int) -> tuple[str, ...]:
        """Raise where a header is not what it should be; else the name of its scales, if it has some."""
        header, scale = self.shards.headers[name], self._scale(name)
        single = names == len(place.official)
        wanted = list(place.piece_shape if single else place.shape)
        allowed = _INTEGERS if place.kind == layout.TABLE else _FLOATS
        if single and place.kind in (layout.BLOCKS, layout.EXPERT):
            allowed += ("F8_E4M3",)
        if single and place.kind == layout.EXPERT:
            allowed += ("I8",)
        if header.dtype not in allowed:
            raise self._wrong(name, "numbers", header.dtype, ", ".join(allowed))
        scales = None
        if header.dtype == "F8_E4M3":
            scales = [-(-size // quantised.BLOCK) for size in wanted]
        elif header.dtype == "I8":
            scales = [wanted[0], wanted[1] // quantised.TILE]
            wanted[1] //= 2
        if list(header.shape) != wanted:
            raise self._wrong(name, "shape", list(header.shape), wanted)
        if scales is None:
            return ()
        if scale is None:
            raise BadInputError(f"{self.path}: '{name}' is {header.dtype} and has no scales beside it.")
        beside = self.shards.headers[scale]
        if beside.dtype != "F8_E8M0":
            raise self._wrong(scale, "numbers", beside.dtype, "F8_E8M0")
        if list(beside.shape) != scales:
            raise self._wrong(scale, "shape", list(beside.shape), scales)
        return (scale,)

    def _scale(self, name: str) -> str | None:
        """Name of the scales of a quantised tensor."""
        if self.shards.headers[name].dtype not in ("F8_E4M3", "I8"):
            return None
        spelled = (name.removesuffix("weight") + suffix for suffix in _SCALES)
        return next((scale for scale in spelled if scale in self.shards.headers), None)

    def _wrong(self, name: str, what: str, found: object, allowed: object) -> BadInputError:
        return BadInputError(f"{self.path}: '{name}' has {what} {found}. Allowed by its {CONFIG}: {allowed}.")


def load_model(folder: Folder) -> LanguageModel:
    """Our model with a folder's weights, in single precision."""
    model = LanguageModel(folder.variant)
    target = model.state_dict()
    with torch.no_grad():
        for place in folder.places:
            target[place.ours].copy_(whole(folder, place))
    return model


def _run(config: dict[str, Any], shards: Shards) -> schema.Run:
    """Our configuration of what a `config.json` says, whoever wrote it."""
    if isinstance(config.get("model"), dict):
        run = schema.from_dict(config)
        if run.model.vocab_size == 0:  # that of its tokenizer
            header = shards.headers.get("embedding")
            run = _with(run, vocab_size=header.shape[0] if header and header.shape else 0)
        return run
    if "layer_types" in config:
        # Files of transformers lack prediction layers, even where the configuration has kept their number.
        further = config.get("num_nextn_predict_layers") if "mtp.0.norm.weight" in shards.headers else 0
        return _with(_transformers_run(config), num_nextn_predict_layers=further)
    if "compress_ratios" in config:
        return official.run_of(config)
    raise BadInputError(
        f"{shards.folder / CONFIG} describes no DeepSeek-V4 model. Allowed: compress_ratios (official), "
        "layer_types (transformers), or a configuration of ablate."
    )


def _transformers_run(config: dict[str, Any]) -> schema.Run:
    try:
        from huggingface_hub.errors import StrictDataclassError
        from transformers import DeepseekV4Config

        from ablate.interop import hf
    except ImportError as error:
        raise BadInputError(
            f"layer_types: this format needs transformers ({error}). Install ablate[hf]."
        ) from error
    if config.get("model_type") != "deepseek_v4":
        raise BadInputError(f"config.json: model_type={config.get('model_type')}. Allowed: deepseek_v4.")
    try:
        read = DeepseekV4Config.from_dict(config)
    except (StrictDataclassError, TypeError, ValueError, KeyError) as error:
        raise BadInputError(f"config.json: transformers refuses it: {error}") from error
    return dataclasses.replace(hf.run_of(read), mtp=schema.Slot("v4"))


def _with(run: schema.Run, **changes: Any) -> schema.Run:
    return dataclasses.replace(run, model=dataclasses.replace(run.model, **changes))


def _part(place: Place, index: int) -> tuple[slice, ...]:
    """Where a piece lies in a tensor that stacks all of them."""
    if len(place.shape) == 2:
        rows = place.piece_shape[0]
        return (slice(index * rows, (index + 1) * rows),)
    halves = len(place.official) // place.shape[0]
    expert, half = divmod(index, halves)
    rows = place.shape[1] // halves
    return slice(expert, expert + 1), slice(half * rows, (half + 1) * rows)


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f" The nearest name is '{near[0]}'." if near else ""
