"""A proxy before an HTTP server that fails on purpose: some requests, or all of them for a while."""

from __future__ import annotations

import http.client
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlparse


class FaultyProxy:
    """Passes requests on to `upstream`; `address` is where it listens.

    A share of the requests is answered with 503, another is dropped halfway through its answer. In an outage
    every request is dropped.
    """

    def __init__(self, upstream: str, failing_share: float, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._failing_share = failing_share
        self._outage_s = self._dark_until = 0.0
        self.num_requests = self.num_failed = 0
        proxy = self
        target = urlparse(upstream).netloc

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_any(self) -> None:
                proxy.pass_on(self, target)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do_any  # noqa: N815

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def outage(self, seconds: float) -> None:
        """Begin an outage with the next request."""
        self._outage_s = seconds

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def pass_on(self, request: BaseHTTPRequestHandler, target: str) -> None:
        self.num_requests += 1
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        draw = self._random.random()
        if self._outage_s:
            self._dark_until, self._outage_s = time.monotonic() + self._outage_s, 0.0
        if time.monotonic() < self._dark_until:
            self.num_failed += 1
            request.close_connection = True
            return
        if draw < self._failing_share / 2:
            self.num_failed += 1
            request.send_response(503)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        upstream = http.client.HTTPConnection(target, timeout=30)
        try:
            upstream.request(request.command, request.path, body, dict(request.headers.items()))
            answer = upstream.getresponse()
            content = answer.read()
        finally:
            upstream.close()
        request.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                request.send_header(name, value)
        length = answer.getheader("Content-Length") if request.command == "HEAD" else str(len(content))
        request.send_header("Content-Length", length or "0")
        request.end_headers()
        if request.command != "HEAD":
            if draw < self._failing_share:
                self.num_failed += 1
                content = content[: len(content) // 2]
                request.close_connection = True
            request.wfile.write(content)
