"""A proxy before an HTTP server that fails on purpose: some requests, or all of them for a while."""

from __future__ import annotations

import http.client
import random
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlparse

REFUSE, STALL = "refuse", "stall"


class FaultyProxy:
    """Passes requests on to `upstream`; `address` is where it listens.

    Of the share of requests that fail, a third is answered with 503, a third does its work upstream but gets no
    answer, and a third gets half an answer. In an outage the proxy refuses connections and drops those it has
    (REFUSE), or takes requests and never answers them (STALL). `planned` are verdicts on the next requests.
    """

    def __init__(self, upstream: str, failing_share: float = 0.0, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self.failing_share = failing_share
        self._next_outage: tuple[float, str] | None = None
        self.planned: list[str] = []
        self._dark, self._closing = "", threading.Event()
        self._lock = threading.Lock()
        self.num_requests = self.num_failed = self.num_connections = self.num_outages_over = 0
        proxy = self
        target = urlparse(upstream).netloc

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                proxy.num_connections += 1

            def do_any(self) -> None:
                proxy.pass_on(self, target)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do_any  # noqa: N815

            def log_message(self, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 128

            def handle_error(self, *args: object) -> None:
                """A client that hung up is none of our business."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._serve()

    def _serve(self) -> None:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def outage(self, seconds: float, kind: str = REFUSE) -> None:
        """Begin an outage with the next request."""
        self._next_outage = (seconds, kind)

    def close(self) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def _go_dark(self, seconds: float, kind: str) -> None:
        """Until the outage is over; the port stays bound, so that nobody else gets it."""
        if kind == REFUSE:
            self._server.shutdown()
            self._server.socket.shutdown(socket.SHUT_RDWR)  # also the copies that forked processes hold
            self._server.socket.close()
            self._server.socket = socket.socket()
            self._server.server_bind()
        over = not self._closing.wait(seconds)
        if kind == REFUSE and over:
            self._server.server_activate()
            self._serve()
        self._dark = ""
        self.num_outages_over += over

    def _verdict(self) -> str:
        """What happens to the next request: "", "dark", "503", "lost" or "half"."""
        with self._lock:
            self.num_requests += 1
            if self._next_outage is not None:
                (seconds, kind), self._next_outage = self._next_outage, None
                self._dark = kind
                threading.Thread(target=self._go_dark, args=(seconds, kind), daemon=True).start()
            draw = self._random.random()
            failing = draw < self.failing_share
            self.num_failed += failing or bool(self._dark)
            if self._dark:
                return "dark"
            if self.planned:
                return self.planned.pop(0)
            return ("503", "lost", "half")[int(3 * draw / self.failing_share)] if failing else ""

    def pass_on(self, request: BaseHTTPRequestHandler, target: str) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        verdict = self._verdict()
        if verdict == "dark" and self._dark == STALL:
            self._closing.wait()
        if verdict == "503":
            request.send_response(503)
            request.send_header("Content-Length", "0")
            request.end_headers()
        elif verdict != "dark":
            answer, content = self._ask(request, target, body)
            if verdict != "lost" and not (verdict == "half" and not content):
                self._answer(request, answer, content, half=verdict == "half")
        request.close_connection |= verdict in ("dark", "lost", "half")

    def _ask(self, request: BaseHTTPRequestHandler, target: str, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        upstream = http.client.HTTPConnection(target, timeout=30)
        try:
            upstream.request(request.command, request.path, body, dict(request.headers.items()))
            answer = upstream.getresponse()
            return answer, answer.read()
        finally:
            upstream.close()

    def _answer(
        self, request: BaseHTTPRequestHandler, answer: http.client.HTTPResponse, content: bytes, half: bool
    ) -> None:
        request.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                request.send_header(name, value)
        length = answer.getheader("Content-Length") if request.command == "HEAD" else str(len(content))
        request.send_header("Content-Length", length or "0")
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(content[: len(content) // 2] if half else content)
