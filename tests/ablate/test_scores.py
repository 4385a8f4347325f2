"""Scores on a probe: what counts as solved, its exact interval, and that every reader of a study gets to see them."""

import dataclasses
import json
from pathlib import Path

import judged_studies as studies
import pytest
import study_views
from scipy import stats

from ablate import registration, schema, scores, tracking_runs, verdict
from ablate.console import end_screen, status_screen, verdict_screen
from ablate.jsonable import jsonable
from ablate.records import Plan, Point, StudyView, TrialRow
from ablate.report import write
from ablate.scores import ACCURACY

REACHED = {"dense": (1.0, 0.97, 0.95, 0.9, 0.93, 0.99), "csa": (0.5, 0.91, 0.3, 0.2, 0.4, 0.1)}
"""Accuracies by arm and replicate; one of dense is just not solved."""


def _curve(final: float) -> tuple[Point, ...]:
    """Half of the way nothing, then the end."""
    return tuple(
        Point(step=step, tokens=step, mflop=step, seconds=1.0, lr=1e-3, val_loss=1.0, accuracy=accuracy)
        for step, accuracy in ((500, 0.1), (1000, final), (2000, final))
    )


def _study() -> tuple[Plan, tuple[TrialRow, ...]]:
    plan, rows = studies.study()
    data = schema.Data(name="probe/mqar", source="probe/mqar", args={"pairs": 4})
    plan = dataclasses.replace(plan, run=dataclasses.replace(plan.run, data=data))

    def scored(row: TrialRow) -> TrialRow:
        found = REACHED[row.spec.arm][row.spec.replicate] if row.spec.phase == "confirm" else 0.6
        return studies.change(
            row,
            metrics={ACCURACY: found, **{f"{ACCURACY}/{far}": found / far for far in (2, 16)}},
            curve=_curve(found),
            val_bpb=None,
        )

    return plan, tuple(map(scored, rows))


def _view() -> StudyView:
    plan, rows = _study()
    return dataclasses.replace(
        study_views.view(),
        plan=plan,
        trials=rows,
        lr_curves=verdict.lr_curves(plan, rows),
        verdicts=verdict.verdicts(plan, rows),
        scores=scores.scores(plan, rows),
    )


def test_seeds_above_nine_tenths_have_solved_it_with_an_exact_interval() -> None:
    """The interval against the quantiles of beta distributions that Clopper and Pearson's is."""
    dense, csa = scores.scores(*_study())
    assert (dense.arm, dense.solved, dense.n) == ("dense", 5, 6)
    assert (csa.arm, csa.solved, csa.n) == ("csa", 1, 6)
    for score in (dense, csa):
        k, n = score.solved, score.n
        assert score.low == pytest.approx(stats.beta.ppf(0.025, k, n - k + 1))
        assert score.high == pytest.approx(stats.beta.ppf(0.975, k + 1, n - k))
        mean = sum(REACHED[score.arm]) / 6
        assert score.accuracy == pytest.approx(mean)
        assert score.steps == 1000
        assert score.searched == 0.6
        assert dict(score.reach) == pytest.approx({2: mean / 2, 16: mean / 16})


def test_a_seed_that_diverged_has_solved_nothing() -> None:
    plan, rows = _study()
    dense, _ = scores.scores(plan, studies.diverge(rows, "dense", 0, 1))
    assert (dense.solved, dense.n) == (3, 6)
    assert dense.accuracy == pytest.approx(sum(REACHED["dense"][2:]) / 6)


def test_without_fresh_seeds_there_is_only_the_search_and_of_text_nothing() -> None:
    plan, rows = _study()
    early = scores.scores(plan, [row for row in rows if row.spec.phase == "search"])
    assert [(score.accuracy, score.n, score.low, score.searched) for score in early] == [
        (None, 0, None, 0.6)
    ] * 2
    assert scores.scores(studies.study()[0], rows) == ()


@pytest.mark.parametrize("screen", [end_screen.final, verdict_screen.verdict, status_screen.status])
def test_screens_show_them(screen: object, width: int, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (_view(), {}) if screen is end_screen.final else (_view(),)
    assert callable(screen)
    screen(*arguments)
    shown = capsys.readouterr().out
    (dense,) = (line for line in shown.splitlines() if "5 of 6" in line)
    assert "95.7%" in dense
    assert "[36%, 100%]" in dense
    assert "1 of 6" in shown
    assert "bits/byte" not in shown
    assert any(
        "47.8%" in line and "6.0%" in line for line in shown.splitlines()
    )  # at most 2 and 16 tokens back
    assert max(map(len, shown.splitlines())) <= width or "ablate" in shown
    screen_of_text = dataclasses.replace(_view(), scores=())
    screen(*((screen_of_text, {}) if screen is end_screen.final else (screen_of_text,)))
    assert "5 of 6" not in capsys.readouterr().out


def test_report_mirror_and_json_hold_them(tmp_path: Path) -> None:
    view = _view()
    files = write(view, tmp_path)
    told = json.loads(files["JSON"].read_text())["scores"]
    assert [(row["arm"], row["solved"], row["n"]) for row in told] == [("dense", 5, 6), ("csa", 1, 6)]
    assert told == jsonable(view)["scores"] == registration.answer(view)["scores"]
    for kind in ("HTML report", "Markdown"):
        text = files[kind].read_text().replace("\\", "")  # Markdown escapes brackets
        assert "5 of 6" in text
        assert "[36%, 100%]" in text
    runs = {
        run.key: {m.key: m.value for m in run.metrics if m.step == 0} for run in tracking_runs.contents(view)
    }
    assert runs["arm/dense"]["probe/solved"] == 5
    assert runs["arm/dense"][f"{ACCURACY}/2"] == pytest.approx(sum(REACHED["dense"]) / 12)
    assert runs["arm/csa"]["probe/high"] == pytest.approx(stats.beta.ppf(0.975, 2, 5))
    trial = next(row for row in view.trials if row.spec.phase == "confirm" and row.spec.arm == "csa")
    assert runs[f"trial/{trial.number}"][ACCURACY] == REACHED["csa"][trial.spec.replicate]
