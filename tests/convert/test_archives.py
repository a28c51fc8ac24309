"""Archives as sources: what the Hub promised is checked, and one bad member costs one recording."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from p2p_convert import hub, sources
from p2p_convert.plan import Options
from p2p_convert.run import convert
from p2p_convert.sources import find_archives
from tests.data.making import annotation, tree_digest, video_bytes
from tests.hub.conftest import Repositories, make_hub
from tests.hub.stand_in import HubStandIn

__all__ = ["make_hub"]
MakeHub = Callable[[Repositories], HubStandIn]
DATASET = ("datasets", "owner/games")
VIDEO = video_bytes(12)


def tar_of(names: tuple[str, ...], seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", errors="surrogateescape", format=tarfile.GNU_FORMAT) as tar:
        for name in names:
            for file, content in (
                ("annotation.proto", annotation(12, seed=seed).SerializeToString()),
                ("192x192.mp4", VIDEO),
            ):
                info = tarfile.TarInfo(f"{name}/{file}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def rejections(out: Path) -> list[tuple[str, str]]:
    lines = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    return [(line["recording"], line["reason"]) for line in lines]


@pytest.mark.parametrize("name", ["bad.tar.gz", "bad.tar"])  # one with a SHA-256 on the Hub, one with git's SHA-1
def test_an_archive_that_is_not_the_one_the_hub_names_does_not_count(
    make_hub: MakeHub, tmp_path: Path, name: str
) -> None:
    promised, other = tar_of(("a", "b")), tar_of(("a", "b"), seed=1)
    if name.endswith(".gz"):
        promised, other = gzip.compress(promised, 0, mtime=0), gzip.compress(other, 0, mtime=0)
    assert len(promised) == len(other)
    stand_in = make_hub({DATASET: {name: promised, "good.tar.gz": gzip.compress(tar_of(("c",)))}})
    stand_in.substitutes[name] = other
    summary = convert(["hf://datasets/owner/games"], tmp_path / "out", Options(val_fraction=0), max_rejected=0.9)
    assert summary.recordings == {"train": 1}
    assert rejections(tmp_path / "out")[:2] == [("", "damaged archive"), ("a", "damaged archive")]
    assert "the Hub names" in summary.rejected[0]["message"]
    stand_in.substitutes.clear()
    assert convert(["hf://datasets/owner/games"], tmp_path / "again", Options(val_fraction=0)).reasons == {}


def test_no_more_is_fetched_than_the_hub_lists(make_hub: MakeHub, tmp_path: Path) -> None:
    content = gzip.compress(tar_of(("a",)))
    stand_in = make_hub({DATASET: {"a.tar.gz": content}})
    (archive,) = find_archives("hf://datasets/owner/games")
    stand_in.substitutes["a.tar.gz"] = content + bytes(5 << 20)
    with hub.open_file(archive.archive, archive.num_bytes) as file:
        assert file.read() == content


@pytest.mark.parametrize(
    "path", ["../evil.tar.gz", "/evil.tar.gz", "a//b.tar.gz", "a\x1b[2J.tar.gz", "a\\..\\b.tar.gz"]
)
def test_a_name_that_the_hub_must_not_give_is_refused(make_hub: MakeHub, path: str) -> None:
    make_hub({DATASET: {path: b"", "good.tar.gz": b""}})
    with pytest.raises(ValueError, match=r"dataset owner/games at .*a file of the repository") as refusal:
        find_archives("hf://datasets/owner/games")
    assert str(refusal.value).isprintable()


def test_a_file_too_large_for_memory_costs_its_recording_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(("a", "b")))
    monkeypatch.setitem(sources.MAX_BYTES, "192x192.mp4", len(VIDEO) - 1)
    (archive,) = find_archives(str(tmp_path))
    given = list(archive.recordings())
    assert [type(each) for each in given] == [sources.Unusable] * 2
    monkeypatch.setitem(sources.MAX_BYTES, "192x192.mp4", len(VIDEO))
    assert [type(each) for each in archive.recordings()] == [sources.RawRecording] * 2


def test_a_recording_without_a_plain_name_is_rejected_and_the_others_are_kept(tmp_path: Path) -> None:
    names = ("x/..", os.fsdecode(b"caf\xe9"), "d/\x1b[2J", "good")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.tar").write_bytes(tar_of(names))
    summary = convert([tmp_path / "raw"], tmp_path / "out", Options(val_fraction=0), max_rejected=0.9)
    assert summary.recordings == {"train": 1}
    assert [reason for _, reason in rejections(tmp_path / "out")] == ["bad name"] * 3
    assert all(text.isprintable() for verdict in summary.rejected for text in verdict.values())


def test_long_names_do_not_swell_the_report(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    names = ("good", *(os.fsdecode(b"%d" % number + b"\xff" * 4000) for number in range(5)))
    (tmp_path / "raw" / "a.tar").write_bytes(tar_of(names))
    summary = convert([tmp_path / "raw"], tmp_path / "out", Options(val_fraction=0.5), max_rejected=0.9)
    assert summary.reasons == {"bad name": 5}
    assert all(sum(map(len, verdict.values())) < 2000 for verdict in summary.rejected)


@pytest.mark.parametrize("val_fraction", [0, 0.5])
def test_an_archive_of_recordings_without_end_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, val_fraction: float
) -> None:
    monkeypatch.setattr(sources, "MAX_RECORDINGS", 3)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "good.tar").write_bytes(tar_of(("a", "b", "c")))
    (tmp_path / "raw" / "long.tar").write_bytes(tar_of(("d", "e", "f", "g", "h")))
    summary = convert([tmp_path / "raw"], tmp_path / "out", Options(val_fraction=val_fraction), max_rejected=0.9)
    assert sum(summary.recordings.values()) == 3
    assert summary.rejected[0]["message"].endswith("long.tar: more than 3 recordings")


def test_videos_of_other_names_are_not_remembered_one_by_one(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in range(50):
            tar.addfile(tarfile.TarInfo(f"a/{number}.mp4"))
    (tmp_path / "a.tar").write_bytes(buffer.getvalue())
    (archive,) = find_archives(str(tmp_path))
    (given,) = archive.folders(lambda path: False)
    assert given[0] == "a"
    assert len(given[1]) == 1


def test_hidden_archives_are_not_taken(tmp_path: Path) -> None:
    for name in ("seen/a.tar", ".download/files/b.tar", "seen/._a.tar"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(tar_of(("a",)))
    assert [archive.archive for archive in find_archives(str(tmp_path))] == [str(tmp_path / "seen" / "a.tar")]


def test_members_that_are_links_or_devices_are_not_followed(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for kind, file in ((tarfile.SYMTYPE, "annotation.proto"), (tarfile.CHRTYPE, "192x192.mp4")):
            info = tarfile.TarInfo(f"a/{file}")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    (tmp_path / "a.tar.gz").write_bytes(buffer.getvalue())
    (archive,) = find_archives(str(tmp_path))
    assert list(archive.recordings()) == []


def test_a_pipe_that_is_called_an_archive_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    os.mkfifo(tmp_path / "raw" / "pipe.tar.gz")
    (tmp_path / "raw" / "a.tar").write_bytes(tar_of(("a",)))
    convert([tmp_path / "raw"], tmp_path / "out", Options(val_fraction=0))
    with pytest.raises(ValueError, match="not a regular file"):
        next(sources.ArchiveSource(str(tmp_path / "raw" / "pipe.tar.gz"), 0).recordings())
    assert "plan.json" in str(tree_digest(tmp_path / "out"))
