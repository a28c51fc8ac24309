"""Archives on the Hugging Face Hub, read as one stream each: hf://datasets/OWNER/NAME[@REVISION][/PATH]."""

from __future__ import annotations

import http.client
import io
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, BinaryIO

from p2p.hub.archive import BadArchive
from p2p.hub.transfer import DEFAULT_ENDPOINT, RemoteFile, Repository, Tries, start_digest

PREFIX = "hf://"
_ADDRESS = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.*))?$")
_TRIES, _TIMEOUT_S = 7, 60.0
_BUFFER_BYTES = 1 << 20


def list_files(address: str) -> dict[str, RemoteFile]:
    """{address of a file, pinned to today's revision: what the Hub says of it} of all files at or below an address.

    Raises:
        ValueError: when the address is malformed, or the Hub does not have it.
    """
    name, revision, path = _split(address)
    try:
        repository = Repository(name, "dataset", revision)
    except ImportError as error:
        raise ValueError("hf:// needs huggingface_hub: pip install 'p2p-convert[hub]'") from error
    return {
        f"{PREFIX}datasets/{name}@{repository.commit}/{file.path}": file
        for file in repository.files()
        if not path or file.path == path or file.path.startswith(f"{path}/")
    }


def open_file(address: str, num_bytes: int) -> BinaryIO:
    """The bytes of a file of that size, from its beginning to its end; a broken transfer goes on where it broke.

    Raises:
        OSError: from reads, when the Hub stays away, or the file has another size.
    """
    return io.BufferedReader(_Stream(address, num_bytes), _BUFFER_BYTES)


class Verified:
    """A file whose hash is compared when it has been read to its end.

    Raises:
        BadArchive: from the last `read`, when it is not the one that the Hub names.
    """

    def __init__(self, file: BinaryIO, where: str, num_bytes: int, digest: str) -> None:
        self._file, self._where, self._expected = file, where, digest
        self._kind, self._digest = start_digest(digest, num_bytes)

    def read(self, size: int, /) -> bytes:
        """At most so many bytes."""
        content = self._file.read(size)
        self._digest.update(content)
        found = f"{self._kind}:{self._digest.hexdigest()}" if not content else self._expected
        if found != self._expected:
            raise BadArchive(f"{self._where}: what arrived has the hash {found}, the Hub names {self._expected}")
        return content


def _split(address: str) -> tuple[str, str | None, str]:
    match = _ADDRESS.match(address)
    if not match:
        raise ValueError(f"{address}: write hf://datasets/OWNER/NAME or hf://datasets/OWNER/NAME/PATH")
    return match[1], match[2], (match[3] or "").strip("/")


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", DEFAULT_ENDPOINT).rstrip("/")


class _Stream(io.RawIOBase):
    def __init__(self, address: str, num_bytes: int) -> None:
        repository, revision, path = _split(address)
        self._address = address
        self._url = f"{_endpoint()}/datasets/{repository}/resolve/{revision or 'main'}/{urllib.parse.quote(path)}"
        self._position = 0
        self._size = num_bytes
        self._answer: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        tries = Tries(_TRIES)
        while self._position < self._size:
            try:
                if self._answer is None:
                    self._connect()
                count = int(self._answer.readinto(memoryview(buffer)[: self._size - self._position]))
                if count:
                    self._position += count
                    return count
                error: Exception = ConnectionError("the transfer ended too early")
            except urllib.error.HTTPError as refused:
                if refused.code < 500 and refused.code != 429:
                    raise OSError(5, f"the Hub refuses: {refused}", self._address) from refused
                error = refused
            except (OSError, http.client.HTTPException) as broken:
                error = broken
            self._answer = None
            if not tries.again(moved=False):
                raise OSError(5, f"the Hub does not answer: {error}; run the same command again", self._address)
        return 0

    def _connect(self) -> None:
        from huggingface_hub import get_token

        request = urllib.request.Request(self._url, headers={"Range": f"bytes={self._position}-"})
        token = get_token()
        if token:  # not for the host that the Hub redirects to
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        self._answer = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
        if self._answer.status != 206 and self._position:
            raise ConnectionError("the Hub does not go on in the middle of a file")
