"""The portal over made-up readings of studies and real SQLite stores."""

import dataclasses
import json
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import study_views
from starlette.testclient import TestClient

from ablate import schema
from ablate.errors import BadInputError
from ablate.home import Home
from ablate.jsonable import jsonable
from ablate.records import StudyView
from ablate.tracking import Exporter
from dashboards import portal
from dashboards.live import Studies

PAYLOAD = "<img src=x onerror=alert(1)>\"']{}</script>"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home")).create()


@pytest.fixture(scope="module")
def views() -> dict[str, StudyView]:
    named = [
        study_views.view(name="done-1"),
        study_views.view("running", 30, name="running-1"),
        study_views.view(name="payload-1", arms={"base": "dense*4", PAYLOAD: "swa*4"}, question=PAYLOAD),
    ]
    return {view.name: view for view in named}


@pytest.fixture(scope="module")
def client(home: Home, views: dict[str, StudyView]) -> TestClient:
    studies = Studies(lambda: list(views), views.__getitem__)
    return TestClient(portal.app(home, studies), base_url="http://127.0.0.1:8720")


def test_the_list_names_every_study_with_its_verdicts(client: TestClient, views: dict[str, StudyView]):
    page = client.get("/").text
    assert [name for name in views if f'href="/studies/{name}"' in page] == list(views)
    assert "−0.0380" in page


def test_a_study_that_cannot_be_read_does_not_hide_the_others(home: Home, views: dict[str, StudyView]):
    def read(name: str) -> StudyView:
        if name == "broken":
            raise RuntimeError("written by another version")
        return views[name]

    with TestClient(
        portal.app(home, Studies(lambda: ["broken", "done-1"], read)), "http://localhost"
    ) as client:
        page = client.get("/").text
    assert "written by another version" in page
    assert 'href="/studies/done-1"' in page


def test_a_study_page_says_what_the_view_says(client: TestClient, views: dict[str, StudyView]):
    view, page = views["done-1"], client.get("/studies/done-1").text
    for verdict in view.verdicts:
        assert verdict.sentence in page
        assert f"{verdict.delta:+.4f}".replace("-", "−") in page
    for account in view.accounts:
        assert account.phase in page
    ranks = [page.index(f">{arm}</span>") for arm in ("v4", "csa", "dense", "hca", "sliding_window")]
    assert ranks == sorted(ranks)
    assert f"{sum(row.state == 'complete' for row in view.trials)} complete" in page


def test_a_running_study_shows_what_is_under_way_and_no_verdict(client: TestClient):
    page = client.get("/studies/running-1").text
    assert "Under way" in page
    assert "at most" in page
    assert "Verdicts</h2>" not in page
    assert "lease_expired" in page


def test_the_data_is_the_view(client: TestClient, views: dict[str, StudyView]):
    data = client.get("/studies/done-1/view.json").json()
    view = views["done-1"]
    assert data["verdicts"] == jsonable(view.verdicts)
    assert [row["result"]["val_loss"] for row in data["trials"]] == [
        row.result.val_loss if row.result else None for row in view.trials
    ]
    assert data["trials"][0]["result"]["metrics"]["diag/bad"] is None


def test_live_sections_are_the_pages_and_unchanged_ones_are_not_sent(client: TestClient):
    page = client.get("/studies/running-1").text
    answer = client.get("/studies/running-1/live.json")
    news = answer.json()
    assert news["state"] == "running"
    assert news["sections"]["ledger"] in page
    assert news["sections"]["arms"] in page
    again = client.get("/studies/running-1/live.json", headers={"If-None-Match": answer.headers["etag"]})
    assert again.status_code in (200, 304)  # ages in words may have ticked on
    if again.status_code == 200:
        assert again.json()["sections"]["arms"] == news["sections"]["arms"]


def test_points_of_a_running_trial_are_kept_between_readings():
    view = study_views.view("running", 10, name="growing-1")
    shown = [view]
    studies = Studies(lambda: ["growing-1"], lambda _: shown[0])
    studies.view("growing-1")
    rows = list(view.trials)
    row = next(r for r in rows if r.state == "running")
    assert row.progress is not None
    later = dataclasses.replace(row.progress, step=row.progress.step + 10)
    rows[row.number] = dataclasses.replace(row, progress=later)
    shown[0] = dataclasses.replace(view, trials=tuple(rows))
    time.sleep(0.6)
    assert studies.points(studies.view("growing-1"), row.number) == [row.progress, later]


def test_names_are_text_everywhere(client: TestClient):
    for path in ("/", "/studies/payload-1"):
        page = client.get(path).text
        assert "<img src=x" not in page
        assert "&lt;img src=x onerror=alert(1)&gt;" in page
    sections = client.get("/studies/payload-1/live.json").json()["sections"]
    assert not any("<img src=x" in html for html in sections.values())


@pytest.mark.parametrize("name", ["forest", "loss_vs_flops", "loss_vs_lr", "budget_bar"])
def test_every_chart_comes_with_its_table(client: TestClient, name: str):
    answer = client.get(f"/studies/done-1/figures/{name}.json")
    assert answer.status_code == 200, answer.text
    spec = answer.json()
    assert spec["data"]
    header, *rows = spec["table"]
    assert rows
    assert all(len(row) == len(header) for row in rows)


def test_the_forest_table_has_every_difference(client: TestClient, views: dict[str, StudyView]):
    rows = client.get("/studies/done-1/figures/forest.json").json()["table"][1:]
    numbers = {round(cell, 6) for row in rows for cell in row if isinstance(cell, float)}
    assert {round(v.delta, 6) for v in views["done-1"].verdicts} <= numbers


def test_unknown_names_are_answered_with_404_and_a_way_back(client: TestClient):
    for path in ("/studies/nope", "/studies/nope/live.json", "/studies/done-1/figures/nope.json"):
        assert client.get(path).status_code == 404, path
    assert "There is no study named" in client.get("/studies/nope").text
    assert client.get("/assets/../pages.py").status_code == 404
    assert client.get("/studies/done-1/report/..%2F..%2Fablate.db").status_code == 404


def test_the_report_is_served_as_it_is_and_cannot_reach_out(client: TestClient, home: Home):
    assert client.get("/studies/running-1/report").status_code == 404
    folder = home.report("done-1")
    folder.mkdir(parents=True)
    (folder / "report.html").write_text("<p>the report</p>")
    (folder / "trials.csv").write_text("a,b\n")
    answer = client.get("/studies/done-1/report")
    assert answer.text == "<p>the report</p>"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert client.get("/studies/done-1/report/trials.csv").text == "a,b\n"


@pytest.mark.parametrize(
    "path", ["/", "/studies/done-1", "/mlflow/", "/dashboard", "/api/studies", "/assets/portal.js"]
)
def test_a_foreign_host_is_refused_everywhere(client: TestClient, path: str):
    for host in ("evil.example.com", "127.0.0.1.evil.com", "192.168.1.7:8720", "[", "a@evil.com"):
        assert client.get(path, headers={"Host": host}).status_code == 403, host
    assert client.get("/", headers={"Host": "localhost:8720"}).status_code == 200
    assert client.get("/", headers={"Host": "[::1]:8720"}).status_code == 200


def test_a_page_of_another_site_can_neither_write_nor_read(client: TestClient):
    search = "/mlflow/ajax-api/2.0/mlflow/experiments/search"
    assert client.post(search, headers={"Origin": "http://evil.example.com"}).status_code == 403
    assert client.post(search, headers={"Origin": "null"}).status_code == 403
    assert client.post(search, headers={"Origin": "http://127.0.0.1:9999"}).status_code == 403
    script = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    assert client.get("/studies/done-1/view.json", headers=script).status_code == 403
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert client.get("/studies/done-1", headers=link).status_code == 200


def test_headers_keep_everything_on_this_machine(client: TestClient):
    for path in ("/", "/studies/done-1", "/studies/nope", "/assets/portal.js"):
        headers = client.get(path).headers
        assert "connect-src 'self'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert "access-control-allow-origin" not in headers
    for path in ("/", "/studies/done-1"):
        page = client.get(path).text
        assert not re.search(r'(src|href)="(https?:)?//', page)
        assert "<script>" not in page


def test_plotly_comes_from_the_installed_package(client: TestClient):
    from plotly.offline import get_plotlyjs_version

    answer = client.get("/assets/plotly.js")
    assert answer.headers["content-type"].startswith("text/javascript")
    assert f"plotly.js v{get_plotlyjs_version()}" in answer.text[:500]


def test_engines_say_when_there_is_nothing_yet(views: dict[str, StudyView], tmp_path: Path):
    studies = Studies(lambda: list(views), views.__getitem__)
    with TestClient(portal.app(Home(tmp_path), studies), "http://localhost") as client:
        for path in ("/dashboard", "/mlflow/"):
            answer = client.get(path)
            assert answer.status_code == 404
            assert "yet" in answer.text
    assert list(tmp_path.iterdir()) == []


def test_mlflow_in_place(client: TestClient, home: Home, views: dict[str, StudyView]):
    view = views["done-1"]
    Exporter(home, schema.Tracking(name="mlflow")).sync(view)
    assert client.get("/mlflow", follow_redirects=False).headers["location"] == "/mlflow/"
    page = client.get("/mlflow/").text
    assert page.index("/assets/mlflow.js") < page.index("static-files/static/js/main")
    script = re.search(r'src="(static-files/static/js/main[^"]+)"', page)
    assert script is not None
    assert client.get(f"/mlflow/{script[1]}").status_code == 200
    found = client.post("/mlflow/ajax-api/2.0/mlflow/experiments/search", json={"max_results": 10}).json()
    assert view.name in [experiment["name"] for experiment in found["experiments"]]
    link = client.get("/studies/done-1/mlflow", params={"page": "Means by arm"}, follow_redirects=False)
    assert link.headers["location"].startswith("/mlflow/#/experiments/")
    assert "viewStateShareKey=arms" in link.headers["location"]
    for closed in ("3.0/mlflow/assistant/config", "2.0/mlflow/webhooks", "3.0/mlflow/jobs/search"):
        assert client.get(f"/mlflow/ajax-api/{closed}").status_code == 404


def test_the_optuna_dashboard_in_place_and_read_only(
    client: TestClient, home: Home, views: dict[str, StudyView]
):
    study_views.search(home, views["done-1"])
    summaries = client.get("/api/studies").json()["study_summaries"]
    assert [s["study_name"] for s in summaries] == ["done-1"]
    number = summaries[0]["study_id"]
    assert (
        client.get("/studies/done-1/optuna", follow_redirects=False)
        .headers["location"]
        .endswith(f"/{number}")
    )
    assert client.get("/dashboard").status_code == 200
    body = {"study_name": "<img src=x>", "directions": ["minimize"]}
    assert client.post("/api/studies", json=body).status_code == 403
    assert client.delete(f"/api/studies/{number}").status_code == 403
    assert len(client.get("/api/studies").json()["study_summaries"]) == 1


def test_a_busy_port_is_passed_over_and_a_foreign_address_refused():
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with portal._listen("127.0.0.1", port) as found:
            assert port < found.getsockname()[1] < port + portal.NEXT_PORTS
    with pytest.raises(BadInputError, match="no address of this machine"):
        portal._listen("203.0.113.7", 8720)


def test_the_first_page_comes_soon_and_without_the_engines(home: Home):
    code = (
        "import sys, time; t = time.perf_counter(); sys.path.insert(0, sys.argv[1]); import study_views;"
        "from pathlib import Path; from starlette.testclient import TestClient; from ablate.home import Home;"
        "from dashboards import portal; from dashboards.live import Studies;"
        "view = study_views.view(name='x-1');"
        "app = portal.app(Home(Path(sys.argv[2])), Studies(lambda: ['x-1'], lambda _: view));"
        "assert TestClient(app, 'http://localhost').get('/studies/x-1').status_code == 200;"
        "print(time.perf_counter() - t, [m for m in ('mlflow', 'optuna', 'lightning') if m in sys.modules])"
    )
    tests = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code, tests, str(home.root)], capture_output=True, text=True, check=True
    )
    seconds, loaded = done.stdout.split(maxsplit=1)
    assert loaded.strip() == "[]"
    assert float(seconds) < 15  # about two on a quiet machine, most of it torch


def test_json_has_no_infinity():
    assert json.dumps(jsonable({"a": [float("inf"), float("nan"), 1.5]})) == '{"a": [null, null, 1.5]}'


def test_studies_at_their_very_beginning_and_in_trouble(home: Home):
    fresh = dataclasses.replace(
        study_views.view("planned", 0, name="fresh-1"), trials=(), lr_curves=(), workers={}, events=()
    )
    whole = study_views.view("stopped", 20, name="trouble-1")
    rows = list(whole.trials)
    empty = dataclasses.replace(
        rows[0].result, outcome="failed", val_loss=None, val_bpb=None, curve=(), reason="<b>"
    )  # type: ignore[type-var]
    rows[0] = dataclasses.replace(rows[0], state="failed", result=empty, ended_at=None)
    rows[1] = dataclasses.replace(rows[1], state="failed", result=None, progress=None)
    rows[2] = dataclasses.replace(
        rows[2], state="cancelled", started_at=None, reused_from="other-1", worker=None
    )
    trouble = dataclasses.replace(whole, trials=tuple(rows))
    views = {view.name: view for view in (fresh, trouble)}
    client = TestClient(
        portal.app(home, Studies(lambda: list(views), views.__getitem__)), base_url="http://localhost:8720"
    )
    for name in views:
        assert client.get(f"/studies/{name}").status_code == 200
        assert client.get(f"/studies/{name}/live.json").status_code == 200
    page = client.get("/studies/trouble-1").text
    assert "ablate resume trouble-1" in page
    assert "taken from other-1" in page
    assert "&lt;b&gt;" in page
    assert Exporter(home, schema.Tracking(name="mlflow")).sync(fresh) > 0
    assert Exporter(home, schema.Tracking(name="mlflow")).sync(trouble) > 0
