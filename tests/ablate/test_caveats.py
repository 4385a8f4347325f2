"""Caveats: each raised by its own fault, and by none of the others."""

import dataclasses
import inspect
import math
import re

import pytest
from judged_studies import (
    STEP_MFLOP,
    STEPS,
    Rows,
    blockers,
    bowls,
    change,
    confirm,
    diverge,
    edit,
    healthy,
    ids,
    judged,
    promised,
    search,
)

from ablate import caveats, stats, verdict
from ablate.records import Plan


def test_single_seed() -> None:
    for replicates in (1, 2):
        found = judged(*healthy(replicates=replicates))
        assert (found.kind, found.level, blockers(found)) == ("inconclusive", "L0", {"SINGLE_SEED"})
        assert found.n == replicates
        assert "nan" not in found.sentence
    assert "SINGLE_SEED" not in ids(judged(*healthy(replicates=3)))


def test_lr_edge_of_either_arm() -> None:
    plan, rows = healthy()
    for arm in ("dense", "csa"):
        falling = tuple(
            change(row, val_loss=3.0 - math.log2(row.spec.lr)) if search(arm)(row) else row for row in rows
        )
        found = judged(plan, falling)
        assert (found.kind, found.level, blockers(found)) == ("inconclusive", "L1", {"LR_EDGE"})
        assert arm in found.caveats[0].text
        assert "higher" in found.caveats[0].text


def test_tune_parity() -> None:
    plan, rows = healthy()
    fewer = [row for row in rows if not (search("csa")(row) and row.spec.lr == max(plan.lr_grid))]
    found = judged(plan, tuple(fewer))
    assert ids(found) == {"TUNE_PARITY"}
    assert found.kind == "helps"
    stopped = edit(
        rows,
        lambda r: search("csa")(r) and r.spec.lr > 0.01,
        state="diverged",
        outcome="diverged",
        val_loss=6.2,
        useful_mflop=STEPS,
    )
    assert ids(judged(plan, stopped)) == set()  # its rate was tried, which is what parity is about


def test_underpowered_names_enough_seeds() -> None:
    plan, rows = healthy(-0.005, 0.03)
    found = judged(plan, rows)
    assert ids(found) == {"UNDERPOWERED"}
    seeds = int(found.caveats[0].text.split("would take ")[1].split()[0])
    assert stats.power(0.01 / 0.03, seeds, 0.05) >= 0.8 > stats.power(0.01 / 0.03, seeds - 1, 0.05)
    assert f"detectable {found.detectable:.3f}" in found.sentence


def test_budget_mismatch() -> None:
    plan, rows = healthy()
    for factor, raised in ((1.004, False), (0.99, True), (1.01, True)):
        other = edit(rows, confirm("csa", 2), useful_mflop=round(STEPS * STEP_MFLOP * factor))
        assert (blockers(judged(plan, other)) == {"BUDGET_MISMATCH"}) is raised
    coarse = edit(rows, confirm("csa", 2), useful_mflop=95, step_mflop=10)
    coarse = edit(coarse, confirm("dense", 2), useful_mflop=100, step_mflop=8)
    assert not blockers(judged(plan, coarse))  # less than one step apart
    undecayed = edit(rows, confirm("dense", 1), steps=STEPS)
    undecayed = tuple(
        dataclasses.replace(r, result=dataclasses.replace(r.result, steps=STEPS - 20))
        if confirm("dense", 1)(r) and r.result
        else r
        for r in undecayed
    )
    assert blockers(judged(plan, undecayed)) == {"BUDGET_MISMATCH"}


def test_budget_mismatch_in_tokens() -> None:
    plan, rows = healthy()
    run = dataclasses.replace(plan.run, budget=dataclasses.replace(plan.run.budget, match="tokens"))
    plan = dataclasses.replace(plan, run=run)
    assert not ids(judged(plan, edit(rows, confirm("csa"), useful_mflop=5)))
    assert blockers(judged(plan, edit(rows, confirm("csa", 0), tokens=STEPS * 520))) == {"BUDGET_MISMATCH"}


@pytest.mark.parametrize(("factor", "raised"), [(1.0, False), (1.005, False), (1.05, True), (0.9, True)])
def test_time_that_is_not_as_equal_as_measured_is_said(factor: float, raised: bool) -> None:
    plan, rows = healthy()
    run = dataclasses.replace(plan.run, budget=dataclasses.replace(plan.run.budget, match="wall_clock"))
    plan = dataclasses.replace(plan, run=run)
    rows = edit(edit(rows, confirm("dense"), seconds=20.0), confirm("csa"), seconds=20.0 * factor)
    found = judged(plan, edit(rows, confirm("csa"), useful_mflop=5))
    assert ("BUDGET_MISMATCH" in ids(found)) is raised
    assert not blockers(found)


@pytest.mark.parametrize(
    ("steps", "raised", "kind"), [(999, True, "helps"), (299, True, "inconclusive"), (1000, False, "helps")]
)
def test_short_run(steps: int, raised: bool, kind: str) -> None:
    plan, rows = healthy()
    rows = tuple(
        dataclasses.replace(
            r,
            spec=dataclasses.replace(r.spec, steps=steps),
            result=r.result and dataclasses.replace(r.result, steps=steps),
        )
        for r in rows
    )
    found = judged(plan, rows)
    assert ids(found) == ({"SHORT_RUN"} if raised else set())
    assert found.kind == kind


def test_one_diverged_trial_warns_and_counts_as_the_cap() -> None:
    plan, rows = healthy()
    other = diverge(rows, "csa", 3)
    found = judged(plan, other)
    assert "DIVERGED" in ids(found)
    assert not blockers(found)
    assert found.delta == pytest.approx(judged(plan, rows).delta + (math.log(512) - 3.37) / 6, abs=0.01)
    assert "1 of 6" in next(c.text for c in found.caveats if c.id == "DIVERGED")


def test_asymmetric_divergence() -> None:
    plan, rows = healthy()
    found = judged(plan, diverge(rows, "csa", 0, 1, 2, 3))
    assert blockers(found) == {"ASYMMETRIC_DIVERGENCE"}
    both = judged(plan, diverge(diverge(rows, "csa", 0, 1), "dense", 2, 3))
    assert ids(both) >= {"DIVERGED"}
    assert not blockers(both)


def test_arms_that_always_diverge_are_not_equivalent() -> None:
    plan, rows = healthy(replicates=3)
    found = judged(plan, diverge(diverge(rows, "csa"), "dense"))
    assert (found.delta, found.kind, blockers(found)) == (0.0, "inconclusive", {"DIVERGED"})


def regimes(at_tokens: float, final: float) -> tuple[Plan, Rows]:
    """An arm that is half as dear per token; `at_tokens` is its difference at equal tokens."""
    plan, rows = healthy(final)
    plan = dataclasses.replace(
        plan,
        arms=tuple(
            dataclasses.replace(arm, tokens=arm.tokens * (1 if arm.is_baseline else 2)) for arm in plan.arms
        ),
    )
    return plan, bowls(
        rows,
        {"dense": 512, "csa": 1024},
        lambda arm, tokens: 10 - 0.3 * math.log(tokens) + at_tokens * (arm == "csa"),
    )


def test_regime_flip() -> None:
    plan, rows = regimes(at_tokens=0.02, final=-0.03)  # twice the tokens are worth 0.2 nats
    found = judged(plan, rows)
    assert ids(found) == {"REGIME_FLIP"}
    assert "behind by 0.020" in found.caveats[0].text
    assert ids(judged(*regimes(at_tokens=-0.02, final=-0.03))) == set()
    assert ids(judged(*regimes(at_tokens=0.3, final=-0.03))) == set()  # the trunk contradicts the end anyway


def test_inactive_components_are_named_and_do_not_block() -> None:
    plan, rows = healthy()
    inert = next(
        dataclasses.replace(
            arm, run=dataclasses.replace(arm.run, trainer=dataclasses.replace(arm.run.trainer, seq_len=8))
        )
        for arm in plan.arms
        if arm.name == "csa"
    )
    assert inert.variant.warnings(8)
    plan = dataclasses.replace(plan, arms=(plan.baseline, inert))
    found = judged(plan, rows)
    assert ids(found) == {"INACTIVE"}
    assert found.kind == "helps"
    assert {c.text.removeprefix("csa: ") for c in found.caveats} == set(inert.variant.warnings(8))


def test_winner_shrink() -> None:
    plan, rows = healthy(-0.03)
    assert ids(judged(plan, promised(rows, -0.02))) == {"WINNER_SHRINK"}
    assert ids(judged(plan, promised(rows, -0.005))) == set()  # within the noise of one more seed
    assert ids(judged(plan, promised(rows, 0.05))) == set()  # better than promised


def test_missing_pairs() -> None:
    plan, rows = healthy()
    failed = edit(
        rows, confirm("csa", 4), state="failed", outcome="failed", val_loss=None, reason="out of memory"
    )
    found = judged(plan, failed)
    assert (found.n, ids(found), found.kind) == (5, {"MISSING"}, "helps")
    assert "1 of 6 pairs are missing" in found.caveats[0].text
    assert "out of memory" in found.caveats[0].text
    everything = edit(failed, confirm("dense"), state="failed", outcome="failed", val_loss=None)
    assert verdict.verdicts(plan, everything) == ()


def test_unpaired() -> None:
    plan, rows = healthy()
    assert ids(judged(plan, edit(rows, confirm("csa", 0), tokens_hash="other"))) == {"UNPAIRED"}
    both = edit(rows, confirm("dense", 0), tokens_hash="")
    assert ids(judged(plan, both)) == set()
    longer = edit(rows, confirm("csa", 0), tokens_hash="other", tokens=STEPS * 512 + 1)
    assert ids(judged(plan, longer)) == set()


def test_epochs() -> None:
    plan, rows = healthy()
    for passes, raised in ((0.9, False), (1.2, True)):
        seen = edit(rows, confirm("csa", 1), metrics={"data/epochs": passes})
        assert ids(judged(plan, seen)) == ({"EPOCHS"} if raised else set())
    assert "1.2 times (csa) and 0.0 times (dense)" in judged(plan, seen).caveats[0].text


def test_masked_implementation() -> None:
    plan, rows = healthy()
    slower = edit(rows, confirm("csa"), seconds=1.5)
    slower = edit(slower, confirm("dense"), seconds=1.0)
    extra = {}
    for arm in plan.arms:
        cost = arm.variant.costs(arm.run.trainer.seq_len).total
        extra[arm.name] = cost.kernel_flops / cost.forward_flops - 1
    assert max(extra.values()) > 0.1
    found = judged(plan, slower)
    assert ids(found) == {"MASKED_IMPL"}
    assert {c.text.split()[0] for c in found.caveats} == {arm for arm, share in extra.items() if share > 0.1}


HOW = {
    "LR_EDGE": test_lr_edge_of_either_arm,
    "TUNE_PARITY": test_tune_parity,
    "SINGLE_SEED": test_single_seed,
    "UNPAIRED": test_unpaired,
    "UNDERPOWERED": test_underpowered_names_enough_seeds,
    "BUDGET_MISMATCH": test_budget_mismatch,
    "SHORT_RUN": test_short_run,
    "DIVERGED": test_one_diverged_trial_warns_and_counts_as_the_cap,
    "ASYMMETRIC_DIVERGENCE": test_asymmetric_divergence,
    "REGIME_FLIP": test_regime_flip,
    "INACTIVE": test_inactive_components_are_named_and_do_not_block,
    "EPOCHS": test_epochs,
    "MASKED_IMPL": test_masked_implementation,
    "WINNER_SHRINK": test_winner_shrink,
    "EARLY_STOP": "test_confirmation",
    "MISSING": test_missing_pairs,
}
"""Caveats that verdicts raise, and what shows it. Of the methodology's others:

CROSSING and CLOSING are trends over sizes (`ablate.multiplier`, test_multiplier). SELECTION cannot arise, since
only confirm trials enter (test_verdict: search values never enter), nor EVAL_OVERLAP, since equal documents are on
one side of the split (test_data), nor TRANSFER, since every arm of every size is tuned, nor EXTRAPOLATED, since no
multiplier is given beyond its sizes. AA_FAIL is not of a study but of the program (test_instrument,
test_equal_models).
"""


def test_every_caveat_that_can_be_raised_is_in_the_table() -> None:
    raised = re.findall(r'(?:_blocker\(|_warning\(|Caveat\(id=)"([A-Z_]+)"', inspect.getsource(caveats))
    assert set(raised) <= HOW.keys()
