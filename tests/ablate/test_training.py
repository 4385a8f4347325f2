"""Real training of tiny models: exact allowance, bit-exact repetition and resume, pairing, divergence, checkpoints."""

import collections
import dataclasses
import math
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import variants
from safetensors.torch import load_file

from ablate import checkpoint, curriculum, data, optimization, schema, training
from ablate.data import Corpus
from ablate.errors import StopTraining, Superseded
from ablate.evaluation import Evaluation
from ablate.home import Home
from ablate.records import Point, TrialSpec
from ablate.stages import Staged
from ablate.variant import Variant
from components.router.hash import HashRouter, make_table

STEPS = 12
WORDS = [
    f"{what} {does}"
    for what in ("the layer", "a token", "the stream")
    for does in ("learns", "routes", "mixes")
]


class Purse:
    """A meter that takes note; stops training before `stop_before`, if given."""

    def __init__(self, stop_before: int | None = None, error: type[Exception] = StopTraining) -> None:
        self.paid: list[int] = []
        self.points: list[Point] = []
        self.safe: list[int] = []
        self.told: list[str] = []
        self._stop, self._error = stop_before, error

    def debit(self, step: int, steps: int) -> None:
        if step == self._stop:
            raise self._error
        assert steps == 1
        self.paid.append(step)

    def progress(self, point: Point) -> None:
        self.points.append(point)

    def durable(self, step: int) -> None:
        self.safe.append(step)

    def note(self, text: str) -> None:
        self.told.append(text)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(0)
    lines = (" ".join(rng.choices(WORDS, k=40)) for _ in range(200))
    (folder / "words.txt").write_text("\n".join(lines))
    return data.prepare(_data(folder), Home(folder / "home"))


def _data(folder: Path) -> schema.Data:
    return schema.Data(
        name="words",
        source="text",
        files=[str(folder / "words.txt")],
        tokenizer="bytes",
        val_fraction=0.2,
        val_tokens=512,
    )


def short_documents(folder: Path) -> Corpus:
    """Documents shorter than a sequence, of many lengths."""
    rng = random.Random(0)
    lines = (" ".join(rng.choices(WORDS, k=rng.randint(1, 4)))[: rng.randint(1, 40)] for _ in range(900))
    (folder / "words.txt").write_text("\n".join(lines))
    return data.prepare(_data(folder), Home(folder / "home"))


def _spec(
    corpus: Corpus,
    lr: float = 3e-3,
    seed: int = 3,
    steps: int = STEPS,
    optimizer: str = "adamw",
    evals: int = 3,
    precision: str = "32-true",
    **changes: object,
) -> TrialSpec:
    run = variants.make_run(vocab_size=corpus.vocab_size, **changes)
    run = dataclasses.replace(
        run,
        data=dataclasses.replace(run.data, val_tokens=512),
        optimizer=schema.Optimizer(optimizer, lr=lr),
        trainer=schema.Trainer(
            device="cpu",
            precision=precision,
            seq_len=32,
            batch_size=2,
            evals=evals,
            checkpoint_seconds=1e9,
        ),
    )
    variant = Variant.from_run(run)
    trained = Staged(steps=steps, step_mflop=-(-variant.costs(32).total.train_flops * 2 // 10**6))
    return TrialSpec(
        fingerprint=f"{seed} {lr} {steps} {optimizer} {precision} {changes}",
        arm="v4",
        phase="confirm",
        replicate=0,
        seed=seed,
        lr=lr,
        run=schema.to_dict(run),
        steps=steps,
        step_mflop=trained.step_mflop,
        evaluations=curriculum.evaluations(run, variant, trained),
        data_fingerprint=corpus.fingerprint,
    )


def test_a_trial_spends_its_allowance_exactly_and_learns(corpus: Corpus, tmp_path: Path) -> None:
    spec, purse = _spec(corpus, steps=60), Purse()
    result = training.train(spec, corpus, tmp_path, purse)
    assert result.outcome == "complete"
    assert purse.paid == list(range(60))
    assert result.useful_mflop == spec.allowance_mflop
    assert result.metrics["data/epochs"] * corpus.train_tokens == pytest.approx(result.tokens, rel=0.05)
    assert result.tokens == 60 * 2 * 32
    assert [p.step for p in result.curve] == [20, 40, 60]
    assert result.val_loss is not None
    assert result.val_loss < math.log(corpus.vocab_size) - 0.5
    assert result.curve[-1].val_loss == result.val_loss
    assert result.curve[-1].lr < 0.25 * spec.lr < max(p.lr for p in purse.points)
    assert result.val_bpb == pytest.approx(
        result.val_loss / math.log(2) * 512 / _held_bytes(corpus), rel=1e-9
    )
    assert any(key.endswith("ffn/max_vio") for key in result.metrics)


def _held_bytes(corpus: Corpus) -> int:
    """By definition, for a byte tokenizer: every label but the ends of documents is one byte."""
    held = corpus.validation(32, 512)
    assert held.labels.numel() == 512
    return int((held.labels < 256).sum())


def test_repetition_is_bit_identical(corpus: Corpus, tmp_path: Path) -> None:
    spec = _spec(corpus)
    one = training.train(spec, corpus, tmp_path / "a", Purse())
    torch.rand(7)  # whatever the process did before does not matter
    two = training.train(spec, corpus, tmp_path / "b", Purse())
    assert one.val_loss == two.val_loss
    assert one.tokens_hash == two.tokens_hash
    assert _weights(tmp_path / "a") == _weights(tmp_path / "b")


def test_a_stopped_trial_pays_for_the_rest_alone(corpus: Corpus, tmp_path: Path) -> None:
    spec, purse, rest = _spec(corpus), Purse(stop_before=5), Purse()
    whole = training.train(spec, corpus, tmp_path / "whole", Purse())
    part = training.train(spec, corpus, tmp_path / "parts", purse)
    assert part.outcome == "interrupted"
    assert part.val_loss is None
    assert purse.safe == [5]
    done = training.train(spec, corpus, tmp_path / "parts", rest)
    assert rest.paid == list(range(5, STEPS))
    assert (done.val_loss, done.tokens_hash) == (whole.val_loss, whole.tokens_hash)
    assert _weights(tmp_path / "parts") == _weights(tmp_path / "whole")


@pytest.mark.parametrize("optimizer", ["muon", "lion"])
def test_other_optimizers_learn_and_resume_bit_identically(
    optimizer: str, corpus: Corpus, tmp_path: Path
) -> None:
    spec = _spec(corpus, steps=40, optimizer=optimizer)
    whole = training.train(spec, corpus, tmp_path / "whole", Purse())
    assert whole.val_loss is not None
    assert whole.val_loss < math.log(corpus.vocab_size) - 0.5
    for stop in (1, 17, 39):
        training.train(spec, corpus, tmp_path / "parts", Purse(stop_before=stop))
    done = training.train(spec, corpus, tmp_path / "parts", Purse())
    assert done.val_loss == whole.val_loss
    assert [p.train_loss for p in done.curve] == [p.train_loss for p in whole.curve]
    assert _weights(tmp_path / "parts") == _weights(tmp_path / "whole")


def test_arms_of_a_replicate_see_the_same_tokens_and_share_initial_weights(
    corpus: Corpus, tmp_path: Path
) -> None:
    hashes = {
        training.train(_spec(corpus, compress_ratios=ratios), corpus, tmp_path / name, Purse()).tokens_hash
        for name, ratios in (("dense", "dense*5"), ("csa", "csa@4*5"), ("v4", "swa,csa@4,hca@8,csa@4,swa"))
    }
    other = training.train(_spec(corpus, seed=4), corpus, tmp_path / "other", Purse()).tokens_hash
    assert len(hashes) == 1
    assert other not in hashes


def test_divergence_ends_a_trial_early_with_a_reason(corpus: Corpus, tmp_path: Path) -> None:
    spec, purse = _spec(corpus, lr=1e4, steps=200), Purse()
    result = training.train(spec, corpus, tmp_path, purse)
    assert result.outcome == "diverged"
    assert result.val_loss == math.log(corpus.vocab_size)
    assert len(purse.paid) == result.steps < 200
    assert "step" in result.reason
    assert not list(tmp_path.glob("step-*"))


def test_every_evaluation_that_is_paid_is_done_and_no_other(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paid with the steps that they follow, also with the one at which a trial diverges."""
    done: list[int] = []
    real = training.evaluate

    def counted(*arguments: Any) -> Evaluation:
        done.append(1)
        return real(*arguments)

    monkeypatch.setattr(training, "evaluate", counted)
    spec = _spec(corpus)
    training.train(spec, corpus, tmp_path / "parts", Purse(stop_before=7))
    training.train(spec, corpus, tmp_path / "parts", Purse())
    assert len(done) == len(spec.evaluations) == 3
    done.clear()
    spec = _spec(corpus, lr=1e4, steps=200, evals=100)
    result = training.train(spec, corpus, tmp_path / "diverging", Purse())
    assert result.outcome == "diverged"
    assert result.steps in dict(spec.evaluations)
    assert sum(mflop for _, mflop in spec.evaluations[: len(done)]) == spec.evaluated(result.steps)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_any_precision_trains_on_the_same_tokens_and_resumes_bit_identically(
    precision: str, corpus: Corpus, tmp_path: Path
) -> None:
    spec = _spec(corpus, precision=precision)
    whole = training.train(spec, corpus, tmp_path / "whole", Purse())
    assert whole.outcome == "complete"
    assert whole.val_loss is not None
    assert whole.val_loss < math.log(corpus.vocab_size)
    assert whole.tokens_hash == training.train(_spec(corpus), corpus, tmp_path / "32", Purse()).tokens_hash
    for stop in (1, 7):
        training.train(spec, corpus, tmp_path / "parts", Purse(stop_before=stop))
    done = training.train(spec, corpus, tmp_path / "parts", Purse())
    assert done.val_loss == whole.val_loss
    assert [p.train_loss for p in done.curve] == [p.train_loss for p in whole.curve]
    assert _weights(tmp_path / "parts") == _weights(tmp_path / "whole")


def test_a_superseded_attempt_writes_nothing(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(Superseded):
        training.train(_spec(corpus), corpus, tmp_path, Purse(stop_before=5, error=Superseded))
    assert not list(tmp_path.iterdir())


def test_weights_are_kept_as_configured(corpus: Corpus, tmp_path: Path) -> None:
    spec = _spec(corpus)
    training.train(spec, corpus, tmp_path / "confirm", Purse())
    assert (tmp_path / "confirm" / checkpoint.WEIGHTS).exists()
    training.train(dataclasses.replace(spec, phase="search"), corpus, tmp_path / "search", Purse())
    assert not (tmp_path / "search" / checkpoint.WEIGHTS).exists()


def test_a_checkpoint_of_another_trial_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    training.train(_spec(corpus), corpus, tmp_path, Purse(stop_before=4))
    with pytest.raises(ValueError, match="another trial"):
        training.train(_spec(corpus, seed=9), corpus, tmp_path, Purse())


def test_a_failed_save_leaves_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, checkpoint.Checkpoint(5, {"x": torch.ones(3)}, {}))

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_sync", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path, checkpoint.Checkpoint(9, {"x": torch.zeros(3)}, {}))
    found, _ = checkpoint.load(tmp_path)
    assert found is not None
    assert found.step == 5
    assert not list(tmp_path.glob(".part-*"))


def test_rate_rises_holds_and_falls_to_zero_exactly_at_the_allowance() -> None:
    settings = schema.Optimizer(warmup=0.1, decay=0.2)
    assert optimization.rate(0.05, settings) == pytest.approx(0.5)
    assert optimization.rate(0.1, settings) == optimization.rate(0.8, settings) == 1.0
    assert optimization.rate(0.85, settings) == pytest.approx(0.5)  # 1 - sqrt(1/4)
    assert optimization.rate(1.0, settings) == pytest.approx(0.0, abs=1e-12)
    shares = [optimization.rate(i / 1000, settings) for i in range(1001)]
    peak = shares.index(1.0)
    assert shares[:peak] == sorted(shares[:peak])
    assert shares[peak:] == sorted(shares[peak:], reverse=True)


def _weights(folder: Path) -> bytes:
    return (folder / checkpoint.WEIGHTS).read_bytes()


def test_tables_balanced_by_frequency_know_the_training_text(corpus: Corpus, tmp_path: Path) -> None:
    options = {"kind": "frequency_balanced"}
    training.train(_spec(corpus, router=schema.Slot("hash", options)), corpus, tmp_path, Purse())
    saved = load_file(tmp_path / "model.safetensors")
    counts = collections.Counter(corpus.train.tolist())
    tokens = torch.tensor([counts[token] for token in range(corpus.vocab_size)])
    for layer in range(5):
        wanted = make_table(HashRouter.Config(**options), (corpus.vocab_size, 2), 4, layer, tokens)
        assert torch.equal(saved[f"layers.{layer}.ffn.router.tid2eid"], wanted)


def test_a_signal_during_a_step_stops_after_it(corpus: Corpus, tmp_path: Path) -> None:
    """Lightning's own handler runs between our steps; the trial must end as one that was asked to stop."""
    spec, heard = _spec(corpus), []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: heard.append(number))

    class Signalled(Purse):
        def debit(self, step: int, steps: int) -> None:
            super().debit(step, steps)
            if step == 4 and not heard:
                os.kill(os.getpid(), signal.SIGTERM)

    try:
        part = training.train(spec, corpus, tmp_path, Signalled())
        assert heard == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (part.outcome, part.steps) == ("interrupted", 5)
    rest = Purse()
    assert training.train(spec, corpus, tmp_path, rest).outcome == "complete"
    assert rest.paid == list(range(5, STEPS))
