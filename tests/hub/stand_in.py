"""A stand-in for the Hub on loopback: the part of its HTTP API that we use, with faults on demand."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socketserver
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LFS_SUFFIXES = (".ckpt", ".tar.gz", ".mp4", ".parquet", ".safetensors", ".mds")

_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(?:/(.*))?)?$")
_RESOLVE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")
_LFS = re.compile(r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch$")
_CHANGE = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)/(preupload|commit)/main$")
_CDN = re.compile(r"/cdn/(.+)$")


def is_lfs(path: str) -> bool:
    return path.endswith(LFS_SUFFIXES)


def _mode(path: str) -> dict[str, str]:
    return {"uploadMode": "lfs" if is_lfs(path) else "regular"}


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Transfer:
    """One GET of a file's content: where it started, and how many bytes were sent."""

    path: str
    start: int
    sent: int


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """Without HTTPServer's look-up of the host's name, which takes a second on a machine without network."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", int(self.server_address[1])


@dataclass
class HubStandIn:
    """Serves repositories ("models" or "datasets", "owner/name") -> {path: content} until `close`.

    `breaks[path]` holds, for each coming transfer, after how many bytes the connection is cut. `substitutes[path]` is
    sent instead of the file whose hash was promised. A path in `stalls` is sent up to that many bytes; then the
    transfer waits, with `stalled` set, until `close`. Listings come in pages of `page_size`; an `endless` one names
    its first page as the next, "again", or always another empty one, "empty", or sends one without an end, "bytes", or
    an "error" of that kind.

    Uploads: large files go into `objects` by their SHA-256, and are files of a repository once a commit says so; `puts`
    are the hashes of those that came, `commits` the paths of each commit. `refuse` answers a request by its method and
    path with a status and a message, or None.
    """

    repositories: dict[tuple[str, str], dict[str, bytes]]
    breaks: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    substitutes: dict[str, bytes] = field(default_factory=dict)
    stalls: dict[str, int] = field(default_factory=dict)
    transfers: list[Transfer] = field(default_factory=list)
    page_size: int = 1000
    endless: str = ""
    stalled: threading.Event = field(default_factory=threading.Event)
    objects: dict[str, bytes] = field(default_factory=dict)
    puts: list[str] = field(default_factory=list)
    commits: list[list[str]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    refuse: Callable[[str, str], tuple[int, str] | None] = lambda method, path: None

    def __post_init__(self) -> None:
        self.closing = threading.Event()
        stand_in = self

        class Handler(_Handler):
            hub = stand_in

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def starts(self, path: str) -> list[int]:
        """At which byte each transfer of this file began."""
        return [transfer.start for transfer in self.transfers if transfer.path == path]

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: HubStandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_POST(self) -> None:
        self._receive()

    def do_PUT(self) -> None:
        self._receive()

    def _receive(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        path = unquote(urlsplit(self.path).path)
        if self.command == "POST":  # what is put has an address of its own, which is token enough
            self.hub.tokens.add(self.headers.get("Authorization", ""))
        refusal = self.hub.refuse(self.command, path)
        if refusal:
            self._error(refusal[0], "Refused", refusal[1])
        elif self.command == "PUT":
            digest = hashlib.sha256(body).hexdigest()
            assert path == f"/lfs/{digest}"
            self.hub.puts.append(digest)
            self.hub.objects[digest] = body
            self._json({})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._json({"warnings": [], "errors": []})
        elif match := _LFS.match(path):
            self._json({"transfer": "basic", "objects": [self._object(each) for each in json.loads(body)["objects"]]})
        elif match := _CHANGE.match(path):
            repo = (match[1], match[2])
            if match[3] == "preupload":
                modes = [
                    {"path": f["path"], "shouldIgnore": False, **_mode(f["path"])} for f in json.loads(body)["files"]
                ]
                self._json({"files": modes})
            else:
                self._commit(repo, [json.loads(line) for line in body.splitlines()])
        else:
            self._error(404, "EntryNotFound")

    def _create(self, asked: dict[str, Any]) -> None:
        kind = f"{asked.get('type') or 'model'}s"
        repo = (kind, f"{asked['organization']}/{asked['name']}")
        status = 409 if repo in self.hub.repositories else 200
        self.hub.repositories.setdefault(repo, {})
        self._json({"url": self._page(repo)}, status)

    def _page(self, repo: tuple[str, str]) -> str:
        return f"{self.hub.address}/{'datasets/' if repo[0] == 'datasets' else ''}{repo[1]}"

    def _object(self, asked: dict[str, Any]) -> dict[str, Any]:
        """How to upload a large file; of one that is there already, nothing."""
        if asked["oid"] in self.hub.objects:
            return asked
        return {**asked, "actions": {"upload": {"href": f"{self.hub.address}/lfs/{asked['oid']}"}}}

    def _commit(self, repo: tuple[str, str], lines: list[dict[str, Any]]) -> None:
        changes = {}
        for line in lines[1:]:
            value = line["value"]
            is_large = line["key"] == "lfsFile"
            changes[value["path"]] = self.hub.objects[value["oid"]] if is_large else base64.b64decode(value["content"])
        self.hub.repositories[repo].update(changes)
        self.hub.commits.append(list(changes))
        self._json({"commitUrl": f"{self._page(repo)}/commit/{COMMIT}", "commitOid": COMMIT})

    def _answer(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        if match := _API.match(path):
            kind, repo, action, _, folder = match.groups()
            self._api((kind, repo), action, folder or "")
        elif match := _RESOLVE.match(path):
            kind = "datasets" if match[1] else "models"
            self._resolve((kind, match[2]), match[3], match[4], with_body)
        elif match := _CDN.match(path):
            kind, owner, name, file = match[1].split("/", 3)
            self._content(file, self.hub.repositories[kind, f"{owner}/{name}"][file])
        else:
            self._error(404, "EntryNotFound")

    def _api(self, repo: tuple[str, str], action: str | None, folder: str) -> None:
        files = self.hub.repositories.get(repo)
        if files is None:
            self._error(401, "RepoNotFound")
        elif action == "tree":
            below = [path for path in sorted(files) if path.startswith(f"{folder}/" if folder else "")]
            self._list([self._entry(path, files[path]) for path in below])
        else:
            self._json({"id": repo[1], "sha": COMMIT, "siblings": []})

    def _list(self, entries: list[dict[str, Any]]) -> None:
        if self.hub.endless in ("bytes", "error"):
            self.send_response(200 if self.hub.endless == "bytes" else 404)
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                while not self.hub.closing.is_set():
                    self.wfile.write(b"[" * (1 << 16))
            self.close_connection = True
            return
        split = urlsplit(self.path)
        start = int(parse_qs(split.query).get("cursor", ["0"])[0])
        following = 0 if self.hub.endless == "again" else start + self.hub.page_size
        page = [] if self.hub.endless == "empty" else entries[start : start + self.hub.page_size]
        has_more = self.hub.endless or following < len(entries)
        link = f'<{self.hub.address}{split.path}?recursive=True&cursor={following}>; rel="next"'
        self._json(page, headers={"Link": link} if has_more else {})

    @staticmethod
    def _entry(path: str, content: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git_sha1(content)}
        if is_lfs(path):
            digest = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
        return entry

    def _resolve(self, repo: tuple[str, str], revision: str, path: str, with_body: bool) -> None:
        content = self.hub.repositories.get(repo, {}).get(path)
        if content is None or revision not in (COMMIT, "main"):
            self._error(404, "EntryNotFound")
            return
        if is_lfs(path):
            self.send_response(302)
            self.send_header("Location", f"{self.hub.address}/cdn/{repo[0]}/{repo[1]}/{path}")
            self.send_header("X-Linked-Etag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Linked-Size", str(len(content)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif with_body:
            self._content(path, content)
        else:
            self.send_response(200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{git_sha1(content)}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()

    def _content(self, path: str, content: bytes) -> None:
        content = self.hub.substitutes.get(path, content)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        waiting = self.hub.breaks.get(path)
        limit = waiting.pop(0) if waiting else len(content)
        limit = min(limit, self.hub.stalls.get(path, limit))
        part = content[start : start + limit]
        self.hub.transfers.append(Transfer(path, start, len(part)))
        try:
            self.wfile.write(part)
        except ConnectionError:  # the client was killed
            self.close_connection = True
            return
        if start + limit < len(content):
            self.wfile.flush()
            if path in self.hub.stalls:
                self.hub.stalled.set()
                self.hub.closing.wait()
            self.close_connection = True

    def _json(self, value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, content in (headers or {}).items():
            self.send_header(name, content)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _error(self, status: int, code: str, message: str = "") -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        if message:
            self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()
