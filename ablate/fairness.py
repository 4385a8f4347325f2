"""Whether two studies or two models can be compared: what differs beyond the factor, and what that does.

A difference in loss answers a question about a factor only where everything else is equal. What makes losses
incomparable refuses the comparison; what leaves it possible but weaker is a warning. Methodology §A4, §C2.
"""

import dataclasses
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ablate import config, schema, stages, study
from ablate.errors import BadInputError
from ablate.home import Home
from ablate.jsonable import jsonable
from ablate.records import Plan, StudyView
from ablate.variant import Variant

Severity = Literal["refused", "warning"]

_BUDGET = 0.005
"""Relative difference of compute per trial from which it is unequal (methodology §F)."""

_TEXT = "losses on different text are not on one scale"
_DATA = {
    "tokenizer": "nats per token depend on what a token is",
    "vocab_size": "nats per token depend on what a token is",
    "val_fraction": "losses are measured on different documents",
    "val_tokens": "losses are measured on different tokens",
    "document_mask": "one is asked to predict what the other is not",
}
"""What some settings of the data do; any other changes the text."""

_REFUSED = {
    **{
        f"data.{field.name}": _DATA.get(field.name, _TEXT)
        for field in dataclasses.fields(schema.Data)
        if field.name != "name"
    },
    "trainer.seq_len": "longer sequences have more context, and a lower loss for it",
    "budget.match": "one makes equal what the other leaves open",
}
"""Settings without whose equality a difference in loss means nothing."""

_WARNED = {
    "trainer.batch_size": "the number of steps per token differs, and with it the best learning rate",
    "trainer.precision": "rounding is part of the difference",
    "trainer.device": "kernels differ, so seeds are no longer pairs to the last digit",
    "optimizer.grad_clip": "the optimizer's settings are part of the difference",
    "optimizer.warmup": "the learning-rate schedule is part of the difference",
    "optimizer.decay": "the learning-rate schedule is part of the difference",
    "sweep.search.points": "the sides were not tuned with equal compute",
    "sweep.search.extensions": "the sides were not tuned with equal compute",
    "sweep.search.factor": "the learning-rate grids have different steps",
    "optimizer.lr": "the learning-rate grids have different centres",
    "seed": "the sides share no seeds, so that differences are not paired and scatter more",
}
"""Settings whose inequality weakens a comparison."""

_FOLLOWS = ("attention", "compressor", "indexer", "routers")
"""Parts that come and go with the schedule, which is the factor then."""


@dataclass(frozen=True)
class Finding:
    """A difference beyond the factor, and what it does to a comparison."""

    severity: Severity
    key: str
    a: Any
    b: Any
    why: str


@dataclass(frozen=True)
class Comparison:
    """What two sides have in common and what not.

    Attributes:
        factors: what differs in the model or optimizer, which is what a comparison is about, by part.
        findings: what else differs, refusals first.
    """

    a: str
    b: str
    factors: dict[str, dict[str, tuple[Any, Any]]]
    findings: tuple[Finding, ...]

    @property
    def refused(self) -> bool:
        """Whether a difference in loss would mean nothing."""
        return any(finding.severity == "refused" for finding in self.findings)


def compare(a: str, b: str, home: Home) -> Comparison:
    """Compare two studies by name, or two models by overrides.

    Raises:
        BadInputError: no such study, overrides that do not compose, or one side of each kind.
    """
    models = [_is_overrides(side) for side in (a, b)]
    if models[0] != models[1]:
        raise BadInputError(
            f"'{a}' and '{b}' are not of one kind. Allowed: two studies, or two models given by overrides, such "
            "as 'model=tiny residual=mhc' 'model=tiny residual=prenorm'."
        )
    if models[0]:
        first, second = (config.load(shlex.split(side), require_sweep=False) for side in (a, b))
        return models_compared(first, second, (a, b))
    one, other = (study.view(study.find(home, side), home) for side in (a, b))
    return studies_compared(one, other)


def _is_overrides(text: str) -> bool:
    return re.search(r"\w=", text) is not None


def models_compared(a: schema.Run, b: schema.Run, names: tuple[str, str]) -> Comparison:
    """Two configurations, each a model and how it is trained."""
    rows = max(run.model.vocab_size or run.data.vocab_size for run in (a, b))
    variants = [Variant.from_run(run, run.model.vocab_size or rows) for run in (a, b)]
    factors = _factors(variants[0], variants[1], a, b)
    findings = [*_settings(a, b), *_several(factors)]
    return _comparison(*names, factors, findings)


def studies_compared(a: StudyView, b: StudyView) -> Comparison:
    """Two studies: their conditions, and the arms that they have in common by name."""
    plans = a.plan, b.plan
    findings = [*_settings(a.plan.run, b.plan.run), *_plans(*plans), *_environments(a, b)]
    factors: dict[str, dict[str, tuple[Any, Any]]] = {}
    common = [arm.name for arm in a.plan.arms if arm.name in {other.name for other in b.plan.arms}]
    for name in common:
        mine, theirs = a.plan.arm(name), b.plan.arm(name)
        for part, keys in _factors(mine.variant, theirs.variant, mine.run, theirs.run).items():
            factors[f"{name}: {part}"] = keys
    if not common:
        findings.append(Finding("warning", "arms", _names(plans[0]), _names(plans[1]), "no arm is in both"))
    elif plans[0].baseline.variant != plans[1].baseline.variant:
        why = "differences to different baselines do not compare; compare losses on common seeds"
        findings.append(Finding("refused", "baseline", a.plan.baseline.name, b.plan.baseline.name, why))
    return _comparison(a.name, b.name, factors, findings)


def _comparison(a: str, b: str, factors: dict[str, Any], findings: Sequence[Finding]) -> Comparison:
    ordered = sorted(findings, key=lambda finding: finding.severity != "refused")
    return Comparison(a, b, factors, tuple(ordered))


def _factors(a: Variant, b: Variant, run_a: schema.Run, run_b: schema.Run) -> dict[str, dict[str, Any]]:
    """Differences of two models and their optimizers, by the part that they are of."""
    found: dict[str, dict[str, Any]] = {}
    for key, values in a.diff(b).items():
        found.setdefault(key.split(".")[0], {})[key] = values
    if "schedule" in found:
        for part in _FOLLOWS:
            if None in [value for pair in found.get(part, {}).values() for value in pair]:
                found["schedule"] |= found.pop(part)
    optimizers = [{"name": run.optimizer.name, **run.optimizer.args} for run in (run_a, run_b)]
    keys = [*optimizers[0], *(key for key in optimizers[1] if key not in optimizers[0])]
    own = {
        f"optimizer.{key}": (optimizers[0].get(key), optimizers[1].get(key))
        for key in keys
        if optimizers[0].get(key) != optimizers[1].get(key)
    }
    curricula = tuple(stages.text(run.trainer) for run in (run_a, run_b))
    if curricula[0] != curricula[1]:
        found["curriculum"] = {stages.KEY: curricula}
    return found | ({"optimizer": own} if own else {})


def _several(factors: dict[str, Any]) -> Iterator[Finding]:
    if len(factors) > 1:
        parts = ", ".join(factors)
        why = "a difference in loss cannot be put down to any one of them: change one, or cross them in a design"
        yield Finding("warning", "factors", parts, parts, why)
    if not factors:
        yield Finding("warning", "factors", "none", "none", "both sides are the same model and optimizer")


def _settings(a: schema.Run, b: schema.Run) -> Iterator[Finding]:
    tables: dict[Severity, dict[str, str]] = {"refused": _REFUSED, "warning": _WARNED}
    for severity, table in tables.items():
        for key, why in table.items():
            mine, theirs = _get(a, key), _get(b, key)
            if mine != theirs:
                yield Finding(severity, key, mine, theirs, why)


def _get(run: schema.Run, key: str) -> Any:
    value: Any = run
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _plans(a: Plan, b: Plan) -> Iterator[Finding]:
    if a.data_fingerprint != b.data_fingerprint:
        values = (a.data_fingerprint[:16], b.data_fingerprint[:16])
        yield Finding("refused", "data fingerprint", *values, _TEXT)
    if abs(a.trial_mflop - b.trial_mflop) > _BUDGET * max(a.trial_mflop, b.trial_mflop):
        why = "trials had unequal compute, which lowers loss by itself"
        yield Finding("refused", "compute per trial, MFLOP", a.trial_mflop, b.trial_mflop, why)
    if not set(a.confirm_seeds) & set(b.confirm_seeds) and a.run.seed == b.run.seed:
        yield Finding("warning", "confirm seeds", a.confirm_seeds, b.confirm_seeds, _WARNED["seed"])
    for key in ("margin", "alpha"):
        mine, theirs = getattr(a.run.sweep.confirm, key), getattr(b.run.sweep.confirm, key)
        if mine != theirs:
            why = "verdicts of the two were given by different rules"
            yield Finding("warning", f"sweep.confirm.{key}", mine, theirs, why)


def _environments(a: StudyView, b: StudyView) -> Iterator[Finding]:
    for fact in ("git_commit", "torch"):
        values = a.provenance.get(fact), b.provenance.get(fact)
        if values[0] != values[1]:
            why = (
                "other code may train otherwise: repeat one of them, or show that a common trial is the same"
            )
            yield Finding("warning", fact, *values, why)


def _names(plan: Plan) -> str:
    return ", ".join(arm.name for arm in plan.arms)


def answer(found: Comparison) -> dict[str, Any]:
    """A comparison as data."""
    return jsonable(dataclasses.asdict(found) | {"refused": found.refused})
