"""Resuming from every checkpoint of a run ends in the same bits: losses, weights, optimizers, random numbers.

Each case trains once with a checkpoint after every step, then once from each of these checkpoints, and compares
every later checkpoint as a whole, and what is left at the end.
"""

import copy
import dataclasses
import itertools
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_training import Purse, _spec, short_documents
from torch import Tensor, nn

from ablate import checkpoint, training
from ablate.data import Corpus
from ablate.errors import Superseded
from ablate.model import LanguageModel
from ablate.records import TrialResult, TrialSpec
from ablate.schema import Slot
from ablate.variant import Variant
from components import registry
from components.registry import Entry
from components.slots import Attention, Component

STEPS = 5
ENTRIES = [entry for entry in registry.entries() if issubclass(entry.cls, Component)]
OPTIMIZERS = [entry.name for entry in registry.entries() if entry.slot == "optimizer"]
ROUTERS = [entry.name for entry in registry.entries() if entry.slot == "router"]
MTP = ["none", *(entry.name for entry in registry.entries() if entry.slot == "mtp")]
STAGES = ["sparse", "dense"]
MASKS = [False, True]

Case = tuple[str, str, str, str, bool]
"""Optimizer, router, prediction layers, what the indexer learns from, document mask."""

PRODUCT: list[Case] = list(itertools.product(OPTIMIZERS, ROUTERS, MTP, STAGES, MASKS))


def covering() -> list[Case]:
    """A few cases in which every level of every choice occurs."""
    longest = max(map(len, (OPTIMIZERS, ROUTERS, MTP)))
    return [
        (
            OPTIMIZERS[i % len(OPTIMIZERS)],
            ROUTERS[i % len(ROUTERS)],
            MTP[(i + 1) % len(MTP)],
            STAGES[i % 2],
            MASKS[i % 2],
        )
        for i in range(longest)
    ]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return short_documents(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def _all_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every checkpoint of a run stays."""
    monkeypatch.setattr(checkpoint, "KEPT", 10**6)


def _every_step(spec: TrialSpec, **changed: Any) -> TrialSpec:
    run = copy.deepcopy(spec.run)
    run["trainer"]["checkpoint_steps"] = 1
    for key, value in changed.items():
        run["data"][key] = value
    return dataclasses.replace(spec, run=run)


def _case(corpus: Corpus, case: Case) -> TrialSpec:
    optimizer, router, mtp, stage, mask = case
    layers = {} if mtp == "none" else {"mtp": Slot(mtp), "num_nextn_predict_layers": 1}
    changes = {"router": Slot(router), "indexer": Slot("lightning", {"train": stage}), **layers}
    spec = _spec(
        corpus,
        steps=STEPS,
        optimizer=optimizer,
        compress_ratios="csa@4,hca@8,swa",
        num_hidden_layers=3,
        **changes,
    )
    return _every_step(spec, document_mask=mask)


def check(spec: TrialSpec, corpus: Corpus, folder: Path) -> None:
    """Train, and again from every checkpoint."""
    whole = training.train(spec, corpus, folder / "whole", Purse())
    assert whole.outcome == "complete"
    for step in range(1, spec.steps):
        part = folder / f"from {step}"
        name = f"step-{step:09d}"
        shutil.copytree(folder / "whole" / name, part / name)
        purse = Purse()
        done = training.train(spec, corpus, part, purse)
        assert purse.paid == list(range(step, spec.steps))
        assert _facts(done) == _facts(whole)
        assert _files(part, step) == _files(folder / "whole", step)


def _facts(result: TrialResult) -> Any:
    """A result without what a clock says."""
    curve = tuple(dataclasses.replace(point, seconds=0.0) for point in result.curve)
    return dataclasses.replace(result, seconds=0.0, curve=curve)


def _files(folder: Path, step: int) -> dict[str, Any]:
    """Content of the checkpoints after `step` and of the final weights."""
    found: dict[str, Any] = {"weights": (folder / checkpoint.WEIGHTS).read_bytes()}
    for later in range(step + 1, STEPS):
        alone = folder.parent / "alone"
        shutil.copytree(folder / f"step-{later:09d}", alone / f"step-{later:09d}")
        saved, passed_over = checkpoint.load(alone)
        shutil.rmtree(alone)
        assert saved is not None
        assert not passed_over
        assert {name.partition("/")[0] for name in saved.tensors} >= {"model", "rng", "loss"}
        found |= {f"{later} {name}": tensor.numpy().tobytes() for name, tensor in saved.tensors.items()}
        for point in saved.meta["curve"]:
            del point["seconds"]
        found[f"{later}"] = {key: value for key, value in saved.meta.items() if key != "seconds"}
    return found


def _name(case: Case) -> str:
    return "-".join(map(str, case))


@pytest.mark.usefixtures("_all_kept")
@pytest.mark.parametrize("case", covering(), ids=_name)
def test_every_level_of_every_choice_resumes_in_the_same_bits(
    case: Case, corpus: Corpus, tmp_path: Path
) -> None:
    check(_case(corpus, case), corpus, tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("_all_kept")
@pytest.mark.parametrize("case", PRODUCT, ids=_name)
def test_all_choices_together_resume_in_the_same_bits(case: Case, corpus: Corpus, tmp_path: Path) -> None:
    check(_case(corpus, case), corpus, tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("_all_kept")
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry.slot}={entry.name}")
def test_every_entry_resumes_in_the_same_bits(entry: Entry, corpus: Corpus, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"num_hidden_layers": 2, "compress_ratios": "csa@4,swa", "num_hash_layers": 0}
    if issubclass(entry.cls, Attention):
        blocks = "ratio" in entry.cls.default_layer() or "compressor" in entry.cls.uses
        changes["compress_ratios"] = f"{entry.name}@4*2" if blocks else f"{entry.name}*2"
    else:
        changes[entry.slot] = Slot(entry.name)
    if entry.slot == "mtp":
        changes["num_nextn_predict_layers"] = 1
    check(_every_step(_spec(corpus, steps=STEPS, **changes)), corpus, tmp_path)


def test_the_optimizers_keep_state_that_checkpoints_hold(corpus: Corpus, tmp_path: Path) -> None:
    """Else the comparisons above would compare nothing of them."""
    for optimizer in OPTIMIZERS:
        folder = tmp_path / optimizer
        spec = _case(corpus, (optimizer, ROUTERS[0], "none", "sparse", False))
        training.train(dataclasses.replace(spec, steps=2), corpus, folder, Purse())
        saved, _ = checkpoint.load(folder)
        assert saved is not None
        names = {name for name in saved.tensors if name.startswith("optimizer/")}
        assert len(names) >= sum(name.startswith("model/") for name in saved.tensors) / 2, optimizer


@pytest.mark.usefixtures("_all_kept")
def test_random_numbers_that_components_draw_go_on_where_they_were(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer with noise from every generator, as a component with dropout may have it."""
    built, drawn = training.LanguageModel, []

    def noisy(variant: Variant) -> LanguageModel:
        model = built(variant)
        model.norm.register_forward_hook(disturb)
        return model

    def disturb(module: nn.Module, _inputs: Any, out: Tensor) -> Tensor:
        if not module.training:
            return out
        drawn.append([random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn()])
        return out * (1 + 0.01 * (torch.rand(()) + sum(drawn[-1])))

    monkeypatch.setattr(training, "LanguageModel", noisy)
    check(_case(corpus, (OPTIMIZERS[0], ROUTERS[0], "none", "sparse", False)), corpus, tmp_path)
    whole = drawn[:STEPS]
    assert len({tuple(draws) for draws in whole}) == STEPS
    for step in range(1, STEPS):
        rest = drawn[STEPS + sum(STEPS - k for k in range(1, step)) :][: STEPS - step]
        assert rest == whole[step:]


@pytest.fixture(scope="module")
def ended(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrialSpec, TrialResult, Path]:
    """A trial as it is left when nobody settles it: its last two checkpoints are there."""
    spec = _case(corpus, (OPTIMIZERS[0], ROUTERS[0], "none", "sparse", False))
    folder = tmp_path_factory.mktemp("ended")
    result = training.train(spec, corpus, folder, Purse())
    assert sorted(path.name for path in folder.glob("step-*")) == ["step-000000003", "step-000000004"]
    return spec, result, folder


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize(
    "harm",
    [
        lambda newest: _flip(newest / checkpoint.STATE),
        lambda newest: _flip(newest / checkpoint.META),
        lambda newest: _flip(newest / checkpoint.MANIFEST),
        lambda newest: os.truncate(newest / checkpoint.STATE, 1000),
        lambda newest: (newest / checkpoint.MANIFEST).unlink(),
    ],
    ids=["bit of state", "bit of meta", "bit of manifest", "torn state", "no manifest"],
)
def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before_it(
    harm: Callable[[Path], None],
    ended: tuple[TrialSpec, TrialResult, Path],
    corpus: Corpus,
    tmp_path: Path,
) -> None:
    spec, whole, folder = ended
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    (again / checkpoint.WEIGHTS).unlink()
    harm(again / "step-000000004")
    purse = Purse()
    done = training.train(spec, corpus, again, purse)
    assert purse.paid == [3, 4]
    (told,) = purse.told
    assert "step-000000004 is damaged" in told
    assert _facts(done) == _facts(whole)
    assert (again / checkpoint.WEIGHTS).read_bytes() == (folder / checkpoint.WEIGHTS).read_bytes()


def test_with_every_checkpoint_damaged_a_trial_begins_anew(
    ended: tuple[TrialSpec, TrialResult, Path], corpus: Corpus, tmp_path: Path
) -> None:
    spec, whole, folder = ended
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    for path in again.glob(f"step-*/{checkpoint.STATE}"):
        _flip(path)
    purse = Purse()
    assert _facts(training.train(spec, corpus, again, purse)) == _facts(whole)
    assert purse.paid == list(range(STEPS))
    assert len(purse.told) == 2


def test_a_process_that_wakes_up_late_takes_nothing_from_the_one_that_went_on(tmp_path: Path) -> None:
    for step in (20, 30, 40, 25):
        checkpoint.save(tmp_path, checkpoint.Checkpoint(step, {"x": torch.full((3,), float(step))}, {}))
    found, passed_over = checkpoint.load(tmp_path)
    assert found is not None
    assert (found.step, passed_over) == (40, [])


def test_an_attempt_that_is_no_longer_the_current_one_publishes_no_weights(
    corpus: Corpus, tmp_path: Path
) -> None:
    class Late(Purse):
        def durable(self, step: int) -> None:
            if step == STEPS:
                raise Superseded

    spec = _case(corpus, (OPTIMIZERS[0], ROUTERS[0], "none", "sparse", False))
    with pytest.raises(Superseded):
        training.train(spec, corpus, tmp_path, Late())
    assert not (tmp_path / checkpoint.WEIGHTS).exists()
    assert not list(tmp_path.glob(f"{checkpoint.PART}*"))


def test_a_signal_during_the_last_step_ends_a_trial_that_is_complete(
    corpus: Corpus, ended: tuple[TrialSpec, TrialResult, Path], tmp_path: Path
) -> None:
    spec, whole, _ = ended
    before = signal.signal(signal.SIGTERM, lambda *_: None)

    class Signalled(Purse):
        def debit(self, step: int, steps: int) -> None:
            super().debit(step, steps)
            if step == STEPS - 1:
                os.kill(os.getpid(), signal.SIGTERM)

    try:
        assert _facts(training.train(spec, corpus, tmp_path, Signalled())) == _facts(whole)
    finally:
        signal.signal(signal.SIGTERM, before)
