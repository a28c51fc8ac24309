"""What a person's turn does to a policy. `python tests/benchmarks/takeover.py POLICY --game doom:defend_the_center`

A policy plays, a person (the scripted player stands for one) drives for 5 seconds, then the policy goes on. While the
person plays, Recap goes on sending frames and throws the answers away, so that the policy's memory holds actions that
nobody executed. The same seeds are played by a policy that forgets when it is handed the controls back, one whose
server forgets every so many frames (--clear-every), one that is sent no frames meanwhile, and without a person. Every
session draws the same random numbers, so that an episode is the same up to the handing back in all rows but those that
change the memory before it.

Beside the score since the handing back stands its difference from that of Recap's way, seed by seed, and how often the
policy's keys and buttons differ from those that the scripted player would press, in the first second and from then on.
The policy is served by p2p-serve, and the game waits for its answers.
"""

from __future__ import annotations

import argparse
import socket
import statistics
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from p2p.actions import Action
from p2p.agents.remote import TEXT_SUFFIX, RemoteAgent
from p2p.agents.serving import served
from p2p.console import ProgressBar
from p2p.environments.doom_env import DoomEnv
from p2p.environments.game import Agent, Frame, Info
from p2p.environments.registry import find_game, game_names, make_agent
from p2p.play.clock import StepClock
from p2p.play.comparison import FIRST_SEED
from p2p.play.rollout import Step, rollout

SECOND = 20  # steps
IGNORED, FORGETS, CLEARED, SILENT, ALONE = "ignored", "forgets", "cleared", "silent", "alone"
TEXTS = {
    IGNORED: "frames sent, answers thrown away (as Recap does)",
    FORGETS: "the same, and the history forgotten at the handing back",
    CLEARED: "the same, and `--clear-every` {clear_every}",
    SILENT: "no frames sent while the person plays",
    ALONE: "no person",
}


@dataclass(frozen=True)
class Turn:
    """When the person plays (in steps), and how far the episode goes on after it."""

    begin: int
    length: int
    after: int

    def holds(self, step: int) -> bool:
        return self.begin <= step < self.begin + self.length

    @property
    def back(self) -> int:
        return self.begin + self.length


@dataclass(frozen=True)
class Result:
    """One episode that reached the handing back."""

    score: float
    gained: float  # since the handing back
    differs_soon: list[bool]  # of each step in the first second after it: other keys than the scripted player's
    differs_later: list[bool]


def forget(address: str) -> None:
    """What a line /forget does that somebody types into the server."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address + TEXT_SUFFIX)
        connection.sendall(b"/forget\n")
        connection.recv(1000)


class Driven:
    """The policy, a person who drives for a while, and the scripted player with whom the policy is compared."""

    def __init__(self, address: str, person: Agent, expert: Agent, how: str, turn: Turn) -> None:
        self._policy, self._person, self._expert = RemoteAgent(address), person, expert
        self._address, self._how, self._turn = address, how, turn

    def reset(self, seed: int) -> None:
        for agent in (self._policy, self._person, self._expert):
            agent.reset(seed)
        self.differs: list[bool] = []  # of each step since the handing back
        self._step = 0

    def act(self, observation: Frame, info: Info) -> Action:
        step, self._step = self._step, self._step + 1
        if step == self._turn.back and self._how == FORGETS:
            forget(self._address)
        theirs = self._how != ALONE and self._turn.holds(step)
        answer = None if theirs and self._how == SILENT else self._policy.act(observation, info)
        right, wished = self._expert.act(observation, info), self._person.act(observation, info)
        if step >= self._turn.back and answer is not None:
            self.differs.append(pressed(answer) != pressed(right))
        return wished if theirs or answer is None else answer

    def close(self) -> None:
        self._policy.close()


class FirstSteps(StepClock):
    """Time for so many steps."""

    def __init__(self, num_steps: int) -> None:
        self._left = num_steps

    @property
    def is_over(self) -> bool:  # type: ignore[override]
        return self._left == 0

    def step(self, *arguments: Any) -> Any:
        self._left -= 1
        return super().step(*arguments)


def play_with_person(env: DoomEnv, agent: Driven, turn: Turn, seed: int) -> Result | None:
    """One episode; None when it ended before the handing back."""
    gained: list[float] = []

    def since_back(step: Step) -> None:
        if step.index >= turn.back:
            gained.append(step.reward)

    (episode,) = rollout(env, agent, [since_back], FirstSteps(turn.back + turn.after), seed=seed)
    if not gained:
        return None
    return Result(episode.score, sum(gained), agent.differs[:SECOND], agent.differs[SECOND:])


def pressed(action: Action) -> set[str]:
    return {*action.keys, *(f"mouse {name}" for name in action.buttons)}


def play_row(args: argparse.Namespace, how: str) -> dict[int, Result | None]:
    """The episodes of one way, by seed, with a server and a game of their own."""
    game = find_game(args.game)
    turn = Turn(*(round(SECOND * seconds) for seconds in (args.begin, args.length, args.after)))
    options = ["--threads", "1", *(["--greedy"] if args.greedy else [])]
    options += ["--clear-every", str(args.clear_every)] if how == CLEARED else []
    progress, results = ProgressBar(how, args.episodes, "episodes"), {}
    env = DoomEnv(args.game.removeprefix("doom:"), labels=True)
    with served(args.policy, 0, options) as address, closing(env):
        agent = Driven(address, make_agent(game, args.person), make_agent(game), how, turn)
        with closing(agent):
            for seed in range(FIRST_SEED, FIRST_SEED + args.episodes):
                results[seed] = play_with_person(env, agent, turn, seed)
                progress.update(len(results))
    progress.close()
    return results


def mean(values: Sequence[float], sign: str = "") -> str:
    """Mean ± standard error; a dash of nothing."""
    if not values:
        return "-"
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.fmean(values):{sign}.1f} ± {error:.1f}"


def share(groups: Sequence[list[bool]]) -> str:
    """In percent, with the standard error between episodes."""
    return f"{mean([100 * sum(group) / len(group) for group in groups if group])} %"


def row(text: str, results: Mapping[int, Result | None], first: Mapping[int, Result | None]) -> str:
    """A line of the table; `first` is the row that the others are compared with."""
    whole = [result for result in results.values() if result is not None]
    both = [(a.gained, b.gained) for seed in results if (a := results[seed]) and (b := first[seed])]
    difference = "" if results is first else mean([ours - theirs for ours, theirs in both], "+")
    cells = [mean([r.score for r in whole]), mean([r.gained for r in whole]), difference]
    cells += [share([r.differs_soon for r in whole]), share([r.differs_later for r in whole])]
    return f"| {text} | {len(whole)} of {len(results)} | {' | '.join(cells)} |"


def takeover_rows(args: argparse.Namespace) -> Iterator[str]:
    yield "| while a person plays | episodes | score | since the handing back | difference | other keys, 1 s | later |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    with ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool:
        first: dict[int, Result | None] = {}
        for how, results in zip(TEXTS, pool.map(partial(play_row, args), TEXTS), strict=True):
            first = first or results
            yield row(TEXTS[how].format(clear_every=args.clear_every), results, first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", type=Path, help="policy folder")
    parser.add_argument("--game", required=True, choices=game_names())
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--person", default="expert", choices=["expert", "contrary"], help="which scripted player")
    parser.add_argument("--begin", type=float, default=8.0, help="seconds before the person plays (%(default)s)")
    parser.add_argument("--length", type=float, default=5.0, help="seconds that the person plays (%(default)s)")
    parser.add_argument("--after", type=float, default=15.0, help="seconds that are played afterwards (%(default)s)")
    parser.add_argument("--clear-every", type=int, default=100, help="frames, of the row that does so (%(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="rows at once (%(default)s)")
    parser.add_argument("--greedy", action="store_true", help="always the likeliest action")
    for line in takeover_rows(parser.parse_args()):
        print(line, flush=True)


if __name__ == "__main__":
    main()
