"""What one entry of the registry costs in a model: parameters and training FLOPs of all its instances there."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from ablate import optimization, schema
from ablate.costs import CostRow
from ablate.errors import BadInputError
from ablate.schema import SLOT_GROUPS, Optimizer, Run, Slot
from ablate.variant import Variant
from components.registry import Entry
from components.slots import Attention
from components.spec import Cost

LONG_SEQUENCE = 4096
"""Tokens at which a model with a vocabulary of its own is priced, unless `trainer.seq_len` says otherwise."""

BLOCK = 4
"""Ratio of an entry that works on blocks, where the model's own schedule has none of its kind."""

ENDS = {"residual": ("collapse",), "norm": ("final norm",)}
"""Rows of a cost table that belong to a slot beside its instances in the layers."""


@dataclass(frozen=True)
class Price:
    """Cost of an entry in a model: the entry in all layers that can have it, without the parts it uses.

    Attributes:
        instances: how many the model has; 0 for an optimizer, which is no part of it.
    """

    instances: int
    params: int
    active_params: int
    train_flops_per_token: float


def sequence_length(run: Run, overrides: Sequence[str]) -> int:
    """Tokens per sequence at which a model is priced."""
    if run.model.vocab_size and not any(text.startswith("trainer") for text in overrides):
        return LONG_SEQUENCE
    return run.trainer.seq_len


def price(entry: Entry, run: Run, seq_len: int) -> Price | None:
    """Cost of the entry in the model of `run`, or None where that model has no place for it."""
    vocab_size = run.model.vocab_size or run.data.vocab_size
    if entry.slot == "optimizer":
        chosen = run.optimizer if run.optimizer.name == entry.name else Optimizer(entry.name)
        flops = optimization.flops_per_step(chosen, Variant.from_run(run, vocab_size))
        return Price(0, 0, 0, flops / run.trainer.batch_size / run.trainer.seq_len)
    try:
        variant = Variant.from_run(with_entry(entry, run, vocab_size), vocab_size)
        rows = variant.costs(seq_len).rows
    except (BadInputError, ValueError):  # sizes that the entry cannot work with
        return None
    own = [row for row in rows if row[0] == f"{entry.slot}/{entry.name}"]
    return _sum(own, [row for row in rows if row[0] in ENDS.get(entry.slot, ())], seq_len) if own else None


def _sum(own: Sequence[CostRow], ends: Sequence[CostRow], seq_len: int) -> Price:
    cost = sum((cost for _, _, cost in (*own, *ends)), Cost())
    instances = sum(count for _, count, _ in own)
    return Price(instances, cost.params, cost.active_params, cost.train_flops / seq_len)


def with_entry(entry: Entry, run: Run, vocab_size: int) -> Run:
    """The run with the entry wherever its slot occurs."""
    if issubclass(entry.cls, Attention):
        token = _token(entry, Variant.from_run(run, vocab_size))
        model = dataclasses.replace(run.model, compress_ratios=f"{token}*{run.model.num_hidden_layers}")
        return dataclasses.replace(run, model=model)
    if entry.slot not in SLOT_GROUPS:
        raise BadInputError(f"slot {entry.slot} is not chosen in a model.")
    model = run.model
    if entry.slot == "router":
        model = dataclasses.replace(model, num_hash_layers=0)
    if entry.slot == "mtp":
        model = dataclasses.replace(model, num_nextn_predict_layers=max(1, model.num_nextn_predict_layers))
    slot: schema.Slot = getattr(run, entry.slot)
    slot = slot if slot.name == entry.name else Slot(entry.name)
    return dataclasses.replace(run, model=model, **{entry.slot: slot})


def _token(entry: Entry, variant: Variant) -> str:
    """How a schedule names the attention: with the ratio that the model gives it."""
    assert issubclass(entry.cls, Attention)
    given = entry.cls.default_layer()
    if "compressor" not in entry.cls.uses and given.get("ratio", 1) != 0:
        return entry.name
    ratios = {layer.attention: layer.ratio for layer in variant.layers}
    return f"{entry.name}@{ratios.get(entry.name) or BLOCK}"
