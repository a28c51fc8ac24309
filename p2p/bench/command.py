"""`p2p bench`: a policy on whole suites of games, beside an expert, random keys, a blind player and its own control.

    p2p bench POLICY --suite doom-levels --episodes 20 --out runs/bench
    p2p bench --socket ADDRESS --suite doom:freedoom2:MAP01
    p2p bench --suite doom-levels --players expert,random          # the yardstick itself, without a policy

The game waits for each answer. docs/benchmark.md says what makes figures comparable.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack, closing
from pathlib import Path

from p2p import gate
from p2p.agents.remote import RemoteAgent
from p2p.bench.playing import PLAYERS, GamePlayers, players_of
from p2p.bench.report import write_report
from p2p.bench.scores import Scored, summarise, table
from p2p.bench.suites import games_of, suites
from p2p.console import aligned, note, say
from p2p.processes.stopping import stoppable

FIRST_SEED = 1_000_000_000  # as of p2p play: recordings use seeds below
MAX_EPISODES = 10_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.usage = "%(prog)s [policy] [options]"
    parser.add_argument("policy", nargs="?", type=Path, help="policy folder; a server is started for it")
    parser.add_argument("--socket", help="a running server (path or HOST:PORT) instead of a policy folder")
    parser.add_argument("--any-user", action="store_true", help="even if another user runs the server at --socket")
    names = ", ".join(suites())
    parser.add_argument("--suite", default="doom-levels", help=f"one of {names}; or one game (%(default)s)")
    parser.add_argument("--episodes", type=int, default=20, help="of each player on each game (%(default)s)")
    parser.add_argument(
        "--players", default="expert,random,blind", help=f"compared with, of {','.join(PLAYERS)} (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="other seeds, other episodes (%(default)s)")
    parser.add_argument("--greedy", action="store_true", help="always the likeliest action (of a policy folder)")
    parser.add_argument("--out", type=Path, help="write results.json, figures and a page there")


def run(args: argparse.Namespace) -> int:
    """Play, print the table, write the report."""
    gate.whole_number(args.episodes, "--episodes", 1, MAX_EPISODES)
    gate.whole_number(args.seed, "--seed", 0, 1000)
    games = games_of(args.suite)
    with_policy = args.policy is not None or args.socket is not None
    players = players_of(with_policy, [name for name in args.players.split(",") if name])
    if not players:
        raise ValueError("nobody plays: name a policy folder, --socket or --players")
    first = FIRST_SEED + 1_000_000 * args.seed
    with stoppable(), ExitStack() as stack:
        policy = _policy(args, stack) if with_policy else None
        episodes: list[Scored] = []
        for game in games:
            playing = GamePlayers(game, policy)
            for player in players:
                for episode in playing.play(player, range(first, first + args.episodes)):
                    note(_line(episode))
                    episodes.append(episode)
    say(aligned(table(summarise(episodes)), left=(0, 1)))
    if args.out:
        say(f"report: {write_report(args.out, args.suite, episodes)}")
    return 0


def _policy(args: argparse.Namespace, stack: ExitStack) -> RemoteAgent:
    from p2p.agents.serving import served

    address = args.socket or stack.enter_context(served(args.policy, args.seed, ["--greedy"] if args.greedy else []))
    return stack.enter_context(closing(RemoteAgent(address, any_user=args.any_user)))


def _line(episode: Scored) -> str:
    way = f", {episode.progress:.0%} of the way" if episode.curve else ""
    error = f": {episode.error}" if episode.error else ""
    return (
        f"{episode.game} {episode.player} seed {episode.seed}: {episode.end}{way}, "
        f"score {episode.score:.1f}, {episode.num_steps} steps{error}"
    )
