"""When a trial's model is asked for diagnostics, and which alarms they raise."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from ablate import alarms, diagnosis, schema
from ablate.data import Validation
from ablate.model import LanguageModel
from ablate.raised_alarm import RaisedAlarm
from ablate.records import Point
from ablate.specs import TrialSpec
from components.watching import watching


class Watch:
    """The diagnostics of one trial, by the numbers of its steps alone, so that a resumed one has the same.

    Where nothing is watched (`trainer.watch_tokens=0`) it does nothing.
    """

    def __init__(
        self, model: LanguageModel, held: Validation, spec: TrialSpec, trainer: schema.Trainer
    ) -> None:
        self._model, self._held, self._spec = model, held, spec
        self._rows = diagnosis.watched_rows(trainer, len(held.inputs))
        evaluations = [step for step, _ in spec.evaluations]
        self._steps = {
            step
            for i, step in enumerate(evaluations, start=1)
            if diagnosis.is_due(trainer, i, len(evaluations))
        }
        self._rules = alarms.rules(model)
        self._before: diagnosis.Weights = {}

    def watching(self) -> AbstractContextManager[None]:
        """For what components work out once, such as tables that depend on the text."""
        return watching(self._model) if self._rows else nullcontext()

    def before_step(self, step: int) -> None:
        """Keep the weights, where diagnostics follow this step."""
        if step + 1 in self._steps:
            self._before = diagnosis.weights(self._model)

    def after_step(self, steps: int, context: Callable[[], AbstractContextManager[None]]) -> dict[str, float]:
        """Diagnostics after so many steps; none where they are not due."""
        if steps not in self._steps:
            return {}
        told = self._model, self._held, self._rows, context
        found = diagnosis.diagnose(*told) | diagnosis.update_ratios(self._model, self._before)
        self._before = {}
        if steps == self._spec.steps:
            found |= diagnosis.effective_context(*told)
        return found

    def alarms(self, curve: Sequence[Point]) -> tuple[RaisedAlarm, ...]:
        """What the diagnostics of a curve say to be broken."""
        return alarms.judge(curve, self._rules, self._spec.mflop)
