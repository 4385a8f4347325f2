"""Every hand-written estimator is checked against SciPy, statsmodels or exact enumeration: where, and some here."""

import ast
import importlib
import inspect
import math
from pathlib import Path

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.stats import norm
from scipy.stats import t as student
from statsmodels.stats.power import TTestPower

from ablate import multiplier, operating, sequential, stats

CHECKED = {
    "stats.contrast": "test_stats.test_contrast_agrees_with_statsmodels",  # and of sign flips by enumeration:
    "stats._sign_flip": "test_stats.test_sign_flip_is_the_share_of_all_patterns",
    "stats.power": "test_stats.test_power_agrees_with_statsmodels",
    "stats.mde": "test_stats.test_mde_is_found_with_the_power_asked_for",
    "stats.seeds_needed": "test_stats.test_seeds_needed_are_the_fewest",
    "stats.holm": "test_stats.test_holm_agrees_with_statsmodels",
    "stats.quadratic_optimum": "test_estimators.test_the_optimum_and_its_error_are_those_of_statsmodels",
    "stats.proportion_interval": "test_stats.test_proportion_interval_is_clopper_pearson",
    "stats.rates_differ": "test_stats.test_equal_rates_are_rarely_told_apart",
    "sequential.levels": "test_sequential.test_two_looks_at_equal_arms_err_at_the_rate_by_integration",
    "sequential.weights": "test_sequential.test_levels_grow_with_the_rate_and_share_it",
    "sequential.over_looks": "test_sequential.test_one_p_value_rejects_when_a_look_does",
    "sequential.sum_of_shares": "test_estimators.test_p_values_of_looks_add_up_at_most",
    "sequential.decide": "test_instrument.test_studies_played_in_arrays_end_as_those_of_the_program",
    "sequential._chance": "test_estimators.test_conditional_power_is_that_of_a_random_walk",
    "sequential.whole": "test_confirmation.test_an_early_stop_says_so_and_its_interval_allows_for_the_looks",
    "operating.play": "test_instrument.test_studies_played_in_arrays_end_as_those_of_the_program",
    "operating.power": "test_estimators.test_power_of_a_single_look_is_that_of_statsmodels",
    "operating.detectable": "test_instrument.test_the_detectable_effect_is_found_in_four_studies_of_five",
    "operating.expected_trials": "test_confirmation.test_expected_trials_are_those_of_studies_played",
    "effects.fit": "test_effects.test_a_missing_trial_leaves_the_fit_that_of_statsmodels",
    "effects.weights": "test_effects.test_effects_and_intervals_are_those_of_statsmodels",
    "effects.shapley_weights": "test_effects.test_shapley_values_are_means_over_all_orders_and_sum_to_the_whole",
    "effects.effects": "test_effects.test_leaving_out_turns_verdicts_around_and_all_pages_show_them",
    "effects.detectable": "test_effects.test_the_detectable_main_effect_is_found_four_times_of_five",
    "effects.crossed": "test_effects.test_a_planted_interaction_is_recovered_with_intervals_that_cover_it",
    "multiplier.fit": "test_multiplier.test_without_noise_the_curve_is_found_exactly",
    "multiplier.intervals": "test_multiplier.test_intervals_cover_what_was_planted",
    "multiplier.multipliers": "test_multiplier.test_three_healthy_sizes_are_level_three",
    "multiplier.direction": "test_estimators.test_a_trend_over_sizes_is_the_weighted_slope_of_statsmodels",
}
"""Estimator to the test of it; those of rates, power and coverage are simulations against what was planted."""

MODULES = ("stats", "sequential", "operating", "effects", "multiplier")


def test_every_estimator_is_in_the_table_and_every_test_is_there() -> None:
    for name in MODULES:
        module = importlib.import_module(f"ablate.{name}")
        own = {
            f"{name}.{function}"
            for function, value in vars(module).items()
            if inspect.isfunction(inspect.unwrap(value))
            and value.__module__ == module.__name__
            and not function.startswith("_")
        }
        assert own <= CHECKED.keys(), f"without a check: {own - CHECKED.keys()}"
    for estimator, place in CHECKED.items():
        module, function = estimator.split(".")
        assert hasattr(importlib.import_module(f"ablate.{module}"), function), estimator
        file, test = place.split(".")
        tree = ast.parse((Path(__file__).parent / f"{file}.py").read_text())
        assert test in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, place


def test_the_optimum_and_its_error_are_those_of_statsmodels() -> None:
    rng = np.random.default_rng(0)
    x = np.linspace(-10.5, -6.0, 7)
    y = 3.4 + 0.02 * (x + 8.2) ** 2 + rng.normal(0, 0.003, x.size)
    found = stats.quadratic_optimum(x, y)
    fitted = sm.OLS(y, np.column_stack([x**2, x, np.ones_like(x)])).fit()
    a, b, c = fitted.params
    gradient = np.array([b / (2 * a**2), -1 / (2 * a), 0.0])
    assert found is not None
    assert found.x == pytest.approx(-b / (2 * a))
    assert found.value == pytest.approx(c - b**2 / (4 * a))
    assert found.curvature == pytest.approx(2 * a)
    assert found.standard_error == pytest.approx(
        math.sqrt(gradient @ fitted.cov_params() @ gradient), rel=1e-5
    )


@pytest.mark.parametrize("effect", [0.3, 0.8, 1.2])
def test_power_of_a_single_look_is_that_of_statsmodels(effect: float) -> None:
    assert operating.power(effect, 0.05, (8,)) == pytest.approx(
        TTestPower().power(effect, 8, 0.05), abs=0.015
    )


def test_p_values_of_looks_add_up_at_most() -> None:
    """Whatever the joint distribution; here independent looks, and looks that agree."""
    rng, alpha = np.random.default_rng(1), 0.05
    independent = rng.uniform(size=(4000, 3))
    agreeing = np.repeat(rng.uniform(size=(4000, 1)), 3, axis=1)
    for p in (independent, agreeing):
        wrong = np.mean([sequential.sum_of_shares(row, (3, 5, 8)) < alpha for row in p])
        assert wrong <= alpha + 0.01
    assert sequential.sum_of_shares([0.001, 1, 1], (3, 5, 8)) == pytest.approx(0.001 / (9 / 64))


def test_conditional_power_is_that_of_a_random_walk() -> None:
    """Normal increments whose drift is the trend so far."""
    seen = stats.contrast([0.5, 2.0, 1.1, 1.9, 0.2], [0.0] * 5, 0.1)
    z, share, level = norm.isf(seen.p_t / 2), 5 / 8, 0.03
    rng = np.random.default_rng(2)
    end = z * math.sqrt(share) + rng.normal(z / math.sqrt(share) * (1 - share), math.sqrt(1 - share), 200_000)
    assert sequential._chance(seen, level, 8) == pytest.approx(np.mean(end > norm.isf(level / 2)), abs=0.005)


def test_a_trend_over_sizes_is_the_weighted_slope_of_statsmodels() -> None:
    rng, found = np.random.default_rng(3), set()
    for _ in range(60):
        compute, error = np.array([1.0, 2.0, 4.0, 8.0]), rng.uniform(0.002, 0.01, 4)
        delta = -0.02 + rng.choice([0.0, 0.008]) * np.log(compute) + rng.normal(0, error)
        half = error * student.ppf(0.975, 5)
        sizes = [
            multiplier.Size(study="", compute=c, delta=d, low=d - h, high=d + h, n=6)
            for c, d, h in zip(compute, delta, half, strict=True)
        ]
        design = sm.add_constant(np.log(compute))
        fitted = sm.WLS(delta, design, weights=1 / error**2).fit(cov_type="fixed scale")
        trend = multiplier.direction(sizes)
        found.add(trend)
        if trend != "crossed":
            steep = abs(fitted.tvalues[1]) > student.ppf(0.975, 20)
            assert (trend != "steady") == steep
            assert trend == "steady" or (trend == "closing") == (fitted.params[1] * delta[-1] < 0)
    assert {"steady", "closing"} <= found
