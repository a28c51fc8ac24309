"""`p2p record`: a scripted player plays a game, several processes at once; every episode becomes a raw recording.

    p2p record --game doom:health_gathering --episodes 40 --out runs/raw
    p2p record --game doom:health_gathering --episodes 40 --out runs/raw --text "collect the medikits"

The player is disturbed now and then by short bursts of random keys. They are executed, but what is written down is what
the player would have pressed, so that mistakes and the way back from them can be learned.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p2p import gate
from p2p.actions import FRAME_RATE_HZ
from p2p.agents.controls import DisturbedAgent
from p2p.config import FRAME_SIZE
from p2p.console import ProgressBar, duration_text, say
from p2p.environments.game import Frame
from p2p.environments.registry import AGENT_NAMES, find_game, game_name, game_names, make_agent, make_env
from p2p.files import owned, write_file
from p2p.play.rollout import Step, rollout
from p2p.play.subscribers import Recorder
from p2p.processes.stopping import stoppable
from p2p.processes.workers import Report, run_workers
from p2p.recording import RecordingWriter, discard_unfinished
from p2p.text import Instruction, embed_instruction, tokenizer_name

if TYPE_CHECKING:
    import gymnasium

SETTINGS_FILE = "record.json"
_MAX_SETTINGS_BYTES = 1 << 20
LOCK_FILE = ".lock"  # of the run that records into the folder
KEYFRAME_EVERY = 20  # frames: a loader of short chunks decodes little in vain
SEED_STRIDE = 100_000  # seeds of two recording runs never meet, nor those of evaluation (comparison.FIRST_SEED)


@dataclass(frozen=True)
class RecordSettings:
    """What decides the content of a set of recordings.

    `disturbance` is the chance per step that a burst begins; `player` one of AGENT_NAMES; `text` the instruction
    that holds for the whole episode (empty: none), with the embedding of `text_embedder`.
    """

    game: str
    seed: int = 0
    disturbance: float = 0.02
    preset: str = "ultrafast"
    player: str = "expert"
    text: str = ""
    text_embedder: str = "minilm"

    def __post_init__(self) -> None:
        make_agent(find_game(self.game), self.player)
        tokenizer_name(self.text_embedder)
        if self.seed < 0:
            raise ValueError(f"--seed {self.seed}: expected 0 or more")
        if not 0 <= self.disturbance <= 1:
            raise ValueError(f"--disturbance {self.disturbance}: expected a probability from 0 to 1")

    def recording_id(self, episode: int) -> str:
        """The folder name of one episode's recording."""
        player = "" if self.player == "expert" else f"-{self.player}"
        return f"{self.game.replace(':', '-')}{player}-{self.seed:03d}-{episode:05d}"


def record_episodes(settings: RecordSettings, episodes: int, out: Path, num_workers: int = 2) -> tuple[int, int]:
    """Record the episodes 0 .. episodes-1 that are not in `out` yet; returns how many were new and how many frames.

    Raises:
        ValueError: when `out` holds recordings made with other settings, or a worker fails.
    """
    _check_folder(settings, out)
    if not _missing(settings, episodes, out):
        return 0, 0
    instruction = embed_instruction(settings.text, settings.text_embedder)  # the workers load no language model
    out.mkdir(parents=True, exist_ok=True)  # not before: without the embedder nothing is left behind
    with own_recordings(out):
        _check_folder(settings, out)
        missing = _missing(settings, episodes, out)
        discard_unfinished(out, missing)  # a run that was killed may have begun one
        if not missing:
            return 0, 0
        write_file(out / SETTINGS_FILE, json.dumps(asdict(settings), indent=2).encode() + b"\n")
        return len(missing), _record_all(settings, instruction, [*missing.values()], out, num_workers)


def _missing(settings: RecordSettings, episodes: int, out: Path) -> dict[str, int]:
    """The episodes that are not recorded yet, by their folder's name."""
    names = {settings.recording_id(episode): episode for episode in range(episodes)}
    return {name: episode for name, episode in names.items() if not (out / name).is_dir()}


def own_recordings(folder: Path) -> AbstractContextManager[None]:
    """What is recorded into the folder, or removed there, is one run's at a time.

    Raises:
        ValueError: when it is another's.
    """
    return owned(folder / LOCK_FILE, str(folder), "wait for it, or choose another folder")


def _record_all(
    settings: RecordSettings, instruction: Instruction, episodes: list[int], out: Path, num_workers: int
) -> int:
    """Share the episodes out among processes; returns how many frames they have."""
    progress = ProgressBar("recording", len(episodes), "episodes")
    num_workers = min(num_workers, len(episodes))
    shares = [(settings, instruction, episodes[index::num_workers], out) for index in range(num_workers)]
    num_frames = num_done = 0
    with closing(run_workers(_record_some, shares)) as reports:
        for kind, number in reports:
            num_frames += number if kind == "frames" else 0
            num_done += kind == "episode"
            progress.update(num_done, f"{num_frames} frames")
    progress.close()
    return num_frames


def _check_folder(settings: RecordSettings, out: Path) -> None:
    """See that `out` is new, or that its settings are the same."""
    path = out / SETTINGS_FILE
    if path.exists():
        defaults = {field.name: field.default for field in fields(RecordSettings)}
        content = gate.read_regular(path, _MAX_SETTINGS_BYTES)
        if {**defaults, **gate.mapping(gate.parse_json(content, str(path)), str(path))} != asdict(settings):
            raise ValueError(
                f"{out} holds recordings made with other settings (see {path}); choose another --out or remove it"
            )
        return
    if out.exists() and any(path.name != LOCK_FILE for path in out.iterdir()):
        raise ValueError(f"{out} is not empty and has no {SETTINGS_FILE}; choose another --out")


def _record_some(
    settings: RecordSettings, instruction: Instruction, episodes: list[int], out: Path, report: Report
) -> None:
    """One worker: its share of the episodes, one after another in one environment."""
    game = find_game(settings.game)
    with closing(make_env(settings.game, labels=True)) as env:
        agent = DisturbedAgent(make_agent(game, settings.player), game, settings.disturbance)
        for episode in episodes:
            _record_episode(env, agent, settings, instruction, episode, out, report)


def _record_episode(
    env: gymnasium.Env[Frame, Any],
    agent: DisturbedAgent,
    settings: RecordSettings,
    instruction: Instruction,
    episode: int,
    out: Path,
    report: Report,
) -> None:
    def count(step: Step) -> None:
        if step.index % 50 == 49:
            report("frames", 50)

    with RecordingWriter(
        out / settings.recording_id(episode),
        settings.recording_id(episode),
        frame_rate_hz=FRAME_RATE_HZ,
        size=(FRAME_SIZE, FRAME_SIZE),
        game=settings.game,
        gop=KEYFRAME_EVERY,
        preset=settings.preset,
        text_tokenizer=tokenizer_name(settings.text_embedder),
        whole_only=True,
    ) as writer:
        recorder = Recorder(writer, lambda step: (agent.intended, None), instruction)
        (played,) = rollout(env, agent, [recorder, count], seed=settings.seed * SEED_STRIDE + episode)
    report("frames", played.num_steps % 50)
    report("episode", episode)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.usage = "%(prog)s --game GAME (--episodes N | --hours H) --out DIR [options]"
    parser.add_argument(
        "--game",
        required=True,
        type=game_name,
        help=f"one of {', '.join(game_names())}; in a window also program:COMMAND",
    )
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--episodes", type=int, metavar="N", help="how many episodes there shall be in the folder")
    length.add_argument("--hours", type=float, metavar="H", help="how many hours of play, such as 0.5")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the recordings")
    parser.add_argument("--text", default="", metavar="INSTRUCTION", help="what the player is told: is recorded too")
    parser.add_argument(
        "--text-embedder", default="minilm", metavar="NAME", help="minilm, gemma or gemma:FOLDER (%(default)s)"
    )
    script = parser.add_argument_group("a scripted player, without a window, quicker than real time")
    script.add_argument("--player", default="expert", choices=AGENT_NAMES, help="which one (%(default)s)")
    script.add_argument("--seed", type=int, default=0, help="another seed records other episodes (%(default)s)")
    script.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="games at once (%(default)s)")
    script.add_argument(
        "--disturbance",
        type=float,
        default=0.02,
        metavar="P",
        help="chance per step that a burst of random keys begins (%(default)s)",
    )
    script.add_argument(
        "--preset", default="ultrafast", help="of the x264 encoder: slower is smaller, as veryfast (%(default)s)"
    )
    window = parser.add_argument_group("a person, in a window, for --hours or until Ctrl-C")
    window.add_argument("--window", action="store_true", help="you play; needs a display")
    window.add_argument("--scale", type=int, default=1, help="a window 2 or 4 times as large (not of a program)")
    window.add_argument("--title", default="", help="part of the title of the window of program:COMMAND")


def num_episodes(args: argparse.Namespace) -> int:
    """How many episodes the options ask for."""
    if args.hours is not None:
        if not 0 < args.hours < math.inf:
            raise ValueError(f"--hours {args.hours:g}: expected a time above 0, such as 0.5")
        steps = args.hours * 3600 * FRAME_RATE_HZ
        return max(1, round(steps / find_game(args.game).max_steps))
    if args.episodes < 1:
        raise ValueError(f"--episodes {args.episodes}: expected 1 or more")
    return int(args.episodes)


def run_window(args: argparse.Namespace) -> int:
    """Record a person."""
    from p2p.play.window import WindowSettings, record_person

    if args.hours is None:
        raise ValueError("--window records for a time: give --hours, such as --hours 0.5")
    settings = WindowSettings(
        args.game,
        "",
        args.hours * 3600,
        args.seed,
        args.title,
        args.out,
        instruction=embed_instruction(args.text.strip(), args.text_embedder),
        text_tokenizer=tokenizer_name(args.text_embedder),
        scale=args.scale,
    )
    record_person(settings, say)
    return 0


def run(args: argparse.Namespace) -> int:
    """Record, and say what is there now."""
    with stoppable():
        return run_window(args) if args.window else run_script(args)


def run_script(args: argparse.Namespace) -> int:
    """Record a scripted player."""
    settings = RecordSettings(
        args.game, args.seed, args.disturbance, args.preset, args.player, args.text.strip(), args.text_embedder
    )
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
