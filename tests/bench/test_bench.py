"""The benchmark: intervals, a row for each player and game, crashes that cost one episode, and the report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from p2p.bench.playing import GamePlayers, players_of
from p2p.bench.report import median_curve, page
from p2p.bench.scores import Scored, summarise, table, wilson
from p2p.bench.suites import games_of
from p2p.cli import main
from p2p.environments.registry import make_env
from p2p.processes.reaper import mark_children, marked_processes

LEVEL, ROOM = "doom:freedoom2:MAP01:no_monsters", "doom:basic"


def level_episode(end: Any, curve: tuple[float, ...], player: str = "policy", kills: int = 0) -> Scored:
    return Scored(LEVEL, player, 1, end, 100 * curve[-1], 20 * len(curve), kills, curve, ((0.0, 0.0), (9.0, 9.0)))


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [(0, 20, 0.0, 0.161), (20, 20, 0.839, 1.0), (10, 20, 0.299, 0.701), (38, 40, 0.835, 0.986), (0, 0, 0.0, 1.0)],
)
def test_wilsons_interval_is_that_of_the_tables(successes: int, count: int, low: float, high: float) -> None:
    assert wilson(successes, count) == pytest.approx((low, high), abs=0.001)


def test_a_row_counts_exits_deaths_and_crashes_and_takes_medians() -> None:
    episodes = [
        level_episode("exit", (0.5, 1.0), kills=3),
        level_episode("dead", (0.1, 0.4), kills=1),
        level_episode("time", (0.2, 0.6), kills=2),
        Scored(LEVEL, "policy", 4, "crash", 0.0, 0, error="gone"),
    ]
    (row,) = summarise(episodes)
    assert (row.num_episodes, row.exits, row.deaths, row.crashes) == (4, 1, 1, 1)
    assert row.median_progress == pytest.approx(0.5)
    assert row.median_kills == 1.5
    assert (row.exit_low, row.exit_high) == wilson(1, 4)
    head, line = table([row])
    assert dict(zip(head, line, strict=True))["95 %"] == "5%-70%"


def test_a_room_has_a_score_and_no_exits() -> None:
    rows = summarise([Scored(ROOM, "expert", seed, "over", score, 40) for seed, score in ((1, 80.0), (2, 90.0))])
    cells = dict(zip(*table(rows), strict=True))
    assert (cells["exits"], cells["score"], cells["± s.e."]) == ("", "85.0", "5.0")


def test_the_curve_of_an_episode_that_is_over_stays_where_it_ended() -> None:
    episodes = [level_episode("exit", (0.5, 1.0)), level_episode("time", (0.1, 0.2, 0.3, 0.4))]
    assert median_curve(episodes) == pytest.approx([0.3, 0.6, 0.65, 0.7])


def test_names_from_outside_stand_in_the_page_as_text() -> None:
    crash = Scored("doom:<b>", "policy", 1, "crash", 0.0, 0, error="<script>")
    text = page("<i>", summarise([crash]), [], [crash])
    assert "<script>" not in text
    assert "<b>" not in text
    assert "&lt;script&gt;" in text


def test_an_unknown_suite_and_an_unknown_player_are_named_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="doom-rooms, doom-levels, all"):
        games_of("doom")
    with pytest.raises(ValueError, match="'nobody': choose from expert, random"):
        players_of(True, ["nobody"])
    assert games_of(ROOM) == [ROOM]
    assert set(games_of("all")) == {*games_of("doom-rooms"), *games_of("doom-levels")}


class Killing(gymnasium.Wrapper):  # type: ignore[type-arg]
    """Kills the engine in the third step of the episode with this seed."""

    def __init__(self, env: Any, seed: int) -> None:
        super().__init__(env)
        self._seed = seed

    def reset(self, **kwargs: Any) -> Any:
        self._left = 3 if kwargs["seed"] == self._seed else 10**9
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> Any:
        self._left -= 1
        if self._left == 0:
            for process in marked_processes(mark_children()):
                os.kill(process, signal.SIGKILL)
        return self.env.step(action)


def test_an_engine_that_is_killed_costs_its_episode_and_the_next_has_a_new_one() -> None:
    def make(name: str, **options: Any) -> Any:
        return Killing(make_env(name, **options), 6)

    players = GamePlayers(ROOM, make=make)
    ends = {episode.seed: (episode.end, episode.error) for episode in players.play("idle", [5, 6, 7])}
    assert [ends[seed][0] for seed in (5, 6, 7)] == ["over", "crash", "over"]
    assert "the game has ended" in ends[6][1]


def test_a_policy_that_is_gone_is_an_error_and_no_crash_of_the_game() -> None:
    class Gone:
        def reset(self, seed: int) -> None:
            return

        def act(self, observation: Any, info: Any) -> Any:
            raise ValueError("the server closed the connection")

    with pytest.raises(ValueError, match="the server closed"):
        list(GamePlayers(ROOM, Gone()).play("policy", [1]))


def test_the_command_prints_the_table_and_writes_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench"
    assert main(["bench", "--suite", LEVEL, "--players", "expert", "--episodes", "1", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "21%-100%" in printed, "one exit of one"
    results = json.loads((out / "results.json").read_text())
    assert [episode["end"] for episode in results["episodes"]] == ["exit"]
    assert results["summary"][0]["median_progress"] == 1
    assert all(episode["curve"] == sorted(episode["curve"]) for episode in results["episodes"])
    name = LEVEL.replace(":", "-")
    pictures = [f"{name}-progress.png", f"{name}-ways.png"]
    assert all((out / picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)
    assert all(picture in (out / "index.html").read_text() for picture in pictures)
    assert sorted(path.name for path in out.iterdir()) == sorted(["index.html", "results.json", *pictures])


def test_killed_in_the_middle_it_leaves_no_engine(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "p2p", "bench", "--suite", ROOM, "--players", "idle", "--episodes", "5000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        with closing(process.stderr) as lines:
            assert "seed 1000000000" in lines.readline(), "the first episode is over"
            engines = children(process.pid)
            assert engines
            process.kill()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{engine}").exists() for engine in engines) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [engine for engine in engines if Path(f"/proc/{engine}").exists()]


def children(pid: int) -> list[int]:
    """The processes of ViZDoom that a process has started."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            name = (entry / "comm").read_text()
        except (OSError, IndexError):
            continue
        if parent == pid and "vizdoom" in name:
            found.append(int(entry.name))
    return found
