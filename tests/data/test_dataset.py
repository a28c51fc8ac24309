"""GameplayDataset: the right chunks with the right content, each once, in order, with any number of workers."""

from __future__ import annotations

import gc
import resource
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2p.actions import ActionSpace
from p2p.data.video import SegmentDecoder
from p2p.format import decode_segment, encode_segment
from p2p_convert.plan import Options
from p2p_convert.run import convert
from p2p_convert.segments import RawRecording, convert_recording
from tests.data.conftest import Make, open_dataset, read_all
from tests.data.making import add_text, annotation, decoded, digest, video_bytes, without_reorder_depth


@pytest.fixture(scope="module")
def reference_stream(shared_fixtures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reference")
    convert([shared_fixtures / "data_case" / "dataset"], out, Options(val_fraction=0))
    return out / "train"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_chunk_of_the_reference_recordings(
    reference_stream: Path, shared_fixtures: Path, num_workers: int
) -> None:
    expected = np.load(shared_fixtures / "data_case" / "expected.npz")
    dataset = open_dataset(reference_stream, num_timesteps=200, size=(192, 192), text_dim=768)
    samples = read_all(dataset, num_workers)
    assert [(s["recording"], s["start"]) for s in samples] == [
        *(("rec_a", 0), ("rec_a", 200), ("rec_a", 400)),
        *(("rec_b", 0), ("rec_c", 0)),
    ]
    number: Counter[str] = Counter()
    for sample in samples:
        compare(sample, expected, f"{sample['recording']}/{number[sample['recording']]}")
        number[sample["recording"]] += 1
    assert sum(number.values()) == len({name.rsplit("/", 1)[0] for name in expected.files})


def compare(sample: dict[str, Any], expected: Any, name: str) -> None:
    want = {
        field: expected[f"{name}/{field}"]
        for field in (e.rsplit("/", 1)[1] for e in expected.files if e.startswith(name))
    }
    assert sample["start"] == want["start_frame"]
    assert [digest(frame) for frame in sample["frames"]] == want["frames_sha256"].tolist()
    for mask, field in (
        ("user_mask", "user_action_mask"),
        ("system_mask", "system_action_mask"),
        ("valid_mask", "valid_frame_mask"),
    ):
        np.testing.assert_array_equal(sample[mask], want[field], err_msg=f"{name} {mask}")
    ids = np.concatenate([want["keys"], want["mouse_buttons"], want["mouse_delta_x"], want["mouse_delta_y"]], axis=1)
    valid = sample["valid_mask"].numpy()
    np.testing.assert_array_equal(sample["actions"].numpy()[valid], ids[valid])
    np.testing.assert_array_equal(sample["text"][:, 0], want["text_unique"][want["text_index"]])


def test_edge_recordings_give_the_right_chunks(make_stream: Make) -> None:
    T = 10
    made = {
        "a_one_frame": (video_bytes(1), annotation(1)),
        "b_two_frames": (video_bytes(2), annotation(2)),
        "c_exactly_one_chunk": (video_bytes(T + 1), annotation(T + 1)),
        "d_one_step_more": (video_bytes(T + 2), annotation(T + 2)),
        "e_all_system": (video_bytes(2 * T + 5), annotation(2 * T + 5, "system")),
        "f_fewer_annotations": (video_bytes(T + 1), annotation(4)),
        "g_nothing_known": (video_bytes(T + 1), annotation(T + 1, "nothing")),
        "h_more_annotations": (video_bytes(4), annotation(30)),
    }
    samples = read_all(open_dataset(make_stream(made), num_timesteps=T))
    nothing = torch.from_numpy(ActionSpace().nothing)
    assert [(s["recording"][0], s["start"], int(s["valid_mask"].sum())) for s in samples] == [
        *(("b", 0, 1), ("c", 0, T), ("d", 0, T), ("d", T, 1)),
        *(("e", 2 * T, 4), ("f", 0, T), ("g", 0, T), ("h", 0, 3)),
    ]
    by_name = {(s["recording"][0], s["start"]): s for s in samples}
    for sample in samples:
        rows = ~(sample["user_mask"] | sample["system_mask"])
        assert (sample["actions"][rows] == nothing).all()
        assert not (~sample["valid_mask"] & ~rows).any()
        assert (sample["frames"][~sample["valid_mask"]] == sample["frames"][-1]).all()
    assert by_name["c", 0]["user_mask"].all()
    assert by_name["e", 2 * T]["system_mask"].tolist() == [True] * 4 + [False] * 6
    assert by_name["f", 0]["user_mask"].tolist() == [True] * 3 + [False] * 7
    assert not by_name["g", 0]["user_mask"].any()
    assert by_name["h", 0]["user_mask"].tolist() == [True] * 3 + [False] * 7


def test_texts_begin_hold_and_overwrite_as_specified(make_stream: Make) -> None:
    made = annotation(25)
    add_text(made, 0, 9.0, 99.0)  # annotation 0 has no row
    add_text(made, 2, 0.35, 1.0)  # float32 of 0.35 times 20, cut down: 6 rows
    add_text(made, 4, 0.1, 50.0, version="someone else")
    add_text(made, 4, 0.1, 2.0)  # overwrites two rows
    add_text(made, 9, 0.0, 3.0)  # never holds
    add_text(made, 10, 0.6, 4.0)  # reaches into the next chunk only if carried
    add_text(made, 13, 1.0, 5.0, embedded=False)
    add_text(made, 22, 1.0, 6.0)  # holds on the padded rows too
    stream = make_stream({"r": (video_bytes(25), made)})
    rows = [s["text"][:, 0, 0].tolist() for s in read_all(open_dataset(stream))]
    assert rows == [
        [0, 1, 1, 2, 2, 1, 1, 0, 0, 4],
        [0] * 10,
        [0, 6, 6, 6, 6, 6, 6, 6, 6, 6],
    ]
    carried = [s["text"][:, 0, 0].tolist() for s in read_all(open_dataset(stream, carry_text=True))]
    assert carried[1] == [4] * 10
    assert carried[2] == [4, *rows[2][1:]]


def test_an_embedding_of_another_shape_is_an_error(make_stream: Make) -> None:
    made = annotation(12)
    add_text(made, 1, 1.0, 1.0, dim=16)
    dataset = open_dataset(make_stream({"rec": (video_bytes(12), made)}))
    with pytest.raises(ValueError, match=r"recording rec, text at frame 0.*shape \[1, 16\], expected \[1, 8\]"):
        read_all(dataset)


@pytest.mark.parametrize(
    ("codec", "pix_fmt"), [("libx264", "yuv420p"), ("libx264", "yuv444p"), ("libx264rgb", "rgb24")]
)
def test_pixel_formats(make_stream: Make, codec: str, pix_fmt: str) -> None:
    video = video_bytes(25, codec=codec, pix_fmt=pix_fmt)
    frames = decoded(video)
    for sample in read_all(open_dataset(make_stream({"r": (video, annotation(25))}))):
        indices = np.minimum(np.arange(sample["start"], sample["start"] + 10), 24)
        np.testing.assert_array_equal(sample["frames"], frames[indices])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    num_frames=st.integers(1, 320),
    gop=st.sampled_from([1, 2, 7, 30, 250]),
    b_frames=st.integers(0, 4),
    rgb=st.booleans(),
    open_gop=st.booleans(),
    says_reorder_depth=st.booleans(),
    data=st.data(),
)
def test_any_window_of_any_recording_equals_the_full_decode(
    num_frames: int,
    gop: int,
    b_frames: int,
    rgb: bool,
    open_gop: bool,
    says_reorder_depth: bool,
    data: st.DataObject,
) -> None:
    codec, pix_fmt = ("libx264rgb", "rgb24") if rgb else ("libx264", "yuv420p")
    options = {"x264-params": f"open-gop={int(open_gop)}:b-pyramid=normal:scenecut=0", "refs": "3"}
    video = video_bytes(num_frames, gop, b_frames, codec, pix_fmt, size=32, **options)
    if not says_reorder_depth:
        video = without_reorder_depth(video)
    frames = decoded(video)
    files = {"192x192.mp4": video, "annotation.proto": annotation(num_frames).SerializeToString()}
    segments = [
        decode_segment(b"".join(encode_segment(s))) for s in convert_recording(RawRecording("r", "r", files)).segments
    ]
    assert sum(s.num_frames for s in segments) == len(frames) == num_frames
    decoder = SegmentDecoder()
    windows = []
    for _ in range(4):
        number = data.draw(st.integers(0, len(segments) - 1))
        begin = data.draw(st.integers(0, segments[number].num_frames - 1))
        windows.append((number, begin, data.draw(st.integers(begin + 1, segments[number].num_frames))))
    for number, begin, end in [*windows, *sorted(windows)]:  # from anywhere to anywhere, and then only forward
        segment = segments[number]
        out = np.empty((end - begin, 3, 32, 32), np.uint8)
        decoder.rgb_planes(segment, begin, end, out)
        np.testing.assert_array_equal(out, frames[segment.first_frame + begin : segment.first_frame + end])


def test_frames_of_another_size_are_stretched(make_stream: Make) -> None:
    from p2p.data.resize import resize

    video = video_bytes(12, size=48)
    (sample, _) = read_all(open_dataset(make_stream({"r": (video, annotation(12))})))
    expected = resize(np.ascontiguousarray(decoded(video)[3].transpose(1, 2, 0)), 64, 64)
    np.testing.assert_array_equal(sample["frames"][3].permute(1, 2, 0), expected)


def test_more_or_fewer_slots_are_a_prefix_of_the_stored_ones(make_stream: Make) -> None:
    made = annotation(12)
    for frame in made.frame_annotations:
        frame.user_action.keyboard.keys[:] = ["w", "a", "s", "d", "Space", "_no_key"]
    stream = make_stream({"r": (video_bytes(12), made)})
    for max_keys in (1, 4, 6):
        space = ActionSpace(max_keys=max_keys)
        sample = read_all(open_dataset(stream, action_space=space))[0]
        names = ["w", "a", "s", "d", "Space", "_no_key"]
        expected = space.encode(names, [], 0, 0)[space.key_slots]
        assert sample["actions"][0, space.key_slots].tolist() == expected.tolist()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_random_phases_differ_by_epoch_and_repeat_by_seed(make_stream: Make, num_workers: int) -> None:
    made = {f"rec_{i}": (video_bytes(45 + 7 * i), annotation(45 + 7 * i)) for i in range(4)}
    stream = make_stream(made)

    def epochs(seed: int) -> list[list[tuple[str, int]]]:
        dataset = open_dataset(stream, phase="random", shuffle=True, shuffle_seed=seed, batch_size=2)
        return [[(s["recording"], s["start"]) for s in read_all(dataset, num_workers, batch_size=2)] for _ in range(3)]

    first, second, third = epochs(1)
    assert sorted(first) != sorted(second) != sorted(third)
    assert len(first) == len(second) == len(third)
    assert [first, second, third] == epochs(1)
    assert epochs(2) != [first, second, third]


def test_the_order_of_a_resumed_run_does_not_depend_on_workers(make_stream: Make) -> None:
    made = {f"rec_{i}": (video_bytes(60), annotation(60)) for i in range(4)}
    stream = make_stream(made)

    def chunks(num_workers: int, state: dict[str, Any] | None = None, skip: int = 0) -> list[tuple[str, int]]:
        dataset = open_dataset(stream, phase="random", shuffle=True, shuffle_seed=5, batch_size=2)
        if state is not None:
            dataset.load_state_dict(state)
        return [(s["recording"], s["start"]) for s in read_all(dataset, num_workers, batch_size=2)][skip:]

    undisturbed = chunks(0)
    dataset = open_dataset(stream, phase="random", shuffle=True, shuffle_seed=5, batch_size=2)
    _ = [sample for sample, _ in zip(iter(dataset), range(8), strict=False)]
    state = dataset.state_dict(num_samples=8, from_beginning=True)
    del dataset
    for num_workers in (0, 2):
        assert chunks(num_workers, state) == undisturbed[8:]


def test_streams_mix_by_proportion(make_stream: Make) -> None:
    from p2p.data import GameplayStream

    one = make_stream({"one": (video_bytes(91), annotation(91))}, "one")
    two = make_stream({"two": (video_bytes(41), annotation(41))}, "two")
    streams = [
        GameplayStream(local=str(one), proportion=0.25),
        GameplayStream(local=str(two), proportion=0.75),
    ]
    dataset = open_dataset(one, local=None, streams=streams, epoch_size=24, shuffle=True)
    counts = Counter(s["recording"] for s in read_all(dataset))
    assert counts == {"one": 6, "two": 18}


def test_reading_on_and_on_takes_no_more_memory(make_stream: Make) -> None:
    made = {f"rec_{i}": (video_bytes(60, seed=i), annotation(60)) for i in range(6)}
    dataset = open_dataset(make_stream(made), phase="random")

    def read(num_samples: int) -> int:
        """Bytes resident after so many samples from anywhere."""
        for number in range(num_samples):
            dataset[7 * number % dataset.num_samples]
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    before = read(100)
    assert read(400) - before < 8 << 20  # the frames of 400 samples are 49 MB
