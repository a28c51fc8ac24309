"""An object store on loopback that lists what it likes, says that objects have 5 bytes, and sends them without end."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote
from xml.sax.saxutils import escape

import pytest


class HostileStore(BaseHTTPRequestHandler):
    keys: tuple[str, ...] = ()
    facts = "<Size>1</Size><ETag>x</ETag>"
    head = (("Content-Length", "5"), ("ETag", "x"))
    num_sent = 0

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.send_response(200)
        for name, value in self.head:
            self.send_header(name, value)
        self.end_headers()

    def do_GET(self) -> None:
        if "list-type" not in self.path:
            self._send_without_end()
            return
        entries = "".join(f"<Contents><Key>{escape(quote(key))}</Key>{self.facts}</Contents>" for key in self.keys)
        body = f"<ListBucketResult><EncodingType>url</EncodingType>{entries}</ListBucketResult>".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send_without_end(self) -> None:
        self.send_response(200)
        self.end_headers()
        HostileStore.num_sent = 0
        with contextlib.suppress(OSError):
            while HostileStore.num_sent < 1 << 30:
                self.wfile.write(bytes(1 << 16))
                HostileStore.num_sent += 1 << 16


def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[HostileStore]]:
    """For a fixture: the environment points to the store until it ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), HostileStore)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("S3_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    yield HostileStore
    server.shutdown()
    server.server_close()
    thread.join()
