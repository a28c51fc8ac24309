"""One stream: where its shards come from, its index, its table of recordings, and its share of an epoch."""

from __future__ import annotations

import atexit
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import distributed

from p2p.data.cache import Cache
from p2p.data.errors import ShardError
from p2p.data.remote import Remote
from p2p.data.shards import ShardFolder
from p2p.data.table import ChunkTable
from p2p.format import INDEX_FILE, MAX_INDEX_BYTES, decode_index
from p2p.gate import Refused, read_regular
from p2p.object_storage import PATIENCE_S

_UNITS = {"": 1, "kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30, "tb": 1 << 40}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*(kb|mb|gb|tb|)b?", re.IGNORECASE)


@dataclass
class GameplayStream:
    """A folder of shards, or an address that they are copied from.

    Args:
        local: the folder.
        remote: what it is a copy of: s3://bucket/prefix, another store's address, or a folder.
        proportion: its share of the chunks of an epoch, when several streams have one; else all its chunks are taken.
    """

    local: str
    remote: str | None = None
    proportion: float | None = None

    def __post_init__(self) -> None:
        self.table: ChunkTable
        self.shards: ShardFolder

    @property
    def is_copy(self) -> bool:
        """Whether the folder is a copy of an address, in which files may be replaced and deleted."""
        remote = self.remote
        return bool(remote) and ("://" in str(remote) or os.path.realpath(str(remote)) != os.path.realpath(self.local))

    def open(self, num_timesteps: int, cache_limit: int | None = None, patience_s: float = PATIENCE_S) -> None:
        """Read the index; all processes of a run do it together.

        Raises:
            ShardError: for a missing, damaged or newer index, or one without a single chunk.
        """
        folder = Path(self.local)
        remote = Remote(str(self.remote), patience_s) if self.is_copy else None
        filename = folder / INDEX_FILE
        try:
            entries, recordings = decode_index(_read_index(folder, remote), str(filename))
            self.table = ChunkTable(recordings, entries.samples, num_timesteps)
        except Refused as error:
            raise ShardError(str(error)) from error
        if not self.table.total:
            raise ShardError(f"{filename}: {len(recordings)} recordings, none of them gives a chunk to train on")
        self.shards = ShardFolder(folder, entries, remote, cache_limit, patience_s)


def given_streams(
    local: str | None, remote: str | None, streams: Sequence[GameplayStream] | None
) -> Sequence[GameplayStream]:
    """The streams that were named: `streams`, or the one of `local` and `remote`.

    Raises:
        ValueError: when neither or both are, or the list holds something else.
    """
    if (streams is None) == (local is None and remote is None):
        raise ValueError("name either local (and remote), or streams")
    if streams is None:
        return [GameplayStream(local or temporary_folder(), remote)]
    wrong = [type(s).__name__ for s in streams if not isinstance(s, GameplayStream)]
    if wrong or not streams:
        raise ValueError(f"streams must be a list of p2p.data.GameplayStream, not of {wrong or 'nothing'}")
    return streams


def share_epoch(streams: Sequence[GameplayStream], totals: Sequence[int], epoch_size: int | None) -> list[int]:
    """How many chunks of each stream an epoch has.

    Raises:
        ValueError: when some streams have a proportion and others do not.
    """
    shares = [stream.proportion for stream in streams]
    given = [share for share in shares if share is not None and 0 < share <= 1]
    if given and len(given) != len(shares):
        raise ValueError(f"the streams' proportions are {shares}; give each one in (0, 1], or none")
    weights = given or totals
    edges = np.cumsum([0, *weights]) * ((epoch_size or sum(totals)) / sum(weights))
    return np.diff(edges.round().astype(np.int64)).tolist()


def temporary_folder() -> str:
    """A folder that goes with this process (and not with a worker that was forked from it)."""
    folder, process = tempfile.mkdtemp(prefix="p2p-shards-"), os.getpid()
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == process else None)
    return folder


def parse_bytes(size: int | str | None) -> int | None:
    """500gb -> 500 * 2^30; None and 0 are no limit.

    Raises:
        ValueError: when it is no size.
    """
    match = _SIZE.fullmatch(str(size or 0).strip())
    if match is None:
        raise ValueError(f"cache_limit is {size!r}; write a number of bytes, or such as 500gb")
    return int(float(match.group(1)) * _UNITS[match.group(2).lower()]) or None


def _read_index(folder: Path, remote: Remote | None) -> bytes:
    """The bytes of the index; a copy is brought up to date first, and all processes read the same.

    Raises:
        ShardError: when it cannot be had, or one process has another than the rest.
    """
    filename = folder / INDEX_FILE
    if remote is None:
        return _read(filename)
    failure = None
    if os.environ.get("LOCAL_RANK", "0") == "0":
        try:
            Cache(folder, remote).refresh()
        except ShardError as error:
            failure = error
        except ValueError as error:
            failure = ShardError(str(error))
        except OSError as error:
            advice = "; free some space, or set cache_limit" if error.errno == 28 else ""
            failure = ShardError(f"{filename}: {error.strerror or error}{advice}")
    failures = _gather(str(failure) if failure else "")
    if failure:
        raise failure
    if any(failures):
        raise ShardError(next(filter(None, failures)))
    content = _read(filename)
    if len(set(_gather(hashlib.sha256(content).hexdigest()))) > 1:
        raise ShardError(f"{filename}: the index changed while the processes read it: start again")
    return content


def _read(filename: Path) -> bytes:
    try:
        return read_regular(filename, MAX_INDEX_BYTES)
    except Refused as error:
        raise ShardError(str(error)) from error
    except FileNotFoundError:
        raise ShardError(f"{filename}: no such file; expected a folder written by `p2p-convert RAW OUT`") from None


def _gather(text: str) -> list[str]:
    """The text of every process."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [text]
    texts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(texts, text)
    return texts
