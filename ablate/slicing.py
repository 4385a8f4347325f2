"""`ablate slice`: a smaller model out of a larger one, by index sets that agree wherever tensors meet.

Everything is cut to what its axes are named (`ablate.axes`): hidden channels once for the whole model, in every stream;
heads at the same places of every group, channels of heads, latents and ranks, experts and their inner channels once
per layer. Pairs of rotary channels are those whose frequency the smaller model has.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ablate.axes import HIDDEN, UNCUT, Axes
from ablate.errors import BadInputError
from ablate.fresh import Fresh
from ablate.interop import layout
from ablate.interop.folders import Weights
from ablate.interop.layout import Place
from ablate.variant import Variant
from components import registry
from components.spec import Layer

AT_ONCE = 2**22
"""Numbers of a tensor that are squared at once."""

Score = Tensor
"""How much each index of an axis matters."""

Policy = Callable[[Score, int], Tensor]
"""Ascending indices to keep, of that many."""

POLICIES: dict[str, Policy] = {}
"""Ways to choose what is kept, by name."""


def policy(function: Policy) -> Policy:
    """Enter a policy under the name of its function."""
    POLICIES[function.__name__] = function
    return function


@policy
def even(score: Score, count: int) -> Tensor:
    """Evenly spaced, whatever the weights are."""
    return ((torch.arange(count) + 0.5) * len(score) / count).long()


@policy
def magnitude(score: Score, count: int) -> Tensor:
    """The largest sums of squares over all matrices that the index touches; of equal ones the first."""
    return score.argsort(descending=True, stable=True)[:count].sort().values


@policy
def activation(score: Score, count: int) -> Tensor:
    """Hidden channels and experts that do most on a text (`ablate.activity`), all else by magnitude."""
    return magnitude(score, count)


@dataclass(frozen=True)
class Report:
    """What became of a model.

    Attributes:
        layers: the source layer of every layer, prediction layers by the names that files have for them.
        kept: axis to how many indices of how many were kept.
        fresh: tensors that start anew, by the reason.
        differs: options in which the two models differ beyond their sizes.
    """

    policy: str
    layers: dict[str, str]
    kept: dict[str, str]
    fresh: dict[str, list[str]] = field(default_factory=dict)
    differs: dict[str, Any] = field(default_factory=dict)


class Sliced:
    """Weights of a smaller variant that are part of a larger one's, cut when they are asked for."""

    def __init__(
        self,
        source: Weights,
        variant: Variant,
        chosen: str,
        seed: int = 0,
        measured: Mapping[tuple[str, str], Score] | None = None,
    ) -> None:
        """Match layers and choose what to keep; goes through the source's weights once, piece by piece.

        Args:
            chosen: name of the policy.
            seed: of what starts anew.
            measured: scores by (layer, axis) that take the place of magnitudes.

        Raises:
            BadInputError: an unknown policy, or a variant that is not smaller in every way.
        """
        if chosen not in POLICIES:
            raise BadInputError(f"policy={chosen}: {registry.unknown('policy', chosen, POLICIES)}")
        self.source, self.variant = source, variant
        self._check()
        self._old, self._new = Axes.of(source.variant), Axes.of(variant)
        self._fresh = Fresh(variant, seed)
        layers = _matched(source.variant, variant)
        self._places = {place.ours: place for place in layout.places(source.variant)}
        self._from, fresh = self._origins(layers)
        self._kept = self._choose(POLICIES[chosen], measured or {})
        sizes = self._new.sizes.items()
        kept = {name: f"{size} of {self._old.sizes[name]}" for name, size in sizes}
        old, new = (v.dims.qk_rope_head_dim for v in (source.variant, variant))
        exact = "their frequencies" if new and old % new == 0 else "the nearest frequencies"
        kept["rotary pairs"] = f"{new // 2} of {old // 2}, by {exact}"
        changed = source.variant.diff(variant)
        differs = {
            key: list(pair) for key, pair in changed.items() if not key.startswith(("dims.", "schedule"))
        }
        self.report = Report(chosen, layers, kept, fresh, differs)

    def piece(self, place: Place, index: int) -> Tensor:
        """A piece, cut out of the source's or fresh."""
        origin = self._from.get(place.ours)
        if origin is None:
            return self._fresh.piece(place, index)
        scope = _scope(origin.ours)
        if place.kind == layout.EXPERT:
            each = len(place.official) // self._new.sizes["experts"]
            expert, half = divmod(index, each)
            index = int(self._kept[scope, "experts"][expert]) * each + half
        names = self._old.names(origin, index)
        tensor = self.source.piece(origin, index)
        cut = tensor.reshape(self._old.shape(names, tuple(tensor.shape)))
        for axis, name in enumerate(names):
            kept = self._kept.get((_of(name, scope), name))
            if kept is not None:
                cut = cut.index_select(axis, kept)
        return cut.reshape(place.piece_shape)

    def _check(self) -> None:
        """Raise where the variant is larger, or of another kind."""
        old, new = self.source.variant, self.variant
        for name, value in Axes.of(new).sizes.items():
            most = Axes.of(old).sizes[name]
            equal = name in ("vocab", "streams")
            if value > most or (equal and value != most):
                allowed = f"{most}, as in what it is cut from" if equal else f"1 to {most}"
                raise BadInputError(f"to: {name}={value} is not possible. Allowed: {allowed}.")
        rope = (old.dims.qk_rope_head_dim, new.dims.qk_rope_head_dim)
        still = (old.dims.head_dim - rope[0], new.dims.head_dim - rope[1])
        for name, (most, value) in (("qk_rope_head_dim", rope), ("head_dim - qk_rope_head_dim", still)):
            if value > most:
                raise BadInputError(f"to: {name}={value} is not possible. Allowed: 0 to {most}.")

    def _origins(self, layers: dict[str, str]) -> tuple[dict[str, Place], dict[str, list[str]]]:
        """The source's place of every tensor that has one, and the tensors that have not, by reason."""
        found: dict[str, Place] = {}
        fresh: dict[str, list[str]] = {}
        sizes = (self._old.sizes, self._new.sizes)
        for place in layout.places(self.variant):
            scope = _scope(place.ours)
            name = place.ours
            if scope:
                name = f"{layers.get(scope, '-')}{place.ours.removeprefix(scope)}"
            origin = self._places.get(name)
            reason = None
            if origin is None:
                reason = "no layer of the source has it"
            elif place.kind == layout.TABLE and any(
                sizes[0][key] != sizes[1][key] for key in ("experts", "k")
            ):
                reason = "a table of the source names experts by old numbers"
            elif place.ours.endswith(".ape") and origin.shape[0] != place.shape[0]:
                reason = f"biases of {origin.shape[0]} positions in a block are none of {place.shape[0]}"
            if reason is None and origin is not None:
                found[place.ours] = origin
            else:
                fresh.setdefault(reason or "", []).append(place.ours)
        return found, fresh

    def _choose(
        self, rule: Policy, measured: Mapping[tuple[str, str], Score]
    ) -> dict[tuple[str, str], Tensor]:
        """Indices to keep by (layer, axis); hidden channels under the layer ``."""
        scores = {**self._scores(), **measured} if rule is not even else {}
        kept: dict[tuple[str, str], Tensor] = {}
        for origin in self._from.values():
            scope = _scope(origin.ours)
            for index in range(len(origin.official)):
                for name in self._old.names(origin, index):
                    key, axis = (_of(name, scope), name), name.partition("/")[0]
                    old, new = self._old.sizes.get(axis, 0), self._new.sizes.get(axis, 0)
                    if key in kept or old == 0 or (old == new and axis not in ("channels", "ichannels")):
                        continue
                    score = scores.get(key, torch.ones(old, dtype=torch.float64))
                    width = {"channels": "head_dim", "ichannels": "index_head_dim"}.get(axis)
                    kept[key] = self._channels(score, new, rule) if width else rule(score, new)
            if origin.kind == layout.EXPERT and (scope, "experts") not in kept:
                count = self._old.sizes["experts"]
                kept[scope, "experts"] = rule(torch.ones(count), self._new.sizes["experts"])
        return kept

    def _channels(self, score: Score, count: int, rule: Policy) -> Tensor:
        """Channels of a head: those that stand still by the rule, rotary pairs by their frequency."""
        old, new = (v.dims.qk_rope_head_dim for v in (self.source.variant, self.variant))
        still = len(score) - old
        pairs = (torch.arange(new // 2) * old / max(new, 1)).round().long()
        turning = still + torch.stack((2 * pairs, 2 * pairs + 1), dim=-1).flatten()
        return torch.cat((rule(score[:still], count - new), turning))

    def _scores(self) -> dict[tuple[str, str], Score]:
        """Sums of squares over all matrices that an index touches."""
        scores: dict[tuple[str, str], Score] = {}
        for origin in {place.ours: place for place in self._from.values()}.values():
            if len(origin.piece_shape) < 2 or origin.kind == layout.TABLE:
                continue  # vectors are gains and biases: no measure of what they belong to
            scope = _scope(origin.ours)
            for index in range(len(origin.official)):
                names = self._old.names(origin, index)
                tensor = self.source.piece(origin, index)
                sums = _squares(tensor.reshape(self._old.shape(names, tuple(tensor.shape))))
                for name, amount in zip(names, sums, strict=True):
                    if name != UNCUT:
                        key = (_of(name, scope), name)
                        scores[key] = scores[key] + amount if key in scores else amount
                if origin.kind == layout.EXPERT:
                    count = self._old.sizes["experts"]
                    each = torch.zeros(count, dtype=torch.float64)
                    each[index * count // len(origin.official)] = sums[0].sum()
                    scores[scope, "experts"] = scores.get((scope, "experts"), torch.zeros_like(each)) + each
        return scores


def _squares(tensor: Tensor) -> list[Score]:
    """Sums of squares along every axis, by and by, so that no second tensor of that size is made."""
    sums = [torch.zeros(size, dtype=torch.float64) for size in tensor.shape]
    step = max(1, AT_ONCE * len(tensor) // tensor.numel())
    for start in range(0, len(tensor), step):
        part = tensor[start : start + step].double().square()
        for axis, held in enumerate(sums):
            amount = part.sum([i for i in range(part.ndim) if i != axis])
            held[slice(start, start + step) if axis == 0 else slice(None)] += amount
    return sums


def _scope(name: str) -> str:
    """The layer that a tensor is of, `` for those of the whole model."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] in ("layers", "mtp") else ""


def _of(axis: str, scope: str) -> str:
    return "" if axis == HIDDEN else scope


def _matched(old: Variant, new: Variant) -> dict[str, str]:
    """Source layer of every layer: of the same kind, spread over those that there are, in order."""
    layers: dict[str, str] = {}
    for kind in {layer.attention for layer in new.layers}:
        ours = [layer for layer in new.layers if layer.attention == kind]
        theirs: list[Layer] = [layer for layer in old.layers if layer.attention == kind] or list(old.layers)
        for rank, layer in enumerate(ours):
            at = round(rank * (len(theirs) - 1) / max(len(ours) - 1, 1))
            layers[f"layers.{layer.index}"] = f"layers.{theirs[at].index}"
    further = len(old.prediction_layers)
    for index in range(len(new.prediction_layers)):
        if further:
            layers[f"mtp.{index}"] = f"mtp.{min(index, further - 1)}"
    order = [f"layers.{layer.index}" for layer in new.layers]
    return {name: layers[name] for name in [*order, *(name for name in layers if name not in order)]}
