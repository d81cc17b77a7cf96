"""The WSGI application: which path gets which answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from importlib.resources import files
from typing import Any, NamedTuple
from urllib.parse import parse_qs

from .. import clock
from ..log import safe
from ..records import to_text
from ..version import __version__
from .probes import SILENT, Finding, alive, leads, ready
from .prometheus import exposition
from .readings import Reading, Readings
from .state import Day, Report

_STATUS_LINES = {
    200: "200 OK",
    404: "404 Not Found",
    405: "405 Method Not Allowed",
    503: "503 Service Unavailable",
}
_HEADERS = [
    ("Cache-Control", "no-store"),
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
]
_TEXT, _JSON = "text/plain; charset=utf-8", "application/json"
_ASSETS = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
#: All paths.
PATHS = (
    *("/livez", "/readyz", "/leader", "/metrics", "/status.json", "/page.json", "/day.json"),
    *_ASSETS,
)


class Response(NamedTuple):
    status: int
    type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


class Application:
    """The WSGI application. It shows the metrics of the beat's process, `pid`, too. `day`: says
    what of an entry runs on the next day."""

    def __init__(self, ask: Callable[[], Report], readings: Readings, pid: int, day: Day) -> None:
        self._ask = ask
        self._readings = readings
        self._pid, self._day = pid, day
        folder = files(__package__) / "page"
        self._handlers: dict[str, Callable[[dict[str, Any]], Response]] = {
            "/livez": lambda environ: _probe(alive(ask().state, clock.boottime())),
            "/readyz": lambda environ: _probe(*ready(ask())),
            "/leader": lambda environ: _probe(leads(ask())),
            "/metrics": self._metrics,
            "/status.json": self._status,
            "/page.json": self._page,
            "/day.json": self._day_of,
            **{
                path: _always(Response(200, type, (folder / name).read_bytes()))
                for path, (name, type) in _ASSETS.items()
            },
        }

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., object]
    ) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        response = self._response(method, environ)
        length = ("Content-Length", str(len(response.body)))
        headers = [("Content-Type", response.type), length, *_HEADERS, *response.headers]
        start_response(_STATUS_LINES[response.status], headers)
        return [] if method == "HEAD" else [response.body]

    def _response(self, method: str, environ: dict[str, Any]) -> Response:
        handler = self._handlers.get(environ.get("PATH_INFO", ""))
        if handler is None:
            return Response(404, _TEXT, b"no such page\n")
        if method not in ("GET", "HEAD"):
            return Response(405, _TEXT, b"GET and HEAD only\n", (("Allow", "GET, HEAD"),))
        return handler(environ)

    def _metrics(self, environ: dict[str, Any]) -> Response:
        state, answers = self._ask()
        if not answers:
            return _probe(SILENT)  # so that Prometheus counts the beat as down
        return Response(200, *exposition(state, self._pid, environ.get("HTTP_ACCEPT", "")))

    def _status(self, environ: dict[str, Any]) -> Response:
        reading, error = self._readings.get()
        if error is None and reading is not None:
            return Response(200, _JSON, reading.full())
        found = {"error": error, **_age_of(reading)}
        return Response(503, _JSON, json.dumps(found).encode())

    def _page(self, environ: dict[str, Any]) -> Response:
        """Gives the page its data: only some of the entries; and, unlike /status.json, the last
        known status if ZooKeeper does not answer."""
        reading, error = self._readings.get()
        state, answers = self._ask()  # afterwards, because the status may take a while
        head = {
            "beat": {
                "id": state.id,
                "version": __version__,
                "answers": answers,
                "connected": state.connected,
            },
            "now": to_text(clock.now()),
            "error": error,
            **_age_of(reading),
        }
        status = b"null" if reading is None else reading.page
        body = json.dumps(head).encode()[:-1] + b', "status": ' + status + b"}"
        return Response(200, _JSON, body)

    def _day_of(self, environ: dict[str, Any]) -> Response:
        """Gives the page the next day of one entry; null if nothing is known yet."""
        (name, *_) = parse_qs(environ.get("QUERY_STRING", "")).get("entry", [""])
        reading, _ = self._readings.get()
        runs = None
        if reading is not None:
            held = {each.name for each in reading.snapshot.entries if each.paused is not None}
            if reading.snapshot.paused is not None:
                held.add(name)
            runs = self._day(name, reading.basis, held)
        return Response(200, _JSON, json.dumps({"entry": name, "runs": runs}).encode())


def _always(response: Response) -> Callable[[dict[str, Any]], Response]:
    return lambda environ: response


def _probe(*findings: Finding) -> Response:
    """Returns one line for each finding."""
    lines = [f"{'ok' if holds else 'failed'}: {safe(text)}\n" for holds, text in findings]
    status = 200 if all(finding.holds for finding in findings) else 503
    return Response(status, _TEXT, "".join(lines).encode(errors="backslashreplace"))


def _age_of(reading: Reading | None) -> dict[str, Any]:
    if reading is None:
        return {"read_at": None, "age": None}
    age = clock.boottime() - reading.at
    return {"read_at": to_text(reading.snapshot.read_at), "age": round(age, 3)}
