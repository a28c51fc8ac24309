"""`p2p play`: whole episodes of a game, played by a policy behind a server, and by what it is compared with.

    p2p play runs/doom-tiny/policy --game doom:health_gathering --episodes 20 --compare random,blind,expert,shuffled
    p2p play POLICY --game doom:health_gathering --text "collect the medikits" --text "stay away from the medikits"

The game waits for each answer (2 tics of the engine are one step of 1/20 s), so an evaluation runs as fast as the
policy can answer; --realtime holds the 20 Hz of the wall clock instead.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path

from p2p.agents.serving import served
from p2p.console import say
from p2p.environments.registry import game_name, game_names
from p2p.play.comparison import COMPARISONS, FIRST_SEED, PlaySettings, plan_episodes, play, start_servers
from p2p.play.results import POLICY, SHUFFLED, format_table, summarise, write_results
from p2p.processes.stopping import stoppable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.usage = "%(prog)s [policy] --game GAME [options]"
    parser.add_argument("policy", nargs="?", type=Path, help="policy folder; a server is started for it")
    short = [name for name in game_names() if name.count(":") == 1]  # an unknown name is answered with all of them
    parser.add_argument(
        "--game",
        required=True,
        type=game_name,
        help=f"one of {', '.join(short)}; a whole level such as doom:freedoom2:MAP01; or program:COMMAND",
    )
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
    from p2p.agents.remote import tell
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
        happened = play_in_window(settings, say)
    for line in happened.lines():
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
    plan = plan_episodes(players, args.episodes, FIRST_SEED + 1_000_000 * args.seed, video, texts)
    num_workers = 1 if args.realtime or args.socket else args.workers
    with ExitStack() as stack:
        addresses: tuple[str, ...] = (args.socket,) if args.socket else ()
        if args.policy is not None and not addresses:
            addresses = start_servers(stack, args.policy, num_workers, args.seed, sampling_options(args))
        settings = PlaySettings(args.game, addresses, args.realtime, args.any_user)
        episodes = play(settings, plan, num_workers)
    say(f"{args.game}, {args.episodes} episodes of each player")
    say(format_table(summarise(episodes)))
    if args.json:
        write_results(args.json, args.game, episodes)
    if video:
        say(f"video: {video}")
    return 0
