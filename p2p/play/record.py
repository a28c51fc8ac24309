"""`p2p record`: a scripted player plays a game, several processes at once; every episode becomes a raw recording.

    p2p record --game doom:health_gathering --episodes 40 --out runs/raw

The player is disturbed now and then by short bursts of random keys. They are executed, but what is written down is what
the player would have pressed, so that mistakes and the way back from them can be learned.
"""

import argparse
import json
import multiprocessing
import os
import queue
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from p2p.play.console import Progress, duration_text, say
from p2p.play.games import FRAME_RATE_HZ, FRAME_SIZE, GAMES, GameInfo, game_info

SETTINGS_FILE = "record.json"
SEED_STRIDE = 100_000  # seeds of two recording runs never meet, nor those of evaluation (episodes.FIRST_SEED)


@dataclass(frozen=True)
class RecordSettings:
    """What decides the content of a set of recordings; `disturbance` is the chance per step that a burst begins."""

    game: str
    seed: int = 0
    disturbance: float = 0.02
    preset: str = "ultrafast"

    def __post_init__(self) -> None:
        game_info(self.game)
        if self.seed < 0:
            raise ValueError(f"--seed {self.seed}: expected 0 or more")
        if not 0 <= self.disturbance <= 1:
            raise ValueError(f"--disturbance {self.disturbance}: expected a probability from 0 to 1")

    def recording_id(self, episode: int) -> str:
        """The folder name of one episode's recording."""
        return f"{self.game.replace(':', '-')}-{self.seed:03d}-{episode:05d}"


def record_episodes(settings: RecordSettings, episodes: int, out: Path, num_workers: int = 2) -> tuple[int, int]:
    """Record the episodes 0 .. episodes-1 that are not in `out` yet; returns how many were new and how many frames.

    Raises:
        ValueError: when `out` holds recordings made with other settings, or a worker fails.
    """
    _check_folder(settings, out)
    for unfinished in out.glob(".*.partial-*"):  # of a run that was killed
        shutil.rmtree(unfinished)
    missing = [episode for episode in range(episodes) if not (out / settings.recording_id(episode)).is_dir()]
    if not missing:
        return 0, 0
    info = game_info(settings.game)
    progress = Progress("recording", len(missing) * info.max_steps, "frames")
    num_frames = num_done = 0
    for kind, value in _run_workers(settings, missing, out, min(num_workers, len(missing))):
        if kind == "failed":
            raise ValueError(f"recording {settings.game} into {out} failed: {value}")
        num_done += kind == "episode"
        num_frames += value if kind == "frames" else 0
        progress.update(num_frames)
    progress.close()
    return num_done, num_frames


def _check_folder(settings: RecordSettings, out: Path) -> None:
    """Create `out` with its settings, or see that those in it are the same."""
    path = out / SETTINGS_FILE
    text = json.dumps(asdict(settings), indent=2) + "\n"
    if path.exists():
        if path.read_text() != text:
            raise ValueError(
                f"{out} holds recordings made with other settings (see {path}); choose another --out or remove it"
            )
        return
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty and has no {SETTINGS_FILE}; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    temporary.write_text(text)
    os.replace(temporary, path)


def _run_workers(
    settings: RecordSettings, episodes: list[int], out: Path, num_workers: int
) -> Iterator[tuple[str, Any]]:
    """Messages of the workers: ("frames", how many more), ("episode", number), ("failed", why)."""
    from p2p.play.reaper import mark_children

    mark_children()
    context = multiprocessing.get_context("spawn")
    messages: Any = context.Queue()
    workers = [
        context.Process(
            target=_record_some, args=(settings, episodes[index::num_workers], str(out), messages), daemon=True
        )
        for index in range(num_workers)
    ]
    for worker in workers:
        worker.start()
    try:
        num_running = num_workers
        while num_running:
            try:
                kind, value = messages.get(timeout=1.0)
            except queue.Empty:
                dead = [worker.exitcode for worker in workers if worker.exitcode]
                if dead:
                    yield "failed", f"a worker ended with status {dead[0]}"
                continue
            if kind == "end":
                num_running -= 1
            else:
                yield kind, value
        for worker in workers:
            worker.join()
    finally:
        for worker in workers:
            worker.kill()
            worker.join()


def _record_some(settings: RecordSettings, episodes: list[int], out: str, messages: Any) -> None:
    """A worker's whole life."""
    from p2p.play.games import open_game
    from p2p.play.player import Disturbed, scripted_player

    try:
        info = game_info(settings.game)
        game = open_game(settings.game, labels=True)
        try:
            player = Disturbed(scripted_player(info), info, settings.disturbance)
            for episode in episodes:
                _record_episode(game, player, info, settings, episode, Path(out), messages)
                messages.put(("episode", episode))
        finally:
            game.close()
        messages.put(("end", 0))
    except (ValueError, OSError) as error:
        messages.put(("failed", str(error)))


def _record_episode(
    game: Any, player: Any, info: GameInfo, settings: RecordSettings, episode: int, out: Path, messages: Any
) -> None:
    from p2p.recording import RecordingWriter

    seed = settings.seed * SEED_STRIDE + episode
    game.reset(seed)
    player.begin(game, seed)
    num_frames = 0
    with RecordingWriter(
        out / settings.recording_id(episode),
        settings.recording_id(episode),
        frame_rate_hz=FRAME_RATE_HZ,
        size=(FRAME_SIZE, FRAME_SIZE),
        game=info.name,
        preset=settings.preset,
    ) as writer:
        while not game.done:
            frame = game.frame()
            executed = player.act(frame)
            writer.add(frame, player.intended, None)
            game.act(executed)
            num_frames += 1
            if num_frames % 50 == 0:
                messages.put(("frames", 50))
    messages.put(("frames", num_frames % 50))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--game", required=True, help=f"one of {', '.join(GAMES)}")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--episodes", type=int, help="how many episodes")
    length.add_argument("--hours", type=float, help="how many hours of game time, in whole episodes of full length")
    parser.add_argument("--out", required=True, type=Path, help="folder of the recordings")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed records other episodes (%(default)s)")
    parser.add_argument(
        "--disturbance", type=float, default=0.02, help="chance per step that random keys begin (%(default)s)"
    )
    parser.add_argument("--preset", default="ultrafast", help="preset of the x264 encoder (%(default)s)")


def num_episodes(args: argparse.Namespace) -> int:
    """How many episodes the options ask for."""
    if args.hours is not None:
        steps = args.hours * 3600 * FRAME_RATE_HZ
        return max(1, round(steps / game_info(args.game).max_steps))
    if args.episodes < 1:
        raise ValueError(f"--episodes {args.episodes}: expected 1 or more")
    return int(args.episodes)


def run(args: argparse.Namespace) -> int:
    """Record, and say what is there now."""
    import time

    settings = RecordSettings(args.game, args.seed, args.disturbance, args.preset)
    if args.workers < 1:
        raise ValueError(f"--workers {args.workers}: expected 1 or more")
    episodes = num_episodes(args)
    start_s = time.monotonic()
    num_new, num_frames = record_episodes(settings, episodes, args.out, args.workers)
    seconds = time.monotonic() - start_s
    reused = episodes - num_new
    say(
        f"{args.out}: {num_new} recordings made ({num_frames} frames in {duration_text(seconds)}), "
        f"{reused} were there already"
    )
    return 0
