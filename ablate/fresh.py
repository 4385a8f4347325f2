"""`ablate init`: a randomly initialised checkpoint folder, written layer by layer."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ablate import config, schema
from ablate.errors import BadInputError
from ablate.export import limit, new_folder, watched
from ablate.interop import tokens, writing
from ablate.interop.layout import Place
from ablate.model import Block, drawn, is_random
from ablate.prediction import PredictionLayer
from ablate.variant import Variant
from components.spec import Site


class Fresh:
    """The values that `build_model` gives a variant with that seed, of which at most one layer is in memory."""

    def __init__(self, variant: Variant, seed: int) -> None:
        self.variant, self.seed = variant, seed
        self._built: tuple[str, nn.Module] = ("", nn.Module())
        self._last: tuple[str, Tensor] | None = None

    def piece(self, place: Place, index: int) -> Tensor:
        """A piece of a tensor, in single precision."""
        if self._last is None or self._last[0] != place.ours:
            self._last = (place.ours, self._tensor(place.ours, place.shape))
        return self._last[1].view(len(place.official), *place.piece_shape)[index]

    def _tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        std = self.variant.dims.initializer_range
        if name in ("embedding", "head"):
            return drawn(name, shape, self.seed, std)
        parts = name.split(".")
        count = 2 if parts[0] in ("layers", "mtp") else 1
        where, inside = ".".join(parts[:count]), ".".join(parts[count:])
        if self._built[0] != where:
            self._built = (where, self._module(parts[0], int(parts[1]) if count == 2 else 0))
        tensor = self._built[1].state_dict()[inside]
        return (
            drawn(name, shape, self.seed, std) if tensor.is_floating_point() and is_random(tensor) else tensor
        )

    def _module(self, kind: str, index: int) -> nn.Module:
        """The part of the model below a name."""
        variant, last = self.variant, self.variant.layers[-1]
        if kind == "layers":
            return Block(variant, variant.layers[index], kind)
        if kind == "mtp":
            layer = variant.prediction_layers[index]
            return PredictionLayer(variant, layer, Block(variant, layer, kind))
        if kind == "norm":
            return variant.part("norm", last).build()
        return variant.residual.collapse(variant.config("residual")[1], Site(dims=variant.dims, layer=last))


def init(
    overrides: Sequence[str],
    config_dirs: Sequence[Path],
    to: Path,
    tokenizer: Path | None,
    form: str,
    dtype: str,
    seed: int,
    shard_gb: float,
) -> list[Path]:
    """Write a randomly initialised model into `to`.

    Args:
        tokenizer: folder whose tokenizer goes with it, and gives the size of a vocabulary that is 0.

    Returns:
        The files.

    Raises:
        BadInputError: a configuration or format that cannot be, a folder without a tokenizer, or one whose
            tokenizer has more tokens than the model.
    """
    writing.check(form, dtype)
    run = dataclasses.replace(config.load(overrides, config_dirs, require_sweep=False), data=schema.Data())
    ends: dict[str, Any] = dict.fromkeys(tokens.ENDS)
    if tokenizer is not None:
        count, ends = tokens.examine(tokenizer)
        size = run.model.vocab_size = run.model.vocab_size or count
        if count > size:
            raise BadInputError(
                f"tokenizer={tokenizer} has {count} tokens, but model.vocab_size={size}. "
                f"Allowed: {count} or more, or 0 for as many as it has."
            )
    variant = Variant.from_run(run)
    variant.check(variant.dims.max_position_embeddings, "model.max_position_embeddings")
    with new_folder(to) as part:
        writing.write(Fresh(variant, seed), run, part, form, dtype, limit(shard_gb), ends, watched)
        if tokenizer is not None:
            tokens.copy(tokenizer, part, ends)
    return sorted(to.iterdir())
