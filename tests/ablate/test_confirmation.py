"""Confirmation with looks, from the scheduler to the verdict: who gets seeds, what is paid, what holds of it."""

import dataclasses
from collections import Counter

import fake_training
import judged_studies as studies
import numpy as np
import pytest
import small_studies

from ablate import config, confirmation, operating, planning, sequential, stats, study, verdict
from ablate.errors import BadInputError
from ablate.home import Home
from ablate.records import Plan

LOOKS = [3, 5, 8]
ARMS: tuple[str, ...] = ("dense", "csa", "hca", "v4")


def with_looks(plan: Plan, margin: float = 0.01) -> Plan:
    confirm = dataclasses.replace(plan.run.sweep.confirm, looks=LOOKS, margin=margin)
    sweep = dataclasses.replace(plan.run.sweep, confirm=confirm)
    return dataclasses.replace(plan, run=dataclasses.replace(plan.run, sweep=sweep))


def played(plan: Plan, rows: studies.Rows) -> studies.Rows:
    """Those of the trials that a scheduler would have started, were these their losses."""
    every = {
        (r.spec.arm, r.spec.replicate): r for r in rows if r.spec.phase == "confirm" and r.result is not None
    }
    ended: dict[tuple[str, int], float | None] = {}
    arms = [arm.name for arm in plan.arms]
    while wanted := confirmation.play(plan, arms, ended).wanted:
        for name, n in wanted.items():
            for i in range(n):
                result = every[name, i].result
                ended[name, i] = result.val_loss if result else None
    return tuple(r for r in rows if r.spec.phase == "search" or (r.spec.arm, r.spec.replicate) in ended)


def simulated(seed: int, effects: dict[str, float], sd: float) -> tuple[Plan, studies.Rows, studies.Rows]:
    """A plan with looks, all trials of its fixed counterpart, and those that the looks let start."""
    plan, rows = studies.study(ARMS, 8)
    plan = with_looks(plan)
    whole = studies.with_losses(rows, studies.noisy(seed, effects, sd))
    return plan, whole, played(plan, whole)


def confirmed(rows: studies.Rows) -> int:
    return sum(row.spec.phase == "confirm" for row in rows)


def test_only_undecided_arms_get_further_seeds_and_the_ledger_pays_for_no_others(tmp_path) -> None:
    home = Home(tmp_path)
    plan = with_looks(small_studies.plan(arms=("dense", "csa", "hca"), extensions=0, replicates=8), 1e-6)
    rng = np.random.default_rng(0)
    noise = {(arm, i): rng.normal(0, 0.01) for arm in ("dense", "csa", "hca") for i in range(9)}

    def train(spec, corpus, folder, meter):
        done = fake_training.train(spec, corpus, folder, meter)
        if spec.phase == "search":
            return done
        value = 3.0 + noise[spec.arm, spec.seed] + {"csa": -2.0, "hca": 0.03}.get(spec.arm, 0.0)
        return dataclasses.replace(done, val_loss=value)

    study.create(plan, home)
    view = small_studies.finish(home, plan, train)
    assert view.state == "done"
    count = Counter(r.spec.arm for r in view.trials if r.spec.phase == "confirm")
    assert count["csa"] == 3
    assert count["dense"] == count["hca"] in (5, 8)
    spent = {account.phase: account.spent for account in view.accounts}
    assert spent["confirm"] == sum(count.values()) * plan.trial_mflop
    told = [text for _, kind, text in view.events if kind == "look"]
    assert any(text.startswith("csa: a difference is established after 3 pairs") for text in told)
    judged = {v.arm: v for v in study.view(plan.study, home).verdicts}
    assert judged["csa"].n == 3
    assert judged["csa"].p_holm < 0.05
    assert judged["csa"].high < 0


def test_failed_trials_leave_a_look_with_the_pairs_that_are_there() -> None:
    plan, rows = studies.study(("dense", "csa"), 8)
    plan = with_looks(plan)
    loss = {
        (r.spec.arm, r.spec.replicate): r.result.val_loss
        for r in rows
        if r.spec.phase == "confirm" and r.result
    }
    ended: dict[tuple[str, int], float | None] = {key: loss[key] for key in loss if key[1] < 3}
    ended["csa", 1] = None
    found = confirmation.play(plan, ["dense", "csa"], ended)
    assert [c.n for c in found.seen["csa"]] == [2]
    gone = dict.fromkeys(ended, None)
    assert confirmation.play(plan, ["dense", "csa"], gone).wanted == {}, "nothing to be learnt from more"
    del ended["dense", 2]
    assert confirmation.play(plan, ["dense", "csa"], ended).seen["csa"] == []


def test_pairs_that_no_look_has_seen_decide_nothing() -> None:
    plan, whole, _ = simulated(0, {"csa": -0.004}, 0.004)
    three = tuple(r for r in whole if r.spec.phase == "search" or r.spec.replicate < 3)
    four = tuple(r for r in whole if r.spec.phase == "search" or r.spec.replicate < 4)
    assert verdict.verdicts(plan, three) == verdict.verdicts(plan, four)
    two = tuple(r for r in whole if r.spec.phase == "search" or r.spec.replicate < 2)
    assert verdict.verdicts(plan, two) == ()


def test_verdicts_are_the_decisions_that_stopped_their_arms() -> None:
    kinds = {"difference": ("helps", "hurts"), "equivalent": ("equivalent",)}
    rng = np.random.default_rng(1)
    for seed in range(40):
        effects = {arm: float(rng.choice([0, -0.02, 0.05])) for arm in ARMS[1:]}
        plan, _, rows = simulated(seed, effects, float(rng.choice([0.003, 0.02])))
        ended = {
            (r.spec.arm, r.spec.replicate): r.result.val_loss
            for r in rows
            if r.spec.phase == "confirm" and r.result
        }
        decisions = confirmation.play(plan, ARMS, ended).decisions
        for found in verdict.verdicts(plan, rows):
            expected = kinds.get(decisions[found.arm], ("inconclusive",))
            assert found.kind in expected, (seed, found.arm, decisions)
            assert (found.p_t < 0.05) == (found.low > 0 or found.high < 0)


def test_an_early_stop_says_so_and_its_interval_allows_for_the_looks() -> None:
    plan, _, rows = simulated(3, {"csa": -0.2, "hca": -0.2, "v4": -0.2}, 0.001)
    found = verdict.verdicts(plan, rows)
    assert [v.n for v in found] == [3, 3, 3]
    for v in found:
        assert "EARLY_STOP" in studies.ids(v)
        assert "over looks at 3, 5, 8" in v.sentence
        assert v.level == "L1", "three pairs are a direction"
        share = sequential.levels(0.05, LOOKS)[0]
        plain = stats.contrast([v.delta - v.sd, v.delta, v.delta + v.sd], [0, 0, 0], 0.01, 1 - share)
        assert (v.low, v.high) == pytest.approx((plain.low, plain.high))


def test_plans_state_the_most_and_what_is_expected(tmp_path) -> None:
    run = config.load(["sweep=smoke", "sweep.confirm.looks=[3,5,8]"])
    plan = planning.make_plan(run, Home.at(str(tmp_path)))
    assert len(plan.confirm_seeds) == 8
    assert plan.caps["confirm"] == 2 * 8 * plan.trial_mflop
    low = 2 * 3 * plan.trial_mflop
    assert all(low <= mflop <= plan.caps["confirm"] for mflop in plan.expected_mflop.values())
    assert plan.expected_mflop["twice detectable"] < plan.expected_mflop["detectable"]
    fixed = planning.make_plan(
        config.load(["sweep=smoke", "sweep.confirm.replicates=8"]), Home.at(str(tmp_path))
    )
    assert fixed.expected_mflop == {}
    assert fixed.detectable_effect < plan.detectable_effect, "looks cost some power"


def test_expected_trials_are_those_of_studies_played() -> None:
    sd, effects = 0.02, dict.fromkeys(ARMS[1:], 0.05)
    mean = np.mean([confirmed(simulated(seed, effects, sd)[2]) for seed in range(60)])
    assert mean == pytest.approx(operating.expected_trials(0.05, sd, 3, 0.05, 0.01, LOOKS), rel=0.06)


@pytest.mark.parametrize("looks", ["[5,3]", "[3,3]", "[1,3]", "[3,1000]"])
def test_looks_that_are_none_are_refused(looks: str) -> None:
    with pytest.raises(BadInputError, match=r"sweep\.confirm\.looks.*\[3, 5, 8\]"):
        config.load(["sweep=smoke", f"sweep.confirm.looks={looks}"])


def test_factorials_take_all_arms_on_all_seeds() -> None:
    factors = ["sweep.factors.a={without: {sink: none}}", "sweep.factors.b={without: {residual: prenorm}}"]
    with pytest.raises(BadInputError, match="full_factorial"):
        config.load(["sweep=smoke", "sweep.design=full_factorial", *factors, "sweep.confirm.looks=[3,5,8]"])
