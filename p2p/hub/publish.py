"""Files of ours into a repository of the Hub: what is there already is left, and what a kill cut off goes on."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from p2p import gate
from p2p.hub.transfer import DEFAULT_ENDPOINT, Repository, Tries, file_digest, start_digest

logger = logging.getLogger(__name__)

_FILES_OF_A_COMMIT = 64
_BYTES_OF_A_COMMIT = 8 << 30
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
T = TypeVar("T")


@dataclass(frozen=True)
class LocalFile:
    """A file to publish: its path in the repository, and the file, or its content.

    `is_last`: what makes the others count, such as an index, is committed when they are there.
    """

    path: str
    source: Path | bytes
    is_last: bool = False

    @property
    def num_bytes(self) -> int:
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size


def publish(repo_id: str, repo_type: str, files: Sequence[LocalFile], private: bool = False) -> tuple[int, str]:
    """Commit the files that the repository does not have yet, making it where there is none.

    What was transferred before is not transferred again, also where a run was killed: finished commits are found by
    the files' hashes, and of an unfinished one the Hub remembers the large files.

    Returns: how many files were new or different, and the repository's address.

    Raises:
        ValueError: when the name is none, or HF_TOKEN opens nothing. OSError: when the connection breaks for good.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    if not _NAME.fullmatch(repo_id):
        raise ValueError(f"--repo {gate.shown(repo_id)}: write OWNER/NAME")
    endpoint = os.environ.get("HF_ENDPOINT", DEFAULT_ENDPOINT)
    api = HfApi(endpoint=endpoint)
    with _explained(repo_id, endpoint):
        _patiently(lambda: api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True), repo_id)
        there = {file.path: file.digest for file in Repository(repo_id, repo_type).files()}
        missing = [file for file in files if not _is_there(file, there.get(file.path))]
        for batch in _batches(missing):

            def commit(batch: Sequence[LocalFile] = batch) -> object:
                # New ones each time: one that was committed cannot be committed again.
                sources = [(f.path, f.source if isinstance(f.source, bytes) else str(f.source)) for f in batch]
                return api.create_commit(
                    repo_id,
                    [CommitOperationAdd(path_in_repo=path, path_or_fileobj=source) for path, source in sources],
                    commit_message=f"Upload {len(batch)} files" if len(batch) > 1 else f"Upload {batch[0].path}",
                    repo_type=repo_type,
                )

            _patiently(commit, f"{len(batch)} files")
            logger.info("%d of %d files are there: %s", len(batch), len(missing), batch[-1].path)
    kind = {"model": "", "dataset": "datasets/"}[repo_type]
    return len(missing), f"{endpoint}/{kind}{repo_id}"


def _is_there(file: LocalFile, digest: str | None) -> bool:
    if digest is None:
        return False
    if isinstance(file.source, Path):
        return file_digest(file.source, digest) == digest
    kind, found = start_digest(digest, len(file.source))
    found.update(file.source)
    return f"{kind}:{found.hexdigest()}" == digest


def _batches(files: Sequence[LocalFile]) -> Iterator[list[LocalFile]]:
    """Commits of a size that one can repeat; those that are last come alone."""
    for last in (False, True):
        batch: list[LocalFile] = []
        num_bytes = 0
        for file in (file for file in files if file.is_last == last):
            if batch and (len(batch) == _FILES_OF_A_COMMIT or num_bytes + file.num_bytes > _BYTES_OF_A_COMMIT):
                yield batch
                batch, num_bytes = [], 0
            batch.append(file)
            num_bytes += file.num_bytes
        if batch:
            yield batch


def _patiently(call: Callable[[], T], what: str) -> T:
    """The answer of a call that is made again while the connection or the server has passing trouble."""
    tries = Tries()
    while True:
        try:
            return call()
        except (OSError, RuntimeError) as error:  # huggingface_hub says RuntimeError of one file among several
            status = _status(error)
            passing = status >= 500 or status in (0, 408, 429)
            if not passing or _errno(error) or not tries.again(moved=False):
                raise
            logger.warning("%s: %s; trying again", what, without_token(f"{type(error).__name__}: {error}"))


def _status(error: BaseException) -> int:
    """Of the answer that an error, or its cause, is about; 0 when there was none."""
    response = getattr(error, "response", None)
    if response is not None:
        return int(response.status_code)
    return _status(error.__cause__) if error.__cause__ is not None else 0


def _errno(error: BaseException) -> int:
    """Of this machine's own trouble, such as a file that cannot be read."""
    number = getattr(error, "errno", None)
    return int(number) if isinstance(number, int) and getattr(error, "filename", None) is not None else 0


@contextmanager
def _explained(repo_id: str, endpoint: str) -> Iterator[None]:
    place = f"{repo_id} at {endpoint}"
    try:
        yield
    except (OSError, RuntimeError) as error:
        status = _status(error)
        if status in (401, 403):
            raise ValueError(
                f"{place}: not allowed (status {status}); set HF_TOKEN to a token that may write there"
            ) from None
        first_line = without_token(str(error)).partition("\n")[0]
        # Without the cause: whoever prints it prints what the server answered, whatever that repeats.
        raise OSError(f"{place}: {gate.printable(first_line)}; run the same command again to go on") from None


def without_token(text: str) -> str:
    """The text without the token that opens the Hub, which a server may repeat in its answer."""
    from huggingface_hub import get_token

    token = get_token()
    return text.replace(token, "(token)") if token else text
