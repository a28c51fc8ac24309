"""Archives on the Hugging Face Hub, read as one stream each: hf://datasets/OWNER/NAME[@REVISION][/PATH]."""

from __future__ import annotations

import http.client
import io
import os
import re
import time
import urllib.error
import urllib.request
from typing import IO, Any

PREFIX = "hf://"
_ADDRESS = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.*))?$")
_TRIES, _FIRST_PAUSE_S, _TIMEOUT_S = 7, 0.5, 60.0
_BUFFER_BYTES = 1 << 20


def list_files(address: str) -> dict[str, int]:
    """{address of a file, pinned to today's revision: its size} of all files at or below an address.

    Raises:
        ValueError: when the address is malformed, or the Hub does not have it.
    """
    repository, revision, path = _split(address)
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise ValueError("hf:// needs huggingface_hub: pip install 'p2p-convert[hub]'") from error
    api = HfApi(endpoint=_endpoint())
    try:
        commit = api.dataset_info(repository, revision=revision).sha
        tree = api.list_repo_tree(repository, recursive=True, repo_type="dataset", revision=commit)
        files: dict[str, Any] = {entry.path: getattr(entry, "size", None) for entry in tree}
    except (HfHubHTTPError, OSError) as error:
        raise ValueError(f"{address}: the Hub does not give it: {error}") from error
    return {
        f"{PREFIX}datasets/{repository}@{commit}/{name}": int(size)
        for name, size in files.items()
        if size is not None and (not path or name == path or name.startswith(f"{path}/"))
    }


def open_file(address: str) -> IO[bytes]:
    """The bytes of a file, from its beginning to its end; a broken transfer goes on where it broke.

    Raises:
        OSError: from reads, when the Hub stays away.
    """
    return io.BufferedReader(_Stream(address), _BUFFER_BYTES)


def _split(address: str) -> tuple[str, str | None, str]:
    match = _ADDRESS.match(address)
    if not match:
        raise ValueError(f"{address}: write hf://datasets/OWNER/NAME or hf://datasets/OWNER/NAME/PATH")
    return match[1], match[2], (match[3] or "").strip("/")


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


class _Stream(io.RawIOBase):
    def __init__(self, address: str) -> None:
        repository, revision, path = _split(address)
        self._address = address
        self._url = f"{_endpoint()}/datasets/{repository}/resolve/{revision or 'main'}/{path}"
        self._position = 0
        self._size: int | None = None
        self._answer: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        failures = 0
        while self._size is None or self._position < self._size:
            try:
                if self._answer is None:
                    self._connect()
                count = int(self._answer.readinto(buffer))
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
            failures += 1
            if failures == _TRIES:
                raise OSError(5, f"the Hub does not answer: {error}; run the same command again", self._address)
            time.sleep(_FIRST_PAUSE_S * 2 ** (failures - 1))
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
        self._size = self._position + int(self._answer.headers["Content-Length"])
