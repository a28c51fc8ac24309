"""The server on real sockets, in this process: sessions, the newest frame, bad clients, bounded memory."""

from __future__ import annotations

import logging
import socket
import struct
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from p2p.actions import Action
from p2p.config import SamplingConfig
from p2p.model import load_policy
from p2p.model.session import Session
from p2p.protocol import Frame
from p2p.text import NullEmbedder, TableEmbedder
from p2p_serve.latency import Marks
from p2p_serve.players import EchoPlayer, PlaybackPlayer, PolicyPlayer
from p2p_serve.text import TextSource
from p2p_serve.worker import Worker
from tests.serve.live import TINY, GatedPlayer, connect, noise, serving, wait_until

NO_TEXT = TextSource(NullEmbedder(), (TINY.num_text_tokens, TINY.text_dim))


class FailingPlayer(EchoPlayer):
    """Breaks on the frame with id 13."""

    def act(self, frame: Frame, marks: Marks) -> Action:
        if frame.id == 13:
            raise RuntimeError("out of luck")
        return super().act(frame, marks)


@pytest.fixture(autouse=True)
def log_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def greedy_session(folder: Path, **options: int) -> Session:
    return load_policy(folder).session(sampling=SamplingConfig(greedy=True, mouse_sampling="mean"), **options)


def policy_player(folder: Path, text: TextSource = NO_TEXT, **options: int) -> PolicyPlayer:
    return PolicyPlayer(greedy_session(folder, **options), text)


def play(path: Path, frames: list[np.ndarray]) -> list[Action]:
    with connect(path) as client:
        return [client.ask(frame, index) for index, frame in enumerate(frames)]


# ------------------------------------------------------------------ answers


def test_a_client_of_twenty_lines_with_bytes_written_by_hand(echo: Path) -> None:
    def varint(number: int) -> bytes:
        low, rest = number & 0x7F, number >> 7
        return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])

    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(60)
    connection.connect(str(echo))
    pixels = bytes(192 * 192 * 3)
    frame = b"\x08" + varint(192) + b"\x10" + varint(192) + b"\x1a" + varint(len(pixels)) + pixels + b"\x20" + varint(7)
    connection.sendall(struct.pack("<I", len(frame)) + frame)
    answer = connection.makefile("rb")
    (length,) = struct.unpack("<I", answer.read(4))
    # keys "w"; id 7; mouse_action { mouse_delta_px { x: 3 y: -4 } buttons_down: "0" }
    minus_four = b"\xfc" + b"\xff" * 8 + b"\x01"
    delta = b"\x08\x03\x10" + minus_four
    mouse = b"\x0a" + varint(len(delta)) + delta + b"\x22\x010"
    assert answer.read(length) == b"\x0a\x01w" + b"\x10\x07" + b"\x1a" + varint(len(mouse)) + mouse
    answer.close()
    connection.close()


def test_an_answer_repeats_its_frames_id(echo: Path) -> None:
    with connect(echo) as client:
        for frame_id in (0, 1, 1000, -5, 2**31 - 1):
            assert client.ask(noise(0), frame_id) == Action(("w",), ("0",), 3, -4)


def test_of_200_frames_sent_without_waiting_only_the_newest_are_answered(path: Path) -> None:
    player = GatedPlayer()
    with serving(path, [player]) as server, connect(path) as client:
        client.send(noise(0), 0)
        assert player.entered.acquire(timeout=60)
        frame = noise(1)
        for frame_id in range(1, 200):
            client.send(frame, frame_id)
        (session,) = server.sessions
        channel = session.channel
        assert channel is not None
        wait_until(lambda: channel.pending and channel.pending[0].id == 199, "the newest frame waits")
        assert channel.num_dropped == 198
        for _ in range(2):
            player.gate.release()
        assert [client.receive()[1] for _ in range(2)] == [0, 199]
        assert channel.pending is None


def test_a_policy_that_is_slower_than_the_frames_answers_the_newest(path: Path, policy_folder: Path) -> None:
    frame = noise(0)
    with serving(path, [policy_player(policy_folder)]), connect(path) as client:
        for frame_id in range(200):
            client.send(frame, frame_id)
        answered = [client.receive()[1]]
        while answered[-1] != 199:
            answered.append(client.receive()[1])
    assert answered == sorted(set(answered))
    assert len(answered) < 200


def test_frames_of_any_size_are_resized_to_what_the_policy_sees(path: Path, policy_folder: Path) -> None:
    from p2p.data.resize import resize

    large = [noise(seed, (270, 480)) for seed in range(4)]
    small = [resize(frame, TINY.frame_height, TINY.frame_width) for frame in large]
    with serving(path, [policy_player(policy_folder)]):
        assert play(path, large) == play(path, small)


def test_answers_are_those_of_a_session_without_the_server(path: Path, policy_folder: Path) -> None:
    frames = [noise(seed) for seed in range(12)]
    session = greedy_session(policy_folder)
    expected = [session.act(frame) for frame in frames]
    with serving(path, [policy_player(policy_folder)]):
        assert play(path, frames) == expected
    assert len(set(expected)) > 1


# ------------------------------------------------------------------ sessions


def test_a_session_knows_nothing_of_the_one_before(path: Path, policy_folder: Path) -> None:
    frames = [noise(seed) for seed in range(6)]
    with serving(path, [policy_player(policy_folder)]):
        first = play(path, frames)
        play(path, [noise(seed) for seed in range(50, 60)])
        assert play(path, frames) == first


def test_with_a_seed_every_session_draws_the_same_numbers(path: Path, policy_folder: Path) -> None:
    frames = [noise(seed) for seed in range(6)]
    found = []
    for seed in (1, 2):
        session = load_policy(policy_folder).session(seed, SamplingConfig(temperature=2.0))
        player = PolicyPlayer(session, NO_TEXT)
        with serving(path, [player]):
            found.append(play(path, frames))
            assert play(path, frames) == found[-1]
    assert found[0] != found[1]


def test_two_sessions_at_a_time_have_states_of_their_own(path: Path, policy_folder: Path) -> None:
    mine, yours = [noise(seed) for seed in range(8)], [noise(seed) for seed in range(20, 28)]
    with serving(path, [policy_player(policy_folder), policy_player(policy_folder)]):
        alone = play(path, mine), play(path, yours)
        with connect(path) as first, connect(path) as second:
            together = [(first.ask(a, i), second.ask(b, i)) for i, (a, b) in enumerate(zip(mine, yours, strict=True))]
    assert tuple(map(list, zip(*together, strict=True))) == alone


def test_a_second_client_is_refused_with_a_reason_and_the_first_plays_on(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(path, [EchoPlayer()], grace_s=0.05), connect(path) as first:
        first.ask(noise(0), 0)
        with connect(path) as second:
            assert second.is_closed_by_the_server()
        assert "client 2: refused: client 1 is being served" in caplog.text
        first.ask(noise(0), 1)


def test_a_client_that_comes_while_another_leaves_is_served(path: Path) -> None:
    with serving(path, [EchoPlayer()], grace_s=30.0):
        for _ in range(20):
            with connect(path) as client:
                client.ask(noise(0), 0)
        first = connect(path)
        leaving = first.__enter__()
        leaving.ask(noise(0), 0)
        with connect(path) as waiting:
            waiting.send(noise(0), 5)
            first.__exit__(None, None, None)
            assert waiting.receive()[1] == 5


def test_a_client_that_has_fallen_silent_gives_way(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(path, [EchoPlayer()], grace_s=0.05, idle_takeover_s=0.0), connect(path) as silent:
        silent.ask(noise(0), 0)
        with connect(path) as second:
            second.ask(noise(0), 1)
            assert silent.is_closed_by_the_server()
    assert "and another client waits" in caplog.text


def test_a_player_that_breaks_costs_its_session_only(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(path, [FailingPlayer()]):
        with connect(path) as client:
            client.ask(noise(0), 12)
            client.send(noise(0), 13)
            assert client.is_closed_by_the_server()
        with connect(path) as client:
            client.ask(noise(0), 14)
    assert caplog.text.count("closed: the player failed") == 1
    assert "out of luck" in caplog.text


def test_a_player_that_cannot_warm_up_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    class Cold(EchoPlayer):
        def warm_up(self) -> None:
            raise RuntimeError("no kernel image")

    told: list[bool] = []
    worker = Worker()
    worker.start([EchoPlayer(), Cold()], told.append)
    wait_until(lambda: told == [False], "the failure is reported")
    assert worker.stop(60)
    assert "no kernel image" in caplog.text


# ------------------------------------------------------------------ forgetting, instructions, playback


def test_the_history_is_forgotten_every_so_many_frames(path: Path, policy_folder: Path) -> None:
    frames = [noise(seed) for seed in range(4)]
    with serving(path, [policy_player(policy_folder, clear_every=4)]):
        answers = play(path, frames * 3)
    assert answers[:4] == answers[4:8] == answers[8:]


def test_the_history_is_forgotten_when_frames_stop(policy_folder: Path) -> None:
    now = [0.0]
    player = PolicyPlayer(greedy_session(policy_folder), NO_TEXT, forget_after_s=1.0, clock=lambda: now[0])

    def answers(gap_s: float) -> list[Action]:
        found = []
        for seed in range(5):
            found.append(player.act(Frame(noise(seed), seed), Marks(0.0)))
            player.after_answer()
            now[0] += 0.05
        now[0] += gap_s
        return found

    player.start()
    first = answers(gap_s=0.9)
    continued = answers(gap_s=1.1)
    anew = answers(gap_s=0.0)
    assert anew == first
    assert continued != first


def test_the_history_is_forgotten_on_command(path: Path, policy_folder: Path) -> None:
    frames = [noise(seed) for seed in range(5)]
    with serving(path, [policy_player(policy_folder)]) as server, connect(path) as client:
        first = [client.ask(frame, index) for index, frame in enumerate(frames)]
        server.forget()
        assert [client.ask(frame, index) for index, frame in enumerate(frames)] == first


def test_an_instruction_takes_effect_on_the_next_frame(path: Path, policy_folder: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "table.npz", left=np.random.default_rng(0).normal(0, 30, (1, 16)))
    text = TextSource(TableEmbedder(tmp_path / "table.npz"), (1, 16))
    frame = noise(0)
    with serving(path, [policy_player(policy_folder, text, clear_every=1)]), connect(path) as client:
        without = client.ask(frame, 0)
        text.set("left")
        told = client.ask(frame, 1)
        text.set("")
        assert client.ask(frame, 2) == without
    embedding = np.random.default_rng(0).normal(0, 30, (1, 16)).astype(np.float32)
    assert told == greedy_session(policy_folder).act(frame, embedding)
    assert told != without


def test_playback_follows_the_ids_of_the_frames(path: Path) -> None:
    actions = [Action((), (), index, 0) for index in range(5)]
    with serving(path, [PlaybackPlayer(actions)]):
        for _ in range(2):  # every session begins at the beginning
            with connect(path) as client:
                answers = [client.ask(noise(0), frame_id) for frame_id in (100, 101, 103, 104, 105, 90)]
            assert answers == [actions[0], actions[1], actions[3], actions[4], Action(), Action()]


def test_the_server_stops_in_the_middle_of_everything(path: Path) -> None:
    player = GatedPlayer()
    player.gate.release()
    with ExitStack() as stack:
        with serving(path, [player]):
            clients = [stack.enter_context(connect(path)) for _ in range(5)]
            clients[0].send(noise(0), 0)
            clients[1].socket.sendall(b"\x10\x00")
            assert player.entered.acquire(timeout=60)
        for client in clients[1:]:
            assert client.is_closed_by_the_server()
