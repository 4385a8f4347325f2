"""`ablate bench`: what it says of a step is what the step did."""

import dataclasses
import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner
from variants import make_run

from ablate import bench, shares
from ablate.cli import app
from ablate.errors import BadInputError
from ablate.schema import Launcher, Optimizer, Run, Slot, Trainer
from ablate.speed import Machine, Row, matmul_rate, measure, peak_bytes
from ablate.variant import Variant
from components import native

SMALL = ["model.hidden_size=32", "data.vocab_size=300", "trainer.seq_len=64", "trainer.batch_size=1"]


def small_run(**changes) -> Run:
    run = make_run(**changes)
    trainer = Trainer(device="cpu", seq_len=48, batch_size=2)
    return dataclasses.replace(run, trainer=trainer, launcher=Launcher("local"), optimizer=Optimizer("adamw"))


def test_shares_by_a_clock_that_counts_flops_are_those_of_the_cost_contract() -> None:
    run = small_run()
    one = bench.subject("one", run, Machine.of(run))
    one.step()
    with native.switched_off(), FlopCounterMode(display=False) as counter:
        found = shares.of_step(one.model, one.forward, one.update, counter.get_total_flops)
    rows = Variant.from_run(run).costs(run.trainer.seq_len).rows
    expected = {label: cost for label, _, cost in rows if cost.kernel_flops}
    expected[shares.REST] = expected.pop("head")
    batch = run.trainer.batch_size
    counted = {label: share.forward for label, share in found.items() if share.forward}
    assert counted == {label: cost.kernel_flops * batch for label, cost in expected.items()}
    for label, cost in expected.items():
        if not label.startswith("indexer/"):
            assert found[label].backward == 2 * cost.kernel_flops * batch, label
    assert sum(share.seconds for share in found.values()) == counter.get_total_flops()


def test_watching_leaves_the_model_as_it_was() -> None:
    run = small_run()
    one = bench.subject("one", run, Machine.of(run))
    before = [dict(vars(module)) for module in one.model.modules()]
    shares.of_step(one.model, one.forward, lambda: None)
    assert [vars(module).keys() for module in one.model.modules()] == [own.keys() for own in before]


def test_peak_is_what_was_held_at_once() -> None:
    def step() -> None:
        first = torch.empty(1000)
        del first
        second, third = torch.empty(3000), torch.empty(500)
        del second, third

    assert peak_bytes(step, torch.device("cpu")) == 14000


def test_resting_bytes_are_parameters_buffers_and_both_moments() -> None:
    run = small_run(indexer=Slot("lightning", {"train": "none"}))
    one = bench.subject("one", run, Machine.of(run))
    parameters = list(one.model.parameters())
    buffers = sum(b.numel() * b.element_size() for b in one.model.buffers())
    one.step()
    trained = [p for p in parameters if p in one.optimizer.state]
    assert 0 < len(trained) < len(parameters)  # an indexer that nothing trains has no moments
    moments = sum(4 * (2 * p.numel() + 1) for p in trained)
    assert one.resting_bytes == sum(4 * p.numel() for p in parameters) + buffers + moments


def test_rates_follow_from_the_times() -> None:
    run = small_run()
    machine = Machine.of(run)
    both = [bench.subject(name, run, machine) for name in ("one", "two")]
    rows, rate = measure(both, machine, rounds=1)
    assert rows[0].ratio == 1
    for row in rows:
        assert row.tokens == 96
        assert row.flops == Variant.from_run(run).costs(48).total.train_flops * 2
        assert row.tokens_per_second == pytest.approx(row.tokens / row.seconds)
        assert row.matmul_share == pytest.approx(row.flops / row.seconds / rate)
        assert 0.2 < row.ratio < 5
    assert matmul_rate(machine) > 1e9


def test_transformers_subject_has_the_same_loss_from_the_same_weights() -> None:
    # no csa: of entries that score equally each implementation may choose others
    router = Slot("learned", {"balance_loss_alpha": 0.0})
    run = small_run(compress_ratios="swa,hca@8*3,swa", router=router)
    machine = Machine.of(run)
    ours = bench.subject("ours", run, machine)
    theirs = bench.transformers(ours, run, machine)
    before = ours.forward().item()
    assert before == pytest.approx(theirs.forward().item(), abs=1e-5)
    ours.step()
    theirs.step()
    assert ours.forward().item() == pytest.approx(theirs.forward().item(), abs=1e-3)
    assert ours.forward().item() < before - 0.1


def test_command_measures_every_arm_and_every_model() -> None:
    answer = CliRunner().invoke(
        app, ["bench", *SMALL, "--arms", "sweep=residual", "--rounds", "1", "--json"], catch_exceptions=False
    )
    report = json.loads(answer.stdout)
    assert [row["name"] for row in report["rows"]][:2] == ["prenorm", "hyper_connections"]
    assert all(row["peak_bytes"] > 0 and row["components"] for row in report["rows"])
    answer = CliRunner().invoke(
        app, ["bench", "model=micro", "model=tiny", *SMALL, "--rounds", "1"], catch_exceptions=False
    )
    assert "micro" in answer.stdout
    assert "tiny" in answer.stdout
    assert "residual/mhc" in answer.stdout


def test_names_stay_in_one_piece_however_many_variants_there_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    components = {"embedding, head, loss": shares.Share(1.0, 2.0), "residual/mhc": shares.Share(0.4, 0.6)}
    names = [f"without_{letter * 7}" for letter in "abcdefghijkl"]
    rows = [
        Row(name, 256, 10**9, 0.06, 0.05, 1.0, 4e3, 14e9, 0.1, 2**20, 2**20, components) for name in names
    ]
    settings = {
        "batch_size": 1,
        "seq_len": 256,
        "precision": "32-true",
        "device": "cpu",
        "threads": 1,
        "rounds": 1,
        "clock": "process",
        "matmul_flops_per_second": 1e11,
    }
    bench.show(bench.Report(tuple(rows), settings))
    text = capsys.readouterr().out
    assert all(len(line.rstrip()) <= 80 for line in text.splitlines())
    speeds, *parts = text.split("share of a step")
    assert all(name in speeds and sum(name in part for part in parts) == 1 for name in names)
    assert text.count("75.0%") == text.count("25.0%") == len(names)


def test_what_there_is_nothing_to_measure_against_is_refused() -> None:
    with pytest.raises(BadInputError, match="Allowed: transformers"):
        bench.bench([], against="llama")
    with pytest.raises(BadInputError, match="--rounds 0"):
        bench.bench([], rounds=0)
