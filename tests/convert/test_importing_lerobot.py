"""LeRobot datasets: one written by LeRobot's own library, bad ones, and ours as one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet
import pytest

from p2p.cli import main as p2p
from p2p.format import UNKNOWN, USER, Segment
from p2p_convert.cli import main
from p2p_convert.elementary import CannotBeCarried, write_mp4
from p2p_convert.foreign.lerobot import DATA_PATH, INFO, VIDEO_PATH, kind_of
from p2p_convert.verify import decode_segments, digests
from tests.convert.test_convert import stored_segments
from tests.convert.test_importing import convert, counts, rows
from tests.data.making import annotation, video_bytes, write_recording

SAMPLE = Path(__file__).parent / "lerobot_sample"  # tests/benchmarks/make_lerobot_sample.py
CAMERA = "observation.images.screen"
DATA = DATA_PATH.format(chunk_index=0, file_index=0)
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


def by_recording(segments: list[Segment]) -> list[list[Segment]]:
    names = dict.fromkeys(segment.recording for segment in segments)
    return [[segment for segment in segments if segment.recording == name] for name in names]


def test_a_dataset_of_lerobots_own_library_is_read(tmp_path: Path) -> None:
    first, second = map(rows, by_recording(convert(SAMPLE, tmp_path / "out", "--game", "Some Game")))
    assert (len(first), len(second)) == (30, 40)  # 45 and 60 frames, 30 a second
    for number, made in enumerate((first, second)):
        assert [keys for keys, _, _ in made[:11]] == [{"w"}] * 10 + [set()]
        assert [buttons for _, buttons, _ in made[10:20]] == [{"0"}] * 10
        assert {motion[0] for _, _, motion in made[:-1]} == {number + 1, 2 * (number + 1)}  # of one frame, or of two
    assert counts(tmp_path / "out")["lerobot: without a place in the action space: action gripper.pos"] == 105


def test_each_episode_has_its_own_part_of_the_video(tmp_path: Path) -> None:
    first, second = by_recording(convert(SAMPLE, tmp_path / "out", "--transcode", "gop=20,crf=0"))
    with av.open(str(SAMPLE / VIDEO_PATH.format(video_key=CAMERA, chunk_index=0, file_index=0))) as container:
        source = [frame.to_ndarray(format="rgb24").mean((0, 1)) for frame in container.decode(video=0)]
    colours = [means(segments)[0] for segments in (first, second)]
    assert np.abs(colours[0] - source[0]).max() < 4
    assert np.abs(colours[1] - source[45]).max() < 4
    assert np.abs(source[0] - source[45]).max() > 8


def means(segments: list[Segment]) -> list[Any]:
    from p2p.data.video import SegmentDecoder

    return [
        frame.mean((0, 1)) for segment in segments for frame in SegmentDecoder().rgb(segment, 0, segment.num_frames)
    ]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("key.w", ("key", "w")),
        ("LeftShift", ("key", "LeftShift")),
        ("key.left", ("key", "LeftArrow")),
        ("button.left", ("button", "0")),
        ("mouse_right", ("button", "1")),
        ("lmb", ("button", "0")),
        ("mouse.dx", ("motion", "x")),
        ("mouse_delta_y", ("motion", "y")),
        ("dy", ("motion", "y")),
        ("delta_x", ("", "delta_x")),  # of a robot's hand
        ("x", ("", "x")),
        ("0", ("", "0")),
        ("shoulder_pan.pos", ("", "shoulder_pan.pos")),
    ],
)
def test_a_component_is_what_its_name_says(name: str, kind: tuple[str, str]) -> None:
    assert kind_of(name) == kind


# ------------------------------------------------------------------ bad datasets

Change = Callable[[Path], None]


def info(change: Callable[[dict[str, Any]], Any]) -> Change:
    def apply(root: Path) -> None:
        content = json.loads((root / INFO).read_text())
        change(content)
        (root / INFO).write_text(json.dumps(content))

    return apply


def column(file: str, name: str, change: Callable[[list[Any]], list[Any]] | None) -> Change:
    """Change a column of a table; None takes it out."""

    def apply(root: Path) -> None:
        table = pyarrow.parquet.read_table(root / file)
        where = table.schema.get_field_index(name)
        values = table.column(name).to_pylist()
        table = table.remove_column(where)
        if change:
            table = table.append_column(name, pyarrow.array(change(values)))
        pyarrow.parquet.write_table(table, root / file)

    return apply


def second_camera(content: dict[str, Any]) -> None:
    content["features"]["observation.images.other"] = content["features"][CAMERA]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (info(lambda i: i.update(codebase_version="v2.1")), "codebase_version is 'v2.1'; expected v3"),
        (info(lambda i: i.update(data_path="{0.__class__}")), "data_path is '{0.__class__}'; expected data/chunk-"),
        (info(lambda i: i.update(video_path="/etc/passwd")), "video_path is '/etc/passwd'"),
        (info(lambda i: i["features"].pop(CAMERA)), "name one of its videos with --from lerobot:NAME; it has none"),
        (info(second_camera), "it has 'observation.images.screen', 'observation.images.other'"),
        (info(lambda i: i["features"].update({"../../up": i["features"].pop(CAMERA)})), "is not the plain name"),
        (lambda root: (root / INFO).write_text("{"), "info.json: not a JSON text"),
        (column(EPISODES, "data/file_index", None), "has no column 'data/file_index'"),
        (
            column(EPISODES, "data/file_index", lambda v: [0, 7]),
            "row 1: episode 1 lies in data/chunk-000/file-007.parquet",
        ),
        (column(EPISODES, "data/file_index", lambda v: [0, -1]), "row 1: data/file_index is -1"),
        (column(EPISODES, f"videos/{CAMERA}/from_timestamp", lambda v: [0.0, float("nan")]), "from_timestamp is nan"),
        (lambda root: (root / EPISODES).write_bytes(b"PAR1"), "expected a Parquet file"),
        (lambda root: (root / EPISODES).unlink(), "no recording of the format lerobot"),
    ],
)
def test_a_dataset_that_says_what_cannot_be_is_refused(
    tmp_path: Path, change: Change, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(SAMPLE, tmp_path / "raw")
    change(tmp_path / "raw")
    assert main([str(tmp_path / "raw"), str(tmp_path / "out"), "--from", "lerobot"]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (info(lambda i: i["features"]["action"].update(names=["a"] * 5)), "action is [1.0, 0.0, 0.0, 2.0, -1.0, "),
        (
            info(lambda i: i["features"]["action"].update(names=["j1", "j2", "j3", "j4", "j5", "j6"])),
            "none of the actions",
        ),
        (info(lambda i: i["features"]["action"].update(names=7)), "features.action.names is 7; expected a list"),
        (
            column(DATA, "action", lambda v: [*v[:50], [float("nan")] * 6, *v[51:]]),
            "episode 1: action: 6 of 360 numbers are",
        ),
        (column(DATA, "action", lambda v: [*v[:50], [1e9] * 6, *v[51:]]), "the mouse moves by 1e+09 pixels"),
        (column(DATA, "action", None), "has no column 'action'"),
        (
            column(DATA, "frame_index", lambda v: [*v[:50], 9, *v[51:]]),
            "episode 1, frame 5: frame_index is 9; expected 5",
        ),
        (column(DATA, "episode_index", lambda v: [0] * len(v)), "holds no row of episode 1"),
    ],
)
def test_a_bad_episode_names_file_and_frame_and_costs_itself_alone(tmp_path: Path, change: Change, words: str) -> None:
    shutil.copytree(SAMPLE, tmp_path / "raw")
    change(tmp_path / "raw")
    main([str(tmp_path / "raw"), str(tmp_path / "out"), "--split", "val=0", "--max-rejected", "1"])
    verdicts = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    said = next(verdict["message"] for verdict in verdicts if verdict["recording"].endswith("1"))
    assert words in said
    assert ".parquet" in said or "info.json" in said


# ------------------------------------------------------------------ ours as a dataset


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three recordings, one with B-frames, one of the system's play."""
    for number, (b_frames, taken) in enumerate(((0, "user"), (2, "user"), (1, "system"))):
        video = video_bytes(100, b_frames=b_frames, seed=number)
        write_recording(tmp_path / "ours" / f"play-{number}", video, annotation(100, taken, seed=number))
    convert(tmp_path / "ours", tmp_path / "shards")
    return tmp_path / "shards"


def test_shards_become_a_dataset_with_the_same_frames_and_come_back_with_the_same_actions(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert p2p(["export-dataset", str(shards), "--lerobot", str(tmp_path / "dataset")]) == 0
    assert "3 episodes, 300 frames" in capsys.readouterr().out
    before = by_recording(stored_segments(shards / "train"))
    for number, segments in enumerate(before):
        path = tmp_path / "dataset" / VIDEO_PATH.format(video_key=CAMERA, chunk_index=0, file_index=number)
        with av.open(str(path)) as container:
            frames = list(container.decode(video=0))
        assert [round(frame.time * 20) for frame in frames] == list(range(100))
        assert digests(frames) == decode_segments(segments)
    after = by_recording(convert(tmp_path / "dataset", tmp_path / "again"))
    assert [rows(each) for each in after[:2]] == [rows(each) for each in before[:2]]
    assert [{int(kind) for segment in segments for kind in segment.taken} for segments in after] == [
        {USER, UNKNOWN},
        {USER, UNKNOWN},
        {UNKNOWN},  # the system's play comes back as nobody's, never as a person's
    ]


def test_the_tables_say_where_each_episode_lies(shards: Path, tmp_path: Path) -> None:
    assert p2p(["export-dataset", str(shards / "train"), "--lerobot", str(tmp_path / "dataset")]) == 0
    episodes = pyarrow.parquet.read_table(tmp_path / "dataset" / EPISODES).to_pylist()
    data = pyarrow.parquet.read_table(tmp_path / "dataset" / DATA)
    assert [(each["dataset_from_index"], each["dataset_to_index"]) for each in episodes] == [
        (0, 100),
        (100, 200),
        (200, 300),
    ]
    assert data.column("index").to_pylist() == list(range(300))
    assert pyarrow.compute.max(data.column("timestamp")).as_py() == pytest.approx(99 / 20)
    described = json.loads((tmp_path / "dataset" / INFO).read_text())
    assert (described["total_frames"], described["fps"]) == (300, 20)
    assert set(data.column_names) | {CAMERA} == set(described["features"])
    stats = json.loads((tmp_path / "dataset" / "meta" / "stats.json").read_text())["action"]
    actions = np.array(data.column("action").to_pylist())
    assert np.allclose(stats["mean"], actions.mean(0))
    assert np.allclose(stats["std"], actions.std(0), atol=1e-6)


def test_an_export_replaces_nothing_and_leaves_nothing_half_written(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").mkdir()
    assert p2p(["export-dataset", str(shards), "--lerobot", str(tmp_path / "there")]) == 2
    assert "exists already" in capsys.readouterr().err
    (shard,) = (shards / "train").glob("*.mds")
    shard.write_bytes(shard.read_bytes()[:-1000])
    before = sorted(path.name for path in tmp_path.iterdir())
    assert p2p(["export-dataset", str(shards), "--lerobot", str(tmp_path / "new")]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_packets_that_are_not_whole_are_refused_in_words(shards: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    segment = stored_segments(shards / "train")[0]
    video = segment.video
    for extradata in (b"", b"\x00" * 20, video.extradata[:9], video.extradata[:5] + b"\xff\xff\xff"):
        with pytest.raises(CannotBeCarried, match="configuration"):
            write_mp4(tmp_path / "x.mp4", [replace(segment, video=replace(video, extradata=extradata))])
    payload = b"\xff\xff\xff\xff" + bytes(segment.payload())[4:]
    with pytest.raises(CannotBeCarried, match="not made of whole units"):
        write_mp4(tmp_path / "x.mp4", [replace(segment, packets=[payload])])
    hidden = np.where(segment.packet_frames == 3, -1, segment.packet_frames).astype(np.int32)
    with pytest.raises(CannotBeCarried, match="never shown"):
        write_mp4(tmp_path / "x.mp4", [replace(segment, packet_frames=hidden)])
