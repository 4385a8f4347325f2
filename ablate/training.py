"""One trial: a variant trained to exactly its allowance, on the tokens of its replicate, and evaluated.

Lightning drives the steps. Payment, evaluation, checkpoints and the learning rate hang on the step number alone,
so a trial that is stopped and resumed computes what an undisturbed one does, bit for bit on a CPU.
"""

import dataclasses
import hashlib
import logging
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ablate import checkpoint, optimization, randomness, schema, stages, staging
from ablate.checkpoint import Checkpoint
from ablate.data import Batch, Source
from ablate.errors import StopTraining
from ablate.evaluation import Evaluation, bits_per_byte, evaluate
from ablate.model import LanguageModel, initialise
from ablate.records import EPOCHS, Meter, Outcome, Point, TrialResult, TrialSpec
from ablate.scores import ACCURACY
from ablate.variant import Variant
from ablate.watch import Watch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.utilities.exceptions import SIGTERMException

_LOOKS = 100
"""Times per trial that the training loss is looked at for divergence."""

_ABOVE_UNIFORM = 0.5
"""Nats above ln(vocabulary) at which a smoothed training loss counts as diverged."""


class Diverged(Exception):
    """The loss is not finite, or far worse than guessing."""


def train(spec: TrialSpec, corpus: Source, workdir: Path, meter: Meter) -> TrialResult:
    """Train one trial, from its newest checkpoint in `workdir` if there is one.

    Checkpoints stay there: until the result is settled, another attempt may need them.

    Args:
        workdir: folder of this trial alone, for checkpoints and final weights.
        meter: is asked before every step; may raise `Superseded`, which passes through.
    """
    _silence()
    run = schema.from_dict(spec.run)
    randomness.seed(spec.seed)
    trial = _Trial(spec, run, corpus)
    driver = _Driver(trial, workdir, meter)
    saved, passed_over = checkpoint.load(workdir)
    for text in passed_over:
        meter.note(text)
    if saved is not None:
        trial.restore(saved)
    outcome, reason = "complete", ""
    try:
        if trial.step < spec.steps:
            # numbers of steps, which no precision or device makes Lightning convert
            _trainer(run, spec.steps - trial.step, driver).fit(trial, range(trial.step, spec.steps))
    except (StopTraining, SIGTERMException):  # Lightning sees the signal first where it comes during a step
        if trial.step < spec.steps:
            driver.save(trial)
            return trial.result("interrupted", None, "asked to stop")
    except Diverged as found:
        outcome, reason = "diverged", str(found)
    result = trial.result(cast(Outcome, outcome), driver.last, reason)
    if outcome == "complete" and _keeps(run, spec):
        checkpoint.publish(
            workdir, trial.model.state_dict(), spec.run, allowed=lambda: meter.durable(spec.steps)
        )
    return result


class _Trial(LightningModule):
    """The model of a trial, and where its training stands."""

    def __init__(self, spec: TrialSpec, run: schema.Run, corpus: Source) -> None:
        super().__init__()
        variant = Variant.from_run(run, run.model.vocab_size)
        self.spec, self.run, self.corpus = spec, run, corpus
        self.model = LanguageModel(variant)
        initialise(self.model, spec.seed)
        self.held = corpus.validation(run.trainer.seq_len, run.data.val_tokens, run.data.document_mask)
        self.watch = Watch(self.model, self.held, spec, run.trainer)
        with self.watch.watching():
            self.model.prepare(lambda: corpus.token_counts(run.trainer.seq_len))
        self.step = 0
        self.seconds = 0.0
        self.tokens_hash = ""
        self.curve: list[Point] = []
        self.smooth = torch.zeros(())  # of the loss, debiased when read
        self.since = torch.zeros(())  # sum of losses since the last point
        self.counted = 0
        self.optimizer: torch.optim.Optimizer | None = None
        self._optimizer_state: tuple[dict[str, Tensor], dict[str, Any]] | None = None
        self._begin: Callable[[], None] | None = lambda: randomness.seed(spec.seed)

    @property
    def uniform(self) -> float:
        """Loss of guessing: the cap of what a trial can be recorded with."""
        return math.log(self.model.variant.dims.vocab_size)

    def batch(self, step: int) -> Batch:
        """Batch number `step`: a function of the seed and that number alone.

        All stages read the same whole sequences one after the other; those with shorter ones read them in pieces.
        """
        settings, stage = self.run.trainer, self.spec.stage(step)
        batch = self.corpus.batch(self.spec.seed, step, settings.batch_size, settings.seq_len)
        return batch.cut(stage.seq_len) if stage else batch

    def training_step(self, step: int) -> Tensor:
        batch = self.batch(step)
        self.tokens_hash = _chain(self.tokens_hash, batch)
        labels, documents = batch.labels, None
        if self.run.data.document_mask:
            labels = self.corpus.without_borders(batch.inputs, labels)
            documents = batch.documents.to(self.device)
        out = self.model(batch.inputs.to(self.device), labels.to(self.device), documents)
        loss = out.loss.detach()
        self.smooth = self.smooth.to(loss.device).mul(0.9).add(loss, alpha=0.1)
        self.since = self.since.to(loss.device) + loss
        self.counted += 1
        total: Tensor = out.loss
        for key, value in out.aux.items():
            if key.startswith("loss/"):
                total = total + value
        return total

    def configure_optimizers(self) -> torch.optim.Optimizer:
        self.optimizer = optimization.build(self.model, self.run.optimizer)
        if self._optimizer_state is not None:
            optimization.load_state(self.optimizer, *self._optimizer_state)
            self._optimizer_state = None
        return self.optimizer

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if gradient_clip_val:
            optimization.clip(optimizer, gradient_clip_val)

    def smoothed_loss(self) -> float:
        """Exponential mean of the training loss over about ten steps."""
        return float(self.smooth) / (1 - 0.9**self.step)

    def begin(self) -> None:
        """Before the first step: what Lightning's own set-up would disturb, such as random numbers that it draws."""
        if self._begin is not None:
            self._begin()
            self._begin = None

    def snapshot(self) -> Checkpoint:
        """Everything that the next step depends on."""
        assert self.optimizer is not None
        optimizer, rest = optimization.state_tensors(self.optimizer)
        random, random_rest = randomness.state(self.device)
        return Checkpoint(
            step=self.step,
            tensors={
                **{f"model/{name}": tensor for name, tensor in _all_tensors(self.model).items()},
                **{f"optimizer/{name}": tensor for name, tensor in optimizer.items()},
                **{f"rng/{name}": tensor for name, tensor in random.items()},
                "loss/smooth": self.smooth,
                "loss/since": self.since,
            },
            meta={
                "fingerprint": self.spec.fingerprint,
                "optimizer": rest,
                "rng": random_rest,
                "precision": self.trainer.precision_plugin.state_dict(),
                "seconds": self.seconds,
                "tokens_hash": self.tokens_hash,
                "counted": self.counted,
                "curve": [vars(point) for point in self.curve],
            },
        )

    def restore(self, saved: Checkpoint) -> None:
        """Go on where `saved` was taken.

        Raises:
            ValueError: it belongs to another trial.
        """
        if saved.meta["fingerprint"] != self.spec.fingerprint:
            raise ValueError(f"the checkpoint at step {saved.step} belongs to another trial")
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in saved.tensors.items():
            kind, _, rest = name.partition("/")
            parts.setdefault(kind, {})[rest] = tensor
        own = _all_tensors(self.model)
        with torch.no_grad():
            for name, tensor in parts["model"].items():
                own[name].copy_(tensor)
        self._optimizer_state = parts.get("optimizer", {}), saved.meta["optimizer"]

        def begin() -> None:
            randomness.restore(parts["rng"], saved.meta["rng"], self.device)
            self.trainer.precision_plugin.load_state_dict(saved.meta["precision"])

        self._begin = begin
        self.smooth, self.since = parts["loss"]["smooth"], parts["loss"]["since"]
        self.step, self.seconds = saved.step, saved.meta["seconds"]
        self.tokens_hash, self.counted = saved.meta["tokens_hash"], saved.meta["counted"]
        self.curve = [Point(**point) for point in saved.meta["curve"]]

    def result(self, outcome: Outcome, last: Evaluation | None, reason: str) -> TrialResult:
        loss: float | None = None
        bpb: float | None = None
        settings = self.run.trainer
        if outcome == "diverged":
            loss = self.uniform
            bpb = bits_per_byte(loss * self.held.counted, self.held)
        elif outcome == "complete":
            assert last is not None
            loss, bpb = last.loss, last.bpb
        return TrialResult(
            outcome=outcome,
            val_loss=loss,
            val_bpb=bpb,
            steps=self.step,
            tokens=self.step * self.run.trainer.seq_len * self.run.trainer.batch_size,
            useful_mflop=self.spec.charge(self.step),
            seconds=self.seconds,
            tokens_hash=self.tokens_hash,
            curve=tuple(self.curve),
            metrics={
                EPOCHS: self.corpus.epochs(self.step, settings.batch_size, settings.seq_len),
                **(last.metrics if last is not None else {}),
                **next((point.diagnostics for point in reversed(self.curve) if point.diagnostics), {}),
            },
            alarms=self.watch.alarms(self.curve),
            reason=reason,
        )


class _Driver(Callback):
    """What happens around every step: payment, learning rate, evaluation, checkpoints, divergence.

    Attributes:
        last: the latest evaluation.
    """

    def __init__(self, trial: _Trial, workdir: Path, meter: Meter) -> None:
        settings = trial.run.trainer
        self._trial, self._workdir, self._meter = trial, workdir, meter
        self._every, self._after = settings.checkpoint_seconds, settings.checkpoint_steps
        self._evaluations = {step for step, _ in trial.spec.evaluations}
        self._look = max(1, trial.spec.steps // _LOOKS)
        self._attention = ""
        self._saved = time.monotonic()
        self._began = 0.0
        self.last: Evaluation | None = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        trial = self._trial
        trial.begin()
        self._meter.debit(trial.step, 1)
        self._began = time.perf_counter()
        self._enter()
        progress = trial.spec.progress(trial.step)
        share = optimization.rate(progress, trial.run.optimizer)
        optimization.set_rate(trainer.optimizers[0], share)
        trial.model.mtp.decaying(optimization.decays(progress, trial.run.optimizer))
        trial.watch.before_step(trial.step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        trial = self._trial
        trial.model.after_step()
        trial.step += 1
        ends = trial.step in self._evaluations
        looks = ends or trial.step % self._look == 0
        smooth = trial.smoothed_loss() if looks else 0.0  # waits for the device, so that the clock is right
        trial.seconds += time.perf_counter() - self._began
        # paid with the step, it is done also where training has just diverged
        found = evaluate(trial.model, trial.held, trainer.precision_plugin.forward_context) if ends else None
        if looks:
            self._refuse_divergence(smooth)
        if found is not None:
            self.last = found
            self._refuse_divergence(self.last.loss)
            seen = trial.watch.after_step(trial.step, trainer.precision_plugin.forward_context)
            trial.curve.append(dataclasses.replace(self._point(trainer, self.last), diagnostics=seen))
            for alarm in trial.watch.alarms(trial.curve):
                if alarm.since == trial.step:
                    self._meter.note(f"alarm {alarm.metric} at step {trial.step}: {alarm.text}")
            trial.since, trial.counted = torch.zeros(()), 0
            self._meter.progress(trial.curve[-1])
        elif trial.step % self._look == 0:
            self._meter.progress(self._point(trainer, None))
        due = self._after and trial.step % self._after == 0
        if (due or time.monotonic() - self._saved >= self._every) and trial.step < trial.spec.steps:
            self.save(trial)

    def _enter(self) -> None:
        """Begin the stage of the step at hand, if another one is on; evaluations are of that stage then too."""
        stage = self._trial.spec.stage(self._trial.step)
        attention = stage.attention if stage else stages.SPARSE
        if attention != self._attention:
            staging.enter(self._trial.model, attention)
            self._attention = attention

    def save(self, trial: _Trial) -> None:
        """Make the present state durable, and say so."""
        checkpoint.save(self._workdir, trial.snapshot())
        self._meter.durable(trial.step)
        self._saved = time.monotonic()

    def _refuse_divergence(self, loss: float) -> None:
        trial = self._trial
        if not math.isfinite(loss):
            raise Diverged(f"loss {loss} at step {trial.step} of {trial.spec.steps}")
        if loss > trial.uniform + _ABOVE_UNIFORM:
            raise Diverged(
                f"loss {loss:.3f} at step {trial.step} of {trial.spec.steps} is above guessing ({trial.uniform:.3f})"
            )

    def _point(self, trainer: Trainer, evaluation: Evaluation | None) -> Point:
        trial = self._trial
        return Point(
            step=trial.step,
            tokens=trial.step * trial.run.trainer.seq_len * trial.run.trainer.batch_size,
            mflop=trial.spec.charge(trial.step),
            seconds=trial.seconds,
            lr=trainer.optimizers[0].param_groups[0]["lr"],
            train_loss=float(trial.since) / trial.counted if trial.counted else None,
            val_loss=evaluation.loss if evaluation else None,
            accuracy=evaluation.metrics.get(ACCURACY) if evaluation else None,
        )


def _trainer(run: schema.Run, steps: int, driver: _Driver) -> Trainer:
    kind, _, index = run.trainer.device.partition(":")
    return Trainer(
        accelerator={"cuda": "gpu"}.get(kind, kind),
        devices=[int(index)] if index else 1,
        precision=cast(Any, run.trainer.precision),
        max_steps=steps,
        gradient_clip_val=run.optimizer.grad_clip or None,
        callbacks=[driver],
        plugins=[LightningEnvironment()],  # never requeues a Slurm job by itself
        barebones=True,
    )


def _all_tensors(model: LanguageModel) -> dict[str, Tensor]:
    """Parameters and every buffer by name, also those that a state dict leaves out."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _chain(before: str, batch: Batch) -> str:
    """Hash of all batches up to this one, from the hash of those before it."""
    digest = hashlib.sha256(before.encode())
    digest.update(batch.inputs.numpy().tobytes())
    digest.update(batch.labels.numpy().tobytes())
    return digest.hexdigest()


def _keeps(run: schema.Run, spec: TrialSpec) -> bool:
    return run.trainer.keep_weights == "all" or run.trainer.keep_weights == spec.phase


def _silence() -> None:
    """A worker's log is for what goes wrong."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
