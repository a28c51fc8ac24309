"""The demo's own decisions: what is reused, what is typed, and when a policy has learned to play."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from p2p.demo import DemoSettings, causality_facts, run_folder_of, seeds_table, train_command, verdict
from p2p.environments.registry import find_game
from p2p.play.report import Report, key_shares, running_mean, write_report
from p2p.play.results import PlayedEpisode
from p2p.stages import Stages, clear


class Work:
    """Two stages that count how often they are done."""

    def __init__(self, out: Path) -> None:
        self.out, self.done = out, []  # type: ignore[var-annotated]

    def run(self, one: dict[str, Any], two: dict[str, Any]) -> list[str]:
        """Both stages; returns those that were done and not reused."""
        self.done = []
        stages = Stages(self.out / "stages", 2)
        stages.run("one", "the first", one, self.out / "one", self._work("one"))
        stages.run("two", "the second", two, self.out / "two", self._work("two"))
        return self.done

    def _work(self, name: str) -> Callable[[], str]:
        def work() -> str:
            assert not (self.out / name).exists() or (self.out / name / "kept").exists()
            (self.out / name).mkdir(parents=True, exist_ok=True)
            self.done.append(name)
            return f"{name} is made"

        return work


def test_a_stage_is_reused_while_nothing_before_it_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = Work(tmp_path)
    assert work.run({"a": 1}, {"b": 1}) == ["one", "two"]
    assert work.run({"a": 1}, {"b": 1}) == []
    assert "reused: one is made" in capsys.readouterr().out
    assert work.run({"a": 1}, {"b": 2}) == ["two"]
    assert work.run({"a": 2}, {"b": 2}) == ["one", "two"]


def test_a_stage_whose_result_is_gone_is_done_again(tmp_path: Path) -> None:
    work = Work(tmp_path)
    work.run({}, {})
    clear(tmp_path / "two", tmp_path)
    assert work.run({}, {}) == ["two"]


def test_an_interrupted_stage_goes_on_with_what_it_left(tmp_path: Path) -> None:
    def interrupted() -> str:
        (tmp_path / "one").mkdir()
        (tmp_path / "one" / "kept").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Stages(tmp_path / "stages", 2).run("one", "the first", {}, tmp_path / "one", interrupted)
    assert Work(tmp_path).run({}, {}) == ["one", "two"]
    assert (tmp_path / "one" / "kept").exists()


def test_what_lies_elsewhere_is_set_aside_and_not_removed(tmp_path: Path) -> None:
    theirs = tmp_path / "runs" / "doom-tiny"
    theirs.mkdir(parents=True)
    (theirs / "weights").touch()
    clear(theirs, tmp_path / "demo")
    assert (tmp_path / "runs" / "doom-tiny.old-1" / "weights").exists()


def test_the_plain_demo_trains_with_the_command_as_the_documentation_types_it() -> None:
    settings = DemoSettings()
    run_folder = run_folder_of(settings, 0)
    assert run_folder == Path("runs/doom-tiny")
    assert train_command(settings, 0, run_folder) == ["p2p", "train", "doom-tiny"]


def test_another_folder_or_seed_is_named_on_the_command_line() -> None:
    settings = replace(DemoSettings(), out=Path("/tmp/x"), updates=5)
    command = train_command(settings, 2, run_folder_of(settings, 2))
    assert command[3:] == [
        "data.train=/tmp/x/shards/train",
        "data.val=/tmp/x/shards/val",
        "run_folder=/tmp/x/training-2",
        "seed=2",
        "max_duration=5ba",
    ]


def episodes(**scores: float) -> list[PlayedEpisode]:
    return [
        PlayedEpisode(player, seed, score + offset, 10, {"w": 5})
        for player, score in scores.items()
        for seed, offset in enumerate((-10, 10))
    ]


@pytest.mark.parametrize(
    ("scores", "passed"),
    [
        ({"policy": 2100, "shuffled": 900, "expert": 2100, "random": 400}, True),
        ({"policy": 1650, "shuffled": 900, "expert": 2100, "random": 400}, False),
        ({"policy": 2100, "shuffled": 1700, "expert": 2100, "random": 400}, False),
        ({"policy": 1750, "shuffled": 900, "expert": 2100, "blind": 1800}, False),
    ],
)
def test_a_policy_has_learned_when_it_scores_and_looks(scores: dict[str, float], passed: bool) -> None:
    assert verdict(DemoSettings(), episodes(**scores))[0] is passed


def test_the_seeds_stand_in_one_table() -> None:
    table = seeds_table({0: episodes(policy=2000, random=400), 1: episodes(policy=1900, random=300)})
    assert table.splitlines()[2:] == ["| 0 | 2000 ± 10 | 400 ± 10 |", "| 1 | 1900 ± 10 | 300 ± 10 |"]


def test_the_report_has_its_table_and_its_pictures(tmp_path: Path) -> None:
    metrics = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "val/loss": 1.5}]
    played = episodes(policy=2000, shuffled=900, expert=2100)
    report = Report("A title", find_game("doom:health_gathering"), played, ["a fact"], metrics, [("film", "f.mp4")])
    path = write_report(report, tmp_path / "report")
    text = path.read_text()
    assert "| policy   |        2 |     2000.0 |" in text
    assert "[film](f.mp4)" in text
    for picture in ("scores", "keys", "training"):
        assert f"]({picture}.png)" in text
        assert (path.parent / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
    assert key_shares(played, "policy") == {"w": 0.5}
    assert running_mean([4.0, 2.0, 0.0], 2) == [4.0, 3.0, 1.0]


@pytest.mark.parametrize("content", ['{"causality": null}', "{}", "not JSON"])
def test_an_evaluation_without_a_causality_score_has_no_line_about_it(tmp_path: Path, content: str) -> None:
    (tmp_path / "report.json").write_text(content)  # one recording has no other one to take frames from
    assert causality_facts(tmp_path / "report.json") == []


def test_the_causality_score_stands_in_the_report(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text('{"causality": {"score": 396.3, "std": 16.2, "per_step": 1.238}}')
    assert causality_facts(path) == ["causality score: 396 ± 16, 1.24 nats a step (0: the picture changes nothing)"]
