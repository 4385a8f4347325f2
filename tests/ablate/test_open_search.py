"""Open searches from a plan to verdicts: what is proposed, refused, paid, told, chosen, and survives a crash."""

import dataclasses
import importlib.util
import itertools
import json
import math

import optuna
import pytest
import searches
from optuna.trial import TrialState
from small_studies import check, finish

from ablate import (
    config,
    division,
    open_search,
    proposals,
    reading,
    registration,
    report,
    samplers,
    space,
    study,
)
from ablate.errors import BadInputError
from ablate.home import Home
from ablate.parameters import Parameter
from ablate.report import plots
from ablate.samplers import Heard, Proposer
from ablate.schedule_space import KEY
from ablate.scheduler import Scheduler
from ablate.worker import Worker

SAMPLERS = ("tpe", "gp", "nsga2", "cmaes", "qmc", "random")


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


def explore(home, *overrides, train=searches.train):
    plan = searches.plan(home, *overrides)
    return plan, searches.explore(home, plan, train)


def history(home, plan) -> optuna.Study:
    return optuna.load_study(study_name=f"{plan.study}{proposals.SUFFIX}", storage=f"sqlite:///{home.optuna}")


def test_a_search_from_space_to_verdicts(home, tmp_path):
    plan = searches.plan(home, "sweep.search.trials=5", "sweep.space.model.sliding_window=[8]")
    study.create(plan, home)
    finish(home, plan, searches.train)
    view = reading.read(plan.study, home)
    found = view.search
    new = [p for p in found.proposals if p.state == "complete"]
    assert len(new) == 5
    assert all(
        p.value == pytest.approx(searches.loss(trial_run(view, p), p.lr, plan.search_seed)) for p in new
    )

    spent = {a.phase: a.spent for a in view.accounts}
    trained = [r for r in view.trials if r.reused_from is None]
    for phase in ("search", "confirm"):
        assert spent[phase] == sum(
            r.charged_mflop - r.evaluation_mflop for r in trained if r.spec.phase == phase
        )
    assert spent["evaluation"] == sum(r.evaluation_mflop for r in trained) <= plan.caps["evaluation"]
    for row in view.trials:
        assert plan.trial_mflop - row.spec.step_mflop < row.spec.allowance_mflop <= plan.trial_mflop
    assert len({r.spec.fingerprint for r in trained}) == len(trained), "nothing is paid for twice"

    best = sorted(new, key=lambda p: p.value)
    baseline = plan.baseline.variant.schedule
    chosen = [p for p in best if p.schedule != baseline][:2]
    assert view.plan.finalists == {f"finalist_{i}": p.number for i, p in enumerate(chosen, 1)}
    assert [arm.variant.schedule for arm in view.plan.arms[1:]] == [p.schedule for p in chosen]
    assert {v.arm for v in view.verdicts} == set(view.plan.finalists)
    assert all(v.n == 2 for v in view.verdicts)
    for finalist in found.finalists:
        own = [r for r in view.trials if r.spec.arm == finalist.arm and r.spec.phase == "confirm"]
        assert {r.spec.seed for r in own} == set(plan.confirm_seeds)
        mean = math.fsum(r.result.val_loss for r in own) / len(own)
        assert finalist.shrinkage == pytest.approx(mean - finalist.tuned)
        tuned = [r for r in view.trials if r.spec.arm == finalist.arm and r.spec.phase == "search"]
        assert len(tuned) == len(plan.lr_grid), "finalists are tuned as the baseline is"
    assert registration.digest(view.plan) == registration.digest(plan), "finding arms is no deviation"
    assert not registration.deviations(view)

    written = report.write(view, tmp_path / "report")
    whole = json.loads(written["JSON"].read_text())
    assert [p["number"] for p in whole["search"]["proposals"]] == list(range(len(found.proposals)))
    assert "Open search" in written["HTML report"].read_text()
    for name in plots.OF_A_SEARCH:
        assert (written["Figures"] / f"{name}.svg").exists()
    assert "Finalists, from search to fresh seeds" in written["Markdown"].read_text()


def trial_run(view, proposal):
    return next(row.spec.run for row in view.trials if row.number == proposal.trial)


def test_duplicates_cost_nothing_and_are_told_what_is_known(home, monkeypatch):
    monkeypatch.setattr(proposals, "BARREN", 12)
    plan, view = explore(
        home,
        "sweep.space.model.compress_ratios={tokens: [swa, csa@4], families: [constant, first_k]}",
        "~sweep.space.model.index_topk",
        "~sweep.space.model.sliding_window",
        "sweep.search.trials=40",
    )
    models = [p.schedule for p in view.search.proposals if p.state == "complete"]
    assert 5 <= len(models) == len(set(models)) <= 2 + 2 * 3  # constant; k of one, of 1 to 3, in both orders
    same = [p for p in view.search.proposals if p.state == "duplicate"]
    assert len(same) >= proposals.BARREN, "the search ends when the space has nothing new left"
    assert all(p.mflop == 0 for p in same)
    values = {p.schedule: p.value for p in view.search.proposals if p.state == "complete"}
    told = {t.user_attrs["proposal"]: t for t in history(home, plan).trials}
    events = {text for _, _, text in view.events}
    for proposal in same:
        assert told[proposal.number].state == TrialState.COMPLETE
        assert told[proposal.number].value == proposal.value == values[proposal.schedule]
        assert f"proposal {proposal.number} costs nothing: {proposal.reason}" in events


def test_what_a_constraint_rules_out_is_not_trained_and_told_so(home):
    limit = 40.0
    plan, view = explore(
        home, f"sweep.search.constraints.kv_bytes_per_token={limit}", "sweep.search.trials=3"
    )
    ruled_out = [p for p in view.search.proposals if p.costs["kv_bytes_per_token"] > limit]
    assert ruled_out, "else this shows nothing"
    assert {p.state for p in ruled_out} == {"infeasible"}
    assert all(p.trial is None and p.mflop == 0 and f"allowed {limit:g}" in p.reason for p in ruled_out)
    told = {t.user_attrs["proposal"]: t for t in history(home, plan).trials}
    for proposal in view.search.proposals:
        over = proposal.costs["kv_bytes_per_token"] / limit - 1
        assert told[proposal.number].constraints["kv_bytes_per_token"] == pytest.approx(over)
        assert (told[proposal.number].state == TrialState.PRUNED) == (over > 0)
    for arm in view.plan.arms[1:]:
        assert arm.kv_bytes_per_token <= limit


def test_models_that_cannot_be_are_recorded_with_the_reason(home, monkeypatch):
    monkeypatch.setattr(proposals, "BARREN", 5)
    tokens = "sweep.space.model.compress_ratios={tokens: [swa, hca@16, hca@128], families: [constant]}"
    keys = ("~sweep.space.model.index_topk", "~sweep.space.model.sliding_window")
    _plan, view = explore(home, tokens, *keys, "sweep.search.sampler=brute_force")
    states = {
        p.overrides["model.compress_ratios"]: p for p in view.search.proposals if p.state != "duplicate"
    }
    assert states["hca@128*"].state == "invalid"
    assert "trainer.seq_len=64" in states["hca@128*"].reason
    assert {states["swa*"].state, states["hca@16*"].state} == {"complete"}


def test_brute_force_trains_every_model_once(home):
    _plan, view = explore(
        home,
        "sweep.space.model.compress_ratios={tokens: [swa, csa@4], families: [explicit]}",
        "~sweep.space.model.index_topk",
        "~sweep.space.model.sliding_window",
        "sweep.search.sampler=brute_force",
        "sweep.search.trials=16",
    )
    trained = [p.schedule for p in view.search.proposals if p.state == "complete"]
    assert len(trained) == len(set(trained)) == len(view.search.proposals) == 2**4


def test_the_front_of_many_objectives(home):
    plan, view = explore(
        home,
        "sweep.search.objectives=[loss,kv_bytes_per_token,train_flops_per_token]",
        "sweep.search.trials=8",
    )
    done = [p for p in view.search.proposals if p.trained]

    def point(p):
        return (p.value, p.costs["kv_bytes_per_token"], p.costs["train_flops_per_token"])

    def beaten(p):
        return any(
            all(a <= b for a, b in zip(point(o), point(p), strict=True)) and point(o) != point(p)
            for o in done
        )

    assert set(view.search.front) == {p.number for p in done if not beaten(p)}
    optuna_front = {t.user_attrs["proposal"] for t in history(home, plan).best_trials}
    assert set(view.search.front) <= optuna_front, "Optuna was told the same numbers"
    assert set(view.plan.finalists.values()) <= set(view.search.front) or len(view.search.front) < 2


def test_a_lost_record_is_made_again_and_an_orphan_is_no_proposal(home, monkeypatch):
    plan = searches.plan(home, "sweep.search.trials=6")
    study.create(plan, home)
    scheduler = Scheduler(home, plan.study)

    def die(name):
        if name == "propose.post":
            raise RuntimeError("killed between Optuna and the table")

    with monkeypatch.context() as patched:
        patched.setattr("ablate.samplers.faults.point", die)
        with pytest.raises(RuntimeError, match="killed"):
            scheduler.tick()
    scheduler.tick()
    assert [t.state for t in history(home, plan).trials] == [TrialState.FAIL, TrialState.RUNNING]
    scheduler.close()
    for path in home.root.glob("optuna.db*"):
        path.unlink()
    view = searches.explore(home, plan)
    told = {t.user_attrs["proposal"]: t.value for t in history(home, plan).trials}
    assert told == {p.number: p.value for p in view.search.proposals}


def test_a_scheduler_that_did_not_see_the_end_goes_on_from_the_plan_that_did(home):
    plan = searches.plan(home, "sweep.search.trials=4", "sweep.search.finalists=1")
    study.create(plan, home)
    late = Scheduler(home, plan.study)
    worker = Worker(home, plan.study, "w1", searches.train)
    ticking = Scheduler(home, plan.study)
    for _ in range(4):
        ticking.tick()
        worker._work(worker._claim(), worker._train)
    ticking.tick()
    ticking.close()
    worker._idle = late.tick
    worker.run()
    late.close()
    check(home, plan)
    view = reading.read(plan.study, home)
    assert view.state == "done"
    assert len(view.search.proposals) == 4 + view.search.counts.get("duplicate", 0)
    assert len(view.verdicts) == 1


def test_a_warm_start_begins_with_what_another_study_found(home):
    first, before = explore(home, "sweep.search.trials=4")
    second, view = explore(home, "sweep.search.trials=5", f"sweep.search.warm_start={first.study[:-3]}")
    assert second.run.sweep.search.warm_start == first.study
    trials = history(home, second).trials
    earlier = [p for p in before.search.proposals if p.state == "complete"]
    assert [t.value for t in trials[: len(earlier)]] == [p.value for p in earlier]
    assert len(trials) == len(earlier) + len(view.search.proposals)
    again = [r for r in view.trials if r.reused_from == first.study]
    assert {r.spec.fingerprint for r in again} <= {r.spec.fingerprint for r in before.trials}

    with pytest.raises(BadInputError, match=r"differs in budget\.per_trial"):
        searches.plan(home, f"sweep.search.warm_start={first.study}", "budget.per_trial=4e9")
    with pytest.raises(BadInputError, match=r"differs in sweep\.space"):
        searches.plan(home, f"sweep.search.warm_start={first.study}", "sweep.space.model.index_topk=[4]")


def test_nothing_is_confirmed_where_nothing_trained(home):
    def breaks(spec, corpus, folder, meter):
        meter.debit(0, 1)
        raise RuntimeError("broken")

    _plan, view = explore(home, "sweep.search.trials=2", train=breaks)
    assert view.plan.finalists == {}
    assert view.verdicts == ()
    assert view.search.curve == ()


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_proposes_points_of_the_space_and_repeats_itself(name):
    if name == "cmaes" and importlib.util.find_spec("cmaes") is None:
        pytest.skip("needs cmaes")
    made = config.load(
        [
            *searches.SMALL,
            f"sweep.search.sampler={name}",
            "sweep.search.trials=9",
            "sweep.space.optimizer.lr={low: 0.001, high: 0.01, log: true}",
            "sweep.space.residual={choices: [prenorm, mhc], options: declared}",
        ]
    )
    found = open_search.check(made)

    def propose() -> list[space.Draw]:
        storage = optuna.storages.InMemoryStorage()
        proposer = Proposer(storage, "s", found, made.sweep.search, "f00d")
        drawn = []
        for number in range(9):
            asked, draw = proposer.ask(number, name)
            again, parameters = found.again(draw.params)
            assert again == draw
            for key, parameter in parameters.items():
                low, high = min(parameter.ends()), max(parameter.ends())
                assert draw.params[key] in parameter.choices or low <= draw.params[key] <= high
            value = len(draw.overrides["model.compress_ratios"]) + (draw.lr or 0.0)
            proposer.tell(Heard(asked, (value,), {"invalid": float(number % 5 == 4)}))
            drawn.append(draw)
        return drawn

    first = propose()
    assert first == propose()
    assert len({json.dumps(draw.params) for draw in first}) > 5


def test_what_is_infeasible_is_proposed_less_and_less() -> None:
    """Told as pruned with its violation, though it was never trained."""
    choices = {f"x{i}": tuple(range(4)) for i in range(4)}
    found = space.Space({}, {}, tuple(Parameter(k, choices=v) for k, v in choices.items()), None, {KEY: ""})
    settings = dataclasses.replace(config.load(list(searches.SMALL)).sweep.search, trials=60)

    def infeasible(sampler: str, seed: int) -> int:
        proposer = Proposer(optuna.storages.InMemoryStorage(), "s", found, settings, f"{seed}")
        late = 0
        for number in range(60):
            asked, draw = proposer.ask(number, sampler)
            over = draw.params["x0"] / 1.5 - 1  # half of all points lie beyond
            values = () if over > 0 else (float(draw.params["x1"]),)
            proposer.tell(Heard(asked, values, {"cost": over}))
            late += number >= 30 and over > 0
        return late

    by_chance = sum(infeasible("random", seed) for seed in range(4))
    assert sum(infeasible("tpe", seed) for seed in range(4)) < 0.6 * by_chance


def test_who_proposes() -> None:
    settings = dataclasses.replace(config.load(list(searches.SMALL)).sweep.search, control=0.1)
    by = [samplers.proposer_of(settings, number, 0) for number in range(1000)]
    assert by.count("random") == 100
    assert samplers.proposer_of(settings, 0, samplers.STUCK) == "random"
    for share, number in itertools.product((0.0, 1.0), range(5)):
        expected = "random" if share else "tpe"
        assert samplers.proposer_of(dataclasses.replace(settings, control=share), number, 0) == expected


def test_the_plan_says_what_a_search_will_cost(home):
    plan = searches.plan(home, "sweep.search.trials=11", "sweep.search.finalists=3")
    arms = 1 + 3
    assert plan.caps["search"] == (11 + arms * 5) * plan.trial_mflop
    assert plan.caps["confirm"] == arms * 2 * plan.trial_mflop
    fewer = searches.plan(home, "sweep.search.trials=11", "sweep.search.finalists=1")
    assert fewer.detectable_effect < plan.detectable_effect, "Holm counts the finalists to come"
    assert not home.root.exists() or not home.database.exists()
    assert division.divide(plan.run, 1, evaluation=plan.caps["evaluation"])[2] == plan.caps
    (base,) = plan.arms
    others = 11 + 3 * (5 + 2)
    assert plan.caps["evaluation"] == base.evaluation_mflop * ((5 + 2) + division.ROOM * others)


def test_a_proposal_that_is_too_dear_to_evaluate_is_refused(home):
    """What it may take is set aside for every trial of the search, so that none can take another's."""
    plan = searches.plan(home, "budget.per_trial=1 PFLOP")
    wide = {"model.hidden_size": 8 * plan.run.model.hidden_size, "model.n_routed_experts": 32}
    with pytest.raises(
        BadInputError, match=f"evaluations take .*{division.ROOM} times those of the dearest arm"
    ):
        open_search.price(plan, "p0", wide, charged=False)
