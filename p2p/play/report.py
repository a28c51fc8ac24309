"""What a comparison of players looks like on paper: Markdown with pictures, from the results and the training's log."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2p.environments.game import Game
from p2p.files import write_file
from p2p.play.results import DESCRIPTIONS, POLICY, SHUFFLED, PlayedEpisode, format_table, summarise

COLOURS = {POLICY: "#2a6fdb", SHUFFLED: "#8fb4ee", "expert": "#e0a100"}
OTHER_COLOUR = "#9a9a9a"


@dataclass(frozen=True)
class Report:
    """All that one report is written from.

    Args:
        facts: lines of the opening list.
        metrics: the entries of the training's metrics.jsonl; none: no curve.
        links: (text, target) of the further files, relative to the report.
        stage_seconds: how long each stage took.
    """

    title: str
    game: Game
    episodes: Sequence[PlayedEpisode]
    facts: Sequence[str] = ()
    metrics: Sequence[Mapping[str, Any]] = ()
    links: Sequence[tuple[str, str]] = ()
    stage_seconds: Mapping[str, float] | None = None


def write_report(report: Report, folder: Path) -> Path:
    """Write report.md and its pictures into `folder`; returns the path of report.md."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"# {report.title}", ""]
    lines += [*(f"- {fact}" for fact in report.facts), ""]
    lines += [f"## Scores in {report.game.name}", "", format_table(summarise(report.episodes)), ""]
    plot_scores(report.episodes, folder / "scores.png")
    lines += ["Each dot is an episode; all players played the same seeds.", "", "![scores](scores.png)", ""]
    plot_keys(report.episodes, report.game, folder / "keys.png")
    lines += ["## Keys", "", "Share of the steps in which a key was down.", "", "![keys](keys.png)", ""]
    if report.metrics:
        plot_training(report.metrics, folder / "training.png")
        lines += ["## Training", "", "![training](training.png)", ""]
    if report.stage_seconds:
        lines += ["## Time", "", "| stage | seconds |", "| --- | ---: |"]
        lines += [f"| {stage} | {seconds:.0f} |" for stage, seconds in report.stage_seconds.items()] + [""]
    if report.links:
        lines += ["## More", "", *(f"- [{text}]({target})" for text, target in report.links), ""]
    path = folder / "report.md"
    write_file(path, "\n".join(lines).encode())
    return path


def _figure(width: float, height: float) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(width, height), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def plot_scores(episodes: Sequence[PlayedEpisode], path: Path) -> None:
    """Mean scores as bars, each episode as a dot."""
    rows = summarise(episodes)
    figure, axes = _figure(7, 3.2)
    for place, row in enumerate(rows):
        scores = [e.score for e in episodes if (e.player, e.text) == (row.player, row.text)]
        axes.barh(place, row.mean, color=COLOURS.get(row.player, OTHER_COLOUR), height=0.6)
        heights = [place + 0.4 * (index / max(1, len(scores) - 1) - 0.5) for index in range(len(scores))]
        axes.plot(scores, heights, "o", color="black", markersize=3, alpha=0.5, linewidth=0)
    axes.set_yticks(range(len(rows)), [row.player for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("score of an episode")
    _save(figure, path)


def key_shares(episodes: Sequence[PlayedEpisode], player: str) -> dict[str, float]:
    """Of one player: the share of steps in which each key was down."""
    played = [episode for episode in episodes if episode.player == player]
    num_steps = sum(episode.num_steps for episode in played)
    names = sorted({name for episode in played for name in episode.presses})
    return {name: sum(episode.presses.get(name, 0) for episode in played) / max(1, num_steps) for name in names}


def plot_keys(episodes: Sequence[PlayedEpisode], game: Game, path: Path) -> None:
    """How often the policy, its control and the scripted player held each key."""
    players = [player for player in (POLICY, SHUFFLED, "expert") if any(e.player == player for e in episodes)]
    shares = {player: key_shares(episodes, player) for player in players}
    used = {name for table in shares.values() for name, share in table.items() if share >= 0.005}
    names = [*game.keys, *sorted(used - set(game.keys))]
    figure, axes = _figure(7, 2.8)
    width = 0.8 / max(1, len(players))
    for number, player in enumerate(players):
        places = [index + (number - (len(players) - 1) / 2) * width for index in range(len(names))]
        heights = [shares[player].get(name, 0.0) for name in names]
        axes.bar(places, heights, width, color=COLOURS[player], label=DESCRIPTIONS[player])
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("share of steps")
    axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def plot_training(entries: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The training loss of each update with its running mean, and the validation loss."""
    points = [(entry["step"], entry["loss"]) for entry in entries if "loss" in entry]
    checks = [(entry["step"], entry["val/loss"]) for entry in entries if "val/loss" in entry]
    figure, axes = _figure(7, 3.2)
    if points:
        steps, losses = zip(*points, strict=True)
        axes.plot(steps, losses, color=COLOURS[SHUFFLED], linewidth=0.7, label="training, each update")
        axes.plot(steps, running_mean(losses, 20), color=COLOURS[POLICY], label="training, mean of 20")
    if checks:
        axes.plot(*zip(*checks, strict=True), "o-", color=COLOURS["expert"], markersize=4, label="validation")
    axes.set_yscale("log")
    axes.set_xlabel("update")
    axes.set_ylabel("loss")
    axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """The mean of each value and the up to `width` - 1 before it."""
    result = []
    for index in range(len(values)):
        window = values[max(0, index - width + 1) : index + 1]
        result.append(sum(window) / len(window))
    return result
