"""`p2p record` and `p2p play` as they are typed, with a real game and a real server."""

from __future__ import annotations

import json
import os
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from p2p.actions import Action
from p2p.agents.controls import ShuffledAgent
from p2p.cli import main
from p2p.environments.registry import find_game, game_name, make_agent, make_env
from p2p.play.comparison import FIRST_SEED, plan_episodes
from p2p.play.overlay import draw_action
from p2p.play.record import RecordSettings, record_episodes
from p2p.play.results import PlayedEpisode, format_table, summarise, write_results
from p2p.play.rollout import Step, rollout
from p2p.recording import UNKNOWN, USER, VIDEO_FILE, executed_action, read_annotation, read_frames
from p2p.recording.film import VideoWriter

BASIC = "doom:basic"


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("record") / "raw"
    assert main(["record", "--game", BASIC, "--episodes", "3", "--out", str(folder), "--disturbance", "0"]) == 0
    return folder


def test_a_recording_holds_every_frame_and_what_the_player_pressed(raw: Path) -> None:
    folder = raw / "doom-basic-000-00001"
    frames = list(read_frames(folder / VIDEO_FILE))
    annotation = read_annotation(folder)
    executed = [executed_action(frame) for frame in annotation.frame_annotations]
    assert annotation.metadata.env.env == BASIC
    assert annotation.metadata.frames_per_second == 20
    assert frames[0].shape == (192, 192, 3)
    assert [who for _, who in executed] == [UNKNOWN, *[USER] * (len(frames) - 1)]

    steps: list[Step] = []
    with closing(make_env(BASIC, labels=True)) as env:  # the same episode again
        rollout(env, make_agent(find_game(BASIC)), [steps.append], seed=1)
    taken, seen = [step.action for step in steps], [step.observation for step in steps]
    assert len(frames) == len(taken)
    assert [action for action, _ in executed[1:]] == taken[:-1]  # annotation i+1 is what followed frame i
    assert all(np.abs(a.astype(int) - b).mean() < 4 for a, b in zip(frames, seen, strict=True))


def test_what_is_recorded_is_reused(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stamp = (raw / "doom-basic-000-00000" / VIDEO_FILE).stat().st_mtime_ns
    arguments = ["record", "--game", BASIC, "--episodes", "3", "--out", str(raw), "--disturbance", "0"]
    assert main(arguments) == 0
    assert "0 recordings made" in capsys.readouterr().out
    assert (raw / "doom-basic-000-00000" / VIDEO_FILE).stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--episodes", "1", "--disturbance", "0.5"], "other settings"),
        (["--episodes", "0"], "--episodes 0"),
        (["--hours", "inf"], "--hours inf"),
        (["--hours", "nan"], "--hours nan"),
        (["--hours", "-1"], "--hours -1"),
        (["--episodes", "1", "--disturbance", "2"], "--disturbance 2"),
        (["--window", "--hours", "1", "--text", "\udcff"], "an instruction is '\\udcff', which is not valid UTF-8"),
    ],
)
def test_a_recorder_s_bad_arguments_are_one_line(
    raw: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(os.listdir(raw))
    assert main(["record", "--game", BASIC, "--out", str(raw), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("p2p: error: ")
    assert message in error
    assert sorted(os.listdir(raw)) == before


@pytest.mark.parametrize("content", [b"[1]", b"5", b"[" * 100_000, b"\xff", None])
def test_settings_that_are_none_are_one_line(
    tmp_path: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "record.json"
    if content is None:
        settings.mkdir()  # stands for whatever is no file; a pipe would hold a broken reader up for ever
    else:
        settings.write_bytes(content)
    assert main(["record", "--game", BASIC, "--out", str(tmp_path), "--episodes", "1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"p2p: error: {settings}")
    assert error.count("\n") == 1
    assert os.listdir(tmp_path) == ["record.json"]


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        record_episodes(RecordSettings(BASIC), 1, tmp_path)
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_a_failing_worker_is_reported_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nonsense"):
        record_episodes(RecordSettings(BASIC, preset="nonsense"), 2, tmp_path / "raw")
    assert [path for path in (tmp_path / "raw").rglob("*") if path.suffix in (".mp4", ".proto")] == []


# ------------------------------------------------------------------ play


def test_play_compares_a_served_policy_with_its_controls(
    echo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video, results = tmp_path / "play.mp4", tmp_path / "play.json"
    arguments = [
        "play",
        "--socket",
        echo,
        "--game",
        BASIC,
        "--episodes",
        "2",
        "--compare",
        "expert,blind,idle,shuffled",
    ]
    assert main([*arguments, "--video", str(video), "--json", str(results)]) == 0
    table = capsys.readouterr().out
    assert "| policy   |        2 |" in table
    content = json.loads(results.read_text())
    means = {row["player"]: row["mean"] for row in content["summary"]}
    assert means["expert"] > 50
    assert means["idle"] == -300
    assert content["episodes"][0]["presses"] == {"w": content["episodes"][0]["num_steps"]}
    frames = list(read_frames(video))
    assert len(frames) == content["episodes"][0]["num_steps"]
    assert frames[0].shape == (448, 384, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--game", BASIC], "name the policy folder"),
        (["--game", BASIC, "--compare", "expert,nobody"], "'nobody'"),
        (["/nowhere", "--game", BASIC], "/nowhere: no model.safetensors"),
        (["--game", "doom:none", "--compare", "idle"], "'doom:none'"),
    ],
)
def test_a_player_s_bad_arguments_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["play", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("p2p: error: ")
    assert message in error


def test_every_player_gets_the_same_fresh_seeds_and_one_film_is_made() -> None:
    plan = plan_episodes(("policy", "expert"), 3, video="film.mp4")
    assert [one.seed for one in plan[:3]] == [one.seed for one in plan[3:]] == [FIRST_SEED + n for n in range(3)]
    assert [one.video for one in plan] == ["film.mp4", *[None] * 5]
    assert FIRST_SEED > 9_000 * 100_000  # beyond what recordings use


def test_the_summary_is_the_mean_and_its_standard_error() -> None:
    episodes = [PlayedEpisode("policy", seed, score, 1, {}) for seed, score in enumerate((1.0, 2.0, 3.0, 6.0))]
    (row,) = summarise([*episodes])
    assert (row.mean, row.lowest, row.highest) == (3.0, 1.0, 6.0)
    assert row.standard_error == pytest.approx(np.std([1, 2, 3, 6], ddof=1) / 2)
    assert "| policy |        4 |        3.0 |    1.1 |" in format_table([row])


def test_of_one_episode_no_error_is_claimed(tmp_path: Path) -> None:
    episodes = [PlayedEpisode("policy", 0, 3.0, 1, {})]
    (row,) = summarise(episodes)
    assert row.standard_error is None
    assert "nan" not in format_table([row])
    write_results(tmp_path / "play.json", BASIC, episodes)
    content = json.loads((tmp_path / "play.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert content["summary"][0]["standard_error"] is None


def test_a_game_s_name_is_taken_with_dashes() -> None:
    assert game_name("doom:health-gathering") == game_name("doom:health_gathering") == "doom:health_gathering"
    assert game_name("program:my-game -w") == "program:my-game -w"


def test_the_control_is_fed_with_frames_of_other_moments_only() -> None:
    bank = [np.full((192, 192, 3), value, np.uint8) for value in range(5)]

    class Watcher:
        seen: list[int] = []  # noqa: RUF012

        def reset(self, seed: int) -> None: ...

        def act(self, observation: np.ndarray, info: object) -> Action:  # type: ignore[type-arg]
            self.seen.append(int(observation[0, 0, 0]))
            return Action()

    agent = ShuffledAgent(Watcher(), bank)
    agent.reset(1)
    for _ in range(300):
        agent.act(np.full((192, 192, 3), 99, np.uint8), {})
    assert set(Watcher.seen) == {0, 1, 2, 3, 4}
    assert np.abs(np.diff(Watcher.seen)).mean() > 1  # and not in their order


def test_a_key_that_is_down_is_lit_in_the_film(tmp_path: Path) -> None:
    frame = np.zeros((192, 192, 3), np.uint8)
    idle = draw_action(frame, Action(), ("w", "d"))
    pressed = draw_action(frame, Action(("w",)), ("w", "d"))
    other = draw_action(frame, Action(("d",)), ("w", "d"))
    assert idle.shape == (448, 384, 3)
    assert np.array_equal(idle[:384], np.zeros((384, 384, 3)))
    assert pressed[384:].astype(int).sum() > idle[384:].astype(int).sum()
    assert not np.array_equal(pressed, other)
    moved = draw_action(frame, Action(dx=50), ("w", "d"))
    assert not np.array_equal(moved, idle)


def test_a_film_that_is_not_finished_does_not_appear(tmp_path: Path) -> None:
    def interrupted() -> None:
        with VideoWriter(tmp_path / "film.mp4") as film:
            film.add(np.zeros((448, 384, 3), np.uint8))
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert os.listdir(tmp_path) == []


def test_a_video_of_another_kind_is_refused_before_anything_is_played(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["play", str(tmp_path), "--game", "doom:basic", "--video", str(tmp_path / "x.gif")]
    assert main(command) == 2
    assert "write a name that ends in .mp4" in capsys.readouterr().err
