"""Compute multipliers: planted ones recovered with intervals that cover them, and no number where there is none."""

import dataclasses
import json

import judged_studies as studies
import numpy as np
import pytest
import study_views
from scipy.stats import binom

from ablate import config, ladder, multiplier, planning, verdict
from ablate.errors import BadInputError
from ablate.home import Home
from ablate.multiplier import Run, Size
from ablate.records import StudyView

LEVELS = (100_000, 400_000, 1_600_000)


def curve(compute: float, gamma: float = 1.0, alpha: float = 0.15) -> float:
    return 1.6 + 2.5 * (gamma * compute / LEVELS[0]) ** -alpha


def runs(rng, gamma: float, sd: float, seeds: int = 5, alpha: float = 0.15) -> list[Run]:
    """Three arms at three sizes; seeds share most of their noise."""
    made = []
    for i, compute in enumerate(LEVELS):
        for seed in range(seeds):
            shared = rng.normal(0, 3 * sd)
            for arm, g, a in (("base", 1.0, 0.15), ("arm", gamma, alpha), ("same", 1.0, 0.15)):
                value = curve(compute, g, a) + shared + rng.normal(0, sd)
                made.append(Run(arm=arm, compute=compute, loss=value, cluster=(i, seed)))
    return made


def test_without_noise_the_curve_is_found_exactly() -> None:
    found = multiplier.fit(runs(np.random.default_rng(0), 1.3, 0.0), "base")
    assert np.exp(found.log_gamma["arm"]) == pytest.approx(1.3, rel=1e-4)
    assert np.exp(found.log_gamma["same"]) == pytest.approx(1.0, rel=1e-4)
    assert found.exponent["base"] == pytest.approx(0.15, rel=1e-3)
    assert found.floor == pytest.approx(1.6, rel=1e-3)


def test_intervals_cover_what_was_planted() -> None:
    rng, count = np.random.default_rng(1), 50
    covered = {"arm": 0, "same": 0}
    for _ in range(count):
        found = multiplier.intervals(runs(rng, 1.15, 0.004), "base")
        covered["arm"] += found["arm"][1] <= np.log(1.15) <= found["arm"][2]
        covered["same"] += found["same"][1] <= 0 <= found["same"][2]
        assert found["base"] == (0.0, 0.0, 0.0)
    for hits in covered.values():
        assert hits >= binom.ppf(0.005, count, 0.95)


def test_one_wild_run_moves_little(monkeypatch) -> None:
    rng = np.random.default_rng(2)
    clean = runs(rng, 1.15, 0.004)
    wild = [dataclasses.replace(clean[0], loss=2 * clean[0].loss), *clean[1:]]
    before, after = (multiplier.fit(some, "base").log_gamma["arm"] for some in (clean, wild))
    monkeypatch.setattr(multiplier, "_HUBER", 1e6)  # least squares
    squares = multiplier.fit(wild, "base").log_gamma["arm"]
    assert abs(after - before) < abs(squares - before) / 10


def size(compute: float, low: float, high: float) -> Size:
    return Size(study="s", compute=compute, delta=(low + high) / 2, low=low, high=high, n=5)


@pytest.mark.parametrize(
    ("bounds", "trend"),
    [
        ([(-0.05, -0.03), (-0.05, -0.03), (-0.05, -0.03)], "steady"),
        ([(-0.11, -0.09), (-0.06, -0.04), (-0.02, -0.01)], "closing"),
        ([(-0.03, -0.01), (-0.06, -0.04), (-0.11, -0.09)], "widening"),
        ([(-0.11, -0.09), (-0.01, 0.01), (0.05, 0.07)], "crossed"),
        ([(-0.11, -0.09), (-0.06, -0.04), (-0.01, 0.00)], "closing"),
        ([(-0.5, 0.4), (-0.4, 0.4), (-0.4, 0.5)], "steady"),
    ],
)
def test_a_crossing_is_claimed_only_when_it_was_seen(bounds, trend: str) -> None:
    found = multiplier.direction([size(c, *ends) for c, ends in zip(LEVELS, bounds, strict=True)])
    assert found == trend


def views(gamma: float, alpha: float = 0.15) -> list[StudyView]:
    """Healthy studies of csa against dense at three sizes."""
    plan, rows = studies.study(("dense", "csa"), 5)
    made = []
    for i, compute in enumerate(LEVELS):
        noise = studies.noisy(i, sd=0.004, common=0.01)

        def loss(spec, compute=compute, noise=noise) -> float:
            own = curve(compute, gamma, alpha) if spec.arm == "csa" else curve(compute)
            return noise(spec) - 3.4 + own

        own_plan = dataclasses.replace(plan, study=f"size-{i}", trial_mflop=compute)
        trials = studies.with_losses(rows, loss)
        view = dataclasses.replace(
            study_views.view(), name=own_plan.study, plan=own_plan, trials=trials, state="done"
        )
        made.append(dataclasses.replace(view, verdicts=verdict.verdicts(own_plan, trials)))
    return made


def test_three_healthy_sizes_are_level_three() -> None:
    (found,) = multiplier.multipliers(views(1.4)[::-1])
    assert found.gamma is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low < 1.4 < found.high
    assert found.level == "L3"
    assert [s.compute for s in found.sizes] == list(LEVELS)
    assert "x compute [" in found.sentence
    assert "Level L3" in found.sentence


def test_other_exponents_have_no_multiplier() -> None:
    (found,) = multiplier.multipliers(views(1.0, alpha=0.5))
    assert found.gamma is None
    assert found.exponent[1] > 0
    assert found.level != "L3"
    assert "exponents differ" in found.sentence


def test_what_makes_no_multiplier_is_refused() -> None:
    made = views(1.2)
    with pytest.raises(BadInputError, match="at least 3"):
        multiplier.multipliers(made[:2])
    with pytest.raises(BadInputError, match="no verdict on csa"):
        multiplier.multipliers([dataclasses.replace(made[0], verdicts=()), *made[1:]])
    fewer = dataclasses.replace(made[0].plan, arms=made[0].plan.arms[:1])
    with pytest.raises(BadInputError, match="same arms"):
        multiplier.multipliers([dataclasses.replace(made[0], plan=fewer), *made[1:]])


def test_multipliers_are_written_as_data(tmp_path) -> None:
    made = views(1.2)
    found = multiplier.multipliers(made)
    stored = json.loads(ladder.write(found, made, tmp_path).read_text())
    assert stored["studies"] == [view.name for view in made]
    assert stored["multipliers"][0]["gamma"] == found[0].gamma


def test_rungs_are_studies_of_their_own(tmp_path) -> None:
    overrides = ["sweep=ladder"]
    loaded = config.load(overrides)
    made = ladder.plans(ladder.rungs(loaded, overrides, []), Home.at(str(tmp_path)))
    assert [plan.trial_mflop for plan in made] == [200_000, 600_000, 2_000_000]
    alone = planning.make_plan(config.load([*overrides, "sweep.ladder=[]"]), Home.at(str(tmp_path)))
    assert made[-1].study == alone.study, "the largest size is the sweep without its ladder"
    assert len({plan.study for plan in made}) == 3


@pytest.mark.parametrize(
    ("rungs", "words"),
    [
        ("[['budget.per_trial=2 TFLOP'],['budget.per_trial=600 GFLOP']]", ["2 amounts", "at least 3"]),
        ("[['budget.per_tral=1']]", ["sweep.ladder[0]", "per_trial"]),
    ],
)
def test_a_ladder_without_sizes_is_refused(tmp_path, rungs: str, words: list[str]) -> None:
    overrides = ["sweep=ladder", f"sweep.ladder={rungs}"]
    with pytest.raises(BadInputError) as caught:
        ladder.plans(ladder.rungs(config.load(overrides), overrides, []), Home.at(str(tmp_path)))
    for word in words:
        assert word in str(caught.value)
