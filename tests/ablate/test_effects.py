"""Effects of factors: against statsmodels, against enumeration, and planted ones found again by simulation."""

import dataclasses
import itertools
import json

import numpy as np
import pandas
import pytest
import report_pages
import statsmodels.formula.api as smf
import study_views
from hypothesis import given
from hypothesis import strategies as st

from ablate import console, designs, effects, report
from ablate.report import formats
from ablate.schema import Confirm, Sweep

NAMES = ("a", "b", "c", "d", "e")


def sweep(design: str = "full_factorial", k: int = 3, resolution: int = 5) -> Sweep:
    factors = {name: {"without": {"x": name}} for name in NAMES[:k]}
    return Sweep(design=design, factors=factors, resolution=resolution, confirm=Confirm(margin=0.01))


def losses(made: Sweep, rng, truth, seeds: int = 6, sd: float = 0.01) -> dict[str, dict[int, float]]:
    """Loss of every arm by `truth` of its levels, with a part that a seed's arms share and one of their own."""
    shared = rng.normal(0, 0.05, seeds)
    return {
        arm: {s: 3.4 + truth(on) + shared[s] + rng.normal(0, sd) for s in range(seeds)}
        for arm, on in designs.levels(made).items()
    }


def planted(on) -> float:
    """Two main effects, and a gain of a and b together."""
    return -0.03 * on[0] + 0.02 * on[1] - 0.04 * (on[0] and on[1])


def test_effects_and_intervals_are_those_of_statsmodels() -> None:
    made = sweep()
    data = losses(made, np.random.default_rng(0), planted)
    table = pandas.DataFrame(
        [
            {**{n: 2 * v - 1 for n, v in zip(NAMES, on, strict=False)}, "seed": seed, "loss": data[arm][seed]}
            for arm, on in designs.levels(made).items()
            for seed in data[arm]
        ]
    )
    reference = smf.ols("loss ~ a * b * c + C(seed)", table).fit()
    found = effects.crossed(made, data)
    for effect in (*found.mains, *found.interactions):
        name = effect.name.replace(" × ", ":")
        scale = 4 if ":" in name else 2
        assert effect.estimate == pytest.approx(scale * reference.params[name])
        assert (effect.low, effect.high) == pytest.approx(tuple(scale * reference.conf_int().loc[name]))
        assert effect.p == pytest.approx(reference.pvalues[name])


def test_a_missing_trial_leaves_the_fit_that_of_statsmodels() -> None:
    made = sweep(k=2)
    data = losses(made, np.random.default_rng(1), planted, seeds=4)
    del data["full"][2], data["a"][0]
    table = pandas.DataFrame(
        [{"arm": arm, "seed": s, "loss": value} for arm, own in data.items() for s, value in own.items()]
    )
    reference = smf.ols("loss ~ 0 + C(arm) + C(seed, Sum)", table).fit()
    fitted = effects.fit(data)
    assert fitted.df == reference.df_resid
    for i, arm in enumerate(fitted.arms):
        assert fitted.means[i] == pytest.approx(reference.params[f"C(arm)[{arm}]"])
        assert fitted.covariance[i, i] ** 0.5 == pytest.approx(reference.bse[f"C(arm)[{arm}]"])


@given(st.lists(st.floats(-1, 1), min_size=8, max_size=8))
def test_shapley_values_are_means_over_all_orders_and_sum_to_the_whole(values: list[float]) -> None:
    named = designs.levels(sweep(k=3))
    value = dict(zip(named.values(), values, strict=True))
    orders = list(itertools.permutations(range(3)))
    expected = np.zeros(3)
    for order in orders:
        on = [False] * 3
        for i in order:
            before = value[tuple(on)]
            on[i] = True
            expected[i] += (value[tuple(on)] - before) / len(orders)
    shares = effects.shapley_weights(named) @ np.array(values)
    assert shares == pytest.approx(expected, abs=1e-9)
    assert shares.sum() == pytest.approx(value[True, True, True] - value[False, False, False], abs=1e-9)


@pytest.mark.parametrize(("design", "k"), [("full_factorial", 3), ("fractional_factorial", 5)])
def test_a_planted_interaction_is_recovered_with_intervals_that_cover_it(design: str, k: int) -> None:
    made, rng, studies = sweep(design, k), np.random.default_rng(2), 120
    truth = {"a": -0.03 - 0.02, "b": 0.02 - 0.02, "a × b": -0.04, "a × c": 0.0}
    covered = dict.fromkeys(truth, 0)
    shares = {"a": 0, "b": 0, "c": 0}
    totals = 0
    for _ in range(studies):
        found = effects.crossed(made, losses(made, rng, planted))
        by_name = {effect.name: effect for effect in (*found.mains, *found.interactions)}
        for name, value in truth.items():
            covered[name] += by_name[name].low <= value <= by_name[name].high
        for effect in found.shapley:
            if effect.name in shares:
                expected = {"a": -0.05, "b": 0.0, "c": 0.0}[effect.name]
                shares[effect.name] += effect.low <= expected <= effect.high
        assert by_name["a × b"].kind == "helps"
        assert not by_name["a × b"].aliases
        assert found.total is not None
        assert sum(effect.estimate for effect in found.shapley) == pytest.approx(found.total[0])
        totals += found.total[1] <= -0.05 <= found.total[2]
    for count in (*covered.values(), *shares.values(), totals):
        assert 0.88 <= count / studies <= 0.99  # 95 % within four standard errors of 120 studies


def test_nothing_planted_is_rarely_found_in_any_effect() -> None:
    made, rng, studies = sweep(), np.random.default_rng(3), 200
    wrong = sum(
        any(e.p_holm < 0.05 for e in effects.crossed(made, losses(made, rng, lambda on: 0.0)).mains)
        for _ in range(studies)
    )
    assert wrong / studies <= 0.05 + 3 * (0.05 * 0.95 / studies) ** 0.5


def test_aliased_effects_say_what_they_are_the_sum_of() -> None:
    made = sweep("fractional_factorial", 4, resolution=4)  # d = a b c, so that ab = cd
    found = effects.crossed(made, losses(made, np.random.default_rng(4), planted))
    (both,) = [e for e in found.interactions if e.name == "a × b"]
    assert both.aliases == ("c × d",)
    assert "resolution IV" in found.design
    assert found.shapley == (), "regression needs interactions clear of each other"


def test_one_seed_has_no_intervals_and_doubts_leave_nothing_concluded() -> None:
    made = sweep()
    single = effects.crossed(made, losses(made, np.random.default_rng(5), planted, seeds=1))
    assert all(e.p == 1 and np.isinf(e.high) and e.kind == "inconclusive" for e in single.mains)
    doubted = effects.crossed(made, losses(made, np.random.default_rng(5), planted), ("at the edge",))
    assert {e.kind for e in (*doubted.mains, *doubted.interactions)} == {"inconclusive"}
    assert doubted.doubts == ("at the edge",)


def test_leaving_out_turns_verdicts_around_and_all_pages_show_them(tmp_path, capsys) -> None:
    view = study_views.view(arms={"full": "swa,csa@4,hca@16,csa@4", "no_csa": "dense*4", "no_hca": "csa@4*4"})
    factors = {name: {"without": {"x": name}} for name in ("csa", "hca")}
    made = dataclasses.replace(view.plan.run.sweep, design="leave_one_out", factors=factors)
    plan = dataclasses.replace(view.plan, run=dataclasses.replace(view.plan.run, sweep=made))
    found = effects.effects(plan, view.trials, view.verdicts)
    assert found is not None
    for effect, verdict in zip(found.mains, view.verdicts, strict=True):
        assert verdict.arm == f"no_{effect.name}"
        assert (effect.estimate, effect.low, effect.high) == (-verdict.delta, -verdict.high, -verdict.low)
        assert {effect.kind, verdict.kind} in ({"helps", "hurts"}, {"equivalent"}, {"inconclusive"})
    shown = dataclasses.replace(view, plan=plan, effects=found)
    paths = report.write(shown, tmp_path)
    page = report_pages.Page(paths["HTML report"].read_text())
    (rows,) = [rows for caption, rows in page.tables.items() if caption.startswith("Effect of switching")]
    best = min(found.mains, key=lambda effect: effect.estimate)
    assert rows[1][0] == best.name
    assert rows[1][1].startswith(formats.signed(best.estimate))
    assert "all other factors on" in paths["Markdown"].read_text()
    stored = json.loads(paths["JSON"].read_text())["effects"]["mains"]
    assert [effect["estimate"] for effect in stored] == [effect.estimate for effect in found.mains]
    console.final(shown, {})
    assert "Effects of switching factors on" in capsys.readouterr().out


def test_the_detectable_main_effect_is_found_four_times_of_five() -> None:
    made, rng, sd, studies = sweep(k=3), np.random.default_rng(6), 0.02, 150
    wanted = effects.detectable(made, sd)
    assert wanted is not None
    p = [
        effects.crossed(made, losses(made, rng, lambda on: wanted * on[0], seeds=6, sd=sd / 2**0.5))
        .mains[0]
        .p
        for _ in range(studies)
    ]
    assert np.mean(np.array(p) < 0.05 / 3) == pytest.approx(0.8, abs=0.1)
    assert effects.detectable(sweep("leave_one_out"), sd) is None
