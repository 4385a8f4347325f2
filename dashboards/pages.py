"""The portal's own pages: the list of studies, a study as it runs and ends, and its data."""

import gzip
import hashlib
import json
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from ablate import alarms, standing, tracking, units
from ablate.errors import AblateError, BadInputError
from ablate.home import Home
from ablate.jsonable import jsonable
from ablate.records import StudyView
from ablate.tracking_runs import RESTING
from dashboards import guard, tables
from dashboards.live import Studies
from dashboards.sparkline import polyline

HERE = Path(__file__).parent
SECTIONS = ("status", "verdicts", "arms", "running", "ledger", "trials", "people")
FIGURES = {
    "forest": "Difference to the baseline; left is better",
    "loss_vs_flops": "Loss against compute, second half (double click: all)",
    "loss_vs_lr": "Loss against learning rate",
    "budget_bar": "Compute by phase",
}
"""Functions of `ablate.figures`, and what each shows."""

_environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(HERE / "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
_environment.filters |= {
    "compute": units.compute,
    "flops": units.flops,
    "number": lambda value: f"{value:,.0f}",
    "nats": lambda value: "–" if value is None else f"{value:.4f}",
    "signed": lambda value: "–" if value is None else f"{value:+.4f}".replace("-", "−"),
    "percent": lambda value: f"{value:+.1%}".replace("-", "−"),
    "rate": lambda value: "–" if value is None else f"{value:.3g}",
    "duration": lambda seconds: "an unknown time" if seconds is None else units.duration(seconds),
    "age": standing.age,
    "path": lambda value: quote(value, safe=""),
}


def routes(home: Home, studies: Studies) -> list[Route]:
    """All pages that are our own."""
    made = Pages(home, studies)
    return [
        Route("/", made.index),
        Route("/studies/{name}", made.study),
        Route("/studies/{name}/live.json", made.live),
        Route("/studies/{name}/view.json", made.data),
        Route("/studies/{name}/figures/{figure}.json", made.figure),
        Route("/studies/{name}/report", made.report),
        Route("/studies/{name}/report/{file}", made.report),
        Route("/studies/{name}/optuna", made.optuna),
        Route("/studies/{name}/mlflow", made.mlflow),
        Route("/assets/plotly.js", plotly),
        Route("/assets/{file}", asset),
        Route("/favicon.ico", asset),
    ]


class Pages:
    """Handlers over one home. They block on SQLite, so Starlette runs them in threads."""

    def __init__(self, home: Home, studies: Studies):
        self._home, self._studies = home, studies

    def index(self, request: Request) -> Response:
        """All studies, newest first. One that cannot be read is listed with the reason."""
        views, broken = [], []
        for name in self._studies.names():
            try:
                views.append(self._studies.view(name))
            except Exception as error:  # a study of another version must not hide the others
                broken.append((name, str(error)))
        return _html("studies.html.j2", views=views, broken=broken, home=self._home.root, standing=standing)

    def study(self, request: Request) -> Response:
        """One study; complete without scripts, kept up to date with them."""
        view = self._view(request)
        sections = self._sections(view)
        return _html(
            "study.html.j2",
            view=view,
            sections=sections,
            version=_version(sections),
            figures_version=_figures_version(view),
            titles=FIGURES,
            comparisons=tracking.PAGES,
            facts=standing.arm_facts(view.plan),
        )

    def live(self, request: Request) -> Response:
        """What may have changed on the page; 304 where nothing has."""
        view = self._view(request)
        sections = self._sections(view)
        version = _version(sections)
        headers = {"ETag": f'"{version}"', "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        body = {
            "version": version,
            "state": view.state,
            "title": _title(view),
            "sections": sections,
            "figures": _figures_version(view),
        }
        return JSONResponse(body, headers=headers)

    def data(self, request: Request) -> Response:
        """The whole reading as JSON; numbers that are not finite are null."""
        view = self._view(request)
        return JSONResponse({**jsonable(view), "alarms": jsonable(alarms.of_study(view))})

    def figure(self, request: Request) -> Response:
        """A Plotly figure as JSON."""
        view = self._view(request)
        name = request.path_params["figure"]
        if name not in FIGURES:
            raise BadInputError(f"There is no figure named '{name}'.")
        from ablate import figures  # plotly takes its time, and no page needs it

        figure = getattr(figures, name)(view)
        table = jsonable(tables.rows(figure))
        return Response(
            f'{figure.to_json()[:-1]}, "table": {json.dumps(table)}}}', media_type="application/json"
        )

    def report(self, request: Request) -> Response:
        """The report as written at the end of the study, and the files beside it."""
        name = self._view(request).name
        folder = self._home.report(name)
        files = sorted(p for p in folder.iterdir() if p.is_file()) if folder.is_dir() else []
        wanted = request.path_params.get("file")
        found = (
            [p for p in files if p.name == wanted] if wanted else [p for p in files if p.suffix == ".html"]
        )
        if not found:
            return _html("no_report.html.j2", 404, name=name, files=[p.name for p in files])
        return FileResponse(found[0], headers={"Content-Security-Policy": guard.REPORT})

    def optuna(self, request: Request) -> Response:
        """To this study's page of the Optuna dashboard, with our notes and charts once the study rests."""
        from dashboards import optuna_notes
        from dashboards.engines import NotThereError, optuna_storage

        view = self._view(request)
        name = view.name
        if view.state in RESTING:
            with suppress(SQLAlchemyError):  # a locked file must not keep anybody from the dashboard
                optuna_notes.annotate(self._home, view)
        try:
            storage = optuna_storage(self._home)
            number = storage.get_study_id_from_name(name)
            storage.engine.dispose()
        except (NotThereError, KeyError):
            return RedirectResponse("/dashboard", 303)
        return RedirectResponse(f"/dashboard/studies/{number}", 303)

    def mlflow(self, request: Request) -> Response:
        """To this study's comparison in MLflow; `?page=` picks one of its ready-made pages."""
        view = self._view(request)
        found = tracking.links(self._home, view.plan.run.tracking, view, base_url="")
        if not found:
            return RedirectResponse("/mlflow/", 303)
        return RedirectResponse(
            found.get(request.query_params.get("page", ""), next(iter(found.values()))), 303
        )

    def _view(self, request: Request) -> StudyView:
        return self._studies.view(request.path_params["name"])

    def _sections(self, view: StudyView) -> dict[str, str]:
        lines, basis = standing.arms(view)
        context = {
            "view": view,
            "arms": lines,
            "basis": basis,
            "alarms": alarms.of_study(view),
            "axis": standing.axis(lines),
            "counts": standing.counts(view),
            "spent": standing.spent(view),
            "left": standing.seconds_left(view),
            "running": [(row, self._studies.points(view, row.number)) for row in standing.running(view)],
            "standing": standing,
            "polyline": polyline,
        }
        return {name: _environment.get_template(f"_{name}.html.j2").render(context) for name in SECTIONS}


def error_page(request: Request, error: Exception) -> Response:
    """A page for what went wrong, in words where the error has some."""
    known = isinstance(error, AblateError)
    status = 404 if isinstance(error, BadInputError) else 500
    text = str(error) if known else f"{type(error).__name__}: {error}"
    if request.url.path.endswith(".json"):
        return JSONResponse({"error": text}, status)
    return _html("error.html.j2", status, text=text)


def asset(request: Request) -> Response:
    """Our own style sheet, script and icon."""
    name = request.path_params.get("file", "favicon.svg")
    found = [path for path in (HERE / "static").iterdir() if path.name == name]
    if not found:
        return Response("Not found.\n", 404)
    return FileResponse(found[0], headers={"Cache-Control": "no-cache"})


def plotly(request: Request) -> Response:
    """Plotly's script, from the installed package."""
    headers = {"Cache-Control": "private, max-age=86400", "Content-Encoding": "gzip"}
    return Response(plotly_script(), media_type="text/javascript", headers=headers)


@cache
def plotly_script() -> bytes:
    """The same, packed."""
    from plotly.offline import get_plotlyjs

    return gzip.compress(get_plotlyjs().encode(), 5)


def _html(template: str, status: int = 200, **context: Any) -> HTMLResponse:
    return HTMLResponse(_environment.get_template(template).render(context), status)


def _version(sections: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(sections).encode()).hexdigest()[:12]


def _figures_version(view: StudyView) -> str:
    """Changes when a trial ends or the study does: figures are not drawn anew for every step."""
    return f"{view.state}-{sum(row.result is not None for row in view.trials)}-{len(view.verdicts)}"


def _title(view: StudyView) -> str:
    done = sum(row.result is not None for row in view.trials)
    return f"{view.name} · {view.state} · {done}/{len(view.trials)}"
