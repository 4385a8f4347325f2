"""`ablate bench`: how fast variants train and where their time goes, as ratios measured in one run."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ablate import config, optimization, runtime, schema, units
from ablate.errors import BadInputError
from ablate.model import LanguageModel, initialise
from ablate.speed import Machine, Row, Subject, measure
from ablate.tree import apply_arm
from ablate.variant import Variant


@dataclass(frozen=True)
class Report:
    """All rows, and under what they were measured."""

    rows: tuple[Row, ...]
    settings: dict[str, Any]
    notes: tuple[str, ...] = ()


def bench(
    overrides: Sequence[str],
    config_dirs: Sequence[Path] = (),
    arms: str | None = None,
    against: str | None = None,
    rounds: int = 5,
) -> Report:
    """Measure a step of every `model=` of `overrides`, or of every arm of the sweep `arms`.

    Args:
        against: `transformers` to measure its implementation of each variant beside ours, from the same
            weights.

    Raises:
        BadInputError: a configuration, or something to measure against, that does not exist.
    """
    if against not in (None, "transformers"):
        raise BadInputError(f"--against {against} is not available. Allowed: transformers.")
    if rounds < 1:
        raise BadInputError(f"--rounds {rounds} measures nothing. Allowed: 1 or more.")
    runs = _runs(overrides, config_dirs, arms)
    first = next(iter(runs.values()))
    machine = Machine.of(first)
    runtime.prepare(machine.threads)
    subjects: list[Subject] = []
    notes: list[str] = []
    for name, run in runs.items():
        ours = subject(name, run, machine)
        subjects.append(ours)
        if against:
            try:
                subjects.append(transformers(ours, run, machine))
            except BadInputError as error:
                notes.append(f"{name} has no counterpart: {error}")
    if against:
        notes.append(
            "Transformers trains no indexer and knows no balancing loss. The same loss: "
            "indexer.args.train=none router.args.balance_loss_alpha=0."
        )
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    rows, rate = measure(subjects, machine, rounds)
    settings = {
        "device": str(machine.device),
        "precision": first.trainer.precision,
        "threads": machine.threads,
        "clock": machine.clock,
        "load": load,
        "seq_len": first.trainer.seq_len,
        "batch_size": first.trainer.batch_size,
        "rounds": rounds,
        "matmul_flops_per_second": rate,
    }
    return Report(rows, settings, tuple(notes))


def _runs(overrides: Sequence[str], config_dirs: Sequence[Path], arms: str | None) -> dict[str, schema.Run]:
    """What to measure, by name."""
    models = [text for text in overrides if text.startswith("model=")]
    shared = [text for text in overrides if text not in models]
    if arms:
        shared.insert(0, arms if arms.startswith("sweep=") else f"sweep={arms}")
    runs: dict[str, schema.Run] = {}
    for model in models or [None]:
        run = config.load([*shared, *([model] if model else [])], config_dirs, require_sweep=bool(arms))
        if not arms:
            runs[run.model.name] = run
            continue
        for arm, changes in run.sweep.arms.items():
            name = f"{run.model.name} {arm}" if len(models) > 1 else arm
            runs[name] = apply_arm(run, changes, arm)
    return runs


def subject(name: str, run: schema.Run, machine: Machine) -> Subject:
    """A variant with its optimizer and a batch of random tokens."""
    variant = Variant.from_run(run, run.model.vocab_size or run.data.vocab_size)
    variant.check(run.trainer.seq_len)
    with machine.device:
        model = LanguageModel(variant)
    initialise(model, run.seed)
    model.prepare(lambda: torch.ones(variant.dims.vocab_size, dtype=torch.int64))
    inputs, labels = batch(variant.dims.vocab_size, run, machine)

    def forward() -> Tensor:
        with _autocast(run, machine):
            out = model(inputs, labels)
        assert out.loss is not None
        loss: Tensor = out.loss
        for key, value in out.aux.items():
            if key.startswith("loss/"):
                loss = loss + value
        return loss

    flops = variant.costs(run.trainer.seq_len).total.train_flops * run.trainer.batch_size
    return _subject(name, model, forward, run, machine, flops)


def transformers(ours: Subject, run: schema.Run, machine: Machine) -> Subject:
    """Transformers' implementation of the same variant, with the same weights.

    Raises:
        BadInputError: it is not installed, or does not have the variant.
    """
    try:
        from ablate.interop import hf
    except ImportError as error:
        raise BadInputError(
            f"--against transformers: {error}. Install it: pip install 'ablate[hf]'"
        ) from error
    assert isinstance(ours.model, LanguageModel)
    model = hf.to_transformers(ours.model)
    inputs, labels = batch(ours.model.variant.dims.vocab_size, run, machine)

    def forward() -> Tensor:
        with _autocast(run, machine):
            logits = model(inputs, use_cache=False).logits
            return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())

    return _subject(f"{ours.name}, transformers", model, forward, run, machine, ours.flops)


def _subject(
    name: str,
    model: nn.Module,
    forward: Callable[[], Tensor],
    run: schema.Run,
    machine: Machine,
    flops: int,
) -> Subject:
    if run.trainer.precision.endswith("-true"):
        model.to(machine.dtype)
    optimizer = optimization.build(model, run.optimizer)
    tokens = run.trainer.seq_len * run.trainer.batch_size
    return Subject(name, model, optimizer, forward, tokens, flops, run.optimizer.grad_clip)


def batch(vocab_size: int, run: schema.Run, machine: Machine) -> tuple[Tensor, Tensor]:
    """Random inputs and what they should predict; equal for equal shapes."""
    generator = torch.Generator("cpu").manual_seed(run.seed)
    shape = (run.trainer.batch_size, run.trainer.seq_len + 1)
    ids = torch.randint(vocab_size, shape, generator=generator).to(machine.device)
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def _autocast(run: schema.Run, machine: Machine) -> AbstractContextManager[object]:
    if run.trainer.precision.endswith("-mixed"):
        return torch.autocast(machine.device.type, machine.dtype)
    return nullcontext()


def show(report: Report) -> None:
    """Print the table, and where each variant's time goes."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("", overflow="fold")
    titles = ("step", "time", "tok/s", "FLOP/s", "matmul", "peak", "resting")
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for row in report.rows:
        table.add_row(
            Text(row.name),
            f"{row.seconds * 1e3:.1f} ms",
            f"{row.ratio:.2f}x",
            units.count(row.tokens_per_second),
            units.flops(row.flops_per_second).removesuffix("FLOP"),
            f"{row.matmul_share:.0%}",
            *(f"{count / 2**20:.1f} MiB" for count in (row.peak_bytes, row.resting_bytes)),
        )
    console.print(table)
    for together in _side_by_side([row for row in report.rows if row.components], console.width):
        console.print(_shares(together))
    settings = report.settings
    console.print(
        Text(
            f"{settings['batch_size']} x {settings['seq_len']} tokens per step, {settings['precision']}, "
            f"{settings['device']}, threads: {settings['threads']}; medians of {settings['rounds']} interleaved "
            f"rounds by the {settings['clock']} clock; time as a multiple of the first row's; matmul is the "
            f"share of the rate of a large matrix product, {units.flops(settings['matmul_flops_per_second'])}/s."
        )
    )
    for note in report.notes:
        console.print(Text(f"note {note}"))


def _side_by_side(rows: Sequence[Row], width: int) -> Iterator[Sequence[Row]]:
    """As many at a time as a table of `width` columns holds with their names in one piece."""
    label = max((len(label) for row in rows for label in row.components), default=0)
    column = max((len(row.name) for row in rows), default=0) + 2
    fit = max(1, (width - label - 2) // column)
    yield from (rows[at : at + fit] for at in range(0, len(rows), fit))


def _shares(rows: Sequence[Row]) -> Any:
    """What share of a step's time each component takes, forward and backward together."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    totals = [sum(share.seconds for share in row.components.values()) for row in rows]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("share of a step", no_wrap=True)
    for row in rows:
        table.add_column(Text(row.name), justify="right", overflow="fold")
    labels = dict.fromkeys(label for row in rows for label in row.components)
    for label in labels:
        found = [row.components.get(label) for row in rows]
        parts = ["" if s is None else f"{s.seconds / t:.1%}" for s, t in zip(found, totals, strict=True)]
        if any(part not in ("", "0.0%") for part in parts):
            table.add_row(label, *parts)
    return table
