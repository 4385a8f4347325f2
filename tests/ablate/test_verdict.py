"""Verdicts: what they claim, how often they are wrong, and how they are said."""

import dataclasses
import math

import numpy as np
import pytest
import study_views
from hypothesis import given, settings
from hypothesis import strategies as st
from judged_studies import (
    RATE,
    STEP_MFLOP,
    STEPS,
    blockers,
    change,
    confirm,
    diverge,
    edit,
    healthy,
    ids,
    judged,
    noisy,
    search,
    study,
    with_losses,
)
from scipy.stats import binom, ttest_rel

from ablate import standing, stats, verdict


@pytest.mark.parametrize(
    ("effect", "sd", "kind"),
    [
        (-0.03, 0.005, "helps"),
        (0.03, 0.005, "hurts"),
        (0.0, 0.003, "equivalent"),
        (-0.01, 0.03, "inconclusive"),
    ],
)
def test_kinds(effect: float, sd: float, kind: str) -> None:
    plan, rows = healthy(effect, sd)
    found = judged(plan, rows)
    assert found.kind == kind
    assert found.level == "L2"
    assert not blockers(found)
    a, b = ([r.result.val_loss for r in rows if confirm(arm)(r) and r.result] for arm in ("csa", "dense"))
    assert found.p_t == pytest.approx(ttest_rel(a, b).pvalue)
    assert found.delta == pytest.approx(np.mean(a) - np.mean(b))
    assert found.loss == pytest.approx(np.mean(a))
    assert (found.n, found.lr, found.margin) == (6, RATE, 0.01)
    assert found.search_loss == pytest.approx(3.4 + effect)
    assert (found.delta, found.sd) == pytest.approx((effect, sd))
    assert found.detectable == pytest.approx(sd * stats.mde(6, 0.05, 0.8))


def test_a_healthy_study_raises_nothing() -> None:
    assert ids(judged(*healthy())) == set()


@settings(max_examples=15, deadline=None)
@given(st.floats(-0.3, 0.3), st.floats(0.0, 1.0))
def test_search_values_never_enter(shift: float, tilt: float) -> None:
    plan, rows = healthy(-0.005, 0.01)
    other = tuple(
        change(
            row, val_loss=row.result.val_loss + shift * (row.spec.arm == "csa") + tilt * (row.spec.lr > 0.01)
        )
        if row.spec.phase == "search" and row.result
        else row
        for row in rows
    )
    hidden = {"search_loss": None, "caveats": (), "sentence": ""}
    assert dataclasses.replace(judged(plan, other), **hidden) == dataclasses.replace(
        judged(plan, rows), **hidden
    )


def test_pairs_are_by_replicate_in_any_order_of_trials() -> None:
    plan, rows = healthy(-0.004, 0.01)
    assert verdict.verdicts(plan, rows[::-1]) == verdict.verdicts(plan, rows)
    assert judged(plan, rows).rho > 0.9  # most of the noise is common to a seed


def test_the_mirrored_study_has_the_mirrored_verdict() -> None:
    plan, rows = healthy()
    swapped = {"dense": "csa", "csa": "dense"}
    mirrored = tuple(
        change(row, val_loss=other.result.val_loss)
        for row in rows
        for other in rows
        if other.result
        and other.spec.arm == swapped[row.spec.arm]
        and (other.spec.phase, other.spec.seed, other.spec.lr) == (row.spec.phase, row.spec.seed, row.spec.lr)
    )
    found, mirror = judged(plan, rows), judged(plan, mirrored)
    assert (found.kind, mirror.kind) == ("helps", "hurts")
    assert (mirror.delta, mirror.low, mirror.high) == pytest.approx((-found.delta, -found.high, -found.low))
    assert mirror.p_holm == pytest.approx(found.p_holm)


def test_holm_runs_over_all_planned_arms_even_before_they_have_pairs() -> None:
    arms = ("dense", "sliding_window", "csa", "hca")
    plan, rows = study(arms)
    rows = with_losses(rows, noisy(4, {"csa": -0.006, "hca": -0.005, "sliding_window": 0.004}))
    whole = {v.arm: v for v in verdict.verdicts(plan, rows)}
    assert [v.p_holm for v in whole.values()] == pytest.approx(stats.holm([v.p_t for v in whole.values()]))
    early = tuple(row for row in rows if not confirm("hca")(row) and not confirm("sliding_window")(row))
    (only,) = verdict.verdicts(plan, early)
    assert only.p_holm == pytest.approx(3 * whole["csa"].p_t)
    assert only.p_t == whole["csa"].p_t


def test_any_part_of_a_study_can_be_read() -> None:
    view = study_views.view("running", finished=0)
    for finished in range(len(view.trials) + 1):
        rows = study_views.rows(view.plan, finished)
        done = {
            arm.name: {r.spec.replicate for r in rows if confirm(arm.name)(r) and r.result}
            for arm in view.plan.arms
        }
        expected = [a.name for a in view.plan.arms[1:] if done[a.name] & done[view.plan.baseline.name]]
        found = verdict.verdicts(view.plan, rows)
        assert [v.arm for v in found] == expected
        for v in found:
            assert v.n == len(done[v.arm] & done["dense"])
            assert v.level == ("L0" if v.n < 3 else "L1" if v.n < 5 else "L2")
        verdict.lr_curves(view.plan, rows)


# --- how often verdicts are wrong


def test_equal_arms_are_told_apart_at_the_error_rate() -> None:
    plan, rows = study()
    studies = 400
    found = [judged(plan, with_losses(rows, noisy(i, sd=0.05))) for i in range(studies)]
    wrong = sum(v.kind in ("helps", "hurts") for v in found)
    assert binom.ppf(0.005, studies, 0.05) <= wrong <= binom.ppf(0.995, studies, 0.05)
    assert 0.93 <= np.mean([v.low <= 0 <= v.high for v in found]) <= 0.97
    assert np.mean([v.p_flip <= 2 / 2**6 for v in found]) == pytest.approx(2 / 2**6, abs=0.025)


def test_equal_arms_among_many_are_told_apart_at_the_family_wise_rate() -> None:
    plan, rows = study(("dense", "sliding_window", "csa", "hca"))
    studies = 120
    wrong = sum(
        any(
            v.kind in ("helps", "hurts") for v in verdict.verdicts(plan, with_losses(rows, noisy(i, sd=0.05)))
        )
        for i in range(studies)
    )
    assert wrong <= binom.ppf(0.995, studies, 0.05)


def test_a_planted_effect_is_found_as_often_as_detectable_says() -> None:
    plan, rows = study()
    effect = 0.05 * stats.mde(6, 0.05, 0.8)
    studies = 300
    found = [judged(plan, with_losses(rows, noisy(i, {"csa": effect}, sd=0.05))).kind for i in range(studies)]
    assert "helps" not in found
    assert found.count("hurts") / studies == pytest.approx(0.8, abs=0.05)


def test_a_difference_as_large_as_the_margin_is_seldom_called_equivalent() -> None:
    plan, rows = study()
    studies = 300
    found = [judged(plan, with_losses(rows, noisy(i, {"csa": 0.01}, sd=0.004))).kind for i in range(studies)]
    assert found.count("equivalent") <= binom.ppf(0.995, studies, 0.05)


# --- the sentence


def test_the_sentence_has_the_numbers_of_the_verdict() -> None:
    plan, rows = healthy()
    dear = dataclasses.replace(
        plan.arm("csa"), mismatch={"tokens": 0.0, "params": 0.013, "active_params": 0.5, "kv_bytes": -0.53}
    )
    plan = dataclasses.replace(plan, arms=(plan.baseline, dear))
    rows = edit(rows, confirm("csa"), seconds=30.0)
    rows = edit(rows, confirm("dense"), seconds=25.0)
    v = judged(plan, rows)
    half = (v.high - v.low) / 2
    assert v.sentence == (
        f"csa vs dense: {v.delta:+.3f} ± {half:.3f} nats at equal FLOPs "
        "(95% t-CI, n=6 paired seeds, p<0.001 Holm/1); params +1%, KV -53%, wall +20%. Level L2. HELPS. MASKED_IMPL."
    )
    blocked = judged(plan, diverge(rows, "csa", 0, 1, 2, 3))
    assert blocked.sentence.endswith("INCONCLUSIVE (blocked). ASYMMETRIC_DIVERGENCE, DIVERGED, MASKED_IMPL.")


def test_not_worse_than_the_margin_is_said() -> None:
    plan, rows = healthy(-0.006, 0.012)
    v = judged(plan, rows)
    assert v.kind == "inconclusive"
    a, b = ([r.result.val_loss for r in rows if confirm(arm)(r) and r.result] for arm in ("csa", "dense"))
    assert stats.contrast(a, b, 0.01).p_noninferior < 0.05
    assert "NON-INFERIOR by 0.01" in v.sentence


# --- learning-rate curves


def test_curves_find_the_optimum_of_a_bowl() -> None:
    plan, rows = study()
    optimum = 4.1e-3
    rows = tuple(
        change(row, val_loss=3.4 + 0.02 * math.log2(row.spec.lr / optimum) ** 2)
        if search("csa")(row)
        else row
        for row in rows
    )
    dense, csa = verdict.lr_curves(plan, rows)
    assert csa.optimum == pytest.approx(optimum)
    assert dense.optimum == pytest.approx(RATE)
    assert csa.best == RATE
    assert not csa.at_edge
    assert [lr for lr, _, _ in csa.points] == sorted(plan.lr_grid)
    assert csa.tuning_mflop == 5 * STEPS * STEP_MFLOP


def test_diverged_rates_are_shown_at_the_cap_and_bend_no_curve() -> None:
    plan, rows = study()
    hot = lambda r: search("csa")(r) and r.spec.lr == max(plan.lr_grid)  # noqa: E731
    rows = edit(rows, hot, state="diverged", outcome="diverged", val_loss=math.log(512))
    _, csa = verdict.lr_curves(plan, rows)
    assert csa.points[-1] == (max(plan.lr_grid), math.log(512), "diverged")
    assert csa.optimum == pytest.approx(RATE)
    assert not csa.at_edge


def test_arms_without_an_optimum() -> None:
    plan, rows = study()
    falling = tuple(
        change(row, val_loss=3.0 - math.log2(row.spec.lr)) if search("csa")(row) else row for row in rows
    )
    _, csa = verdict.lr_curves(plan, falling)
    assert (csa.best, csa.optimum, csa.at_edge) == (max(plan.lr_grid), None, True)
    diverged = edit(rows, search("csa"), state="diverged", outcome="diverged", val_loss=math.log(512))
    _, csa = verdict.lr_curves(plan, diverged)
    assert (csa.best, csa.optimum, csa.at_edge) == (None, None, True)
    failed = edit(rows, search("csa"), state="failed", outcome="failed", val_loss=None)
    assert [curve.arm for curve in verdict.lr_curves(plan, failed)] == ["dense"]


def test_one_pair_has_no_interval_to_draw() -> None:
    plan, rows = healthy(replicates=1)
    view = dataclasses.replace(study_views.view(), plan=plan, trials=rows, verdicts=(judged(plan, rows),))
    lines, _ = standing.arms(view)
    csa = next(line for line in lines if line.name == "csa")
    assert (csa.low, csa.high) == (None, None)
    assert math.isfinite(standing.axis(lines))
