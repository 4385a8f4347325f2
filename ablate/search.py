"""The Optuna side of a study: asked and told by whoever holds the scheduler's lock, and by nobody else.

Optuna is the record of the search that its dashboard and samplers read. The rates come from
`ablate.rounds`; each is enqueued, then asked for, so the history in Optuna is the history of the study.
"""

import math
import warnings
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import inspect
from sqlalchemy.exc import OperationalError

from ablate import faults, storage
from ablate.home import Home
from ablate.records import Plan
from ablate.rounds import Slot

METRIC = "val_loss"


@dataclass(frozen=True)
class Told:
    """An ended trial as Optuna is told it. `value` is None where it failed."""

    number: int
    value: float | None
    diverged: bool
    attributes: dict[str, Any]


def exists(home: Home) -> bool:
    """Whether any study of a home has asked Optuna for anything; asking makes nothing."""
    if not home.storage:
        return home.optuna.exists()
    engine = storage.engine(storage.url(home, home.optuna))
    found = inspect(engine).has_table("studies")
    engine.dispose()
    return found


def open_storage(home: Home, look_only: bool = False) -> RDBStorage:
    """Optuna's storage of a home, made on first use.

    Args:
        look_only: it is there, and its connections cannot change it.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    address = storage.url(home, home.optuna)
    options: dict[str, Any] = {"connect_args": storage.arguments(address)}
    if home.storage:
        options |= {"pool_pre_ping": True, "pool_size": 1}
    try:
        with (
            nullcontext() if look_only else storage.exclusive(home, "optuna")
        ):  # two studies may be the first
            opened = RDBStorage(
                address.render_as_string(),
                engine_kwargs=options,
                skip_compatibility_check=look_only,
                skip_table_creation=look_only,
            )
    except OperationalError as error:  # the hooks that tell a lost server apart come after this
        if not home.storage:
            raise
        raise storage.StorageError(f"storage={home.storage}: {error.orig}") from error
    (storage.look_only if look_only else storage.harden)(opened.engine)
    opened.engine.dispose()  # connections from before the hooks
    return opened


class Search:
    """One study's search. Open it under the scheduler's lock only; opening creates it if need be."""

    def __init__(self, home: Home, plan: Plan):
        self._storage = open_storage(home)
        self._study = optuna.create_study(
            storage=self._storage,
            study_name=plan.study,
            direction="minimize",
            sampler=optuna.samplers.RandomSampler(seed=0),  # never asked: every parameter is enqueued
            load_if_exists=True,
        )
        if not self._study.user_attrs:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # metric names are marked experimental
                self._study.set_metric_names([METRIC])
            self._study.set_user_attr("question", plan.question)
            self._study.set_user_attr("fingerprint", plan.fingerprint)
        reach = plan.run.sweep.search.factor ** (plan.run.sweep.search.extensions + 1)
        self._space: dict[str, BaseDistribution] = {
            "arm": CategoricalDistribution([arm.name for arm in plan.arms]),
            "lr": FloatDistribution(min(plan.lr_grid) / reach, max(plan.lr_grid) * reach, log=True),
        }

    def close(self) -> None:
        """Let go of the storage."""
        self._storage.engine.dispose()

    def ask(self, slot: Slot) -> int:
        """Make Optuna's trial for a slot; returns its number."""
        self._study.enqueue_trial(
            {"arm": slot.arm, "lr": slot.lr}, user_attrs={"slot": slot.key, "seed": slot.seed}
        )
        while True:
            trial = self._study.ask(self._space)
            faults.point("ask.post")
            if trial.user_attrs.get("slot") == slot.key:
                return trial.number
            self._study.tell(trial.number, state=TrialState.FAIL)  # enqueued by a process that then died

    def tell(self, told: Told) -> None:
        """Record how a trial ended. What is told already stays as it is."""
        live = untold(self._study, told.number, told.attributes)
        if live is None:
            return
        if told.value is None or not math.isfinite(told.value):
            self._study.tell(told.number, state=TrialState.FAIL)
            return
        live.set_constraint("diverged", 1.0 if told.diverged else 0.0)
        self._study.tell(told.number, told.value)

    def reconcile(self, known: Iterable[int]) -> set[int]:
        """As the function of that name."""
        return reconcile(self._study, known, self._space)


def trials(study: optuna.Study) -> dict[int, FrozenTrial]:
    """All trials by their numbers."""
    return {trial.number: trial for trial in study.get_trials(deepcopy=False)}


def untold(study: optuna.Study, number: int, attributes: Mapping[str, Any]) -> optuna.trial.Trial | None:
    """A trial that is still to be told, its attributes set; None where it is told already, and stays as it is."""
    frozen = trials(study)[number]
    if frozen.state.is_finished():
        return None
    live = optuna.trial.Trial(study, frozen._trial_id)
    for key, value in attributes.items():
        live.set_user_attr(key, value)
    return live


def reconcile(
    study: optuna.Study, known: Iterable[int], space: dict[str, BaseDistribution] | None = None
) -> set[int]:
    """Repair what a crash left; returns the numbers that Optuna has no trial for.

    Args:
        known: Optuna's numbers of the trials that the study database has. Any other unfinished one is an orphan
            of a scheduler that died between asking and recording: it is told as failed.
        space: what the study asks for, where that is fixed.
    """
    wanted = set(known)
    while any(trial.state == TrialState.WAITING for trial in trials(study).values()):
        study.tell(study.ask(space).number, state=TrialState.FAIL)
    found = trials(study)
    for trial in found.values():
        if trial.state == TrialState.RUNNING and trial.number not in wanted:
            study.tell(trial.number, state=TrialState.FAIL)
    return wanted - found.keys()
