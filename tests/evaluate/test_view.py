"""`p2p view`: the right action beside the right frame, in the page and in the video."""

import json
import logging
import re
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from p2p.actions import Action
from p2p.cli import main
from p2p.evaluate.clip import SYSTEM, UNKNOWN, USER, open_clip, with_predictions
from p2p.evaluate.drawing import PREDICTED_RGB, RECORDED_RGB, draw_frame
from p2p.model import Policy, load_policy
from p2p.recording import RecordingWriter, read_frames
from tests.s3 import S3Server

from .conftest import CONFIG, NUM_FRAMES


def page_data(page: str) -> dict:  # type: ignore[type-arg]
    match = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
    assert match
    return json.loads(match[1])  # type: ignore[no-any-return]


@pytest.fixture
def session(tmp_path: Path) -> Path:
    """A session: a person, then a model, then nobody known, with an instruction in the middle."""
    with RecordingWriter(tmp_path / "session", "s", game="made") as writer:
        for index in range(12):
            user = Action(("w",), (), 3, 0) if index < 4 else None
            system = Action(("a",), ("0",), 0, -5) if 4 <= index < 8 else None
            frame = np.full((192, 192, 3), 20 * index, dtype=np.uint8)
            writer.add(frame, user, system, text="go <left>" if 3 <= index < 6 else None)
    return tmp_path / "session"


def test_the_action_that_followed_a_frame_stands_beside_it(session: Path) -> None:
    clip = open_clip(str(session), 0, 100, None)
    assert len(clip.frames) == 12
    assert list(clip.who) == [USER] * 4 + [SYSTEM] * 4 + [UNKNOWN] * 4
    assert clip.recorded[3] == Action(("w",), (), 3, 0)
    assert clip.recorded[4] == Action(("a",), ("0",), 0, -5)
    assert clip.recorded[8] is None
    assert [i for i, text in enumerate(clip.texts) if text] == [3, 4, 5]
    assert abs(float(clip.frames[5].mean()) - 100) < 4
    assert clip.names() == ["a", "w", "mouse 0"]


def test_a_policy_hears_the_embeddings_of_its_own_embedder(tmp_path: Path) -> None:
    policy = Policy(replace(CONFIG, text_dim=8, text_embedder="minilm"))
    frame = np.zeros((192, 192, 3), dtype=np.uint8)
    for tokenizer in ("minilm", "gemma"):
        with RecordingWriter(tmp_path / tokenizer, tokenizer, text_tokenizer=tokenizer) as writer:
            for _ in range(3):
                writer.add(frame, None, None, "go left", np.full((1, 8), 2.0))
    heard = open_clip(str(tmp_path / "minilm"), 0, 3, policy).embeddings
    assert heard is not None
    assert heard[:, 0, 0].tolist() == [2, 2, 0]  # the last frame has no action that followed it
    assert open_clip(str(tmp_path / "gemma"), 0, 3, policy).embeddings is None


def test_a_part_keeps_its_numbers(session: Path) -> None:
    clip = open_clip(str(session), 4, 3, None)
    assert (clip.start, len(clip.frames)) == (4, 3)
    assert clip.recorded == [Action(("a",), ("0",), 0, -5)] * 3
    assert list(clip.texts) == ["go <left>", "go <left>", ""]


def test_a_chunk_of_a_stream_shows_the_same_actions_as_its_recording(stream_folder: Path, recordings: Path) -> None:
    chunk = open_clip(f"{stream_folder}:1", 0, 20, None)  # chunks of 20 steps: the second of recording a
    whole = open_clip(str(recordings / "a"), chunk.start, 20, None)
    assert chunk.start == 20
    np.testing.assert_array_equal(chunk.frames, whole.frames)
    assert [a and (a.keys, a.buttons) for a in chunk.recorded] == [a and (a.keys, a.buttons) for a in whole.recorded]


def test_predictions_are_those_of_the_policy(stream_folder: Path, policy_folder: Path) -> None:
    import torch

    policy = load_policy(policy_folder)
    clip = with_predictions(open_clip(f"{stream_folder}:0", 0, 20, policy), policy, free_running=False)
    from p2p.evaluate.scoring import predict_steps
    from p2p.evaluate.stream import open_stream

    batch = next(open_stream(stream_folder, policy.config).batches(1))
    with torch.inference_mode():
        ids = predict_steps(policy, batch).ids[0].numpy()
    assert clip.predicted == [policy.config.action_space.decode(row) for row in ids]


def test_the_page_holds_everything_and_texts_are_escaped(session: Path, policy_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "view.html"
    assert main(["view", str(session), "--policy", str(policy_folder), "--out", str(out), "--device", "cpu"]) == 0
    page = out.read_text()
    data = page_data(page)
    assert data["names"][0] in ("Space", "1", "2", "a", "d", "e", "f", "q", "w", "3", "4")
    w = data["names"].index("w")
    assert [row and row[0] >> w & 1 for row in data["recorded"]] == [1] * 4 + [0] * 4 + [None] * 4
    assert data["recorded"][4][1:] == [0, -5]
    assert len(data["predicted"]) == 12
    assert data["texts"][3] == "go <left>"
    assert "go <left>" not in page  # it could end the script element
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_the_video_has_a_picture_per_frame(session: Path, tmp_path: Path) -> None:
    out = tmp_path / "view.mp4"
    assert main(["view", str(session), "--out", str(out), "--start", "2", "--frames", "5"]) == 0
    pictures = list(read_frames(out))
    assert len(pictures) == 5
    assert pictures[0].shape == (540, 800, 3)


def test_lamps_are_lit_while_a_key_is_held(session: Path, policy_folder: Path) -> None:
    policy = load_policy(policy_folder)
    clip = with_predictions(open_clip(str(session), 0, 12, None), policy, free_running=True)
    names = clip.names()
    lit = [(draw_frame(clip, i, names)[40:, 600:] == RECORDED_RGB).all(-1).sum() for i in (0, 4, 9)]
    assert lit[1] > 1.5 * lit[0] > 0  # two things held, then one
    assert lit[2] == 0  # nothing known
    held = [len(a.keys) + len(a.buttons) for a in clip.predicted or ()]
    drawn = [(draw_frame(clip, i, names)[40:, 600:] == PREDICTED_RGB).all(-1).sum() for i in range(12)]
    assert max(held) > 0
    assert held[int(np.argmax(drawn))] == max(held)


def test_mistakes_are_one_line(recordings: Path, stream_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for source, words in (
        (str(recordings), "name one of its 4"),
        (f"{stream_folder}:99", "has 4 chunks"),
        (str(recordings.parent / "nowhere"), "expected a recording"),
    ):
        assert main(["view", source]) == 2
        assert words in capsys.readouterr().err
    assert main(["view", str(recordings / "a"), "--out", "x.gif"]) == 2
    assert main(["view", str(recordings / "a"), "--start", str(NUM_FRAMES)]) == 2
    assert "no frame from number 95" in capsys.readouterr().err


def test_a_stream_in_a_store_is_shown_and_leaves_nothing_behind(
    stream_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "s3").mkdir()
    server = S3Server(tmp_path / "s3")
    try:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        url, client = server.make_bucket("shards"), server.client()
        for path in sorted(stream_folder.iterdir()):
            client.upload_file(str(path), "shards", f"out/train/{path.name}")
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
        out = tmp_path / "view.html"
        assert main(["view", f"{url}/out/train:1", "--frames", "20", "--out", str(out)]) == 0
        assert main(["view", f"{url}/out/train", "--frames", "20", "--out", str(tmp_path / "first.html")]) == 0
    finally:
        server.close()
    assert page_data(out.read_text())["start"] == 20
    assert page_data((tmp_path / "first.html").read_text())["start"] == 0
    assert list((tmp_path / "scratch").glob("p2p-stream-*")) == []
    assert "Found credentials" not in caplog.text
