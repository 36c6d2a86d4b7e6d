"""A headless Chromium that opens a page, measures it and takes a picture of it."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flow_running import background, environment

WIDTH, HEIGHT = 1440, 900
PATIENCE_SECONDS = 120


def chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One tab, spoken to by the DevTools protocol."""

    def __init__(self, connection: Any) -> None:
        self._connection, self._numbers = connection, itertools.count(1)

    def ask(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while (answer := json.loads(self._connection.recv(timeout=PATIENCE_SECONDS))).get("id") != number:
            continue
        assert "error" not in answer, answer
        return answer["result"]

    def evaluate(self, expression: str) -> Any:
        return self.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def open(self, url: str, *texts: str) -> None:
        """Open a page and wait until it shows these texts."""
        self.ask("Page.navigate", url=url)
        _until(lambda: all(text in (self.evaluate("document.body.innerText") or "") for text in texts), self.text)
        time.sleep(2)  # what is drawn after its data came

    def text(self) -> str:
        return str(self.evaluate("document.body.innerText"))

    def height(self) -> int:
        """Of all that the page shows, in pixels, what has to be scrolled to included."""
        tallest = "Math.max(...[...document.querySelectorAll('*')].map(one => one.scrollHeight))"
        return int(self.evaluate(tallest))

    def picture(self, path: Path, height: int = HEIGHT) -> None:
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=WIDTH, height=height, deviceScaleFactor=1, mobile=False
        )  # fmt: skip
        time.sleep(1)
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot")["data"]))


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    from websockets.sync.client import connect

    profile = folder / "chromium"
    told = profile / "DevToolsActivePort"
    command = [str(chromium()), "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
               f"--user-data-dir={profile}", f"--window-size={WIDTH},{HEIGHT}", "about:blank"]  # fmt: skip
    with background(command, folder, environment(folder / "home")):
        _until(lambda: told.exists() and bool(told.read_text()), lambda: "Chromium does not start")
        port = told.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=60) as answer:
            (page, *_) = [one for one in json.loads(answer.read()) if one["type"] == "page"]
        with connect(page["webSocketDebuggerUrl"], max_size=None) as connection:
            yield Browser(connection)


def _until(reached: Callable[[], bool], said: Callable[[], str]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not reached():
        assert time.monotonic() < deadline, said()
        time.sleep(0.3)
