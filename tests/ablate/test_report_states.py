"""Reports of studies that are not over, went wrong, or are written over an earlier state."""

import contextlib
import dataclasses
import json
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest
import study_views
from report_pages import columns, written

from ablate import report
from ablate.report import arms, contents, data, drawing, effects, files


@pytest.mark.parametrize("finished", [3, 27])
def test_an_unfinished_study_says_what_is_missing(finished: int, tmp_path: Path):
    view = study_views.view(state="stopped", finished=finished)
    paths, page = written(view, tmp_path)
    assert f"The study is stopped: {finished} of 55 trials known so far have ended" in page.text
    assert "There are no verdicts yet." in page.text
    assert f"ablate resume {view.name}" in page.text
    assert {row["Verdict"] for row in columns(page, "effect").values()} == {"baseline", "no verdict yet"}
    assert not (tmp_path / "figures" / "forest.svg").exists()
    assert ("prove nothing" in page.text) == (3 <= finished <= 25)
    assert json.loads(paths["JSON"].read_text(encoding="utf-8"))["verdicts"] == []


def test_a_study_in_which_everything_failed_has_a_report(tmp_path: Path):
    view = study_views.view()
    failed = tuple(
        dataclasses.replace(
            row,
            state="failed",
            result=row.result
            and dataclasses.replace(row.result, outcome="failed", val_loss=None, val_bpb=None, curve=()),
        )
        for row in view.trials
    )
    _, page = written(
        dataclasses.replace(view, trials=failed, verdicts=(), lr_curves=()), tmp_path / "failed"
    )
    assert "55 failed" in page.text
    assert "No verdict yet for sliding_window, csa, hca and v4" in page.text


def test_one_pair_of_seeds_has_an_interval_without_ends():
    view = study_views.view()
    unknown = {"low": -math.inf, "high": math.inf, "sd": math.inf, "detectable": math.inf}
    alone = dataclasses.replace(view.verdicts[0], n=1, kind="inconclusive", **unknown)
    single = dataclasses.replace(view, verdicts=(alone,))
    contrasts = contents.contrasts(single, arms.arms(single))
    (cells,) = (cells for cells in contrasts.cells if cells[0] == alone.arm)
    assert cells[3] == "+0.0310 [−∞, ∞]"
    assert json.loads(data.to_json(single, contrasts))["verdicts"][0]["high"] is None
    shown = effects.forest(single, arms.arms(single))
    assert shown is not None
    ElementTree.fromstring(drawing.render(shown).svg)


def test_figures_of_an_earlier_state_go_and_other_files_stay(tmp_path: Path):
    for name in ("forest.svg", "forest.png", "mine.svg"):
        files.replace(tmp_path / "figures" / name, "from before")
    report.write(study_views.view(state="running", finished=0), tmp_path)
    assert not list((tmp_path / "figures").glob("forest.*"))
    assert (tmp_path / "figures" / "mine.svg").read_text() == "from before"


def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "report.html"
    files.replace(path, "old")

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch, contextlib.suppress(OSError):
        patch.setattr("os.replace", full)
        files.replace(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
