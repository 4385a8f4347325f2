"""The report, read back as a reader, a browser and a program would."""

import csv
import dataclasses
import io
import itertools
import json
import re
import statistics
from pathlib import Path
from xml.etree import ElementTree

import pytest
import study_views
from hypothesis import given
from hypothesis import strategies as st
from report_pages import Page, columns, numbers, written

from ablate import report
from ablate.records import Caveat, LrCurve, StudyView
from ablate.report import arms, drawing, effects, losses, plots, table

HOSTILE = {
    "dense": "dense*4",
    "<script>alert(1)</script>": "swa*4",
    "\"><img src=x onerror='alert(2)'>": "csa@4*4",
    "$x_1^2$ & 100% #{~} \\end{table} | a\nb * _c_ `d` [e](http://example.com)": "hca@16*4",
    "long " * 2000: "swa,csa@4,hca@16,csa@4",
    "long " * 2000 + "x": "swa*3,csa@4",
    "\x00\x1b[31m\ud800 ünï – 漢字": "dense*3,swa",
}


def with_caveats(view: StudyView) -> StudyView:
    caveats = (
        Caveat(id="LR_EDGE", blocks=True, text="The best rate of <b>csa</b> is the highest tried."),
        Caveat(id="SHORT_RUN", blocks=False, text="Trained for 400 steps."),
    )
    first, *rest = view.verdicts
    edge = tuple(dataclasses.replace(curve, at_edge=curve.arm == "csa") for curve in view.lr_curves)
    return dataclasses.replace(
        view, verdicts=(dataclasses.replace(first, caveats=caveats), *rest), lr_curves=edge
    )


@pytest.fixture(scope="module")
def view() -> StudyView:
    return with_caveats(study_views.view())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def whole(view: StudyView, folder: Path) -> tuple[dict[str, Path], Page]:
    return written(view, folder)


@pytest.fixture(scope="module")
def hostile_view() -> StudyView:
    made = study_views.view(arms=HOSTILE, question="<script>alert('q')</script> & $why$?")
    rows = list(made.trials)
    assert rows[3].result is not None
    rows[3] = dataclasses.replace(
        rows[3],
        state="failed",
        result=dataclasses.replace(
            rows[3].result, outcome="failed", val_loss=None, reason="<i>out</i> & gone"
        ),
    )
    rows[4] = dataclasses.replace(rows[4], reused_from="<u>other</u>-study")
    return dataclasses.replace(made, trials=tuple(rows), provenance={"cpu": "<b>A & B</b>"})


@pytest.fixture(scope="module")
def hostile(
    hostile_view: StudyView, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Path], Page]:
    return written(hostile_view, tmp_path_factory.mktemp("hostile"))


def test_every_number_of_the_contrast_table_is_the_verdicts(view: StudyView, whole):
    effect, cost = columns(whole[1], "effect"), columns(whole[1], "what it was bought with")
    assert list(effect) == ["dense", "v4", "csa", "hca", "sliding_window"]
    seconds = {
        arm: statistics.fmean(r.result.seconds for r in confirm(view, arm) if r.result) for arm in effect
    }
    for verdict in view.verdicts:
        shown, bought, arm = effect[verdict.arm], cost[verdict.arm], view.plan.arm(verdict.arm)
        assert shown["Verdict"] == verdict.kind
        assert shown["Level"] == verdict.level
        assert numbers(shown["Seeds"]) == [verdict.n]
        interval = [numbers(part)[0] for part in re.split(r"\[|, ", shown["Δ loss [95 % interval], nats"])]
        assert interval == pytest.approx([verdict.delta, verdict.low, verdict.high], abs=5e-5)
        assert numbers(shown["p, Holm"]) == pytest.approx([verdict.p_holm], rel=5e-3)
        assert numbers(shown["p, sign flip"]) == pytest.approx([verdict.p_flip], rel=5e-3)
        assert numbers(shown["p, equivalence"]) == pytest.approx([verdict.p_tost], rel=5e-3)
        assert numbers(shown["Detectable, nats"]) == pytest.approx([verdict.detectable], abs=5e-5)
        assert shown["Diverged"] == f"0 of {verdict.n}"
        assert numbers(bought["Loss, nats"]) == pytest.approx([verdict.loss], abs=5e-5)
        assert numbers(bought["Bits per byte"]) == pytest.approx([verdict.bpb], abs=5e-5)
        assert numbers(bought["Learning rate"]) == pytest.approx([verdict.lr], rel=5e-3)
        assert ("edge" in bought["Learning rate"]) == (verdict.arm == "csa")
        assert numbers(bought["Parameters"]) == [arm.params]
        assert numbers(bought["KV bytes/token"]) == pytest.approx([arm.kv_bytes_per_token], rel=5e-4)
        assert numbers(bought["Train FLOP/token"]) == pytest.approx(
            [arm.train_flops_per_token / 1e6], rel=5e-3
        )
        assert numbers(bought["Steps"]) == [arm.steps]
        assert numbers(bought["Tokens"]) == [arm.tokens]
        assert numbers(bought["Time, ratio"]) == pytest.approx(
            [seconds[verdict.arm] / seconds["dense"]], abs=5e-3
        )
    base = statistics.fmean(
        r.result.val_loss for r in confirm(view, "dense") if r.result and r.result.val_loss
    )
    assert numbers(cost["dense"]["Loss, nats"]) == pytest.approx([base], abs=5e-5)


def confirm(view: StudyView, arm: str):
    return [r for r in view.trials if r.spec.arm == arm and r.spec.phase == "confirm"]


def test_the_page_says_what_won_by_how_much_and_what_speaks_against_it(view: StudyView, whole):
    text = whole[1].text
    assert view.plan.question in text
    assert "v4 helps most: −0.0380 nats against dense" in text
    for verdict in view.verdicts:
        assert verdict.sentence in text
    assert "The best rate of <b>csa</b> is the highest tried." in text
    assert "1 blocker forbids a verdict, 1 warning" in text
    assert text.index("is the highest tried") < text.index("Trained for 400 steps")
    for value in (view.plan.fingerprint, view.plan.data_fingerprint, *view.provenance.values(), "afl-1"):
        assert value in text
    assert len(whole[1].tables["All trials"]) == 1 + len(view.trials)


def test_the_ledger_adds_up_on_the_page(view: StudyView, whole):
    rows = {row[0]: row[1:] for row in whole[1].tables["Compute by phase"][1:]}
    assert list(rows) == ["search", "confirm", "evaluation", "contingency", "all"]
    for account in view.accounts:
        cap, useful, again, reserved, rest, used = (amount(cell) for cell in rows[account.phase])
        assert cap == pytest.approx(account.cap * 1e6, rel=5e-3)
        assert again == pytest.approx(account.waste * 1e6, rel=5e-3)
        assert useful + again + reserved + rest == pytest.approx(cap, rel=1e-2)
        assert used == pytest.approx(100 * (account.spent - account.waste) / account.cap, abs=0.05)


def amount(cell: str) -> float:
    powers = {"": 1, "G": 1e9, "T": 1e12, "M": 1e6}
    prefix = re.search(r" ([GTM]?)FLOP", cell)
    return numbers(cell)[0] * powers[prefix[1] if prefix else ""]


def test_nothing_is_loaded_and_nothing_runs(whole, hostile):
    for _, page in (whole, hostile):
        assert page.tags.isdisjoint(
            {"script", "img", "iframe", "object", "embed", "base", "form", "i", "b", "u"}
        )
        for tag, name, value in page.attributes:
            assert not name.startswith("on")
            if name in ("src", "href", "srcset", "data", "action"):
                assert value.startswith(("#", "data:")), (tag, name, value[:80])
    source = whole[0]["HTML report"].read_text(encoding="utf-8")
    assert "@import" not in source
    assert not re.findall(r"url\((?!#)", source)
    assert not re.findall(r"(?:https?:)?//[a-z]", source)


def test_identifiers_are_unique_and_every_link_inside_leads_somewhere(whole, hostile):
    for _, page in (whole, hostile):
        identifiers = page.values("id")
        assert len(identifiers) == len(set(identifiers))
        inside = {value[1:] for value in page.values("href") if value.startswith("#")}
        for name in ("style", "clip-path"):
            inside |= {
                found for value in page.values(name) for found in re.findall(r"url\(#([^)]+)\)", value)
            }
        assert inside <= set(identifiers)


def test_names_appear_as_they_are_and_stay_apart(hostile_view: StudyView, hostile):
    page = hostile[1]
    text = " ".join(page.text.split())
    for name in HOSTILE:
        assert " ".join(arms.printable(name).split()) in text
    assert "<script>alert('q')</script> & $why$?" in text
    assert "<i>out</i> & gone" in text
    assert "reused from <u>other</u>-study" in text
    assert len(columns(page, "effect")) == len(HOSTILE)
    assert "\x00" not in text
    assert "\x1b" not in text


def test_every_figure_is_a_file_a_picture_and_a_table(whole, hostile):
    names = [name for name in plots.NAMES if name not in plots.OF_A_SEARCH]
    for paths, page in (whole, hostile):
        for name in names:
            root = ElementTree.parse(paths["Figures"] / f"{name}.svg").getroot()
            assert root.tag.endswith("svg")
            assert (paths["Figures"] / f"{name}.png").read_bytes().startswith(b"\x89PNG")
            assert f"figure-{name}" in page.values("id")
        assert sum(tag == "svg" and name == "aria-label" for tag, name, _ in page.attributes) == len(names)
        styles = [
            value
            for tag, name, value in page.attributes
            if name == "style" and tag in ("path", "text", "use")
        ]
        assert styles
        assert not [style for style in styles if re.search(r"#[0-9a-f]{6}", style)], (
            "a colour of one theme only"
        )


def test_the_forest_plot_draws_the_verdicts(view: StudyView):
    from matplotlib.figure import Figure

    shown = effects.forest(view, arms.arms(view))
    assert shown is not None
    picture = Figure()
    shown.draw(picture)
    lines = [[float(x) for x in line.get_xdata()] for line in picture.axes[0].lines]
    for verdict in view.verdicts:
        assert [verdict.low, verdict.high] in lines
        assert [verdict.delta] in lines
    band = picture.axes[0].patches[0].get_extents()
    low, high = picture.axes[0].transData.inverted().transform(band.get_points())[:, 0]
    assert (low, high) == pytest.approx((-view.verdicts[0].margin, view.verdicts[0].margin))


def test_curves_compare_arms_on_the_seeds_that_both_have(view: StudyView):
    """An arm without its two worst seeds must not look better than it is."""
    own = {
        r.spec.replicate: [(1.0, 3.0 + r.spec.replicate), (2.0, 2.5 + r.spec.replicate)]
        for r in confirm(view, "csa")
    }
    base = {
        replicate: [(x, loss - 0.25) for x, loss in line] for replicate, line in own.items() if replicate < 4
    }
    assert losses.gap(own, base) == [(1.0, pytest.approx(0.25)), (2.0, pytest.approx(0.25))]
    assert losses.gap(own, {}) == []


def test_csv_has_every_value_exactly(view: StudyView, whole, hostile_view: StudyView, hostile):
    for made, (paths, _) in ((view, whole), (hostile_view, hostile)):
        with paths["CSV"].open(encoding="utf-8", newline="") as file:
            rows = {row["arm"]: row for row in csv.DictReader(file)}
        for verdict in made.verdicts:
            row = rows[encoded(verdict.arm)]
            for name in (
                "delta",
                "low",
                "high",
                "p_t",
                "p_holm",
                "p_flip",
                "p_tost",
                "detectable",
                "loss",
                "bpb",
            ):
                assert float(row[name]) == getattr(verdict, name)
            assert row["verdict"] == verdict.kind
        with paths["CSV of trials"].open(encoding="utf-8", newline="") as file:
            trials = list(csv.DictReader(file))
        assert [int(row["trial"]) for row in trials] == [row.number for row in made.trials]
        for row, trial in zip(trials, made.trials, strict=True):
            assert row["state"] == trial.state
            assert row["val_loss"] == (
                "" if not trial.result or trial.result.val_loss is None else str(trial.result.val_loss)
            )


def encoded(text: str) -> str:
    return text.encode("utf-8", errors="replace").decode()


def test_json_is_strict_and_whole(view: StudyView, whole, hostile):
    def refuse(constant: str):
        raise AssertionError(constant)

    for paths, _ in (whole, hostile):
        json.loads(paths["JSON"].read_text(encoding="utf-8"), parse_constant=refuse)
    read = json.loads(whole[0]["JSON"].read_text(encoding="utf-8"))
    assert read["verdicts"] == json.loads(json.dumps([dataclasses.asdict(v) for v in view.verdicts]))
    curves_read = [LrCurve(**{**c, "points": tuple(map(tuple, c["points"]))}) for c in read["lr_curves"]]
    assert tuple(curves_read) == view.lr_curves
    assert read["config"]["model"]["hidden_size"] == view.plan.run.model.hidden_size
    assert read["config"]["home"] is None


def test_latex_rows_have_their_columns_whatever_an_arm_is_called(hostile_view: StudyView, hostile):
    text = hostile[0]["LaTeX"].read_text(encoding="utf-8")
    spec = re.search(r"\\begin\{tabular\}\{([lr]+)\}", text)
    assert spec is not None
    body = text[text.index("\\midrule") + 8 : text.index("\\bottomrule")].strip().splitlines()
    assert len(body) == len(HOSTILE)
    for line in body:
        assert line.endswith(" \\\\")
        assert len(re.findall(r"(?<!\\)&", line)) == len(spec[1]) - 1
        bare = re.sub(r"\\[{}$&#%_]", "", line)
        assert bare.count("{") == bare.count("}")
        assert not re.search(r"[#%~^_]", bare)
        assert len(re.findall(r"\$", bare)) % 2 == 0
    assert text.count("\\end{table}") == 1


def test_markdown_shows_the_same_cells_as_the_page(whole, hostile):
    text = whole[0]["Markdown"].read_text(encoding="utf-8")
    for part in ("effect", "what it was bought with"):
        for cells in columns(whole[1], part).values():
            assert "| " + " | ".join(table.markdown(cell.strip()) for cell in cells.values()) + " |" in text
    text = hostile[0]["Markdown"].read_text(encoding="utf-8")
    assert not re.search(r"(?<!\\)[<>$]", re.sub(r"(?m)^> ", "", text))
    assert "](http" not in text.replace("\\]", "")


def test_the_same_study_gives_the_same_bytes(view: StudyView, folder: Path, whole, tmp_path: Path):
    report.write(view, tmp_path)
    first, second = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (folder, tmp_path)
    )
    assert first == second


@given(st.lists(st.floats(-1, 2), min_size=1, max_size=12).map(sorted), st.floats(0.01, 0.3))
def test_labels_move_apart_in_order_and_around_their_places(wanted: list[float], gap: float):
    places = drawing._apart(wanted, gap)
    assert statistics.fmean(places) == pytest.approx(statistics.fmean(wanted), abs=1e-6)
    assert all(b - a >= gap * (1 - 1e-6) for a, b in itertools.pairwise(places))
    if all(b - a > gap for a, b in itertools.pairwise(wanted)):
        assert places == pytest.approx(wanted)


@given(st.text(st.characters(exclude_characters="\0")))
def test_csv_reads_back_any_text(text: str):
    made = table.to_csv(table.Table("", (), ({"arm": text, "delta": 0.1},)))
    (row,) = csv.DictReader(io.StringIO(made, newline=""))
    assert row == {"arm": text, "delta": "0.1"}


@pytest.mark.slow
def test_a_thousand_trials_of_fifty_arms_make_a_small_page_soon(tmp_path: Path):
    import time

    names = {
        f"arm_{i:02d} with quite a long name": ratios
        for i, ratios in enumerate([*study_views.SCHEDULES.values()] * 10)
    }
    view = study_views.view(arms=names, replicates=15)
    assert len(view.trials) == 1000
    started = time.process_time()
    paths, page = written(view, tmp_path)
    assert time.process_time() - started < 10
    assert paths["HTML report"].stat().st_size < 5e6
    assert len(page.tables["All trials"]) == 1001
