"""The Optuna dashboard and the MLflow interface in place: same address, started when first asked for.

Each takes seconds and a hundred megabytes to load, so nothing here is imported before that.
"""

import importlib
import os
import threading
import warnings
from collections.abc import Callable, Iterable
from html import escape
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ablate import schema, tracking
from ablate.home import Home

OPTUNA_PATHS = ("/dashboard", "/api", "/static", "/artifacts", "/csv")
"""The Optuna dashboard knows only absolute addresses, so it gets them."""

MLFLOW_PATH = "/mlflow"

_CLOSED = ("/gateway/", "/webhooks", "/assistant", "/jobs", "/upload-artifact", "/scorers")
"""Parts of MLflow that reach out or start things; a comparison of runs needs none of them."""


class NotThereError(Exception):
    """Why an engine has nothing to show, for a person."""


class Lazy:
    """An ASGI application, built when first asked for; what failed is tried again at the next request."""

    def __init__(self, title: str, build: Callable[[], ASGIApp]):
        self._title, self._build = title, build
        self._app: ASGIApp | None = None
        self._lock = threading.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or say why there is nothing to pass it to."""
        try:
            app = self._app or await run_in_threadpool(self._ready)
        except NotThereError as error:
            await _page(self._title, str(error), 404)(scope, receive, send)
            return
        except Exception as error:  # an engine's internals may change; the rest of the portal stays up
            await _page(self._title, f"It could not be started: {type(error).__name__}: {error}", 503)(
                scope, receive, send
            )
            return
        await app(scope, receive, send)

    def _ready(self) -> ASGIApp:
        with self._lock:
            if self._app is None:
                self._app = self._build()
            return self._app


def optuna(home: Home) -> ASGIApp:
    """The Optuna dashboard over the home's search storage, for looking only.

    The scheduler is the one writer of that storage, so requests that change something are refused, and the
    connections of the dashboard cannot write either.
    """

    def build() -> ASGIApp:
        dashboard = importlib.import_module("optuna_dashboard")
        return _read_only(_asgi(dashboard.wsgi(optuna_storage(home))))

    return Lazy("Optuna dashboard", build)


def optuna_storage(home: Home) -> Any:
    """The search storage, opened for reading.

    Raises:
        NotThereError: no study has made one yet.
    """
    from ablate import search

    if not search.exists(home):
        raise NotThereError("There is nothing to see yet: no study of this home has searched for anything.")
    return search.open_storage(home, look_only=True)


def mlflow(home: Home, store: Callable[[], schema.Tracking], hosts: Iterable[str]) -> ASGIApp:
    """MLflow's interface over the mirror, under `/mlflow`.

    Its address prefix and store are read from the environment when its server module is imported, so they are
    set here, in a process that serves one home.

    Args:
        store: asked once, when the interface starts.
    """

    def build() -> ASGIApp:
        settings = store()
        if settings.uri is not None and settings.uri.startswith("http"):
            raise NotThereError(f"This home mirrors to the tracking server at {settings.uri}.")
        if settings.uri is None and not home.mlflow.exists():
            raise NotThereError("There is no mirror yet: no study of this home has been tracked.")
        tracking.quiet()
        os.environ["_MLFLOW_STATIC_PREFIX"] = MLFLOW_PATH
        os.environ["_MLFLOW_SERVER_FILE_STORE"] = tracking.where(home, settings)
        os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = home.artifacts.as_uri()
        os.environ["MLFLOW_SERVER_ALLOWED_HOSTS"] = ",".join(f"{h},{h}:*" for h in sorted(hosts))
        os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of Starlette, about MLflow
            server = importlib.import_module("mlflow.server")
        # The Flask application alone: its FastAPI wrapper adds assistants, gateways and jobs, no page of ours
        return _without_outside(_asgi(server.app))

    return Lazy("MLflow", build)


def _asgi(wsgi: Any) -> ASGIApp:
    from a2wsgi import WSGIMiddleware

    return WSGIMiddleware(wsgi, workers=4)  # type: ignore[return-value]


def _read_only(app: ASGIApp) -> ASGIApp:
    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            refusal = PlainTextResponse(
                "The search belongs to the study's scheduler: look, don't touch.\n", 403
            )
            await refusal(scope, receive, send)
            return
        await app(scope, receive, send)

    return serve


def _without_outside(app: ASGIApp) -> ASGIApp:
    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == f"{MLFLOW_PATH}/":
            await _with_preferences(app, scope, receive, send)
            return
        if scope["path"] == MLFLOW_PATH:
            await RedirectResponse(f"{MLFLOW_PATH}/")(scope, receive, send)
            return
        if any(part in scope["path"] for part in _CLOSED):
            await PlainTextResponse("Not served here.\n", 404)(scope, receive, send)
            return
        await app(scope, receive, send)

    return serve


async def _with_preferences(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """MLflow's start page with a script of ours first: it closes the panel of an absent assistant."""
    start: Message = {}
    body = b""

    async def collect(message: Message) -> None:
        nonlocal start, body
        if message["type"] == "http.response.start":
            start = message
        else:
            body += message.get("body", b"")

    plain = [
        (k, v) for k, v in scope["headers"] if k not in (b"if-none-match", b"if-modified-since", b"range")
    ]
    await app({**scope, "headers": plain}, receive, collect)
    page = body.replace(b"<head>", b"<head>" + _PREFERENCES, 1)
    response = HTMLResponse(page, start["status"], {"Cache-Control": "no-cache"})
    await response(scope, receive, send)


_PREFERENCES = b'<script src="/assets/mlflow.js"></script><link rel="stylesheet" href="/assets/mlflow.css">'


def _page(title: str, text: str, status: int) -> HTMLResponse:
    return HTMLResponse(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{escape(title)}</title><link rel=stylesheet href=/assets/portal.css>"
        f"<main><h1>{escape(title)}</h1><p>{escape(text)}</p><p><a href=/>All studies</a></p></main></html>",
        status,
    )
