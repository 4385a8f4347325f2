"""Diagnostics leave training as it is; each planted fault raises its alarm in the report, a healthy run none."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import report_pages
import study_views
import torch
import variants

from ablate import console, curriculum, data, diagnosis, report, schema, stored, training
from ablate.data import Corpus
from ablate.home import Home
from ablate.model import Block, LanguageModel, initialise
from ablate.raised_alarm import RaisedAlarm
from ablate.records import Point, StudyView, TrialResult
from ablate.specs import TrialSpec
from ablate.stages import Staged
from ablate.variant import Variant
from components.slots import Component
from components.watching import watching
from dashboards import pages
from dashboards.live import Studies

LENGTH = 64


class Purse:
    def __init__(self) -> None:
        self.told: list[str] = []

    def debit(self, step: int, steps: int) -> None: ...

    def progress(self, point: Point) -> None: ...

    def durable(self, step: int) -> None: ...

    def note(self, text: str) -> None:
        self.told.append(text)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    files = sorted(map(str, Path(data.__file__).parent.glob("*.py")))
    source = schema.Data(name="own", source="text", files=files, tokenizer="bytes", val_fraction=0.3)
    return data.prepare(source, Home(folder / "home"))


def spec(
    corpus: Corpus, steps: int = 10, trainer: dict[str, int] | None = None, **changes: object
) -> TrialSpec:
    sizes: dict[str, object] = {"num_hidden_layers": 3, "compress_ratios": "swa,csa@4,hca@8"}
    sizes |= {"n_routed_experts": 8, "router": schema.Slot("learned", {"bias_update_speed": 0.01})}
    run = variants.make_run(vocab_size=corpus.vocab_size, **(sizes | changes))
    run = dataclasses.replace(
        run,
        data=dataclasses.replace(run.data, val_tokens=16 * LENGTH),
        optimizer=schema.Optimizer("adamw", lr=5e-3),
        trainer=schema.Trainer(
            device="cpu", seq_len=LENGTH, batch_size=4, evals=2, checkpoint_seconds=1e9, **(trainer or {})
        ),
    )
    variant = Variant.from_run(run)
    step_mflop = -(-variant.costs(LENGTH).total.train_flops * 4 // 10**6)
    trained = Staged(steps=steps, step_mflop=step_mflop)
    return TrialSpec(
        fingerprint=f"{steps} {trainer} {changes}",
        arm="v4",
        phase="confirm",
        replicate=0,
        seed=1,
        lr=5e-3,
        run=schema.to_dict(run),
        steps=steps,
        step_mflop=step_mflop,
        evaluations=curriculum.evaluations(run, variant, trained),
        data_fingerprint=corpus.fingerprint,
    )


def plant(monkeypatch: pytest.MonkeyPatch, fault: Callable[[LanguageModel], None]) -> None:
    """Let every trial start with that fault in its model."""

    def start(model: LanguageModel, seed: int) -> None:
        initialise(model, seed)
        with torch.no_grad():
            fault(model)

    monkeypatch.setattr(training, "initialise", start)


def blocks(model: LanguageModel) -> list[Block]:
    return [module for module in model.layers if isinstance(module, Block)]


def collapse_router(model: LanguageModel) -> None:
    """All tokens to two of eight experts."""
    router = blocks(model)[1].ffn.router
    router.e_score_correction_bias[:2] = 100.0


def kill_expert(model: LanguageModel) -> None:
    """No token to one of eight experts."""
    router = blocks(model)[1].ffn.router
    router.e_score_correction_bias[5] = -100.0


def cut_stream(model: LanguageModel) -> None:
    """Streams 0 and 1 only reach stream 0, which a doubly stochastic matrix forbids and too few steps allow."""
    for block in blocks(model):
        for residual in (block.attention_residual, block.ffn_residual):
            residual.base[8:] = torch.tensor([[30.0, 0, 0, 0]] * 2 + [[0.0, 30, 30, 30]] * 2).flatten()


def copy_streams(model: LanguageModel) -> None:
    """What carries streams is the same for all of them, and so are they."""
    for block in blocks(model):
        for residual in (block.attention_residual, block.ffn_residual):
            residual.fn.zero_()
            residual.scale.zero_()
            residual.scale.requires_grad_(False)
            residual.fn.requires_grad_(False)
            residual.base.requires_grad_(False)


FROZEN = schema.Slot("learned", {"bias_update_speed": 0.0, "balance_loss_alpha": 0.0})
FAULTS: dict[str, tuple[str, dict[str, object], Callable[[LanguageModel], None]]] = {
    "untrained indexer": (
        "indexer_skill",
        {"indexer": schema.Slot("lightning", {"train": "none"}), "compress_ratios": "csa@4,csa@4,csa@4"},
        lambda _: None,
    ),
    "collapsed router": ("max_vio", {"router": FROZEN}, collapse_router),
    "dead expert": ("dead_experts", {"router": FROZEN}, kill_expert),
    "cut stream": (
        "gain_backward_min",
        {"residual": schema.Slot("mhc", {"hc_sinkhorn_iters": 2})},
        cut_stream,
    ),
    "equal streams": ("stream_spread", {}, copy_streams),
    "inactive compressed branch": (
        "mass_compressed",
        {"compress_ratios": "swa,hca@64,hca@64"},
        lambda _: None,
    ),
}


def view_with(raised: tuple[RaisedAlarm, ...]) -> StudyView:
    """A study in which all trials of one arm raised those alarms."""
    view = study_views.view()
    arm = view.plan.arms[-1].name
    rows = tuple(
        dataclasses.replace(row, result=dataclasses.replace(row.result, alarms=raised))
        if row.spec.arm == arm and row.result
        else row
        for row in view.trials
    )
    return dataclasses.replace(view, trials=rows)


def test_a_healthy_run_raises_no_alarm(corpus: Corpus, tmp_path: Path) -> None:
    purse = Purse()
    result = training.train(spec(corpus, steps=60, n_routed_experts=4), corpus, tmp_path, purse)
    assert result.outcome == "complete"
    assert result.alarms == ()
    assert purse.told == []


@pytest.fixture(scope="module")
def broken(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[TrialResult, Purse]]:
    """A trial with each fault."""
    found = {}
    for fault, (_, changes, planted) in FAULTS.items():
        with pytest.MonkeyPatch.context() as patch:
            plant(patch, planted)
            purse = Purse()
            result = training.train(spec(corpus, **changes), corpus, tmp_path_factory.mktemp("trial"), purse)
        found[fault] = result, purse
    return found


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_raises_its_alarm(fault: str, broken: dict[str, tuple[TrialResult, Purse]]) -> None:
    metric, (result, purse) = FAULTS[fault][0], broken[fault]
    assert metric in {alarm.metric for alarm in result.alarms}
    assert any(text.startswith(f"alarm {metric} at step") for text in purse.told)
    assert stored.result_from_text(stored.result_to_text(result)) == result


def test_alarms_reach_the_report_the_terminal_and_the_live_page(
    broken: dict[str, tuple[TrialResult, Purse]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    every = tuple(
        next(alarm for alarm in broken[fault][0].alarms if alarm.metric == metric)
        for fault, (metric, *_) in FAULTS.items()
    )
    view = view_with(every)
    paths = report.write(view, tmp_path)
    console.final(view, {})
    told = " ".join(capsys.readouterr().out.split())
    page = report_pages.Page(paths["HTML report"].read_text()).text
    live = pages.Pages(Home(tmp_path), Studies(lambda: [view.name], lambda _: view))._sections(view)[
        "verdicts"
    ]
    written = json.loads(paths["JSON"].read_text())["alarms"]
    assert {alarm["id"] for alarm in written} == {metric for metric, *_ in FAULTS.values()}
    markdown = paths["Markdown"].read_text().replace("\\", "")
    for alarm in every:
        assert alarm.text in page
        assert alarm.text in markdown
        assert alarm.text in live
        assert alarm.text in told
    console.final(view_with(()), {})
    assert "Alarms" not in capsys.readouterr().out


def test_watching_changes_no_number_and_takes_no_gradient() -> None:
    model = LanguageModel(variants.make_variant(num_nextn_predict_layers=1))
    initialise(model, 0)
    ids = torch.randint(0, 31, (3, 48), generator=torch.Generator().manual_seed(0))
    plain = model(ids, ids.roll(-1, 1))
    before = torch.random.get_rng_state()
    with watching(model):
        watched = model(ids, ids.roll(-1, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(plain.logits, watched.logits)
    assert torch.equal(plain.loss, watched.loss)
    assert all(torch.equal(value, watched.aux[key]) for key, value in plain.aux.items())
    more = watched.aux.keys() - plain.aux.keys()
    assert more
    assert all(key.startswith("diag/") for key in more)
    assert not any(watched.aux[key].requires_grad for key in watched.aux if key.startswith("diag/"))
    assert model(ids, ids.roll(-1, 1)).aux.keys() == plain.aux.keys()


def test_a_trial_comes_to_the_same_without_diagnostics(corpus: Corpus, tmp_path: Path) -> None:
    told = [
        training.train(spec(corpus, 6, {"watch_tokens": tokens}), corpus, tmp_path / str(tokens), Purse())
        for tokens in (1024, 0)
    ]
    bare = [
        dataclasses.replace(
            result,
            seconds=0.0,
            alarms=(),
            metrics={k: v for k, v in result.metrics.items() if not k.startswith("diag/")},
            curve=tuple(dataclasses.replace(point, seconds=0.0, diagnostics={}) for point in result.curve),
        )
        for result in told
    ]
    assert bare[0] == bare[1]
    assert all(point.diagnostics for point in told[0].curve)
    assert not any(point.diagnostics for point in told[1].curve)
    assert any("update_ratio" in name for name in told[0].metrics)


def test_probes_follow_every_so_many_evaluations_and_the_last() -> None:
    trainer = schema.Trainer(seq_len=64, watch_tokens=200, watch_every=3)
    assert [i for i in range(1, 9) if diagnosis.is_due(trainer, i, 8)] == [3, 6, 8]
    assert diagnosis.watched_rows(trainer, 16) == 3
    assert diagnosis.watched_rows(trainer, 2) == 2
    never = dataclasses.replace(trainer, watch_tokens=0)
    assert diagnosis.watched_tokens(never, 16, 8) == 0


def test_tokens_of_probes_are_those_that_models_are_given(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All passes but those of training and of evaluations, counted at the model."""
    counts = {}
    for tokens in (1024, 0):
        seen: list[int] = []
        forward = LanguageModel.forward

        def counted(model: LanguageModel, ids: torch.Tensor, *rest: object, seen=seen, forward=forward):
            seen.append(ids.numel())
            return forward(model, ids, *rest)

        monkeypatch.setattr(LanguageModel, "forward", counted)
        made = spec(corpus, 4, {"watch_tokens": tokens})
        training.train(made, corpus, tmp_path / str(tokens), Purse())
        monkeypatch.setattr(LanguageModel, "forward", forward)
        counts[tokens] = sum(seen)
    allowed = diagnosis.watched_tokens(schema.from_dict(made.run).trainer.__class__(seq_len=LENGTH), 16, 2)
    one = 16 * LENGTH
    assert 2 * one < counts[1024] - counts[0] <= allowed


def test_ratio_of_an_update_is_that_of_the_norms() -> None:
    model = LanguageModel(variants.make_variant())
    initialise(model, 0)
    before = diagnosis.weights(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    ratios = diagnosis.update_ratios(model, before)
    assert {"diag/head/update_ratio", "diag/layers.1/attention/update_ratio"} <= ratios.keys()
    for ratio in ratios.values():
        assert math.isclose(ratio, 0.01, rel_tol=1e-3)


@pytest.mark.parametrize(
    "residual", ["mhc", "mhc_static", "hyper_connections", "prenorm", "attention_residual"]
)
def test_components_declare_what_they_return(residual: str) -> None:
    model = LanguageModel(variants.make_variant(residual=schema.Slot(residual), ffn=schema.Slot("moe")))
    ids = torch.randint(0, 31, (2, 512), generator=torch.Generator().manual_seed(0))
    with watching(model):
        model.prepare(lambda: torch.arange(31))
        aux = model(ids).aux
    for block in blocks(model):
        own = f"diag/{block.name}/"
        returned = {key.rpartition("/")[2] for key in aux if key.startswith(own)}
        declared = {
            name for part in block.modules() if isinstance(part, Component) for name in part.diagnostics
        }
        assert returned - declared <= {"output_rms", "output_max"}
        judged = {
            alarm.metric for part in block.modules() if isinstance(part, Component) for alarm in part.alarms
        }
        assert judged <= declared


def test_composite_gains_are_those_of_the_product_of_all_matrices() -> None:
    """Against matrices that each site gives for itself, multiplied one after the other."""
    model = LanguageModel(variants.make_variant(residual=schema.Slot("hyper_connections")))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "residual" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
    ids = torch.randint(0, 31, (1, 8), generator=torch.Generator().manual_seed(0))
    mixings: list[torch.Tensor] = []
    for block in blocks(model):
        for site in (block.attention_residual, block.ffn_residual):
            read = site.read

            def noted(state: torch.Tensor, read=read) -> tuple[torch.Tensor, torch.Tensor]:
                y, carry = read(state)
                mixings.append(carry[..., :-1].detach())
                return y, carry

            site.read = noted
    with watching(model):
        aux = model(ids).aux
    whole = torch.eye(4).expand(8, 4, 4)
    for mixing in mixings:
        whole = mixing @ whole
    last = f"diag/layers.{len(blocks(model)) - 1}/residual/gain"
    size = whole.abs()
    for way, axis in (("forward", 2), ("backward", 1)):
        sums = size.sum(axis)
        torch.testing.assert_close(aux[f"{last}_{way}_max"], sums.amax(1).mean())
        torch.testing.assert_close(aux[f"{last}_{way}_min"], sums.amin(1).mean())
