"""Probes in place of text: how they are chosen, what trials on them learn from and are judged by, what is refused."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
import variants
from safetensors.torch import load_file
from test_training import Purse

from ablate import config, curriculum, data, planning, schema, training
from ablate.data import Generated
from ablate.errors import BadInputError
from ablate.home import Home
from ablate.model import LanguageModel
from ablate.records import TrialSpec
from ablate.scores import ACCURACY
from ablate.stages import Staged
from ablate.trials import spec_for
from ablate.variant import Variant
from components.spec import LEFT_OUT

MQAR = ["sweep=smoke", "data=probe/mqar", "trainer.device=cpu"]
SETTINGS = schema.Data(
    name="probe/mqar",
    source="probe/mqar",
    args={"pairs": 4, "power": 0.01, "phases": 4},
    vocab_size=24,
    val_tokens=640,
)


@pytest.fixture
def probe(tmp_path: Path) -> Generated:
    found = data.prepare(SETTINGS, Home(tmp_path))
    assert isinstance(found, Generated)
    return found


def _spec(steps: int = 6, schedule: str = "swa,csa@4,hca@8,csa@4,swa", **changes: object) -> TrialSpec:
    run = variants.make_run(vocab_size=24, compress_ratios=schedule, **changes)
    run = dataclasses.replace(
        run,
        data=SETTINGS,
        optimizer=schema.Optimizer("adamw"),
        trainer=schema.Trainer(device="cpu", seq_len=32, batch_size=4, evals=3, checkpoint_seconds=1e9),
    )
    evaluations = curriculum.evaluations(run, Variant.from_run(run), Staged(steps=steps, step_mflop=1))
    return TrialSpec(
        fingerprint=f"{steps} {schedule}",
        arm="v4",
        phase="confirm",
        replicate=0,
        seed=3,
        lr=3e-3,
        run=schema.to_dict(run),
        steps=steps,
        step_mflop=1,
        evaluations=evaluations,
        data_fingerprint="",
    )


# ------------------------------------------------------------------------ configuration


def test_a_probe_is_a_choice_of_data_that_brings_its_options() -> None:
    run = config.load([*MQAR, "data.args.pairs=8"])
    assert run.data.name == run.data.source == "probe/mqar"
    assert run.data.args == {"pairs": 8, "power": 0.01, "phases": 16}
    assert config.load(["sweep=smoke", "data.source=probe/mqar"]).data.args["pairs"] == 4
    assert config.load([*MQAR, "data.source=probe/span_copy"]).data.args == {"span": 8, "distance": 32}
    assert config.load([*MQAR, "data.source=stdlib"]).data.args == {}
    assert config.restore(config.snapshot(run)) == run
    assert "probe/mqar" in config.options("data")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data=probe/mqr"], "data=probe/mqr.*Did you mean 'probe/mqar'"),
        (["data.source=probe/mqr"], "data.source=probe/mqr.*Did you mean 'mqar'"),
        (["data.args.pairs=3"], "data.args.pairs=3 has no effect with data.source=stdlib"),
        (["data=probe/mqar", "data.args.pair=3"], "Did you mean 'data.args.pairs'"),
        (["data=probe/mqar", "data.args.pairs=few"], "data.args.pairs=few has the wrong type"),
        (["data=probe/mqar", "data.args.pairs=0"], "pairs=0 must be at least 1"),
    ],
)
def test_a_mistake_is_named_when_it_is_typed(overrides: list[str], said: str) -> None:
    with pytest.raises(BadInputError, match=said):
        config.load(["sweep=smoke", *overrides])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.args.pairs=30"], "data.source=probe/mqar: trainer.seq_len=64 .* at least 135"),
        (["data.vocab_size=9"], "data.vocab_size=9 .* at least 10"),
        (["trainer.curriculum=[{share: 0.5, seq_len: 32}, {share: 0.5}]"], "seq_len: 32.* cut questions"),
    ],
)
def test_what_a_probe_does_not_fit_is_refused_in_the_plan(
    overrides: list[str], said: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInputError, match=said):
        planning.make_plan(config.load([*MQAR, *overrides]), Home(tmp_path))


def test_too_few_tokens_for_a_bpe_are_refused_too(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"data.vocab_size=256 .* at least 257"):
        planning.make_plan(config.load(["sweep=smoke", "data.vocab_size=256"]), Home(tmp_path))


def test_what_decides_the_sequences_decides_trials_and_nothing_is_written(tmp_path: Path) -> None:
    """Each change alone gives other fingerprints; text has no options that could."""

    run = config.load(MQAR)

    def planned(*overrides: str) -> tuple[str, str]:
        plan = planning.make_plan(config.changed(run, overrides), Home(tmp_path))
        return plan.study, spec_for(plan, plan.arms[0], "search", 0, 0, 1e-3).fingerprint

    changes = [
        "seed=0",
        "data.args.pairs=2",
        "data.args.phases=1",
        "data.vocab_size=32",
        "data.val_tokens=128",
    ]
    found = [planned(change) for change in changes]
    assert len({study for study, _ in found}) == len({trial for _, trial in found}) == len(changes)
    assert found[0] == planned()
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------ training


def test_arms_of_a_replicate_see_the_same_sequences_and_no_held_out_one(
    probe: Generated, tmp_path: Path
) -> None:
    results = [
        training.train(_spec(schedule=schedule), probe, tmp_path / str(i), Purse())
        for i, schedule in enumerate(("swa*5", "hca@8*5"))
    ]
    assert results[0].tokens_hash == results[1].tokens_hash != ""
    assert results[0].val_loss != results[1].val_loss
    seen = {tuple(row) for step in range(6) for row in probe.batch(3, step, 4, 32).inputs.tolist()}
    held = {tuple(row) for row in probe.validation(32, 640).inputs.tolist()}
    assert len(seen) == 24
    assert len(held) == 20
    assert not seen & held


def test_rows_do_not_depend_on_the_batch_size(probe: Generated) -> None:
    one = torch.cat([probe.batch(5, step, 2, 32).inputs for step in range(6)])
    other = torch.cat([probe.batch(5, step, 4, 32).inputs for step in range(3)])
    assert torch.equal(one, other)


def test_a_resumed_trial_is_the_undisturbed_one(probe: Generated, tmp_path: Path) -> None:
    whole = training.train(_spec(), probe, tmp_path / "whole", Purse())
    assert training.train(_spec(), probe, tmp_path / "parts", Purse(stop_before=4)).outcome == "interrupted"
    parts = training.train(_spec(), probe, tmp_path / "parts", Purse())
    assert dataclasses.replace(parts, seconds=0.0, curve=()) == dataclasses.replace(
        whole, seconds=0.0, curve=()
    )
    assert [p.accuracy for p in parts.curve] == [p.accuracy for p in whole.curve]
    assert all(p.accuracy is not None for p in whole.curve)


def test_loss_and_accuracy_are_those_of_the_questions_alone(probe: Generated, tmp_path: Path) -> None:
    """Against a count over single positions."""
    spec = _spec()
    result = training.train(spec, probe, tmp_path, Purse())
    run = schema.from_dict(spec.run)
    model = LanguageModel(Variant.from_run(run, 24)).eval()
    model.load_state_dict(load_file(tmp_path / "model.safetensors"))
    held = probe.validation(32, 640)
    with torch.no_grad():
        logits = model(held.inputs).logits.double()
    nats, right, by_reach = [], [], dict[int, list[bool]]()
    assert held.distances is not None
    for row, labels, distances in zip(logits, held.labels.tolist(), held.distances.tolist(), strict=True):
        for scores, label, distance in zip(row, labels, distances, strict=True):
            if label != LEFT_OUT:
                nats.append(float(scores.logsumexp(0) - scores[label]))
                right.append(int(scores.argmax()) == label)
                reach = next(far for far in (1, 2, 4, 8, 16, 32) if distance <= far)
                by_reach.setdefault(reach, []).append(right[-1])
    assert len(nats) == 4 * 20
    assert result.val_loss == pytest.approx(sum(nats) / len(nats), rel=1e-5)
    found = {key: value for key, value in result.metrics.items() if key.startswith(ACCURACY)}
    expected = {f"{ACCURACY}/{far}": sum(hits) / len(hits) for far, hits in by_reach.items()}
    assert found == pytest.approx({ACCURACY: sum(right) / len(right), **expected})
    assert len(expected) > 2
    assert result.val_bpb is None


def test_only_questions_teach(probe: Generated) -> None:
    """The first loss is that of the labelled positions of the first batch."""
    model = LanguageModel(variants.make_variant(vocab_size=24, compress_ratios="swa*5"))
    batch = probe.batch(3, 0, 4, 32)
    out = model(batch.inputs, batch.labels)
    counted = batch.labels != LEFT_OUT
    nats = -out.logits.log_softmax(-1)[counted].gather(1, batch.labels[counted].unsqueeze(1))
    assert int(counted.sum()) == 4 * 4
    torch.testing.assert_close(out.loss, nats.mean())


def test_a_trial_that_diverges_counts_as_a_guess(probe: Generated, tmp_path: Path) -> None:
    spec = _spec(steps=40)
    spec.run["optimizer"]["lr"], spec.run["optimizer"]["grad_clip"] = 1e4, 0.0
    result = training.train(spec, probe, tmp_path, Purse())
    assert result.outcome == "diverged"
    assert result.val_loss == math.log(24)
    assert result.val_bpb is None


def test_hash_routers_learn_how_often_tokens_of_a_probe_occur(probe: Generated) -> None:
    counts = probe.token_counts(32)
    assert counts.shape == (24,)
    assert int(counts.sum()) == 32 * 1024
    assert int(counts.argmax()) == 0  # fillers
