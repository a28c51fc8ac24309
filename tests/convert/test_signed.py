"""Recordings with a manifest: whatever was changed in them is rejected, in folders and in archives, in any order."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from p2p.actions import Action
from p2p.manifest import MANIFEST, read_manifest, verify
from p2p.recording import ANNOTATION_FILE, MANIFEST_KIND, VIDEO_FILE, RecordingWriter
from p2p_convert.cli import main
from p2p_convert.packets import read_packets
from p2p_convert.plan import Options
from p2p_convert.run import Summary, convert
from p2p_convert.sign import sign
from tests.convert.test_input import muxed
from tests.data.making import annotation, pictures, tree_digest, video_bytes, write_recording

VIDEO = video_bytes(25, preset="veryfast")  # with arithmetic coding, in which damage often decodes
COPIED = Options(val_fraction=0, decode="none")
REASON = "not what its manifest says"
SIGNED = (ANNOTATION_FILE, VIDEO_FILE, MANIFEST)


def signed_recording(folder: Path) -> Path:
    write_recording(folder, VIDEO, annotation(25))
    assert sign(folder)
    return folder


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def packed(archive: Path, folders: Sequence[Path], order: Sequence[str] = SIGNED, others: Sequence[Path] = ()) -> Path:
    """A .tar.gz of recordings, the files of each in this order; `others` come last."""
    with tarfile.open(archive, "w:gz") as tar:
        for folder in folders:
            for name in order:
                tar.add(folder / name, f"batch/{folder.name}/{name}")
        for path in others:
            tar.add(path, f"batch/{path.parent.name}/{path.name}")
    return archive


def kept_and_rejected(source: Path, out: Path, options: Options = COPIED) -> tuple[Summary, dict[str, str]]:
    """What a conversion gave, and {recording: message} of what its manifests found."""
    summary = convert([source], out, options, max_rejected=0.99)
    assert {verdict["reason"] for verdict in summary.rejected} <= {REASON}
    return summary, {verdict["recording"]: verdict["message"] for verdict in summary.rejected}


def test_one_bit_changed_anywhere_in_a_recording_of_ours_is_rejected_by_its_file(tmp_path: Path) -> None:
    with RecordingWriter(tmp_path / "ours", "ours", size=(64, 64)) as writer:
        for picture in pictures(25):
            writer.add(picture, Action(("w",)), None)
    video = f"{64}x{64}.mp4"
    manifest = (tmp_path / "ours" / MANIFEST).read_text().replace(video, VIDEO_FILE)  # where conversion looks for it
    (tmp_path / "ours" / MANIFEST).write_text(manifest)
    (tmp_path / "ours" / video).rename(tmp_path / "ours" / VIDEO_FILE)
    expected = {}
    packets = read_packets(tmp_path / "ours" / VIDEO_FILE, "video")
    last = int(packets.places[-1])
    for file, places in ((VIDEO_FILE, (4, int(packets.places[3]), last, last + 9)), (ANNOTATION_FILE, (0, 99, -1))):
        for place in places:
            name = f"{file} {place}"
            flip(Path(shutil.copytree(tmp_path / "ours", tmp_path / "raw" / name)) / file, place)
            expected[name] = f"{tmp_path}/raw/{name}/{file}: its SHA-256 is not the one in manifest.json"
    shutil.copytree(tmp_path / "ours", tmp_path / "raw" / "whole")
    summary, rejected = kept_and_rejected(tmp_path / "raw", tmp_path / "out")
    assert summary.recordings == {"train": 1}
    assert rejected.keys() == expected.keys()
    assert all(rejected[name].startswith(message) for name, message in expected.items())


@pytest.mark.parametrize("order", [SIGNED, SIGNED[::-1], (VIDEO_FILE, MANIFEST, ANNOTATION_FILE)])
def test_in_an_archive_the_manifest_may_come_first_last_or_between(tmp_path: Path, order: Sequence[str]) -> None:
    names = ("a whole", "b annotation", "c video", "d whole")
    folders = [signed_recording(tmp_path / "raw" / name) for name in names]
    flip(folders[1] / ANNOTATION_FILE, -1)
    flip(folders[2] / VIDEO_FILE, -1)
    archive = packed(tmp_path / "batch.tar.gz", folders, order)
    summary, rejected = kept_and_rejected(archive, tmp_path / "out")
    assert summary.recordings == {"train": 2}
    assert sorted(rejected) == ["b annotation", "c video"]
    assert f"batch.tar.gz:batch/c video/{VIDEO_FILE}: its SHA-256" in rejected["c video"]
    loose = kept_and_rejected(tmp_path / "raw", tmp_path / "loose")[0]
    assert (tmp_path / "out/train/index.json").read_bytes() == (tmp_path / "loose/train/index.json").read_bytes()
    assert loose.recordings == summary.recordings


@pytest.mark.parametrize("packs", [False, True])
def test_a_recording_of_the_original_video_alone_is_compared_too(tmp_path: Path, packs: bool) -> None:
    for name in ("changed", "whole"):
        folder = write_recording(tmp_path / "raw" / name, None, annotation(25))
        (folder / "video.mp4").write_bytes(muxed("mp4", size=32))
        assert sign(folder)
    flip(tmp_path / "raw" / "changed" / "video.mp4", -1)
    source = tmp_path / "raw"
    if packs:
        source = packed(tmp_path / "a.tar.gz", sorted(source.iterdir()), ("video.mp4", MANIFEST, ANNOTATION_FILE))
    summary, rejected = kept_and_rejected(source, tmp_path / "out")
    assert summary.recordings == {"train": 1}
    assert "changed/video.mp4: its SHA-256" in rejected["changed"]


def lose_small_video(folder: Path) -> None:
    (folder / "video.mp4").write_bytes(muxed("mp4", size=32))
    (folder / MANIFEST).unlink()
    assert sign(folder)
    (folder / VIDEO_FILE).unlink()


BAD = {
    "another kind": lambda folder: _edit(folder, MANIFEST_KIND, "policy"),
    "a newer version": lambda folder: _edit(folder, '"version": 1', '"version": 2'),
    "cut off": lambda folder: _edit(folder, "}", ""),
    "empty": lambda folder: (folder / MANIFEST).write_bytes(b""),
    "without the video": lambda folder: _edit(folder, VIDEO_FILE, "other.mp4"),
    "video cut off": lambda folder: (folder / VIDEO_FILE).write_bytes(VIDEO[:-1]),
    "video lost": lose_small_video,
}


def _edit(folder: Path, old: str, new: str) -> None:
    content = (folder / MANIFEST).read_text()
    assert old in content
    (folder / MANIFEST).write_text(content.replace(old, new))


def test_a_manifest_that_is_damaged_or_names_other_files_costs_that_recording(tmp_path: Path) -> None:
    for name, harm in BAD.items():
        harm(signed_recording(tmp_path / "raw" / name))
    signed_recording(tmp_path / "raw" / "whole")
    summary, rejected = kept_and_rejected(tmp_path / "raw", tmp_path / "out")
    assert summary.recordings == {"train": 1}
    assert rejected.keys() == BAD.keys()
    assert all("copy the recording again, or remove its manifest.json" in message for message in rejected.values())


def test_a_manifest_that_is_no_file_is_not_taken_for_none(tmp_path: Path) -> None:
    harms: dict[str, Callable[[Path], object]] = {
        "a pipe": os.mkfifo,
        "a folder": Path.mkdir,
        "a broken link": lambda path: path.symlink_to("nowhere"),
        "longer than any": lambda path: path.write_bytes(bytes(2 << 20)),
    }
    for name, harm in harms.items():
        harm(write_recording(tmp_path / "raw" / name, VIDEO, annotation(25)) / MANIFEST)
    write_recording(tmp_path / "raw" / "whole", VIDEO, annotation(25))
    summary = convert([tmp_path / "raw"], tmp_path / "out", COPIED, max_rejected=0.99)
    assert summary.recordings == {"train": 1}
    assert sorted(verdict["recording"] for verdict in summary.rejected) == sorted(harms)
    assert all(MANIFEST in verdict["message"] for verdict in summary.rejected)


def test_a_manifest_changes_nothing_of_what_is_stored(tmp_path: Path) -> None:
    write_recording(tmp_path / "raw" / "rec", VIDEO, annotation(25))
    convert([tmp_path / "raw"], tmp_path / "without", COPIED)
    assert sign(tmp_path / "raw" / "rec")
    convert([tmp_path / "raw"], tmp_path / "with", COPIED)
    leave_out = ("task-00000.json",)  # which tells the sources
    assert tree_digest(tmp_path / "with", leave_out) == tree_digest(tmp_path / "without", leave_out)


def test_other_manifests_in_an_archive_are_no_recordings_and_a_recordings_own_that_stands_apart_is_said(
    tmp_path: Path,
) -> None:
    folders = [signed_recording(tmp_path / "raw" / name) for name in ("a", "b")]
    others = []
    for name, content in (("meta", b"{}"), ("policy", b'{"kind": "policy"}'), ("large", bytes(2 << 20))):
        (tmp_path / name).mkdir()
        others.append(tmp_path / name / MANIFEST)
        others[-1].write_bytes(content)
    archive = packed(tmp_path / "good.tar.gz", folders, others=others)
    summary = convert([archive], tmp_path / "out", Options(val_fraction=0.5, decode="none"))
    assert (summary.recordings, summary.rejected) == ({"train": 1, "val": 1}, [])
    apart = packed(tmp_path / "apart.tar.gz", folders, SIGNED[:2], others=[folders[0] / MANIFEST])
    (verdict,) = convert([apart], tmp_path / "apart", COPIED).rejected
    assert (verdict["recording"], verdict["reason"]) == ("a", "manifest apart")


# ------------------------------------------------------------------ signing


def test_sign_writes_what_verifies_into_recordings_without_a_manifest_and_leaves_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        write_recording(tmp_path / "raw" / "deep" / name, VIDEO, annotation(25))
    kept = write_recording(tmp_path / "raw" / "kept", VIDEO, annotation(25)) / MANIFEST
    kept.write_bytes(b"somebody's")
    assert main(["sign", str(tmp_path / "raw")]) == 0
    assert "2 recordings signed, 1 had a manifest.json and keep it" in capsys.readouterr().out
    for name in ("a", "b"):
        folder = tmp_path / "raw" / "deep" / name
        manifest = read_manifest(folder, MANIFEST_KIND)
        assert sorted(manifest.files) == [VIDEO_FILE, ANNOTATION_FILE]
        verify(folder, manifest)
    before = tree_digest(tmp_path / "raw")
    assert main(["sign", str(tmp_path / "raw")]) == 0
    assert "0 recordings signed, 3 had" in capsys.readouterr().out
    assert tree_digest(tmp_path / "raw") == before
    assert kept.read_bytes() == b"somebody's"


def test_sign_goes_on_after_what_it_cannot_sign_and_ends_with_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_recording(tmp_path / "raw" / "a\nb", None, annotation(25))
    os.mkfifo(write_recording(tmp_path / "raw" / "b", None, annotation(25)) / VIDEO_FILE)
    write_recording(tmp_path / "raw" / "c", VIDEO, annotation(25))
    assert main(["sign", str(tmp_path / "raw")]) == 2
    said = capsys.readouterr()
    assert "1 recordings signed" in said.out
    assert said.err.count("\n") == 1
    assert "a\\nb: expected annotation.proto and a video; found annotation.proto" in said.err
    assert [path.parent.name for path in (tmp_path / "raw").rglob(MANIFEST)] == ["c"]
    for wrong in (tmp_path / "nowhere", tmp_path / "raw" / "c" / VIDEO_FILE, tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        assert main(["sign", str(wrong)]) == 2
        assert str(wrong) in capsys.readouterr().err


# ------------------------------------------------------------------ the same command once more


def test_a_recording_that_was_converted_may_be_signed(tmp_path: Path) -> None:
    folder = write_recording(tmp_path / "raw" / "rec", VIDEO, annotation(25))
    convert([tmp_path / "raw"], tmp_path / "out", COPIED)
    before = tree_digest(tmp_path / "out")
    assert sign(folder)
    convert([tmp_path / "raw"], tmp_path / "out", COPIED)
    assert tree_digest(tmp_path / "out") == before


def test_a_recording_that_its_manifest_rejected_is_not_silently_left_out_when_the_manifest_goes(tmp_path: Path) -> None:
    signed_recording(tmp_path / "raw" / "whole")
    folder = signed_recording(tmp_path / "raw" / "changed")
    flip(folder / VIDEO_FILE, -1)
    for _ in range(2):
        assert list(kept_and_rejected(tmp_path / "raw", tmp_path / "out")[1]) == ["changed"]
    (folder / MANIFEST).unlink()
    with pytest.raises(ValueError, match=r"changed/manifest\.json has changed since it was converted"):
        convert([tmp_path / "raw"], tmp_path / "out", COPIED)


def test_numbers_of_a_manifest_cost_nothing_whatever_they_are(tmp_path: Path) -> None:
    folder = signed_recording(tmp_path / "raw" / "rec")
    content = (folder / MANIFEST).read_text()
    rng = np.random.default_rng(0)
    for number in range(50):
        copy = Path(shutil.copytree(folder, tmp_path / "damaged" / f"{number:02}"))
        place = int(rng.integers(len(content)))
        (copy / MANIFEST).write_text(content[:place] + chr(int(rng.integers(32, 127))) + content[place + 1 :])
    summary = convert([tmp_path / "damaged"], tmp_path / "out", COPIED, max_rejected=1)
    assert {verdict["reason"] for verdict in summary.rejected} == {REASON}
    assert len(summary.rejected) > 25
