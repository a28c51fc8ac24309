"""What a hostile object store lists and sends: no name of it leads out of a folder."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote
from xml.sax.saxutils import escape

import pytest

from p2p.gate import Refused
from p2p.object_storage import ObjectFolder, StorageError


class HostileStore(BaseHTTPRequestHandler):
    keys: tuple[str, ...] = ()

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        entries = "".join(
            f"<Contents><Key>{escape(quote(key))}</Key><Size>1</Size><ETag>x</ETag></Contents>" for key in self.keys
        )
        body = f"<ListBucketResult><EncodingType>url</EncodingType>{entries}</ListBucketResult>".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectFolder]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), HostileStore)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("S3_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    yield ObjectFolder("s3://bucket/some/prefix")
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    "key",
    [
        "some/prefix/../../evil",
        "some/prefix//etc/passwd",
        "some/prefix/./x",
        "some/prefix/a\\..\\b",
        "some/prefix/a\nb",
        "some/prefix/\x1b[2Jx",
        "some/prefix/" + "x" * 300,
        "elsewhere/x",
        "some/prefixed",
    ],
)
def test_a_listed_name_that_is_no_plain_path_is_refused_by_name(
    folder: ObjectFolder, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HostileStore, "keys", ("some/prefix/train/index.json", key))
    with pytest.raises(StorageError, match=r"^s3://bucket/some/prefix: .*delete or rename that object") as refusal:
        folder.list()
    assert str(refusal.value).isprintable()


def test_plain_names_are_relative_to_the_prefix_and_markers_of_folders_are_left_out(
    folder: ObjectFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HostileStore, "keys", ("some/prefix/", "some/prefix/train/", "some/prefix/train/spiel é"))
    assert list(folder.list()) == ["train/spiel é"]


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/../../b", ""])
def test_nothing_is_downloaded_by_a_name_that_climbs(folder: ObjectFolder, name: str, tmp_path: Path) -> None:
    with pytest.raises(Refused):
        folder.download(name, tmp_path / "in" / name.lstrip("/"))
    assert list(tmp_path.iterdir()) == []
