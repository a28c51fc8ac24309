"""Files and folders that appear under their name when they are complete, and places that have one owner.

A temporary name is random and made exclusively, so that two processes never share one, and whoever finds one can tell
by its lock whether its owner lives. A lock is a kernel's (flock): it ends with its process, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import stat
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO

_BUFFER_BYTES = 1 << 20  # many small pieces become few writes
_TEMPORARY = ".partial"
_TEMPORARY_NAME = re.compile(r"\..{1,100}\.[0-9a-f]{16}" + re.escape(_TEMPORARY), re.DOTALL)


class InUse(ValueError):  # noqa: N818  a verdict on a place
    """A place that another process owns; the message names the place and, where known, the process."""


def temporary_path(path: Path) -> Path:
    """A new random name beside `path`: hidden, and ending in .partial."""
    return path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}{_TEMPORARY}")


def is_temporary(name: str) -> bool:
    """Whether `temporary_path` may have given this name. Such a file is nobody's once its place has a new owner."""
    return _TEMPORARY_NAME.fullmatch(name) is not None


@contextlib.contextmanager
def new_file(path: Path | str) -> Iterator[BinaryIO]:
    """A file to write, which replaces `path` when the block ends well and vanishes when it does not.

    Raises:
        OSError: when it cannot be written; `filename` is the final name.
    """
    path = Path(path)
    temporary = temporary_path(path)
    try:
        try:
            with open(temporary, "xb", buffering=_BUFFER_BYTES) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync(path.parent)
    except OSError as error:
        if error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise


def write_file(path: Path | str, *pieces: bytes | memoryview) -> None:
    """Write beside, sync, rename.

    Raises:
        OSError: as `new_file`.
    """
    with new_file(path) as file:
        file.writelines(pieces)


@contextlib.contextmanager
def new_folder(path: Path | str) -> Iterator[Path]:
    """A folder to fill, which becomes `path` when the block ends well (in place of an older folder of that name)
    and vanishes when it does not. Files in it are synced; folders in it are not looked into.

    Raises:
        OSError: when it cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    temporary.mkdir()
    try:
        yield temporary
        sync_files(temporary)
        replace_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder with what is in it, as far as that can be; a link, or anything else of that name, stays.

    shutil.rmtree opens what it is given: a pipe would hold it for ever.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)


def publish(finished: Path, path: Path) -> None:
    """Give what was finished its final name: a file in place of an older one, or a folder, where none has the name.

    Raises:
        OSError: when it cannot be, or it lies on another file system.
    """
    if finished.is_dir():
        sync_files(finished)
    else:
        sync(finished)
    os.replace(finished, path)
    sync(path.parent)


def replace_folder(finished: Path, path: Path) -> None:
    """Rename a folder, whose files are synced, over an older one, which is whole under its name until then.

    Raises:
        OSError: as `publish`.
    """
    aside = temporary_path(path)
    if path.is_dir():
        os.rename(path, aside)
    os.rename(finished, path)
    sync(path.parent)
    remove_folder(aside)


def sync_files(folder: Path) -> None:
    """Have a folder and the files in it, not those of folders in it, on the disk."""
    for file in folder.iterdir():
        if file.is_file():
            sync(file)
    sync(folder)


def sync(path: Path) -> None:
    """Have a file or the entries of a folder on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------ one owner


@contextlib.contextmanager
def owned(lock: Path | str, what: str, advice: str = "wait for it, or name another place") -> Iterator[None]:
    """Hold a lock file alone for as long as the block runs; `what` names the place in the error.

    The file stays: to remove it would let two processes hold two files of one name.

    Raises:
        InUse: when another process holds it. OSError: when the file cannot be made.
    """
    file = take(lock, what, advice)
    try:
        yield
    finally:
        file.close()


def take(lock: Path | str, what: str, advice: str = "wait for it, or name another place") -> IO[bytes]:
    """As `owned`, until the returned file is closed or the process ends. A child that is forked does not hold it.

    Raises:
        InUse, OSError: as `owned`. ValueError: when a stranger may have laid something under the lock's name.
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    file = os.fdopen(descriptor, "r+b", buffering=0)
    try:
        _check_lock(Path(lock), file)  # it will be emptied, so it must not be a hard link to something of value
    except BaseException:
        file.close()
        raise
    if not lock_file(file):
        owner = file.read(20).decode("ascii", "replace").strip()
        file.close()
        process = f" (process {owner})" if owner.isdigit() else ""
        raise InUse(f"{what}: another process{process} is using it; {advice}")
    file.truncate(0)
    file.write(f"{os.getpid()}\n".encode())
    return file


def take_left(lock: Path) -> IO[bytes] | None:
    """The lock of a place whose owner has ended and left it; None when the owner lives, or has not begun yet.

    Owners write into their lock file once they hold it, so an empty one is that of somebody who is about to.
    """
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # it is gone, nobody's lock, or somebody else's
        return None
    file = os.fdopen(descriptor, "r+b", buffering=0)
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and found.st_size and lock_file(file):
        with contextlib.suppress(OSError):
            if os.path.samestat(found, os.lstat(lock)):  # nobody else has dealt with it meanwhile
                return file
    file.close()
    return None


def lock_file(file: IO[bytes]) -> bool:
    """Lock an open file, unbuffered, until it is closed; False when another process holds it.

    Raises:
        OSError: when it lies where nothing can be locked; the file is closed then.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except BaseException:
        file.close()
        raise
    _held.add(file)
    return True


def _check_lock(lock: Path, file: IO[bytes]) -> None:
    found, folder = os.fstat(file.fileno()), lock.parent.stat()
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        raise ValueError(f"{lock}: expected a plain lock file; something else has that name. Look at it, and remove it")
    for_everybody = folder.st_mode & stat.S_ISVTX and folder.st_mode & stat.S_IWOTH  # such as /tmp
    if for_everybody and found.st_uid != os.geteuid():
        raise ValueError(f"{lock}: the lock file is another user's (uid {found.st_uid}); name another place")


_held: weakref.WeakSet[IO[bytes]] = weakref.WeakSet()


def _let_go() -> None:
    """In a forked child: it would keep the place taken after its parent was killed."""
    for file in list(_held):
        file.close()


os.register_at_fork(after_in_child=_let_go)


def runtime_folder() -> Path:
    """This user's own folder for locks and sockets, which nobody else may enter.

    XDG_RUNTIME_DIR where it is set and ours, else p2p-UID in the folder for temporary files.

    Raises:
        ValueError: when that name is taken by something that is not ours alone.
    """
    named = os.environ.get("XDG_RUNTIME_DIR")
    if named and _is_ours_alone(Path(named)):
        return Path(named)
    folder = Path(tempfile.gettempdir()) / f"p2p-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if not _is_ours_alone(folder):
        raise ValueError(
            f"{folder}: exists and is not this user's alone; remove it, or set XDG_RUNTIME_DIR to a folder of mode 700"
        )
    return folder


def _is_ours_alone(folder: Path) -> bool:
    try:
        found = os.lstat(folder)
    except OSError:
        return False
    return (
        os.path.isdir(folder)
        and not os.path.islink(folder)
        and found.st_uid == os.getuid()
        and not found.st_mode & 0o077
    )
