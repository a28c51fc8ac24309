"""Files of a Hub repository: listed, transferred with resumption, and believed only when their hash is right."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import logging
import os
import re
import resource
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from p2p import gate
from p2p.files import publish, take, write_file

logger = logging.getLogger(__name__)

DEFAULT_ENDPOINT = "https://huggingface.co"
STAGING = ".download"
MAX_TRIES_WITHOUT_PROGRESS = 5
FIRST_PAUSE_S = 0.5
_MAX_FILES = 1_000_000
_MAX_FILE_BYTES = 1 << 50
_MAX_PAGES = 10_000  # of a listing; a page has a thousand entries
_MAX_PAGE_BYTES = 16 << 20
_PAGE_TIMEOUT_S = 30.0  # without a single byte
_LISTING_S = 600.0  # all pages
_MAX_RECORD_BYTES = 1 << 28
_DELETED = "it was deleted; run the same command again, and if it happens twice, tell the repository's owner"
_NOTES_BYTES = 1 << 16  # of what huggingface_hub notes beside a file


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository. Large files have a SHA-256; small ones only git's SHA-1 of the blob.

    Raises:
        Refused: when its path leads out of a folder, or its size or hashes are none.
    """

    path: str
    size: int
    git_sha1: str
    sha256: str | None = None

    def __post_init__(self) -> None:
        gate.plain_path(self.path, "a file of the repository")
        if self.path.split("/")[0] == STAGING:
            raise gate.Refused(f"a file of the repository: {gate.shown(self.path)} lies where downloads are kept")
        gate.whole_number(self.size, f"the size of {gate.shown(self.path)}", 0, _MAX_FILE_BYTES)
        for digest, length in ((self.git_sha1, 40), (self.sha256, 64)):
            if digest is not None and not (isinstance(digest, str) and re.fullmatch(f"[0-9a-f]{{{length}}}", digest)):
                expected = f"expected {length} hexadecimal digits"
                raise gate.Refused(f"the hash of {gate.shown(self.path)} is {gate.shown(digest)}; {expected}")

    @property
    def digest(self) -> str:
        """The hash that the Hub names for this file, with its kind."""
        return f"sha256:{self.sha256}" if self.sha256 else f"git-sha1:{self.git_sha1}"


def start_digest(expected: str, num_bytes: int) -> tuple[str, Any]:
    """The kind of a `RemoteFile.digest`, and the hash of that kind to update with a file of so many bytes."""
    kind, _, _ = expected.partition(":")
    if kind == "sha256":
        return kind, hashlib.sha256()
    return kind, hashlib.sha1(b"blob %d\0" % num_bytes, usedforsecurity=False)


def file_digest(path: Path, expected: str) -> str:
    """The hash of a local file, of the kind of the expected one."""
    kind, digest = start_digest(expected, path.stat().st_size)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return f"{kind}:{digest.hexdigest()}"


class Repository:
    """One repository of the Hub at one commit; the branch or tag is resolved when the object is made.

    The Hub's address is HF_ENDPOINT's when that is set; HF_TOKEN opens private repositories.
    """

    def __init__(self, repo_id: str, repo_type: str, revision: str | None = None) -> None:
        from huggingface_hub import HfApi

        self.repo_id, self.repo_type = repo_id, repo_type
        self.endpoint = os.environ.get("HF_ENDPOINT", DEFAULT_ENDPOINT)
        self._api = HfApi(endpoint=self.endpoint)
        with self._explained(f"revision {revision or 'main'}"):
            self.commit = str(self._api.repo_info(repo_id, repo_type=repo_type, revision=revision).sha)

    def files(self, folder: str | None = None) -> list[RemoteFile]:
        """Every file below a folder of the repository (below its root when none is named), by path.

        Raises ValueError for a file that must not be brought here, for more than a million, and for a listing that
        has no end.
        """
        try:
            with self._explained(f"folder {folder or '/'}"):
                entries = list(itertools.islice(self._listed(folder), _MAX_FILES + 1))
            if len(entries) > _MAX_FILES:
                raise gate.Refused(f"lists more than {_MAX_FILES} files")
            found = [_remote_file(entry) for entry in entries if entry.get("type") == "file"]
        except gate.Refused as error:
            place = f"{self.repo_type} {self.repo_id} at {self.endpoint}"
            raise gate.Refused(f"{place}: {error}; tell the repository's owner, or name another --repo") from error
        return sorted(found, key=lambda file: file.path)

    def _listed(self, folder: str | None) -> Iterator[dict[str, Any]]:
        """The entries of the listing, page by page; the library asks for pages without an end, of any length.

        Raises Refused for more pages, bytes or seconds than a listing takes.
        """
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        below = f"/{quote(folder, safe='')}" if folder else ""
        url = f"{self.endpoint}/api/{self.repo_type}s/{self.repo_id}/tree/{self.commit}{below}?recursive=True"
        deadline, seen = time.monotonic() + _LISTING_S, set[str]()
        while len(seen) < _MAX_PAGES:
            seen.add(url)
            is_own = url.startswith(f"{self.endpoint}/")  # the token is for nobody else
            entries, following = _page(url, build_hf_headers(token=None if is_own else False), deadline)
            yield from entries
            if following is None:
                return
            if not entries or following in seen:
                raise gate.Refused("the listing has no end: more follows on an empty page, or on one seen before")
            url = following
        raise gate.Refused(f"the listing has more than {_MAX_PAGES} pages")

    def transfer(self, file: RemoteFile, folder: Path) -> Path:
        """Bring a file into a folder, going on where an earlier transfer stopped; its content is not checked.

        Raises OSError when MAX_TRIES_WITHOUT_PROGRESS connections in a row brought no byte, and ValueError when more
        bytes come than the Hub lists.
        """
        from huggingface_hub import hf_hub_download

        def download() -> Path:
            return Path(
                hf_hub_download(
                    self.repo_id,
                    file.path,
                    repo_type=self.repo_type,
                    revision=self.commit,
                    local_dir=folder,
                    endpoint=self.endpoint,
                )
            )

        with self._explained(file.path):
            try:
                with _limited_files(max(file.size, _NOTES_BYTES)):
                    return _with_retries(download, lambda: _bytes_on_the_way(folder), file.path)
            except OSError as error:
                if error.errno != errno.EFBIG:
                    raise
                _delete_what_is_on_the_way(folder)
                problem = f"what arrives is longer than the {file.size} bytes that {self.repo_id} lists"
                raise ValueError(f"{file.path}: {problem}; {_DELETED}") from error

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Say in one line which repository, what was asked of it, and what to do."""
        from huggingface_hub import errors

        place = f"{self.repo_type} {self.repo_id} at {self.endpoint}"
        try:
            yield
        except errors.GatedRepoError as error:
            raise ValueError(f"{place} asks for consent: accept its terms there and set HF_TOKEN") from error
        except errors.RepositoryNotFoundError as error:
            raise ValueError(f"no {place}; check --repo, and HF_TOKEN when it is private") from error
        except errors.RevisionNotFoundError as error:
            raise ValueError(f"{place} has no {what}; check --revision") from error
        except errors.EntryNotFoundError as error:
            raise ValueError(f"{place} has no {what}") from error
        except errors.HFValidationError as error:
            raise ValueError(f"{self.repo_id!r} is not the name of a repository; write OWNER/NAME") from error
        except OSError as error:
            first_line = str(error).partition("\n")[0]
            raise OSError(f"{what} of {place}: {first_line}; run the same command again to go on") from error


def _page(url: str, headers: dict[str, str], deadline: float) -> tuple[list[dict[str, Any]], str | None]:
    """The entries of one page of a listing, and the address of the next one."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    tries = Tries()
    while True:
        try:
            with get_session().get(url, headers=headers, stream=True, timeout=_PAGE_TIMEOUT_S) as answer:
                hf_raise_for_status(_without_body(answer))
                content = bytearray()
                for piece in answer.iter_content(1 << 16):
                    content += piece
                    if len(content) > _MAX_PAGE_BYTES:
                        raise gate.Refused(f"a page of the listing is longer than {_MAX_PAGE_BYTES} bytes")
                    if time.monotonic() > deadline:
                        raise gate.Refused(f"the listing does not end within {_LISTING_S:.0f} s")
                following = answer.links.get("next", {}).get("url")
            break
        except OSError as error:
            if time.monotonic() > deadline or not _is_worth_another_try(error) or not tries.again(moved=False):
                raise
    where = "a page of the listing"
    entries = gate.sequence(gate.parse_json(bytes(content), where), where, _MAX_FILES)
    return [gate.mapping(entry, where) for entry in entries], following


def _without_body(answer: Any) -> Any:
    """The same answer as far as its headers go: the library reads an error's body whatever its length."""
    from requests import Response

    bare = Response()
    bare.status_code, bare.headers, bare.reason = answer.status_code, answer.headers, answer.reason
    bare.url, bare.request = answer.url, answer.request
    return bare


def _remote_file(entry: Mapping[str, Any]) -> RemoteFile:
    sha256 = gate.mapping(entry["lfs"], "lfs").get("oid") if entry.get("lfs") else None
    stated: dict[str, Any] = {"path": None, "size": None, "oid": None, **entry}  # RemoteFile looks at them
    return RemoteFile(stated["path"], stated["size"], stated["oid"], sha256)


def _bytes_on_the_way(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.incomplete"))


def _delete_what_is_on_the_way(folder: Path) -> None:
    for path in folder.rglob("*.incomplete"):
        path.unlink()


@contextmanager
def _limited_files(max_bytes: int) -> Iterator[None]:
    """Within it, this process writes no file longer than that (EFBIG): an answer without an end fills no disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    limits = [limit for limit in (max_bytes, soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_FSIZE, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _is_worth_another_try(error: OSError) -> bool:
    """A broken connection or a server's passing trouble; not a refusal, and not trouble of this machine."""
    response = getattr(error, "response", None)
    if response is not None:
        return int(response.status_code) >= 500 or int(response.status_code) in (408, 429)
    return error.errno is None


class Tries:
    """Counts failures without progress between them, and pauses after each, twice as long every time."""

    def __init__(self, most: int = MAX_TRIES_WITHOUT_PROGRESS) -> None:
        self._most, self._failures = most, 0

    def again(self, moved: bool) -> bool:
        """After a failure; `moved`: bytes came since the one before. False at once when there were too many."""
        self._failures = 0 if moved else self._failures + 1
        if self._failures >= self._most:
            return False
        time.sleep(FIRST_PAUSE_S * 2**self._failures)
        return True


def _with_retries(download: Callable[[], Path], progress: Callable[[], int], name: str) -> Path:
    tries, before = Tries(), progress()
    while True:
        try:
            return download()
        except OSError as error:
            now = progress()
            if not _is_worth_another_try(error) or not tries.again(now > before):
                raise
            before = now
            logger.warning("%s: the connection broke after %d bytes; going on from there", name, now)


class Downloads:
    """A folder that receives verified files. What is on its way lies in STAGING below it.

    `verified.json` there remembers what was finished, so that a second run neither transfers nor hashes again. A folder
    has one at a time, from the making of this object to the end of its block.

    Raises:
        InUse (a ValueError): when another process downloads into it. Refused: when `verified.json` is damaged.
    """

    def __init__(self, repository: Repository, output: Path) -> None:
        self.repository, self.output = repository, output
        self._staging = output / STAGING
        self._record_path = self._staging / "verified.json"
        self._staging.mkdir(parents=True, exist_ok=True)
        self._lock = take(self._staging / "lock", str(output), "wait for it, or name another --output")
        self._record = self._read_record()

    def __enter__(self) -> Downloads:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def _read_record(self) -> dict[str, str]:
        where = str(self._record_path)
        try:
            content = gate.read_regular(self._record_path, _MAX_RECORD_BYTES)
            return gate.mapping(gate.parse_json(content, where), where)
        except FileNotFoundError:
            return {}
        except gate.Refused as error:
            raise gate.Refused(f"{error}; delete it: what is finished is then transferred once more") from error

    def is_done(self, key: str, value: str) -> bool:
        """Whether `mark_done` was called with these, by this run or an earlier one."""
        return self._record.get(key) == value

    def remembered(self, key: str) -> str:
        """What `mark_done` was called with for this key; "" when it was not."""
        return self._record.get(key, "")

    def mark_done(self, key: str, value: str) -> None:
        """Remember across runs that a piece of work is finished."""
        self._record[key] = value
        write_file(self._record_path, json.dumps(self._record, indent=1, sort_keys=True).encode())

    def scratch(self, name: str) -> Path:
        """An empty folder in the staging area."""
        folder = self._staging / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def fetch_to_staging(self, file: RemoteFile) -> Path:
        """Transfer a file and check its hash; a file with another hash is deleted and refused with ValueError."""
        path = self.repository.transfer(file, self._staging / "files")
        found = file_digest(path, file.digest)
        if found != file.digest:
            path.unlink()
            problem = f"what arrived has the hash {found}, but {self.repository.repo_id} names {file.digest}"
            raise ValueError(f"{file.path}: {problem}; {_DELETED}")
        return path

    def fetch(self, file: RemoteFile, name: str | None = None) -> Path:
        """Bring a file under its final name (its path in the repository when none is given)."""
        final = self.output / (name or file.path)
        if final.is_file() and final.stat().st_size == file.size and self.is_done(file.path, file.digest):
            logger.info("%s is there already", final)
            return final
        staged = self.fetch_to_staging(file)
        final.parent.mkdir(parents=True, exist_ok=True)
        publish(staged, final)
        self.mark_done(file.path, file.digest)
        logger.info("%s: %.1f MB, %s as named by the Hub", final, file.size / 1e6, file.digest.partition(":")[0])
        return final
