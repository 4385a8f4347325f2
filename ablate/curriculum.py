"""What the stages of a curriculum and evaluations cost, and the steps that a trial's compute pays for.

Compute is charged stage by stage (methodology §A1): the price of a step is exact for what that stage runs.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from ablate import optimization, units
from ablate.errors import BadInputError
from ablate.schema import Budget, Run, Stretch, Trainer
from ablate.stages import DENSE, KEY, SPARSE, WARMUP, Stage, Staged, exact, read, text
from ablate.variant import Variant
from components import registry
from components.slots import Indexer
from components.spec import Layer, NoOptions


def check(run: Run, variant: Variant, named: str) -> None:
    """Whether a model can train in all stages of its curriculum.

    Args:
        named: whose it is, for messages.

    Raises:
        BadInputError: names the stage, the value and what is allowed.
    """
    for index, stretch in enumerate(read(run.trainer)[:-1]):
        key = f"{KEY}[{index}]"
        try:
            variant.check(stretch.seq_len, f"{key}.seq_len")
        except (BadInputError, ValueError) as error:
            raise BadInputError(f"{named}, {key}: {error}") from error
        if stretch.attention == SPARSE:
            continue
        given = f"{named}: {key}.attention={stretch.attention}"
        if not any(_chooses(variant, layer, stretch.seq_len) for layer in variant.layers):
            raise BadInputError(
                f"{given} has nothing to do: no layer of {variant.schedule} chooses among compressed entries at "
                f"sequences of {stretch.seq_len} tokens. Allowed: sparse; or layers with an indexer, such as csa@4, "
                "and an index_topk below seq_len / ratio."
            )
        if stretch.attention == WARMUP and not _learns(variant):
            name = variant.config("indexer")[0]
            raise BadInputError(
                f"{given} trains nothing: indexer={name} has no loss of its own as it is configured. Allowed: "
                "sparse, dense; or indexer=lightning with indexer.args.train=sparse."
            )


def _chooses(variant: Variant, layer: Layer, seq_len: int) -> bool:
    """Whether a layer reads fewer entries than it sees at the end of a sequence."""
    found = [part for part in variant.part("attention", layer).walk() if part.slot == "indexer"]
    return any(
        issubclass(part.cls, Indexer)
        and part.cls.selects(part.config)
        and layer.topk < seq_len // layer.ratio
        for part in found
    )


def _learns(variant: Variant) -> bool:
    name, config = variant.config("indexer")
    cls = registry.get("indexer", name).cls
    return issubclass(cls, Indexer) and cls.learns(config)


def step_flops(run: Run, variant: Variant, stretch: Stretch, optimizer_flops: int = 0) -> int:
    """Training FLOPs of one step, exactly.

    A `dense` step is one of the same model whose indexers choose everything. A `warmup` step is that model's
    forward pass, and the training of the indexers.

    Args:
        optimizer_flops: the optimizer's own in a step of the whole model, where they are charged; of tensors
            that a stage leaves alone there are none.
    """
    rows = run.trainer.batch_size * run.trainer.seq_len // stretch.seq_len
    costs = variant.costs(stretch.seq_len)
    if stretch.attention == SPARSE:
        return costs.total.train_flops * rows + optimizer_flops
    dense = _all_chosen(variant)
    total = dense.costs(stretch.seq_len).total
    others = optimization.flops_per_step(run.optimizer, dense) if optimizer_flops else 0
    if stretch.attention == DENSE:
        return total.train_flops * rows + others
    learning = sum(cost.train_flops for label, _, cost in costs.rows if label.startswith("indexer/"))
    return (total.forward_flops + learning) * rows + optimizer_flops - others


def evaluation_flops(run: Run, variant: Variant, attention: str) -> int:
    """FLOPs of one evaluation in a stage of that `attention`: forward passes over `data.val_tokens`.

    Held-out text that is shorter is charged as if it were not: how long it is, nobody knows before it is tokenised.
    """
    costs = variant.costs(run.trainer.seq_len)
    flops = costs.total.forward_flops
    if attention != SPARSE:
        flops = _all_chosen(variant).costs(run.trainer.seq_len).total.forward_flops
    if attention == WARMUP:
        flops += sum(cost.forward_flops for label, _, cost in costs.rows if label.startswith("indexer/"))
    return flops * (run.data.val_tokens // run.trainer.seq_len)


def evaluations(run: Run, variant: Variant, trained: Staged) -> tuple[tuple[int, int], ...]:
    """`Staged.evaluations` of a trial: at equal shares of its compute, in the stage that each share ends in."""
    found = []
    for step in sorted(trained.reached(run.trainer.evals)):
        stage = trained.stage(step - 1)
        found.append((step, *rounded([evaluation_flops(run, variant, stage.attention if stage else SPARSE)])))
    return tuple(found)


def evaluations_at_most(run: Run, variant: Variant) -> int:
    """MFLOP that the evaluations of a trial take, whatever its allowance."""
    each = [evaluation_flops(run, variant, stretch.attention) for stretch in read(run.trainer)]
    return run.trainer.evals * max(rounded(each))


def _all_chosen(variant: Variant) -> Variant:
    everything = ("indexer", "dense", NoOptions())
    return dataclasses.replace(
        variant, slots=tuple(everything if slot[0] == "indexer" else slot for slot in variant.slots)
    )


def priced(run: Run, variant: Variant) -> list[dict[str, Any]]:
    """The stretches of a curriculum as data, with what a step of each takes, the optimizer left out."""
    return [
        dataclasses.asdict(stretch)
        | {
            "batch_size": run.trainer.batch_size * run.trainer.seq_len // stretch.seq_len,
            "train_flops_per_step": step_flops(run, variant, stretch),
        }
        for stretch in read(run.trainer)
    ]


def warnings(run: Run, variant: Variant) -> list[str]:
    """What `variant.warnings` says of the configuration, and of shorter sequences before it beyond that."""
    found = variant.warnings(run.trainer.seq_len)
    for index, stretch in enumerate(read(run.trainer)[:-1]):
        if stretch.attention == SPARSE:
            new = [text for text in variant.warnings(stretch.seq_len) if text not in found]
            found += [f"{KEY}[{index}]: {text}" for text in new]
    return found


def flops(run: Run, variant: Variant, optimizer_flops: int) -> tuple[int, ...]:
    """`step_flops` of every stage."""
    return tuple(step_flops(run, variant, stretch, optimizer_flops) for stretch in read(run.trainer))


def rounded(flops: Sequence[int]) -> tuple[int, ...]:
    """Charges in whole MFLOP, rounded up."""
    return tuple(-(-amount // units.MFLOP) for amount in flops)


def by_compute(trainer: Trainer, charges: Sequence[int], allowance: int) -> Staged:
    """Steps that an allowance pays for; what is left is less than one step of the last stage.

    What a stage leaves of its share, less than one of its steps, goes to the stage after it.
    """
    share, spent, counts = Fraction(0), 0, []
    for stretch, mflop in zip(read(trainer), charges, strict=True):
        share += exact(stretch.share)
        counts.append((int(share * allowance) - spent) // mflop)
        spent += counts[-1] * mflop
    return _solved(trainer, charges, counts)


def by_steps(trainer: Trainer, charges: Sequence[int], steps: int) -> Staged:
    """So many steps, of whose compute every stage has its share, to the nearest step before its end."""
    lengths = [exact(s.share) / mflop for s, mflop in zip(read(trainer), charges, strict=True)]
    ends = [int(steps * sum(lengths[: i + 1]) / sum(lengths)) for i in range(len(lengths))]
    return _solved(trainer, charges, [end - begin for begin, end in zip([0, *ends], ends, strict=False)])


def refuse_times(budget: Budget, trainers: Mapping[str, Trainer]) -> None:
    """Refuse a budget that depends on how long a step takes: that is measured for the configuration alone.

    Raises:
        BadInputError: it does, and an arm has a curriculum.
    """
    if budget.match == "wall_clock":
        given, allowed = "budget.match=wall_clock", "flops, tokens"
    else:
        given, allowed = f"budget.total={budget.total}, budget.per_trial={budget.per_trial}", "FLOPs"
    for name, trainer in trainers.items():
        if trainer.curriculum:
            raise BadInputError(
                f"{given} is not possible with {KEY}={text(trainer)} (arm '{name}'): time per step is measured for "
                f"the configuration alone. Allowed: {allowed}."
            )


def solve(
    trainers: Mapping[str, Trainer],
    charges: Mapping[str, Sequence[int]],
    allowance: int,
    plain: Mapping[str, int],
    match: str,
) -> dict[str, Staged]:
    """Every arm's training, none above the allowance.

    Args:
        plain: steps of every arm, were all of them as configured.
        match: what the budget makes equal. Equal tokens are equal steps.

    Raises:
        BadInputError: a stage has no step.
    """
    found = {
        name: by_compute(trainer, charges[name], allowance)
        if trainer.curriculum
        else Staged(steps=plain[name], step_mflop=charges[name][0])
        for name, trainer in trainers.items()
    }
    if match == "tokens" and any(trainer.curriculum for trainer in trainers.values()):
        steps = min(by_compute(trainers[name], charges[name], allowance).steps for name in trainers)
        found = {name: by_steps(trainers[name], charges[name], steps) for name in trainers}
        while any(solved.mflop > allowance for solved in found.values()):
            steps -= 1  # rounding put a dear step for a cheap one
            found = {name: by_steps(trainers[name], charges[name], steps) for name in trainers}
    for name, solved in found.items():
        if not trainers[name].curriculum:
            continue
        for index, (count, stretch) in enumerate(zip(solved.counts, read(trainers[name]), strict=True)):
            if count < 1:
                mflop = charges[name][index]
                raise BadInputError(
                    f"arm '{name}': {KEY}[{index}].share={stretch.share:g} of {units.compute(solved.mflop)} per "
                    f"trial is less than one step of that stage, {units.compute(mflop)}. Allowed: at least "
                    f"{math.ceil(1e4 * mflop / solved.mflop) / 1e4:g}, or a larger budget.per_trial."
                )
    return found


def _solved(trainer: Trainer, charges: Sequence[int], counts: Sequence[int]) -> Staged:
    tokens = trainer.batch_size * trainer.seq_len
    early = tuple(
        Stage(
            seq_len=stretch.seq_len,
            batch_size=tokens // stretch.seq_len,
            attention=stretch.attention,
            steps=count,
            step_mflop=mflop,
        )
        for stretch, mflop, count in zip(read(trainer)[:-1], charges[:-1], counts[:-1], strict=True)
    )
    return Staged(steps=sum(counts), step_mflop=charges[-1], early=early)
