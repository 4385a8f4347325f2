"""The portal's charts say what the study says, in the report's colours."""

import dataclasses
import html
import json
import math
import re
import subprocess
import sys

import pytest
import study_views

from ablate import figures
from ablate.records import StudyView
from ablate.report import arms

ALL = [getattr(figures, name) for name in figures.__all__]
PAYLOAD = "%{x} <b>bold</b> <a href='x'>$a_1$</a>"


@pytest.fixture(scope="module")
def view() -> StudyView:
    return study_views.view()


def spec(figure) -> dict:
    """The figure as a browser gets it."""
    return json.loads(figure.to_json())


def shown(figure) -> list[dict]:
    return [trace for trace in spec(figure)["data"] if trace.get("hoverinfo") != "skip"]


def test_thick_lines_are_means_over_seeds_at_equal_compute(view: StudyView):
    lines = {trace["name"]: trace for trace in shown(figures.loss_vs_flops(view))}
    assert lines.keys() == {arm.name for arm in view.plan.arms}
    for name, line in lines.items():
        own = [r for r in view.trials if r.spec.arm == name and r.spec.phase == "confirm"]
        losses: dict[float, list[float]] = {}
        for row in own:
            assert row.result is not None
            for point in row.result.curve:
                if point.val_loss is not None:
                    losses.setdefault(point.mflop * 1e6, []).append(point.val_loss)
        assert line["x"] == sorted(losses)
        assert line["y"] == pytest.approx([sum(losses[at]) / len(own) for at in line["x"]])
    thin = [t for t in spec(figures.loss_vs_flops(view))["data"] if t.get("hoverinfo") == "skip"]
    assert {trace["x"].count(None) for trace in thin} == {len(view.plan.confirm_seeds)}


def test_the_forest_has_every_interval_and_the_margin(view: StudyView):
    figure = spec(figures.forest(view))
    marks = {trace["name"]: trace for trace in figure["data"]}
    for verdict in view.verdicts:
        mark = marks[verdict.arm]
        (delta,), (up,), (down,) = mark["x"], mark["error_x"]["array"], mark["error_x"]["arrayminus"]
        assert (delta - down, delta, delta + up) == pytest.approx((verdict.low, verdict.delta, verdict.high))
    best_first = [v.arm for v in sorted(view.verdicts, key=lambda v: v.delta)]
    assert figure["layout"]["yaxis"]["categoryarray"] == best_first
    low, high = figure["layout"]["yaxis"]["range"]
    assert low > high, "the first category is on top"
    margin = view.verdicts[0].margin
    assert (-margin, margin) in [(s["x0"], s["x1"]) for s in figure["layout"]["shapes"]]


def test_one_pair_of_seeds_has_no_interval(view: StudyView):
    first = dataclasses.replace(view.verdicts[0], low=-math.inf, high=math.inf)
    (mark,) = shown(figures.forest(dataclasses.replace(view, verdicts=(first,))))
    assert mark["x"] == [first.delta]
    assert "array" not in mark["error_x"]


def test_every_search_trial_and_the_optimum_of_the_quadratic_are_there(view: StudyView):
    traces = spec(figures.loss_vs_lr(view))["data"]
    named = {trace.get("name"): trace for trace in traces}
    for curve in view.lr_curves:
        lost = named.get(f"{curve.arm}, not completed", {"x": [], "y": []})
        drawn = [*zip(named[curve.arm]["x"], named[curve.arm]["y"], strict=True)]
        drawn += zip(lost["x"], lost["y"], strict=True)
        assert sorted(drawn) == sorted((lr, loss) for lr, loss, _ in curve.points)
        filled = [
            lr
            for lr, symbol in zip(named[curve.arm]["x"], named[curve.arm]["marker"]["symbol"], strict=True)
            if not symbol.endswith("-open")
        ]
        assert filled == [curve.best]
        star = named[f"{curve.arm}, optimum of the quadratic"]
        assert star["x"] == [curve.optimum]
        (parabola,) = [
            t for t in traces if t.get("legendgroup") == curve.arm and t.get("line", {}).get("dash") == "dot"
        ]
        assert star["y"][0] <= min(parabola["y"])
        assert min(parabola["y"]) == pytest.approx(star["y"][0], abs=1e-3), "its lowest point is drawn"


def test_every_phase_adds_up_to_what_it_was_allowed(view: StudyView):
    bars = shown(figures.budget_bar(view))
    sums = {phase: sum(bar["x"][i] for bar in bars) * 1e12 / 1e6 for i, phase in enumerate(bars[0]["y"])}
    assert sums == {account.phase: pytest.approx(account.cap) for account in view.accounts}


def test_arms_look_and_are_ordered_as_in_the_report(view: StudyView):
    faces = arms.arms(view)
    for figure in (figures.loss_vs_flops(view), figures.loss_vs_lr(view)):
        legend = [trace for trace in shown(figure) if trace["showlegend"]]
        assert {t["name"]: t["line"]["color"] for t in legend} == {f.label: f.colour for f in faces.values()}
        legend.sort(key=lambda trace: trace["legendrank"])
        assert [trace["name"] for trace in legend] == [arm.name for arm in view.plan.arms]
    assert all(t["marker"]["color"] == faces[t["name"]].colour for t in shown(figures.forest(view)))


def test_every_colour_has_one_for_dark_pages(view: StudyView):
    for make in ALL:
        figure = spec(make(view))
        assert figure["layout"].pop("meta")["dark"] == arms.ON_DARK
        used = set(re.findall(r'"(#[0-9a-f]+)"', json.dumps(figure)))
        assert used
        assert used <= set(arms.ON_DARK)


def test_arms_beyond_those_with_a_colour_are_drawn_but_not_in_the_legend():
    schedules = list(study_views.SCHEDULES.values())
    view = study_views.view(arms={f"arm{i}": schedules[i % 5] for i in range(10)}, replicates=2)
    lines = shown(figures.loss_vs_flops(view))
    assert len(lines) == 10
    assert sum(line["showlegend"] for line in lines) == 1 + len(arms.COLOURS)
    assert len(shown(figures.forest(view))) == 9


@pytest.mark.parametrize("make", ALL)
def test_a_study_without_anything_says_so(make, view: StudyView):
    empty = dataclasses.replace(view, trials=(), accounts=(), lr_curves=(), verdicts=())
    figure = spec(make(empty))
    assert figure["data"] == []
    assert "yet" in figure["layout"]["annotations"][0]["text"]


@pytest.mark.parametrize("finished", [0, 1, 6, 26, 36])
def test_a_running_study_has_its_charts(finished: int):
    view = study_views.view("running", finished)
    for make in ALL:
        spec(make(view))
    trials = {trace["name"] for trace in shown(figures.loss_vs_flops(view))}
    ended = {row.spec.arm for row in view.trials if row.state == "complete"}
    assert trials == ended if finished < 26 else trials <= ended


@pytest.mark.parametrize("make", [figures.forest, figures.loss_vs_flops, figures.loss_vs_lr])
def test_names_are_text(make):
    view = study_views.view(arms={"base": "dense*4", PAYLOAD: "swa*4"})
    names = [trace["name"] for trace in shown(make(view))]
    assert any(html.unescape(name).startswith(arms.arms(view)[PAYLOAD].label) for name in names)
    assert not any(set("<>{") & set(name) for name in names)


def test_plotly_is_imported_with_the_first_figure():
    code = "import sys, ablate.figures; print('plotly' in sys.modules, 'matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
