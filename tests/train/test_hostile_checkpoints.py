"""Checkpoints by strangers and damaged ones: nothing of them runs, and no damage passes or ends in a traceback."""

from __future__ import annotations

import io
import pickle
import random
import resource
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from p2p.checkpoints.layout import METADATA, MODEL, parse_layout, read_layout
from p2p.checkpoints.steps import newest_local, step_name
from p2p.checkpoints.weights import find_checkpoint, read_tensors
from p2p.cli import main as p2p
from p2p.gate import Refused
from p2p.manifest import MANIFEST
from p2p.model import load_policy
from tests.train.making import DATA_FILE, Payload, edit_metadata, replace_entry, write_checkpoint

WEIGHT = MODEL + "policy.heads.keys.weight"
USER_ERROR = 2


def opcodes(mark: Path) -> dict[str, bytes]:
    """Ways in which a pickle says that os.mkdir(mark) is to be called."""
    text = str(mark).encode()
    return {
        "reduce": pickle.dumps(Payload(mark)),
        "reduce, protocol 0": pickle.dumps(Payload(mark), protocol=0),
        "instance": b"(S'" + text + b"'\nios\nmkdir\n.",
        "object": b"(cos\nmkdir\nS'" + text + b"'\no.",
        "persistent": b"P" + text + b"\n.",
        "extension": b"\x82\x01.",
    }


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "it-ran"


@pytest.mark.parametrize("way", ["reduce", "reduce, protocol 0", "instance", "object", "persistent", "extension"])
@pytest.mark.parametrize("has_manifest", [True, False])
def test_code_in_the_metadata_does_not_run(
    tmp_path: Path, mark: Path, capsys: pytest.CaptureFixture[str], way: str, has_manifest: bool
) -> None:
    checkpoint = write_checkpoint(
        tmp_path / "run", 5, bend=lambda folder: (folder / METADATA).write_bytes(opcodes(mark)[way])
    )
    if not has_manifest:
        (checkpoint / MANIFEST).unlink()
    for source in (checkpoint, tmp_path / "run"):
        assert p2p(["export", str(source), "--out", str(tmp_path / "policy")]) == USER_ERROR
    assert "not the metadata of a checkpoint" in capsys.readouterr().err
    assert not mark.exists()
    assert not (tmp_path / "policy").exists()


def test_code_among_the_records_of_true_metadata_does_not_run(tmp_path: Path, mark: Path) -> None:
    def hide(metadata: Metadata) -> None:
        metadata.storage_meta = Payload(mark)  # type: ignore[assignment]

    checkpoint = write_checkpoint(tmp_path, 5, bend=lambda folder: edit_metadata(folder, hide))
    read_tensors(checkpoint)  # what is not needed is not looked at
    assert not mark.exists()


def test_code_in_the_place_of_a_tensor_does_not_run(
    tmp_path: Path, mark: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = write_checkpoint(
        tmp_path / "run", 5, bend=lambda folder: replace_entry(folder, WEIGHT, {"x": [0.0] * 2000, "y": Payload(mark)})
    )
    assert p2p(["export", str(checkpoint), "--out", str(tmp_path / "policy")]) == USER_ERROR
    assert "neither a tensor nor a number" in capsys.readouterr().err
    assert not mark.exists()


def test_a_packed_tensor_is_not_unpacked(tmp_path: Path) -> None:
    stored = io.BytesIO()
    torch.save(torch.zeros(1 << 24), stored)  # 64 MB in 70 kB
    packed = io.BytesIO()
    with zipfile.ZipFile(stored) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for each in source.infolist():
            target.writestr(each.filename, source.read(each))

    def bend(folder: Path) -> None:
        replace_entry(folder, WEIGHT, torch.zeros(1))
        content = (folder / DATA_FILE).read_bytes()
        (folder / DATA_FILE).write_bytes(content + packed.getvalue())
        edit_metadata(folder, lambda metadata: point(metadata, len(content)))

    def point(metadata: Metadata, start: int) -> None:
        (place,) = (place for index, place in metadata.storage_data.items() if index.fqn == WEIGHT)
        place.offset, place.length = start, len(packed.getvalue())

    checkpoint = write_checkpoint(tmp_path, 5, bend=bend)
    with pytest.raises(ValueError, match="a packed tensor"):
        read_tensors(checkpoint)


def shape(metadata: Metadata, change: Callable[[TensorStorageMetadata], None]) -> None:
    entry = metadata.state_dict_metadata[WEIGHT]
    assert isinstance(entry, TensorStorageMetadata)
    change(entry)


def grow(entry: TensorStorageMetadata) -> None:
    entry.size = entry.chunks[0].sizes = torch.Size([1 << 40, 32])


def halve(entry: TensorStorageMetadata) -> None:
    entry.chunks[0].sizes = torch.Size([1, entry.size[1]])


def climb(metadata: Metadata) -> None:
    next(iter(metadata.storage_data.values())).relative_path = "../" + DATA_FILE


def share(metadata: Metadata) -> None:
    first, second = list(metadata.storage_data.values())[:2]
    second.offset, second.length = first.offset, first.length


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda metadata: shape(metadata, grow), "bytes for"),
        (lambda metadata: shape(metadata, halve), "is not complete"),
        (climb, "not the plain name"),
        (share, "share bytes|bytes for"),
        (lambda metadata: metadata.storage_data.clear(), "is stored nowhere"),
    ],
    ids=["larger than the file", "with a hole", "in a file elsewhere", "twice the same bytes", "nowhere"],
)
def test_metadata_that_does_not_fit_the_files_is_refused(
    tmp_path: Path, change: Callable[[Metadata], None], message: str
) -> None:
    checkpoint = write_checkpoint(tmp_path, 5, bend=lambda folder: edit_metadata(folder, change))
    with pytest.raises(Refused, match=message):
        read_layout(checkpoint)


def test_a_short_pickle_takes_neither_memory_nor_time() -> None:
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    put_far = b"\x80\x04Nr\xff\xff\xff\x7f."  # into place two thousand million of the memo
    long_text = b"\x80\x04\x8d" + (1 << 60).to_bytes(8, "little") + b"x."
    deep = b"\x80\x04)" + b"\x85" * 1_000_000 + b"."
    doubled = b"\x80\x04)" + b"\x94h\x00\x86" * 60 + b"."
    for data in (put_far, long_text, deep, doubled, b"", b"\x80\x04", b"\x80\x04\x85."):
        with pytest.raises(Refused):
            parse_layout(data, "made")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB
    assert time.process_time() - started < 20


def test_every_flipped_bit_is_noticed_and_the_checkpoint_before_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_checkpoint(tmp_path, 5)
    checkpoint = write_checkpoint(tmp_path, 10)
    draw = random.Random(0)
    for name in (DATA_FILE, METADATA, "config.yaml", MANIFEST):
        whole = (checkpoint / name).read_bytes()
        for _ in range(25):
            flipped = bytearray(whole)
            flipped[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
            (checkpoint / name).write_bytes(flipped)
            caplog.clear()
            if newest_local(tmp_path) == 10:  # only words that no reader needs, such as a path of the recipe
                assert name == MANIFEST
            else:
                assert newest_local(tmp_path) == 5
                assert "step-00000010 is passed over" in caplog.text
        (checkpoint / name).write_bytes(whole)
    assert newest_local(tmp_path) == 10


def test_damaged_metadata_of_an_old_checkpoint_is_refused_in_words(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path, 10)
    whole, draw, num_refused = (checkpoint / METADATA).read_bytes(), random.Random(0), 0
    for _ in range(200):
        flipped = bytearray(whole)
        flipped[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        try:
            parse_layout(bytes(flipped), "made")
        except Refused:
            num_refused += 1
    assert num_refused > 50


@pytest.mark.parametrize("damage", ["emptied", "halved", "zeroed", "replaced", "removed", "a folder"])
def test_a_damaged_file_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    path = write_checkpoint(tmp_path, 10) / DATA_FILE
    content = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage != "removed":
        path.write_bytes(
            {
                "emptied": b"",
                "halved": content[: len(content) // 2],
                "zeroed": bytes(len(content)),
                "replaced": b"<html>not found</html>",
            }[damage]
        )
    assert newest_local(tmp_path) is None
    assert DATA_FILE in caplog.text


def test_weights_that_are_not_finite_are_not_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step, number in ((5, float("nan")), (6, float("inf"))):
        checkpoint = write_checkpoint(tmp_path, step, spoil=lambda tensors, n=number: tensors[WEIGHT][0].fill_(n))
        assert p2p(["export", str(checkpoint), "--out", str(tmp_path / "policy")]) == USER_ERROR
        assert "not finite" in capsys.readouterr().err
    assert not (tmp_path / "policy").exists()


def test_weights_of_another_architecture_are_not_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = write_checkpoint(tmp_path, 5, spoil=lambda tensors: tensors.pop(WEIGHT))
    assert p2p(["export", str(checkpoint), "--out", str(tmp_path / "policy")]) == USER_ERROR
    assert "heads.keys.weight" in capsys.readouterr().err


def test_a_checkpoint_without_a_manifest_is_read_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = write_checkpoint(tmp_path / "run", 5)
    expected = read_tensors(checkpoint)
    (checkpoint / MANIFEST).unlink()
    assert p2p(["export", str(tmp_path / "run"), "--out", str(tmp_path / "policy")]) == 0
    assert "damage would go unnoticed" in caplog.text
    for name, tensor in load_policy(tmp_path / "policy").state_dict().items():
        assert torch.equal(tensor, expected[name])


def test_a_copy_under_another_name_knows_its_step(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = write_checkpoint(tmp_path / "run", 5)
    shutil.copytree(checkpoint, tmp_path / "best")
    assert find_checkpoint(tmp_path / "best") == (tmp_path / "best", 5)
    shutil.copytree(checkpoint, tmp_path / "run" / step_name(6))
    assert newest_local(tmp_path / "run") == 5
    assert "of another step" in caplog.text
    (tmp_path / "best" / MANIFEST).unlink()
    assert p2p(["export", str(tmp_path / "best"), "--out", str(tmp_path / "policy")]) == USER_ERROR
