"""`p2p demo`, which `make demo` calls: everything once, from a recorded game to a report.

    p2p demo                     # about ten minutes on two cores; a second run reuses what is there
    p2p demo --seed 0 1 2        # three trainings on the same recordings, and their table

Each stage leaves its result in the folder --out and a note in --out/stages that says with which settings it was made. A
stage is reused when its note and those of all stages before it say the same.
"""

import argparse
import contextlib
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2p.console import ProgressBar, duration_text, say
from p2p.environments.registry import find_game
from p2p.files import new_folder, owned
from p2p.play.comparison import PlaySettings, plan_episodes, play, start_servers
from p2p.play.record import RecordSettings, own_recordings, record_episodes
from p2p.play.report import Report, write_report
from p2p.play.results import POLICY, SHUFFLED, PlayedEpisode, format_table, read_results, summarise, write_results
from p2p.processes.reaper import mark_children
from p2p.processes.stopping import stoppable
from p2p.recipe import find_recipe, load_recipe, parse_duration
from p2p.stages import Stages, read_note
from p2p.train.metrics_file import MetricsFile

DEFAULT_OUT = Path("runs/demo")
LOCK_FILE = ".lock"  # of the demo that works in the folder
NUM_STAGES = 7
_LOOK_EVERY_S = 0.5  # at what a command has done


@dataclass(frozen=True)
class DemoSettings:
    """What the demo does. `updates` None: as many as the recipe says; `least_score` is what the policy must reach."""

    out: Path = DEFAULT_OUT
    game: str = "doom:health_gathering"
    recipe: str = "doom-tiny"
    recordings: int = 44
    val_share: float = 0.1
    updates: int | None = None
    episodes: int = 20
    compare: tuple[str, ...] = (SHUFFLED, "expert", "random", "blind")
    workers: int = 2
    least_score: float = 1700.0
    least_margin: float = 500.0  # over its control

    def __post_init__(self) -> None:
        for name in ("recordings", "episodes", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}: expected 1 or more")


# ------------------------------------------------------------------ the stages


def record(settings: DemoSettings) -> str:
    """Recordings of the scripted player."""
    raw = settings.out / "raw"
    wanted = RecordSettings(settings.game)
    names = {wanted.recording_id(episode) for episode in range(settings.recordings)}
    raw.mkdir(parents=True, exist_ok=True)
    with own_recordings(raw):
        for folder in raw.glob(wanted.recording_id(0)[:-5] + "*"):  # more than asked for: of an earlier demo
            if folder.name not in names:
                shutil.rmtree(folder)
    num_new, _ = record_episodes(wanted, settings.recordings, raw, settings.workers)
    reused = settings.recordings - num_new
    return f"{settings.recordings} recordings in {raw}" + (f", {reused} of them were there" if reused else "")


def convert(settings: DemoSettings) -> str:
    """Shards of the recordings, with a validation split."""
    from p2p_convert.plan import Options
    from p2p_convert.run import convert as convert_recordings

    start_s = time.monotonic()
    options = Options(val_fraction=settings.val_share)
    summary = convert_recordings([settings.out / "raw"], settings.out / "shards", options, settings.workers)
    num_frames, seconds = sum(summary.frames.values()), time.monotonic() - start_s
    return f"{num_frames:,} frames in {seconds:.1f} s ({num_frames / seconds:,.0f} frames/s)"


def train_command(settings: DemoSettings, seed: int, run_folder: Path) -> list[str]:
    """The command as a user would type it; only what differs from the recipe is named."""
    command = ["p2p", "train", settings.recipe]
    if settings.out != DEFAULT_OUT:
        command += [f"data.{split}={settings.out / 'shards' / split}" for split in ("train", "val")]
    if run_folder != _default_run_folder(settings):
        command.append(f"run_folder={run_folder}")
    if seed != 0:
        command.append(f"seed={seed}")
    if settings.updates is not None:
        command.append(f"max_duration={settings.updates}ba")
    return command


def _default_run_folder(settings: DemoSettings) -> Path:
    return Path("runs") / settings.recipe


def run_folder_of(settings: DemoSettings, seed: int) -> Path:
    """Where a training leaves its checkpoints: the recipe's own place for the plain demo."""
    if settings.out == DEFAULT_OUT and seed == 0:
        return _default_run_folder(settings)
    return settings.out / f"training-{seed}"


def train(settings: DemoSettings, seed: int) -> str:
    """Runs the trainer; a run that was interrupted goes on where it was."""
    run_folder = run_folder_of(settings, seed)
    command = train_command(settings, seed, run_folder)
    say(f"      $ {' '.join(command)}")
    metrics = MetricsFile(run_folder / "metrics.jsonl")
    num_updates, unit = parse_duration(load_recipe(settings.recipe, command[3:]).max_duration, "max_duration")
    progress = ProgressBar("training", num_updates, "updates" if unit == "ba" else "epochs")

    def show() -> dict[str, Any]:
        *_, last = [{"step": 0, "epoch": 0}, *metrics.entries()]
        progress.update(last["step" if unit == "ba" else "epoch"], note=f"loss {last.get('loss', math.nan):.4f}")
        return last

    _run([*_module("p2p.cli"), *command[1:]], settings.out / "logs" / f"train-{seed}.log", show)
    last = show()
    progress.close()
    return f"{last['step']} updates, loss {last['loss']:.4f}" if "loss" in last else f"trained: {run_folder}"


def export(run_folder: Path, policy: Path, log: Path) -> str:
    """The final weights as a policy folder, which is all that serving needs."""
    _run([*_module("p2p.cli"), "export", str(run_folder), "--out", str(policy)], log)
    megabytes = sum(file.stat().st_size for file in policy.iterdir()) / 1e6
    return f"{policy} ({megabytes:.1f} MB)"


def play_episodes(settings: DemoSettings, policy: Path, folder: Path) -> str:
    """Serve the policy, let it and its controls play, write the results and the film."""
    plan = plan_episodes((POLICY, *settings.compare), settings.episodes, video=str(folder / "play.mp4"))
    with ExitStack() as stack:
        addresses = start_servers(stack, policy, settings.workers, seed=0)
        say(f"      p2p-serve listens on {', '.join(addresses)}")
        play_settings = PlaySettings(settings.game, addresses)
        episodes = play(play_settings, plan, settings.workers)
    write_results(folder / "play.json", settings.game, episodes)
    row = summarise(episodes)[0]
    return f"mean score of the policy {row.mean:.1f} over {row.num_episodes} episodes"


def evaluate(settings: DemoSettings, policy: Path, out: Path) -> str:
    """Offline metrics beside their baselines and the causality score on validation shards; a recording to look at."""
    command = [*_module("p2p.cli"), "evaluate", str(policy), "--data", str(settings.out / "shards" / "val")]
    command += ["--chunks", "100", "--free-chunks", "8", "--batch-size", "8"]  # of 400: a minute is enough
    recording = settings.out / "raw" / RecordSettings(settings.game).recording_id(0)
    view = [*_module("p2p.cli"), "view", str(recording), "--policy", str(policy), "--frames", "200"]
    with new_folder(out) as folder:
        _run([*command, "--out", str(folder)], settings.out / "logs" / "evaluate.log")
        _run([*view, "--out", str(folder / "view.html")], settings.out / "logs" / "view.log")
    return ", ".join([*causality_facts(out / "report.json"), f"report in {out}"])


def _module(name: str) -> list[str]:
    return [sys.executable, "-m", name]


def _run(command: Sequence[str], log_path: Path, while_it_runs: Callable[[], object] = lambda: None) -> None:
    """Run a command to its end, its output in a log file.

    Raises:
        ValueError: when it fails, with its last lines.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        while process.poll() is None:
            while_it_runs()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_LOOK_EVERY_S)
    finally:
        process.kill()
        process.wait()
    if process.returncode != 0:
        end = "\n".join(f"    {line}" for line in log_path.read_text(errors="replace").splitlines()[-12:])
        status = f"ended with status {process.returncode}; its log is {log_path}"
        raise ValueError(f"{' '.join(command)} {status}, and ends:\n{end}")


# ------------------------------------------------------------------ all stages


def run_demo(settings: DemoSettings, seed: int) -> list[PlayedEpisode]:
    """All stages for one training seed; returns the episodes that were played."""
    out, run_folder, folder = settings.out, run_folder_of(settings, seed), settings.out / f"seed-{seed}"
    policy = folder / "policy"
    stages = Stages(out / "stages", NUM_STAGES)
    play_text = f"{settings.episodes} episodes of each: {', '.join((POLICY, *settings.compare))}"
    stages.run(
        "record",
        f"a scripted player plays {settings.game}",
        {"game": settings.game, "recordings": settings.recordings},
        out / "raw" / RecordSettings(settings.game).recording_id(settings.recordings - 1),
        lambda: record(settings),
    )
    stages.run(
        "convert", "recordings into shards", {"val": settings.val_share}, out / "shards", lambda: convert(settings)
    )
    stages.run(
        f"train-{seed}",
        f"a policy by the recipe {settings.recipe}, seed {seed}",
        {"recipe": find_recipe(settings.recipe).read_text(), "updates": settings.updates, "seed": seed},
        run_folder,
        lambda: train(settings, seed),
    )
    stages.run(
        f"export-{seed}", "final weights", {}, policy, lambda: export(run_folder, policy, out / "logs" / "export.log")
    )
    stages.run(
        f"play-{seed}",
        play_text,
        {"episodes": settings.episodes, "compare": settings.compare},
        folder / "play.json",
        lambda: play_episodes(settings, policy, folder),
    )
    stages.run(
        f"evaluate-{seed}",
        "the policy on recordings it has not seen, and its causality score",
        {},
        folder / "evaluation",
        lambda: evaluate(settings, policy, folder / "evaluation"),
    )
    episodes = read_results(folder / "play.json")
    say(f"[{NUM_STAGES}/{NUM_STAGES}] report: {report(settings, seed, episodes, stages.seconds)}")
    return episodes


def report(settings: DemoSettings, seed: int, episodes: Sequence[PlayedEpisode], seconds: dict[str, float]) -> Path:
    """Write report.md with its pictures."""
    folder = settings.out / f"seed-{seed}"
    run_folder = run_folder_of(settings, seed)
    facts = [
        f"recordings: {settings.recordings} episodes of the scripted player, disturbed now and then by random keys",
        f"training: `{' '.join(train_command(settings, seed, run_folder))}`",
        f"play: {settings.episodes} episodes of each player, on seeds that no recording used",
    ]
    facts += causality_facts(folder / "evaluation" / "report.json")
    links = [("film of the policy's first episode", "play.mp4"), ("every episode's score", "play.json")]
    if (folder / "evaluation").is_dir():
        links += [
            ("offline metrics, baselines and causality score", "evaluation/report.html"),
            ("a recording with the recorded and the predicted actions, frame by frame", "evaluation/view.html"),
        ]
    title = f"P2P demo: {settings.game}, training seed {seed}"
    metrics = [*MetricsFile(run_folder / "metrics.jsonl").entries()]
    content = Report(title, find_game(settings.game), episodes, facts, metrics, links, seconds)
    return write_report(content, folder)


def causality_facts(path: Path) -> list[str]:
    """The line about the causality score of an evaluation's report.json, if there is one."""
    causality = read_note(path).get("causality")
    if not causality:
        return []
    score, std, per_step = (causality[name] for name in ("score", "std", "per_step"))
    return [f"causality score: {score:.0f} ± {std:.0f}, {per_step:.2f} nats a step (0: the picture changes nothing)"]


def verdict(settings: DemoSettings, episodes: Sequence[PlayedEpisode]) -> tuple[bool, str]:
    """Whether the policy plays and looks, and the sentence that says so."""
    means = {row.player: row.mean for row in summarise(episodes)}
    score, others = means[POLICY], {name: mean for name, mean in means.items() if name not in (POLICY, "expert")}
    margin = score - others.get(SHUFFLED, float("-inf"))
    passed = score >= settings.least_score and margin >= settings.least_margin and score > max(others.values())
    return passed, (
        f"the policy scores {score:.0f} (at least {settings.least_score:.0f} wanted), {margin:.0f} more than the same "
        f"policy shown frames of other moments (at least {settings.least_margin:.0f} wanted): "
        + ("it looks, and it plays" if passed else "it has not learned to play")
    )


def seeds_table(results: dict[int, list[PlayedEpisode]]) -> str:
    """One line per training seed: the mean score of each player with its standard error."""
    players = list(dict.fromkeys(episode.player for episodes in results.values() for episode in episodes))
    lines = ["| training seed | " + " | ".join(players) + " |", "| ---: |" + " ---: |" * len(players)]
    for seed, episodes in results.items():
        rows = {row.player: row for row in summarise(episodes)}
        errors = {name: row.standard_error for name, row in rows.items()}
        cells = [
            f"{rows[name].mean:.0f}" + ("" if errors[name] is None else f" ± {errors[name]:.0f}") for name in players
        ]
        lines.append(f"| {seed} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "--out", type=Path, default=DEFAULT_OUT, metavar="DIR", help="folder of everything it makes (%(default)s)"
    )
    parser.add_argument(
        "--recordings", type=int, default=DemoSettings.recordings, metavar="N", help="recorded episodes (%(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, nargs="+", default=[0], metavar="N", help="of the training (0); several: a training each"
    )
    parser.add_argument(
        "--updates", type=int, metavar="N", help="of the training: fewer are quicker and play worse (the recipe's)"
    )
    parser.add_argument(
        "--episodes", type=int, default=DemoSettings.episodes, metavar="N", help="played by each player (%(default)s)"
    )
    parser.add_argument(
        "--workers", type=int, default=DemoSettings.workers, metavar="N", help="games at once (%(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """All stages; the exit status is 1 when the policy has not learned to play."""
    settings = DemoSettings(
        out=args.out,
        recordings=args.recordings,
        updates=args.updates,
        episodes=args.episodes,
        workers=args.workers,
    )
    settings.out.mkdir(parents=True, exist_ok=True)
    with stoppable(), owned(settings.out / LOCK_FILE, str(settings.out), "let it finish, or choose another --out"):
        return _run_seeds(settings, args.seed)


def _run_seeds(settings: DemoSettings, seeds: Sequence[int]) -> int:
    """All stages for one seed after another, and what came of it."""
    mark_children()
    start_s = time.monotonic()
    results, passed = {}, True
    for seed in seeds:
        results[seed] = run_demo(settings, seed)
        say()
        say(format_table(summarise(results[seed])))
        seed_passed, text = verdict(settings, results[seed])
        passed = passed and seed_passed
        say(text)
    if len(results) > 1:
        say("\n" + seeds_table(results))
    say(f"done in {duration_text(time.monotonic() - start_s)}; start with {settings.out}/seed-{seeds[0]}/report.md")
    return 0 if passed else 1
