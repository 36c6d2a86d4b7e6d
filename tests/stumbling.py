"""A store that stumbles: a proxy before the S3 endpoint, which answers as it is told to."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

HOP = {"connection", "transfer-encoding", "content-length", "keep-alive", "server", "date"}
Fault = str | None
"""A status such as "503", or "slow", "hang", "half" (the connection breaks), "short" (a smaller answer, as if whole),
"blind" (conditions are not heard); None: all is well.
"""


class Stumbling(ThreadingHTTPServer):
    """Forwards to `behind`; `fault(method, path)` says what goes wrong with a request."""

    daemon_threads = True

    def __init__(self, behind: str) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.behind = behind.removeprefix("http://")
        self.fault: Callable[[str, str], Fault] = lambda method, path: None
        self.asked: list[tuple[str, str]] = []
        self.slow_seconds = 1.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is none of the proxy's business."""


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Stumbling

    def do_GET(self) -> None:
        self.server.asked.append((self.command, self.path))
        fault = self.server.fault(self.command, self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault == "hang":
            time.sleep(self.server.slow_seconds)
            self.close_connection = True
            return
        if fault == "slow":
            time.sleep(self.server.slow_seconds)
        if fault and fault.isdigit():
            self._answer(int(fault), {}, b"<Error><Code>NotImplemented</Code></Error>" if fault == "501" else b"")
            return
        self._forward(body, fault)

    do_PUT = do_POST = do_DELETE = do_HEAD = do_GET

    def _forward(self, body: bytes, fault: Fault) -> None:
        headers = {name: value for name, value in self.headers.items() if name.lower() != "content-length"}
        if fault == "blind":
            headers = {name: value for name, value in headers.items() if not name.lower().startswith("if-")}
        connection = http.client.HTTPConnection(self.server.behind, timeout=30)
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if fault == "short":
            content = content[: len(content) // 2]
        self._answer(answer.status, dict(answer.getheaders()), content, half=fault == "half")

    def _answer(self, status: int, headers: dict[str, str], content: bytes, *, half: bool = False) -> None:
        self.send_response(status)
        told = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(content))
        for name, value in headers.items():
            if name.lower() not in HOP and not name.lower().startswith("x-amz-checksum"):
                self.send_header(name, value)
        self.send_header("Content-Length", told)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if half else content)
        self.close_connection = self.close_connection or half

    def log_message(self, *_: object) -> None:
        """Nothing is said."""


@pytest.fixture
def stumbling(s3: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stumbling]:
    """The proxy, which this process and its children take for the endpoint."""
    import s3fs

    proxy = Stumbling(s3.meta.endpoint_url)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    s3fs.S3FileSystem.clear_instance_cache()  # they hold the endpoint that they first saw
    yield proxy
    s3fs.S3FileSystem.clear_instance_cache()
    proxy.shutdown()
    proxy.server_close()
