"""A complete model description: sizes, a component per slot, a schedule. Frozen, fingerprinted, priced."""

import dataclasses
import functools
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ablate import costs, schedule
from ablate.costs import CostTable
from ablate.errors import BadInputError
from ablate.schema import SLOT_GROUPS, Model, Run
from components import registry
from components.slots import Attention, Component, Residual
from components.spec import Dims, Layer, Site

ROOTS = ("residual", "norm", "post_norm", "attention", "ffn")
"""Slots that a block itself fills; all others are reached through what these use."""

_POSITIVE = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "head_dim",
    "o_groups",
    "index_n_heads",
    "moe_intermediate_size",
    "n_routed_experts",
    "num_experts_per_tok",
    "routed_scaling_factor",
    "rms_norm_eps",
    "initializer_range",
    "max_position_embeddings",
)
_NOT_NEGATIVE = (
    "num_key_value_heads",
    "qk_rope_head_dim",
    "q_lora_rank",
    "o_lora_rank",
    "sliding_window",
    "index_head_dim",
    "index_topk",
    "n_shared_experts",
    "num_hash_layers",
    "num_nextn_predict_layers",
)


@dataclass(frozen=True)
class Part:
    """One component at one place, with the components that it uses: what to build or price there."""

    slot: str
    name: str
    config: Any
    site: Site
    parts: tuple["Part", ...] = ()

    @property
    def cls(self) -> type[Component]:
        """The registered class."""
        cls = registry.get(self.slot, self.name).cls
        assert issubclass(cls, Component)
        return cls

    def build(self) -> Component:
        """The component with everything it uses."""
        used = {part.slot: part.build() for part in self.parts}
        build: Callable[..., Component] = self.cls
        return build(self.config, self.site, **used, **_sizes(self.slot, self.site.dims))

    def walk(self) -> Iterator["Part"]:
        """This part and all below it."""
        yield self
        for part in self.parts:
            yield from part.walk()


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A model, described completely. Two variants that build the same model are equal.

    Attributes:
        layers: one per layer, in order.
        slots: (slot, name, config) of every component in use, sorted; `attention` and `router` may occur
            more than once, because layers choose among them.
        prediction_layers: one per further token that is predicted, numbered on from the last of `layers`.
    """

    dims: Dims
    layers: tuple[Layer, ...]
    slots: tuple[tuple[str, str, Any], ...]
    prediction_layers: tuple[Layer, ...] = ()

    @classmethod
    def from_run(cls, run: Run, vocab_size: int | None = None) -> "Variant":
        """The variant a configuration describes.

        Args:
            vocab_size: takes the place of `model.vocab_size` when given; needed where that is 0.

        Raises:
            BadInputError: names the key, the value and what is allowed.
        """
        try:
            return _from_run(run, vocab_size)
        except ValueError as error:
            raise BadInputError(str(error)) from error

    @property
    def schedule(self) -> str:
        """Shortest text of the layers' mechanisms. Top-k is written where layers differ in it."""
        return schedule.canonical(self.layers, _defaults(_common_topk(self.layers)))

    def canonical(self) -> dict[str, Any]:
        """Everything that decides the model, JSON-able; no preset names, no options of unused components."""
        return {
            "dims": dataclasses.asdict(self.dims),
            "layers": [dataclasses.asdict(layer) for layer in self.layers],
            "slots": [[slot, name, dataclasses.asdict(config)] for slot, name, config in self.slots],
            "prediction_layers": [dataclasses.asdict(layer) for layer in self.prediction_layers],
        }

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 of the canonical form."""
        text = json.dumps(self.canonical(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def describe(self) -> str:
        """The model in one sentence."""
        dims = self.dims
        names = {slot: name for slot, name, _ in self.slots}
        routers = Counter(layer.router for layer in self.layers) if "router" in names else Counter()
        routed = ", ".join(
            f"{count} layer{'s' * (count > 1)} routed by {name}" for name, count in routers.items()
        )
        experts = (
            f"{dims.num_experts_per_tok} of {dims.n_routed_experts} experts, {dims.n_shared_experts} shared"
        )
        return (
            f"{len(self.layers)} layers of width {dims.hidden_size} with attention {self.schedule}, "
            f"{dims.num_attention_heads} heads of {dims.head_dim}, {names['residual']} residual, "
            f"{names['ffn']} feed-forward{f' ({experts}, {routed})' if routed else ''}, "
            f"vocabulary {dims.vocab_size}"
            + (f", {len(self.prediction_layers)} x mtp/{names['mtp']}" if self.prediction_layers else "")
        )

    def diff(self, other: "Variant") -> dict[str, tuple[Any, Any]]:
        """Where two variants differ: dotted key to (value here, value there)."""
        mine, theirs = _flat(self), _flat(other)
        keys = [*mine, *(key for key in theirs if key not in mine)]
        return {k: (mine.get(k), theirs.get(k)) for k in keys if mine.get(k) != theirs.get(k)}

    def config(self, slot: str, name: str | None = None) -> tuple[str, Any]:
        """Name and config of the component in a slot; `name` where the slot has several."""
        for found, title, config in self.slots:
            if found == slot and name in (None, title):
                return title, config
        raise KeyError(f"{slot}/{name or '*'} is not part of this variant")

    @property
    def residual(self) -> type[Residual]:
        """The residual's class, which builds and prices the collapse too."""
        cls = registry.get("residual", self.config("residual")[0]).cls
        assert issubclass(cls, Residual)
        return cls

    def streams(self, layers: int = 0) -> int:
        """Number of residual streams after that many layers."""
        return self.residual.streams(self.config("residual")[1], layers)

    def part(self, slot: str, layer: Layer) -> Part:
        """The component of `slot` at a layer, with everything it uses."""
        by_layer = {"attention": layer.attention, "router": layer.router}
        name, config = self.config(slot, by_layer.get(slot))
        uses = registry.get(slot, name).cls.uses
        parts = tuple(self.part(used, layer) for used in uses)
        return Part(slot, name, config, Site(dims=self.dims, layer=layer), parts)

    def check(self, seq_len: int, key: str = "trainer.seq_len") -> None:
        """Raise where a component cannot work at its place with sequences of `seq_len` tokens.

        Args:
            key: what says so, for messages.

        Raises:
            BadInputError: names the key, the value and what is allowed.
        """
        if seq_len <= len(self.prediction_layers):
            raise BadInputError(
                f"model.num_nextn_predict_layers={len(self.prediction_layers)} is not possible with "
                f"{key}={seq_len}. Allowed: less than the sequence length."
            )
        for layer in (*self.layers, *self.prediction_layers):
            if layer.ratio > seq_len:
                raise BadInputError(
                    f"{schedule.KEY}={self.schedule}: layer {layer.index} works on blocks of {layer.ratio} "
                    f"tokens, but {key}={seq_len}. Allowed ratios: 1 to {seq_len}."
                )
            for part in self.parts(layer):
                try:
                    part.cls.check(part.config, part.site, seq_len)
                except ValueError as error:
                    raise BadInputError(f"layer {layer.index}, {part.slot}/{part.name}: {error}") from error

    def warnings(self, seq_len: int) -> list[str]:
        """Settings under which components do nothing or less than their names promise, each sentence once."""
        layers_of: dict[str, list[int]] = {}
        for layer in (*self.layers, *self.prediction_layers):
            for part in self.parts(layer):
                for text in part.cls.warnings(part.config, part.site, seq_len):
                    members = layers_of.setdefault(f"{part.slot}/{part.name}: {text}", [])
                    if layer.index not in members:
                        members.append(layer.index)
        return [f"{text} ({listed(members)})" for text, members in layers_of.items()]

    def costs(self, seq_len: int) -> CostTable:
        """Exact cost of one sequence, by component."""
        return costs.table(self, seq_len)

    def parts(self, layer: Layer) -> Iterator[Part]:
        """All components of a layer, each once; residual and norms stand for both of its sites."""
        for slot in (*ROOTS, *(["mtp"] if layer in self.prediction_layers else [])):
            yield from self.part(slot, layer).walk()


def _from_run(run: Run, vocab_size: int | None) -> Variant:
    registry.load(run.plugins)  # a stored run is read by processes that have not loaded them yet
    model = run.model
    _check_sizes(model)
    vocabulary = model.vocab_size if vocab_size is None else vocab_size
    if vocabulary < 1:
        raise ValueError(
            f"model.vocab_size={vocabulary} leaves the size to a tokenizer, and none is at hand. "
            "Give a positive number."
        )
    shared = {f.name for f in dataclasses.fields(Dims)} & {f.name for f in dataclasses.fields(Model)}
    sizes = {name: getattr(model, name) for name in shared}
    sizes["vocab_size"] = vocabulary
    sizes["num_key_value_heads"] = model.num_key_value_heads or model.num_attention_heads
    layers = schedule.parse(
        model.compress_ratios,
        model.num_hidden_layers,
        _defaults(model.index_topk),
        model.num_nextn_predict_layers,
    )
    if model.num_hash_layers > len(layers):
        raise ValueError(
            f"model.num_hash_layers={model.num_hash_layers} is more than "
            f"model.num_hidden_layers={model.num_hidden_layers}."
        )
    chosen = {group: getattr(run, group) for group in SLOT_GROUPS}
    routes = "router" in registry.get("ffn", chosen["ffn"].name).cls.uses
    if routes:
        layers = tuple(
            dataclasses.replace(
                layer, router="hash" if layer.index < model.num_hash_layers else chosen["router"].name
            )
            for layer in layers
        )
    # Plain windows and no hash router, whatever the layers before them have.
    window = Layer(index=len(layers), attention="sliding_window")
    window = dataclasses.replace(window, router=chosen["router"].name) if routes else window
    further = tuple(
        dataclasses.replace(window, index=len(layers) + i) for i in range(model.num_nextn_predict_layers)
    )
    names = {group: slot.name for group, slot in chosen.items()}
    used = {
        pair
        for layer in (*layers, *further)
        for slot in ROOTS
        for pair in _reachable(slot, layer.attention if slot == "attention" else names[slot], layer, names)
    }
    used |= {("mtp", names["mtp"])} if further else set()
    slots = []
    for slot, name in sorted(used):
        given = chosen.get(slot)
        options = given.args if given is not None and given.name == name else {}
        options = run.attention.get(name, {}) if slot == "attention" else options
        slots.append((slot, name, registry.get(slot, name).config(options)))
    return Variant(dims=Dims(**sizes), layers=layers, slots=tuple(slots), prediction_layers=further)


def _reachable(slot: str, name: str, layer: Layer, names: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(slot, name) of a component and of everything that it uses."""
    yield slot, name
    for used in registry.get(slot, name).cls.uses:
        yield from _reachable(used, layer.router if used == "router" else names[used], layer, names)


def _check_sizes(model: Model) -> None:
    for name in (*_POSITIVE, *_NOT_NEGATIVE):
        value = getattr(model, name)
        if not value > 0 and (name in _POSITIVE or value != 0):
            allowed = "a positive number" if name in _POSITIVE else "0 or more"
            raise ValueError(f"model.{name}={value} is not allowed. Allowed: {allowed}.")


def _defaults(topk: int) -> dict[str, dict[str, Any]]:
    """What bare schedule tokens stand for, by attention name."""
    defaults = {}
    for entry in registry.entries("attention"):
        assert issubclass(entry.cls, Attention)
        fields = dict(entry.cls.default_layer())
        if "compressor" in entry.cls.uses:
            fields.setdefault("ratio", 0)
        if "topk" in fields:
            fields["topk"] = topk
        defaults[entry.name] = fields
    return defaults


def _common_topk(layers: tuple[Layer, ...]) -> int:
    counts = Counter(layer.topk for layer in layers if layer.topk)
    return counts.most_common(1)[0][0] if counts else 0


def _sizes(slot: str, dims: Dims) -> dict[str, int]:
    """Further constructor arguments of slots whose width varies by place (`components/slots.py`)."""
    if slot == "norm":
        return {"size": dims.hidden_size}
    if slot == "compressor":
        return {"width": dims.head_dim}
    return {}


def _flat(variant: Variant) -> dict[str, Any]:
    """Values by dotted key, as `diff` names them."""
    values: dict[str, Any] = {f"dims.{k}": v for k, v in dataclasses.asdict(variant.dims).items()}
    values["schedule"] = schedule.canonical(variant.layers, _defaults(0))
    values["routers"] = tuple(layer.router for layer in variant.layers)
    values["prediction_layers"] = len(variant.prediction_layers)
    for slot, name, config in variant.slots:
        values[f"{slot}.{name}"] = True
        values |= {f"{slot}.{name}.{k}": v for k, v in dataclasses.asdict(config).items()}
    return values


def listed(indices: list[int]) -> str:
    """Ascending layer indices as text, such as `layers 0, 2-5`."""
    runs = []
    for _, group in itertools.groupby(enumerate(indices), key=lambda pair: pair[1] - pair[0]):
        run = [index for _, index in group]
        runs.append(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]))
    if len(runs) > 5:
        return f"{len(indices)} layers from {indices[0]} to {indices[-1]}"
    return f"{'layers' if len(indices) > 1 else 'layer'} {', '.join(runs)}"
