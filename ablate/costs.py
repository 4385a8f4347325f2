"""What a variant costs, by component, without building it."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ablate.schema import SLOT_GROUPS
from components.slots import MTP
from components.spec import Cost, Layer, Site

if TYPE_CHECKING:
    from ablate.variant import Variant

PER_BRANCH = ("residual", "norm", "post_norm")
"""Slots with an instance for each of the two branches of a layer."""

CostRow = tuple[str, int, Cost]
"""Label, number of instances, cost of all of them together."""


@dataclass(frozen=True)
class CostTable:
    """What a variant costs for one sequence, by component; prediction layers are one row, `mtp/…`."""

    rows: tuple[CostRow, ...]

    @property
    def total(self) -> Cost:
        """Everything that is trained."""
        return self.backbone + self.prediction

    @property
    def backbone(self) -> Cost:
        """All but the prediction layers."""
        return sum((cost for _, _, cost in self.backbone_rows), Cost())

    @property
    def prediction(self) -> Cost:
        """The prediction layers: blocks with all that they use, and the head once more for each."""
        return sum((cost for label, _, cost in self.rows if label.startswith("mtp/")), Cost())

    @property
    def backbone_rows(self) -> tuple[CostRow, ...]:
        """Rows of all but the prediction layers."""
        return tuple(row for row in self.rows if not row[0].startswith("mtp/"))


def table(variant: "Variant", seq_len: int) -> CostTable:
    """Exact cost of one sequence of `seq_len` tokens."""
    vocabulary = variant.dims.vocab_size * variant.dims.hidden_size
    embedding = Cost(params=vocabulary, active_params=vocabulary)
    head = dataclasses.replace(_head(variant, seq_len), params=vocabulary, active_params=vocabulary)
    found: dict[str, tuple[int, Cost]] = {}
    for layer in variant.layers:
        for label, count, cost in _layer(variant, layer, seq_len):
            before = found.get(label, (0, Cost()))
            found[label] = (before[0] + count, before[1] + cost)
    order = (*PER_BRANCH, "attention", *(slot for slot in SLOT_GROUPS if slot not in PER_BRANCH))
    labels = sorted(found, key=lambda label: (order.index(label.split("/")[0]), label))
    rows: list[CostRow] = [("embedding", 1, embedding), *((label, *found[label]) for label in labels)]
    rows += [
        ("collapse", 1, _collapse(variant, seq_len)),
        ("final norm", 1, _final_norm(variant, seq_len)),
        ("head", 1, head),
    ]
    further = [_prediction(variant, index, seq_len) for index in range(len(variant.prediction_layers))]
    if further:
        rows.append((f"mtp/{variant.config('mtp')[0]}", len(further), sum(further, Cost())))
    return CostTable(tuple(rows))


def _layer(variant: "Variant", layer: Layer, seq_len: int) -> Iterator[CostRow]:
    for part in variant.parts(layer):
        sites = 2 if part.slot in PER_BRANCH else 1
        extra = {"streams": variant.streams(layer.index)} if issubclass(part.cls, MTP) else {}
        yield (
            f"{part.slot}/{part.name}",
            sites,
            part.cls.cost(part.config, part.site, seq_len, **extra) * sites,
        )


def _prediction(variant: "Variant", index: int, seq_len: int) -> Cost:
    """One prediction layer. The last `index + 1` tokens have nothing to predict, so it runs on the others.

    Decoding does without it: it costs nothing there and keeps no cache.
    """
    length = max(0, seq_len - index - 1)
    cost = sum((c for _, _, c in _layer(variant, variant.prediction_layers[index], length)), Cost())
    cost += _collapse(variant, length) + _final_norm(variant, length) + _head(variant, length)
    return dataclasses.replace(cost, kv_bytes=0, decode_flops=0)


def _head(variant: "Variant", seq_len: int) -> Cost:
    """Logits, without the parameters that all heads share."""
    per_token = 2 * variant.dims.vocab_size * variant.dims.hidden_size
    return Cost(flops=per_token * seq_len, kernel_flops=per_token * seq_len, decode_flops=per_token)


def _collapse(variant: "Variant", seq_len: int) -> Cost:
    site = Site(dims=variant.dims, layer=variant.layers[-1])
    return variant.residual.collapse_cost(variant.config("residual")[1], site, seq_len)


def _final_norm(variant: "Variant", seq_len: int) -> Cost:
    part = variant.part("norm", variant.layers[-1])
    return part.cls.cost(part.config, part.site, seq_len)
