"""One address for everything that a study shows: own pages, the report, the Optuna dashboard, MLflow."""

import contextlib
import errno
import importlib
import socket
import sys
import threading
import webbrowser

import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from ablate import schema
from ablate.errors import AblateError, BadInputError
from ablate.home import Home
from dashboards import engines, guard, pages
from dashboards.live import Studies

NEXT_PORTS = 10
"""Ports after a busy one that are tried."""


def serve(
    home: Home,
    study: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8720,
    open_browser: bool = False,
) -> None:
    """Serve until interrupted. A busy port is passed over for the next free one.

    Args:
        study: the one to print the address of, and to open; None for the list of all.
        open_browser: open the page once the server answers.

    Raises:
        BadInputError: `host` is no address of this machine, or no port is free.
    """
    listener = _listen(host, port)
    shown = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    root = f"http://{shown}:{listener.getsockname()[1]}"
    page = f"{root}/studies/{study}" if study else f"{root}/"
    print(
        f"Study        {page}\nOptuna       {root}/dashboard\nMLflow       {root}/mlflow/\nStop with Ctrl-C."
    )
    if not guard.is_loopback(host):
        print(
            f"There is no login: whoever can reach {host} sees everything and may edit the MLflow mirror.",
            file=sys.stderr,
        )
    sys.stdout.flush()
    if open_browser:
        threading.Timer(1.0, webbrowser.open, [page]).start()
    studies = _of(home)
    threading.Thread(target=_warm, args=(studies,), name="warm", daemon=True).start()
    config = uvicorn.Config(
        app(home, studies, host), log_level="warning", access_log=False, lifespan="off", server_header=False
    )
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        pass
    finally:
        listener.close()


def app(home: Home, studies: Studies | None = None, host: str = "127.0.0.1") -> ASGIApp:
    """The whole portal as one ASGI application, guarded.

    Args:
        studies: where the pages read from; the home's study database by default.
        host: address that it will listen on; it decides which Host headers are ours.
    """
    studies = studies or _of(home)
    hosts = guard.allowed_hosts(host)
    handlers = {AblateError: pages.error_page, Exception: pages.error_page}
    own = Starlette(routes=pages.routes(home, studies), exception_handlers=handlers)
    optuna = engines.optuna(home)
    mlflow = engines.mlflow(home, lambda: _tracking(studies), hosts)

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")  # start and end of the server have none
        if _under(path, engines.MLFLOW_PATH):
            await mlflow(scope, receive, send)
        elif any(_under(path, prefix) for prefix in engines.OPTUNA_PATHS):
            await optuna(scope, receive, send)
        else:
            await own(scope, receive, send)

    return guard.Guard(dispatch, hosts)


def _tracking(studies: Studies) -> schema.Tracking:
    """The store that the newest study mirrors to."""
    names = studies.names()
    return studies.view(names[0]).plan.run.tracking if names else schema.Tracking()


def _of(home: Home) -> Studies:
    study = importlib.import_module("ablate.study")
    return Studies(names=lambda: study.names(home), read=lambda name: study.view(name, home))


def _warm(studies: Studies) -> None:
    """Load what the first page takes its time for (SciPy, Plotly, the newest study) while nobody waits."""
    with contextlib.suppress(Exception):  # whoever asks for the page is told
        from ablate import figures

        pages.plotly_script()
        for name in studies.names()[:1]:
            figures.forest(studies.view(name))


def _under(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(f"{prefix}/")


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket on that port or one of the next."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in range(port, port + NEXT_PORTS) if port else [0]:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, candidate))
            listener.listen(128)
        except PermissionError as error:
            listener.close()
            raise BadInputError(
                f"--port {candidate} needs rights that you do not have. Try --port 8720."
            ) from error
        except OSError as error:
            listener.close()
            if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
                raise BadInputError(
                    f"--host {host} is no address of this machine. Allowed: 127.0.0.1, 0.0.0.0, or its own."
                ) from error
            continue
        return listener
    raise BadInputError(
        f"Ports {port} to {port + NEXT_PORTS - 1} on {host} are all in use. Choose another with --port."
    )
