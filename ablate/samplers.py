"""The Optuna side of an open search: asked and told by whoever holds the scheduler's lock, and by nobody else.

A fresh sampler per proposal, seeded by study and number. Random and brute-force proposals are drawn here and enqueued,
so that Optuna's record holds every proposal, whoever made it. Methodology §B2.
"""

import hashlib
import math
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import Trial, TrialState, create_trial

from ablate import faults, search
from ablate.parameters import Parameter, every
from ablate.schema import Search
from ablate.space import Draw, Space

RANDOM, BRUTE_FORCE = "random", "brute_force"

STUCK = 8
"""Proposals in a row that are no new model, after which the next is drawn at random."""


@dataclass(frozen=True)
class Heard:
    """What Optuna is told of a proposal.

    Attributes:
        values: one per objective; empty where the proposal came to none.
        violations: of constraints, above zero where violated; a proposal that was not trained for one of them is
            told as pruned, which samplers that know constraints learn from.
    """

    number: int
    values: tuple[float, ...]
    violations: dict[str, float] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)


def sampler(name: str, seed: int, startup: int, trials: int) -> BaseSampler:
    """An Optuna sampler.

    Args:
        startup: proposals that a model-based sampler draws at random before it begins.
        trials: proposals in all, which sets the size of a population.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name == "tpe":
            return optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=startup, multivariate=True, group=True, constant_liar=True
            )
        if name == "gp":
            return optuna.samplers.GPSampler(
                seed=seed, n_startup_trials=startup, deterministic_objective=False
            )
        if name == "nsga2":
            return optuna.samplers.NSGAIISampler(seed=seed, population_size=max(4, min(50, trials // 5)))
        if name == "cmaes":
            return optuna.samplers.CmaEsSampler(
                seed=seed, n_startup_trials=startup, warn_independent_sampling=False
            )
        if name == "qmc":
            return optuna.samplers.QMCSampler(
                seed=seed, scramble=True, warn_independent_sampling=False, warn_asynchronous_seeding=False
            )
        return optuna.samplers.RandomSampler(seed=seed)


def startup(dimensions: int, trials: int) -> int:
    """Random proposals before a model is used: twice the dimensions, within 5 and a quarter of all (at most 20)."""
    return max(5, min(20, trials // 4, 2 * dimensions))


def proposer_of(settings: Search, number: int, barren: int) -> str:
    """Who makes a proposal: the sampler, or chance for the control's share and where the sampler is stuck.

    Args:
        number: of the proposal. barren: proposals just before it that were no new model.
    """
    share, name = settings.control, settings.sampler
    if math.floor((number + 1) * share) > math.floor(number * share):
        return RANDOM
    return RANDOM if name != BRUTE_FORCE and barren >= STUCK else name


class Proposer:
    """Optuna's study of an open search. Open it under the scheduler's lock only; opening creates it if need be.

    Args:
        name: of the Optuna study. fingerprint: of the plan, which seeds samplers.
        earlier: parameters of proposals and what was heard of them, which a warm start begins with.
    """

    def __init__(
        self,
        storage: BaseStorage,
        name: str,
        space: Space,
        settings: Search,
        fingerprint: str,
        earlier: Sequence[tuple[Mapping[str, Any], Heard]] = (),
    ):
        self._space, self._settings, self._fingerprint = space, settings, fingerprint
        self._startup = startup(len(space.names()), settings.trials)
        self._study = optuna.create_study(
            storage=storage,
            study_name=name,
            directions=[StudyDirection.MINIMIZE] * len(settings.objectives),
            sampler=optuna.samplers.RandomSampler(seed=0),
            load_if_exists=True,
        )
        if not self._study.user_attrs:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # metric names are marked experimental
                self._study.set_metric_names(["val_loss", *settings.objectives[1:]])
            for params, heard in earlier:
                self.add(params, heard)
            self._study.set_user_attr("fingerprint", fingerprint)  # last: marks the study as complete

    def ask(self, number: int, by: str) -> tuple[int, Draw]:
        """A proposal and Optuna's number of it.

        Args:
            number: of the proposal in the study, which seeds the sampler. by: the sampler.
        """
        # a quasi-random sequence is one, whoever asks for its points
        seed = self._seed(by if by == "qmc" else f"{by} {number}")
        if by in (RANDOM, BRUTE_FORCE):
            draw = self._drawn(by, seed)
            self._study.enqueue_trial(draw.params, user_attrs={"by": by, "proposal": number})
        else:
            self._study.sampler = sampler(by, seed, self._startup, self._settings.trials)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = self._study.ask()
            draw = self._space.draw(lambda parameter: suggest(trial, parameter))
        faults.point("propose.post")
        return trial.number, draw

    def tell(self, heard: Heard) -> None:
        """Record what became of a proposal. What is told already stays as it is."""
        live = search.untold(self._study, heard.number, heard.attributes)
        if live is None:
            return
        for key, value in heard.violations.items():
            live.set_constraint(key, value)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if heard.values:
                self._study.tell(heard.number, list(heard.values))
            else:
                self._study.tell(heard.number, state=_without_value(heard))

    def add(self, params: Mapping[str, Any], heard: Heard | None) -> int:
        """Enter a proposal of another time or study; returns its number. None is one that has not ended."""
        _, asked = self._space.again(params)
        ended = TrialState.COMPLETE if heard and heard.values else heard and _without_value(heard)
        self._study.add_trial(
            create_trial(
                state=ended or TrialState.RUNNING,
                params={name: params[name] for name in asked},
                distributions={name: distribution(parameter) for name, parameter in asked.items()},
                values=list(heard.values) if heard and heard.values else None,
                user_attrs=heard.attributes if heard else {},
                constraints=heard.violations if heard else None,
            )
        )
        return max(search.trials(self._study))

    def reconcile(self, known: set[int]) -> set[int]:
        """As `search.reconcile`."""
        return search.reconcile(self._study, known)

    def _drawn(self, by: str, seed: int) -> Draw:
        if by == RANDOM:
            rng = random.Random(seed)
            return self._space.draw(lambda parameter: parameter.random(rng))
        points = list(every(self._space.draw))
        random.Random(self._seed(by)).shuffle(points)  # the same order whoever asks
        tried = [
            trial.params for trial in search.trials(self._study).values() if trial.state != TrialState.FAIL
        ]
        return next((point for point in points if point.params not in tried), points[0])

    def _seed(self, text: str) -> int:
        return int(hashlib.sha256(f"{self._fingerprint} {text}".encode()).hexdigest()[:8], 16)


def _without_value(heard: Heard) -> TrialState:
    violated = any(value > 0 for value in heard.violations.values())
    return TrialState.PRUNED if violated else TrialState.FAIL


def suggest(trial: Trial, parameter: Parameter) -> Any:
    """A value from Optuna's sampler."""
    if parameter.choices:
        return trial.suggest_categorical(parameter.name, parameter.choices)
    if parameter.integer:
        return trial.suggest_int(parameter.name, int(parameter.low), int(parameter.high), log=parameter.log)
    return trial.suggest_float(parameter.name, parameter.low, parameter.high, log=parameter.log)


def distribution(parameter: Parameter) -> BaseDistribution:
    """Optuna's distribution of a parameter."""
    if parameter.choices:
        return CategoricalDistribution(parameter.choices)
    if parameter.integer:
        return IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log)
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log)
