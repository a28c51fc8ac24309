"""Sessions that are recorded: whole, apart from each other, and never at the cost of the session."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2p.actions import Action
from p2p.config import SamplingConfig
from p2p.model import load_policy
from p2p.recording import read_annotation, repair_recordings
from p2p.text import NullEmbedder
from p2p_serve.players import PolicyPlayer, SessionRecorder, recorded_actions
from p2p_serve.text import TextSource
from tests.serve.live import TINY, Program, connect, noise, serving

SIZE = (TINY.frame_height, TINY.frame_width)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


def recorded(folder: Path, recorder: SessionRecorder) -> PolicyPlayer:
    """A policy at play that is recorded."""
    text = TextSource(NullEmbedder(), (TINY.num_text_tokens, TINY.text_dim))
    session = load_policy(folder).session(sampling=SamplingConfig(greedy=True, mouse_sampling="mean"))
    return PolicyPlayer(session, text, recorder=recorder)


def test_a_session_that_the_server_ends_is_recorded_whole(path: Path, policy_folder: Path, tmp_path: Path) -> None:
    recorder = SessionRecorder(tmp_path / "recordings", SIZE)
    with ExitStack() as stack:
        with serving(path, [recorded(policy_folder, recorder)]):
            client = stack.enter_context(connect(path))
            answers = [client.ask(noise(seed), seed) for seed in range(5)]
        (folder,) = (tmp_path / "recordings").iterdir()
        assert recorded_actions(folder) == answers[:-1]


def test_a_recording_that_cannot_be_written_costs_only_itself(
    path: Path, policy_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Refusing(SessionRecorder):
        """Refuses the third frame, as on a full disk."""

        num_frames = 0

        def add(self, frame: np.ndarray, *rest: Any) -> None:  # type: ignore[type-arg, override]
            self.num_frames += 1
            super().add(frame if self.num_frames != 3 else frame[:2], *rest)

    recorder = Refusing(tmp_path / "recordings", SIZE)
    player = recorded(policy_folder, recorder)
    with serving(path, [player]), connect(path) as client:
        for number in range(5):
            client.ask(noise(number), number)
    assert caplog.text.count("the recording of this session ends here") == 1
    (folder,) = (tmp_path / "recordings").iterdir()  # with what was recorded before
    assert len(read_annotation(folder).frame_annotations) == 2


def test_two_recorders_that_start_in_one_second_keep_their_own_frames(tmp_path: Path) -> None:
    recorders = [SessionRecorder(tmp_path, SIZE) for _ in range(2)]
    for recorder in recorders:
        recorder.start()
    for number in range(8):
        recorders[0].add(noise(0, SIZE), Action(("w",)), "", None, number / 20)
        if number < 5:
            recorders[1].add(noise(1, SIZE), Action(("s",)), "", None, number / 20)
    for recorder in recorders:
        recorder.end()
    found = {}
    for folder in tmp_path.iterdir():
        frames = read_annotation(folder).frame_annotations
        assert len({tuple(frame.system_action.keyboard.keys) for frame in frames[1:]}) == 1
        found[frames[1].system_action.keyboard.keys[0]] = [frame.frame_time for frame in frames]
    assert found == {
        "w": [number * 50_000_000 for number in range(8)],
        "s": [number * 50_000_000 for number in range(5)],
    }


def test_what_a_killed_server_left_is_completed_by_the_next(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    live, killed = SessionRecorder(tmp_path / "live", SIZE), SessionRecorder(tmp_path / "killed", SIZE)
    killed.start()
    for number in range(20):
        killed.add(noise(number, SIZE), Action(), "", None, number / 20)
    live.start()
    (left,) = (tmp_path / "killed").iterdir()
    shutil.copytree(left, tmp_path / "live" / left.name)  # a copy that nobody owns
    caplog.set_level("INFO")
    SessionRecorder(tmp_path / "live", SIZE)
    assert "repaired" in caplog.text
    (folder,) = (tmp_path / "live").glob("session-*")  # the live one stays as it is
    assert len(read_annotation(folder).frame_annotations) > 10
    killed.end()
    live.end()


def test_a_session_is_served_though_it_cannot_be_recorded(
    path: Path, policy_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    recorder = SessionRecorder(tmp_path / "file" / "recordings", SIZE)
    with serving(path, [recorded(policy_folder, recorder)]), connect(path) as client:
        client.ask(noise(0), 0)
        client.ask(noise(0), 1)
    assert "this session is not recorded" in caplog.text


def test_a_server_that_is_killed_loses_less_than_half_a_second(
    p2p_serve: Callable[..., Program], path: Path, policy_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "recordings"
    program = p2p_serve("--policy", policy_folder, "--socket", path, "--device", "cpu", "--record", out)
    with connect(path) as client:
        for number in range(40):
            client.ask(noise(number), number)
        assert repair_recordings(out) == []  # its owner lives
        program.process.kill()
        program.process.wait()
    (repaired,) = repair_recordings(out)
    assert repaired.problem == ""
    assert len(read_annotation(repaired.folder).frame_annotations) == repaired.num_frames
    assert repaired.num_frames >= 40 - 9 - 1  # an answer is sent before its frame is written
