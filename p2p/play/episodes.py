"""`p2p play`: whole episodes of a game, played by a policy behind a server, and by what it is compared with.

    p2p play runs/doom-tiny/policy --game doom:health_gathering --episodes 20 --compare random,blind,expert,shuffled
    p2p play POLICY --game doom:health_gathering --text "collect the medikits" --text "stay away from the medikits"

The game waits for each answer (2 tics of the engine are one step of 1/20 s), so an evaluation runs as fast as the
policy can answer; --realtime holds the 20 Hz of the wall clock instead.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from p2p.console import say
from p2p.files import write_file
from p2p.play.console import Progress
from p2p.play.games import GAMES, game_info, game_name
from p2p.play.stopping import stoppable
from p2p.play.workers import CONTEXT, Report, run_workers

POLICY = "policy"
SHUFFLED = "shuffled"
COMPARISONS = ("random", "blind", "expert", "contrary", "idle", SHUFFLED)
FIRST_SEED = 1_000_000_000  # evaluation begins here; recordings use seeds below
DESCRIPTIONS = {
    POLICY: "the policy",
    SHUFFLED: "the policy, shown frames of other moments",
    "expert": "the scripted player that was recorded",
    "contrary": "the scripted player that does not do what the game is about",
    "random": "random keys, held 1 to 10 steps",
    "blind": "the scripted player's keys at its rates, without looking",
    "idle": "no key",
}


@dataclass(frozen=True)
class Job:
    """One episode to play: who plays it, and its seed."""

    player: str
    seed: int
    video: str | None = None  # write a video there
    text: str | None = None  # what the policy is told ("": nothing); None: whatever its server was told last


@dataclass(frozen=True)
class Episode:
    """One episode that was played."""

    player: str
    seed: int
    score: float
    num_steps: int
    presses: dict[str, int]  # in how many steps each key or mouse button ("mouse 0") was down
    text: str | None = None  # what the policy was told, as in `Job`


@dataclass(frozen=True)
class PlaySettings:
    """How the episodes of one comparison are played.

    `addresses` are those of servers of one policy, which the workers share out; none when no policy plays.
    `any_user`: whether they may be servers of another user.
    """

    game: str
    addresses: tuple[str, ...] = ()
    realtime: bool = False
    any_user: bool = False

    def __post_init__(self) -> None:
        game_info(self.game)


def make_jobs(
    players: Sequence[str],
    episodes: int,
    first_seed: int = FIRST_SEED,
    video: str | None = None,
    texts: Sequence[str] = (),
) -> list[Job]:
    """Every player plays the same seeds; the policy's first episode is filmed when `video` is given.

    The policy plays them once for each of `texts`, its control with the first of them.
    """
    unknown = [player for player in players if player != POLICY and player not in COMPARISONS]
    if unknown:
        raise ValueError(f"--compare {unknown[0]!r}: no such player; choose from {', '.join(COMPARISONS)}")
    told: dict[str, Sequence[str | None]] = {POLICY: texts or [None], SHUFFLED: texts[:1] or [None]}
    jobs = [
        Job(player, first_seed + index, text=text)
        for player in players
        for text in told.get(player, [None])
        for index in range(episodes)
    ]
    if video and jobs[0].player == POLICY:
        jobs[0] = replace(jobs[0], video=video)
    return jobs


def play(settings: PlaySettings, jobs: Sequence[Job], num_workers: int = 2) -> list[Episode]:
    """Play all jobs in `num_workers` processes; the results are in the order of the jobs.

    Raises:
        ValueError: when a worker fails, for example because the server closed the connection.
    """
    num_workers = min(num_workers, len(jobs))
    todo = CONTEXT.Queue()
    for item in [*enumerate(jobs), *[None] * num_workers]:
        todo.put(item)
    progress = Progress("playing", len(jobs), "episodes")
    found: dict[int, Episode] = {}
    shares = [(settings, address, todo) for address in _share_out(settings.addresses, num_workers)]
    with closing(run_workers(_play_some, shares)) as reports:
        for _, (index, episode) in reports:
            found[index] = episode
            progress.update(len(found))
    progress.close()
    return [found[index] for index in range(len(jobs))]


def _share_out(addresses: Sequence[str], num_workers: int) -> list[str]:
    return [addresses[index % len(addresses)] if addresses else "" for index in range(num_workers)]


def _play_some(settings: PlaySettings, address: str, todo: Any, report: Report) -> None:
    """One worker: takes jobs until there are none."""
    from p2p.play.stage import Stage

    with Stage(settings, address) as stage:
        while (item := todo.get()) is not None:
            index, job = item
            report("episode", (index, stage.play(job)))


@dataclass(frozen=True)
class Row:
    """A player's scores in one line; of a policy, with one instruction."""

    player: str
    text: str | None
    num_episodes: int
    mean: float
    standard_error: float | None  # of one episode there is none
    lowest: float
    highest: float


def summarise(episodes: Sequence[Episode]) -> list[Row]:
    """One row per player and instruction, in the order of their first episode."""
    rows = []
    for player, text in dict.fromkeys((episode.player, episode.text) for episode in episodes):
        scores = [episode.score for episode in episodes if (episode.player, episode.text) == (player, text)]
        error = statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else None
        rows.append(Row(player, text, len(scores), statistics.fmean(scores), error, min(scores), max(scores)))
    return rows


def format_table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table that also reads well on a terminal."""
    head = ("player", "episodes", "mean score", "± s.e.", "lowest", "highest", "")
    cells = [head] + [
        (
            row.player,
            str(row.num_episodes),
            f"{row.mean:.1f}",
            "" if row.standard_error is None else f"{row.standard_error:.1f}",
            f"{row.lowest:.0f}",
            f"{row.highest:.0f}",
            _describe(row),
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    lines = []
    for line in cells:
        padded = [
            text.ljust(width) if column in (0, len(head) - 1) else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("| " + " | ".join(padded) + " |")
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:-1]), "-" * widths[-1]]
    lines.insert(1, "| " + " | ".join(rule) + " |")
    return "\n".join(lines)


def _describe(row: Row) -> str:
    told = "" if row.text is None else f", told {row.text!r}" if row.text else ", told nothing"
    return DESCRIPTIONS.get(row.player, "") + told


def write_results(path: Path, settings: PlaySettings, episodes: Sequence[Episode]) -> None:
    """All episodes and the summary as JSON."""
    content = {
        "game": settings.game,
        "summary": [asdict(row) for row in summarise(episodes)],
        "episodes": [asdict(episode) for episode in episodes],
    }
    write_file(path, json.dumps(content, indent=1).encode() + b"\n")


def read_results(path: Path) -> list[Episode]:
    """The episodes of a file of `write_results`."""
    return [Episode(**entry) for entry in json.loads(path.read_text())["episodes"]]


def start_servers(
    stack: ExitStack, policy: Path, num_servers: int, seed: int, options: Sequence[str] = ()
) -> tuple[str, ...]:
    """Addresses of as many servers of the policy, each with one CPU thread; they end with the stack."""
    from p2p.play.serving import served

    options = ("--threads", "1", *options)
    return tuple(
        stack.enter_context(served(policy, seed=seed + index, options=options)) for index in range(num_servers)
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.usage = "%(prog)s [policy] --game GAME [options]"
    parser.add_argument("policy", nargs="?", type=Path, help="policy folder; a server is started for it")
    parser.add_argument("--game", required=True, type=game_name, help=f"one of {', '.join(GAMES)}; or program:COMMAND")
    parser.add_argument("--socket", help="a running server (path or HOST:PORT) instead of a policy folder")
    parser.add_argument("--any-user", action="store_true", help="even if another user runs the server at --socket")
    parser.add_argument(
        "--text", action="append", metavar="INSTRUCTION", help="tell the policy (again: a row for each; empty: nothing)"
    )
    parser.add_argument("--temperature", type=float, help="of the policy's sampling (default: the policy's own)")
    parser.add_argument("--greedy", action="store_true", help="always the likeliest action")
    parser.add_argument("--seed", type=int, default=0, help="other seeds, other episodes (%(default)s)")
    parser.add_argument("--video", type=Path, help="film the policy's first episode into this .mp4")
    episodes = parser.add_argument_group("whole episodes, without a window")
    episodes.add_argument("--episodes", type=int, default=20, help="of each player (%(default)s)")
    episodes.add_argument("--compare", default="", help=f"other players, with commas: {','.join(COMPARISONS)}")
    episodes.add_argument("--workers", type=int, default=2, help="games at once (%(default)s)")
    episodes.add_argument("--realtime", action="store_true", help="hold the 20 Hz of the wall clock; one game at once")
    episodes.add_argument("--json", type=Path, help="write every episode's score there")
    window = parser.add_argument_group("in a window, in real time, with real keys and mouse")
    window.add_argument("--window", action="store_true", help="(a program:COMMAND always is)")
    window.add_argument("--seconds", type=float, default=60.0, help="of play (%(default)s)")
    window.add_argument("--scale", type=int, default=1, help="a window 2 or 4 times as large (not of a program)")
    window.add_argument("--title", default="", help="part of the title of the window of program:COMMAND")
    window.add_argument("--yield-to-motion", action="store_true", help="yield to a person's mouse, not only to keys")
    window.add_argument("--record", type=Path, help="write the play as a recording below this folder")


def sampling_options(args: argparse.Namespace) -> list[str]:
    """Options of p2p-serve that say how actions are drawn."""
    chosen = [] if args.temperature is None else ["--temperature", str(args.temperature)]
    return [*chosen, *(["--greedy"] if args.greedy else [])]


def instructions(args: argparse.Namespace) -> list[str]:
    """Those of the command line, each once."""
    return list(dict.fromkeys(text.strip() for text in args.text or []))


def run_window(args: argparse.Namespace) -> int:
    """Play in a window in real time, and say how it went."""
    from p2p.play.client import tell
    from p2p.play.serving import served
    from p2p.play.window import WindowSettings, play_in_window

    if args.policy is None and args.socket is None:
        raise ValueError("name the policy folder that is to play, or a running server with --socket")
    texts = instructions(args)
    if len(texts) > 1:
        raise ValueError("in a window the policy plays once: give --text once")
    with ExitStack() as stack:
        address = args.socket or stack.enter_context(served(args.policy, args.seed, sampling_options(args)))
        for text in texts:
            tell(address, text, args.any_user)
        settings = WindowSettings(
            args.game,
            address,
            args.seconds,
            FIRST_SEED + args.seed,
            args.title,
            args.record,
            args.video,
            any_user=args.any_user,
            yield_to_motion=args.yield_to_motion,
            scale=args.scale,
        )
        report = play_in_window(settings, say)
    for line in report.lines():
        say(line)
    return 0


def run(args: argparse.Namespace) -> int:
    """Play, and print the table."""
    with stoppable():
        return run_window(args) if args.window or args.game.startswith("program:") else run_episodes(args)


def run_episodes(args: argparse.Namespace) -> int:
    """Play episodes without a window, and print the table."""
    compare = [name for name in args.compare.split(",") if name]
    with_policy = args.policy is not None or args.socket is not None
    if not with_policy and (SHUFFLED in compare or not compare):
        raise ValueError("name the policy folder that is to play, or a running server with --socket")
    if args.episodes < 1 or args.workers < 1:
        raise ValueError("--episodes and --workers: expected 1 or more")
    if args.video is not None and args.video.suffix != ".mp4":
        raise ValueError(f"--video {args.video}: an MP4 is written there; write a name that ends in .mp4")
    players = [*([POLICY] if with_policy else []), *compare]
    video = str(args.video) if args.video else None
    texts = instructions(args)
    if texts and not with_policy:
        raise ValueError("--text is for a policy: name its folder, or a running server with --socket")
    jobs = make_jobs(players, args.episodes, FIRST_SEED + 1_000_000 * args.seed, video, texts)
    num_workers = 1 if args.realtime or args.socket else args.workers
    with ExitStack() as stack:
        addresses: tuple[str, ...] = (args.socket,) if args.socket else ()
        if args.policy is not None and not addresses:
            addresses = start_servers(stack, args.policy, num_workers, args.seed, sampling_options(args))
        settings = PlaySettings(args.game, addresses, args.realtime, args.any_user)
        episodes = play(settings, jobs, num_workers)
    say(f"{args.game}, {args.episodes} episodes of each player")
    say(format_table(summarise(episodes)))
    if args.json:
        write_results(args.json, settings, episodes)
    if video:
        say(f"video: {video}")
    return 0
