"""Files that appear complete, and places that have one owner, also when processes are killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from p2p.files import InUse, new_file, new_folder, owned, publish, runtime_folder, take, write_file


def break_off(path: Path) -> None:
    with new_file(path) as file:
        file.write(b"new")
        raise RuntimeError


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file(path, b"old")
    with pytest.raises(RuntimeError):
        break_off(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_an_error_names_the_final_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing/file"):
        write_file(tmp_path / "missing" / "file", b"")


def test_a_folder_replaces_an_older_one_when_it_is_complete(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with new_folder(tmp_path / "it") as folder:
            (folder / content).write_text(content)
    with pytest.raises(RuntimeError), new_folder(tmp_path / "it") as folder:
        raise RuntimeError
    assert os.listdir(tmp_path) == ["it"]
    assert os.listdir(tmp_path / "it") == ["new"]


def test_a_place_has_one_owner_and_a_killed_one_gives_it_back(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    code = f"from p2p.files import take; f = take({str(lock)!r}, 'x'); print('has it', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(InUse, match=rf"the run folder: another process \(process {other.pid}\) is using it"):
            take(lock, "the run folder")
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
    with owned(lock, "the run folder"):
        pass


def test_a_forked_child_does_not_hold_its_parent_s_place(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    file = take(lock, "it")
    context = multiprocessing.get_context("fork")
    begin, end = context.Event(), context.Event()
    child = context.Process(target=lambda: (begin.set(), end.wait(60)))
    child.start()
    begin.wait(60)
    file.close()
    with owned(lock, "it"):
        assert child.is_alive()
    end.set()
    child.join()


def test_what_a_stranger_laid_under_a_lock_s_name_is_neither_emptied_nor_waited_for(tmp_path: Path) -> None:
    precious, lock = tmp_path / "precious", tmp_path / "lock"
    precious.write_text("precious")
    os.link(precious, lock)
    with pytest.raises(ValueError, match="expected a plain lock file"):
        take(lock, "it")
    assert precious.read_text() == "precious"
    lock.unlink()
    os.mkfifo(lock)
    with pytest.raises(ValueError, match="expected a plain lock file"):
        take(lock, "it")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file of another user")
def test_where_everybody_may_make_files_a_lock_must_be_its_user_s_own(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.touch()
    os.chown(lock, 12345, 12345)
    with owned(lock, "a folder of one's own, perhaps on a file system that knows no users"):
        pass
    lock.write_text("")
    os.chmod(tmp_path, 0o1777)
    with pytest.raises((ValueError, PermissionError)):  # the kernel may be first (fs.protected_regular)
        take(lock, "it")
    assert lock.read_text() == ""


def test_the_runtime_folder_is_nobody_else_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    assert runtime_folder().stat().st_mode & 0o777 == 0o700
    open_to_all = tmp_path / "open"
    open_to_all.mkdir(mode=0o755)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(open_to_all))
    assert runtime_folder() == tmp_path / f"p2p-{os.getuid()}"
    runtime_folder().chmod(0o777)
    with pytest.raises(ValueError, match="XDG_RUNTIME_DIR"):
        runtime_folder()


def test_what_is_finished_replaces_a_file_and_no_folder_that_is_filled(tmp_path: Path) -> None:
    (tmp_path / "new").write_bytes(b"new")
    (tmp_path / "file").write_bytes(b"old")
    publish(tmp_path / "new", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"new"
    for name in ("made", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text(name)
    with pytest.raises(OSError, match="not empty"):
        publish(tmp_path / "made", tmp_path / "there")
    publish(tmp_path / "made", tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "there"]
    assert (tmp_path / "there" / "content").read_text() == "there"
