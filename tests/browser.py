"""A headless Chromium as a test needs it: pages, what they ask for, what they complain about, pictures.

Spoken to over its DevTools protocol, so that no driver has to fit the browser and nothing is downloaded.
"""

import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

needed = pytest.mark.skipif(
    not any(map(shutil.which, NAMES)), reason=f"no Chromium: none of {', '.join(NAMES)} is installed"
)
"""Mark of tests that open pages."""

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--remote-debugging-port=0",
    "about:blank",
)


def executable() -> str | None:
    """A Chromium on this machine."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One tab.

    Attributes:
        requests: every address that the tab asked for.
        complaints: errors on the console, uncaught exceptions, requests that failed.
    """

    def __init__(self, socket: ClientConnection):
        self._socket = socket
        self._numbers = itertools.count(1)
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._loaded = False
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask the browser for something, and take note of what happens meanwhile."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            self._note(message)

    def open(self, url: str) -> None:
        """Go to a page and wait until it has loaded."""
        self._loaded = False
        self.call("Page.navigate", url=url)
        self.until(lambda: self._loaded)

    def evaluate(self, script: str) -> Any:
        """Value of an expression on the page; a promise's when it is there."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, script: str, seconds: float = 20) -> Any:
        """The expression's value as soon as it is true."""
        return self.until(lambda: self.evaluate(script), seconds, script)

    def until(self, ready: Any, seconds: float = 20, what: str = "the page") -> Any:
        """Result of `ready` as soon as it is true; the page goes on meanwhile."""
        end = time.monotonic() + seconds
        while not (found := ready()):
            assert time.monotonic() < end, f"not there after {seconds} seconds: {what}"
            with contextlib.suppress(TimeoutError):
                self._note(json.loads(self._socket.recv(timeout=0.05)))
        return found

    def look(self, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Size of the window and the colours that the person prefers."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def text(self, selector: str) -> list[str]:
        """Text of every element that fits."""
        return self.evaluate(f"[...document.querySelectorAll({selector!r})].map((e) => e.textContent.trim())")

    def picture(self, path: Path) -> None:
        """What is in the window as a PNG file."""
        data = self.call("Page.captureScreenshot")["data"]
        path.write_bytes(base64.b64decode(data))

    def _note(self, message: dict[str, Any]) -> None:
        method, params = message.get("method"), message.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Network.loadingFailed" and not params.get("canceled"):
            self.complaints.append(f"request failed: {params['errorText']}")
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.complaints.append(" ".join(str(a.get("value", a)) for a in params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.complaints.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")


@contextlib.contextmanager
def browser() -> Iterator[Page]:
    """A fresh browser with one page."""
    found = executable()
    assert found is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [found, f"--user-data-dir={profile}", *FLAGS],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port = Path(profile, "DevToolsActivePort")
            end = time.monotonic() + 30
            while not (port.exists() and len(port.read_text().split()) == 2):
                assert process.poll() is None, "the browser ended before it began"
                assert time.monotonic() < end, "the browser does not start"
                time.sleep(0.05)
            number, _ = port.read_text().split()
            with connect(_tab(int(number)), max_size=None) as socket:
                yield Page(socket)
        finally:
            process.terminate()
            process.wait(20)


def _tab(port: int) -> str:
    """Address of the first tab's socket."""
    import httpx

    for target in httpx.get(f"http://127.0.0.1:{port}/json/list", trust_env=False).json():
        if target["type"] == "page":
            return target["webSocketDebuggerUrl"]
    raise AssertionError("the browser has no tab")
