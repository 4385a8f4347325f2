"""Comparisons: the factor is told from what else differs, and what makes losses incomparable refuses them."""

import dataclasses
import json

import pytest
import small_studies

from ablate import fairness, study
from ablate.errors import BadInputError
from ablate.home import Home

MICRO = "model=micro model.vocab_size=512"


def models(tmp_path, a: str, b: str) -> fairness.Comparison:
    return fairness.compare(f"{MICRO} {a}", f"{MICRO} {b}", Home(tmp_path))


def keys(found: fairness.Comparison, severity: str) -> set[str]:
    return {finding.key for finding in found.findings if finding.severity == severity}


@pytest.mark.parametrize(
    ("a", "b", "factors"),
    [
        ("residual=mhc", "residual=prenorm", {"residual"}),
        ("optimizer=muon", "optimizer=adamw", {"optimizer"}),
        ("model.sliding_window=8", "model.sliding_window=16", {"dims"}),
        ("model.compress_ratios=dense*4", "model.compress_ratios=csa@4*4", {"schedule"}),
        ("model.compress_ratios=swa*4", "model.compress_ratios=hca@16*4", {"schedule"}),
        ("model.num_hash_layers=0", "model.num_hash_layers=4", {"routers"}),
    ],
)
def test_one_factor_is_comparable(tmp_path, a: str, b: str, factors: set[str]) -> None:
    found = models(tmp_path, a, b)
    assert not found.refused
    assert factors <= set(found.factors)
    assert set(found.factors) <= factors | {"router"}, "a router without layers is no part of a model"


def test_two_factors_and_none_are_warned_about(tmp_path) -> None:
    two = models(tmp_path, "residual=mhc sink=none", "residual=prenorm")
    assert {"residual", "sink"} <= set(two.factors)
    assert keys(two, "warning") == {"factors"}
    same = models(tmp_path, "seed=0", "seed=0")
    assert same.factors == {}
    assert keys(same, "warning") == {"factors"}


@pytest.mark.parametrize(
    ("setting", "severity"),
    [
        ("trainer.seq_len=128", "refused"),
        ("data.vocab_size=1024", "refused"),
        ("data.val_tokens=4096", "refused"),
        ("data.document_mask=true", "refused"),
        ("budget.match=tokens", "refused"),
        ("trainer.batch_size=7", "warning"),
        ("trainer.precision=bf16-mixed", "warning"),
        ("optimizer.warmup=0.2", "warning"),
        ("seed=9", "warning"),
    ],
)
def test_what_differs_beyond_the_factor_is_named(tmp_path, setting: str, severity: str) -> None:
    found = models(tmp_path, f"residual=prenorm {setting}", "residual=mhc")
    assert keys(found, severity) == {setting.partition("=")[0]}
    assert found.refused == (severity == "refused")
    assert all(finding.why for finding in found.findings)
    json.dumps(fairness.answer(found), allow_nan=False)


def test_studies_of_unlike_compute_data_or_baseline_are_refused(tmp_path) -> None:
    home = Home(tmp_path)
    first = small_studies.plan("a-1")
    plans = [
        first,
        dataclasses.replace(first, study="same-1"),
        dataclasses.replace(first, study="compute-1", trial_mflop=2 * first.trial_mflop),
        dataclasses.replace(first, study="data-1", data_fingerprint="d" * 48),
        dataclasses.replace(first, study="seeds-1", confirm_seeds=(91, 92)),
        small_studies.plan("base-1", arms=("csa", "dense")),
    ]
    for plan in plans:
        study.create(dataclasses.replace(plan, fingerprint=plan.study), home)

    def against(name: str) -> fairness.Comparison:
        return fairness.compare("a-1", name, home)

    assert against("same-1").findings == ()
    assert keys(against("compute-1"), "refused") == {"compute per trial, MFLOP"}
    assert keys(against("data-1"), "refused") == {"data fingerprint"}
    assert keys(against("seeds-1"), "warning") == {"confirm seeds"}
    base = against("base-1")
    assert not base.refused, "arms are named otherwise, but the baseline is the same model"
    assert {"csa: schedule", "dense: schedule"} <= set(base.factors)


def test_a_study_is_not_compared_with_a_model(tmp_path) -> None:
    with pytest.raises(BadInputError, match="not of one kind"):
        fairness.compare("a-1", "model=micro", Home(tmp_path))
