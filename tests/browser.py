"""Controls a headless Chromium through its DevTools protocol, over a pair of pipes."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from example_project.processes import wait_until

#: It starts no services of its own, and asks no server but the page's.
_OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    # It never looks up any name but loopback.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--remote-debugging-pipe",
    "about:blank",
]


def missing_chromium() -> str | None:
    """Returns what must be installed before a test can look at a page; None if nothing is
    missing."""
    return None if _program() else "chromium is not on PATH (Debian: apt-get install chromium)"


def _program() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Browser:
    """One page in a browser of its own. Leaving the ``with`` block ends all of its processes.

    Attributes:
        complaints: what the page wrote to the console as warning or error, its uncaught
            exceptions and violations of its Content-Security-Policy.
    """

    def __init__(self, folder: Path) -> None:
        self.complaints: list[str] = []
        self._folder = folder
        self._messages = b""
        self._number = 0
        self._session: str | None = None

    def __enter__(self) -> Browser:
        program = _program()
        assert program is not None, missing_chromium()
        in_read, self._to = os.pipe()
        self._from, out_write = os.pipe()
        try:
            # It reads descriptor 3 and writes 4; the shell puts them there.
            command = f'exec "$0" "$@" 3<&{in_read} 4>&{out_write}'
            guard = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
            data = f"--user-data-dir={self._folder / 'chromium'}"
            with (self._folder / "chromium.log").open("wb") as log:
                self._process = subprocess.Popen(
                    [*guard, "bash", "-c", command, program, data, *_OPTIONS],
                    pass_fds=(in_read, out_write),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        finally:
            os.close(in_read)
            os.close(out_write)
        try:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
            self._session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)
        os.close(self._to)
        os.close(self._from)

    def call(self, method: str, timeout: float = 30.0, **params: Any) -> dict[str, Any]:
        """Sends a command of its protocol. Returns the browser's answer."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        for answer in self._receive(timeout):
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                result: dict[str, Any] = answer["result"]
                return result
            self._hear(answer)
        raise TimeoutError(f"no answer to {method} within {timeout:g} s")

    def _receive(self, timeout: float) -> Iterator[dict[str, Any]]:
        deadline = time.monotonic() + timeout
        while True:
            while b"\0" in self._messages:
                message, _, self._messages = self._messages.partition(b"\0")
                yield json.loads(message)
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._from], [], [], left)[0]:
                return
            more = os.read(self._from, 1 << 20)
            if not more:
                raise RuntimeError(f"the browser has ended, see {self._folder}/chromium.log")
            self._messages += more

    def _hear(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif event.get("method") == "Runtime.consoleAPICalled":
            self.complaints.append(str(params["args"]))
        elif event.get("method") == "Log.entryAdded":
            entry = params["entry"]
            if entry["level"] in ("warning", "error"):
                self.complaints.append(f"{entry['text']} {entry.get('url', '')}")

    def open(self, url: str) -> None:
        failure = self.call("Page.navigate", url=url).get("errorText")
        if failure:
            raise RuntimeError(f"{url}: {failure}")

    def run(self, script: str) -> Any:
        """Returns the value of a JavaScript expression, as JSON."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def text(self, selector: str = "body") -> str:
        """Returns the visible text of all elements that match, all lines of it."""
        found = f"Array.from(document.querySelectorAll({json.dumps(selector)}))"
        seen = "filter((node) => node.checkVisibility()).map((node) => node.innerText)"
        return str(self.run(f"{found}.{seen}.join('\\n')"))

    def wait_for(self, script: str, timeout: float = 30.0) -> None:
        """Waits until a JavaScript expression is true."""
        self._wait(lambda: self.run(script), timeout, script)

    def wait_for_text(self, selector: str, text: str, timeout: float = 30.0) -> None:
        """Waits until `text` is visible there."""
        self._wait(lambda: text in self.text(selector), timeout, f"{text!r} in {selector}")

    def _wait(self, condition: Callable[[], Any], timeout: float, what: str) -> None:
        try:
            wait_until(condition, timeout, what)
        except TimeoutError as exc:
            raise TimeoutError(f"{exc}; the page says: {self.text()}") from None

    def resize(self, width: int, height: int = 800) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def prefer(self, scheme: str) -> None:
        """Sets the colour scheme: ``dark`` or ``light``."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def screenshot(self, path: Path, whole: bool = False) -> None:
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))
