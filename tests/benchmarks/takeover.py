"""What a person's turn does to a policy, and what a late answer does. `python tests/benchmarks/takeover.py`

    python tests/benchmarks/takeover.py POLICY --game doom:health_gathering
    python tests/benchmarks/takeover.py POLICY --game doom:health_gathering --delays 0 1 2

First: a policy plays, a person (the scripted player stands for one) drives for 5 seconds, then the policy goes on.
While the person plays, Recap goes on sending frames and throws the answers away, so that the policy's memory holds
actions that nobody executed. The same seeds are played with a policy that forgets when it is handed the controls back,
one that is sent no frames meanwhile, and without a person. Beside the score stands how often the policy's keys differ
from those that the scripted player would press, in the first second after the handing back and from then on.

With --delays: whole episodes in which each answer is executed so many tics (1/40 s) after its frame. With 0 the
recordings were made; an answer that is executed when it comes is 1 late at most, one that waits for the tick's end 2.

The policy is served by p2p-serve and trains nothing here. For games that are played with keys alone.
"""

from __future__ import annotations

import argparse
import statistics
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2p.actions import Action
from p2p.agents.remote import RemoteAgent
from p2p.agents.serving import served
from p2p.console import Progress
from p2p.environments.doom_engine import TICS_PER_STEP, button_values
from p2p.environments.doom_env import DoomEnv
from p2p.environments.game import Agent, Frame, Game, Info
from p2p.environments.registry import find_game, game_names, make_agent
from p2p.play.clock import StepClock
from p2p.play.comparison import FIRST_SEED
from p2p.play.rollout import Step, rollout

SECOND = 20  # steps
ALONE, IGNORED, FORGETS, SILENT = "alone", "ignored", "forgets", "silent"
TEXTS = {
    ALONE: "no person",
    IGNORED: "frames sent, answers thrown away (as Recap does)",
    FORGETS: "the same, and the history forgotten at the handing back",
    SILENT: "no frames sent while the person plays",
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
    """One episode."""

    score: float
    gained: float  # since the handing back
    differs_soon: list[bool]  # of each step in the first second after it: other keys than the scripted player's
    differs_later: list[bool]


class Driven:
    """The policy, a person who drives for a while, and the scripted player with whom the policy is compared."""

    def __init__(self, address: str, person: Agent, expert: Agent, how: str, turn: Turn) -> None:
        self._policy, self._person, self._expert = RemoteAgent(address), person, expert
        self._how, self._turn = how, turn

    def reset(self, seed: int) -> None:
        for agent in (self._policy, self._person, self._expert):
            agent.reset(seed)
        self.differs: list[bool] = []
        self._step = 0

    def act(self, observation: Frame, info: Info) -> Action:
        step, self._step = self._step, self._step + 1
        if step == self._turn.back and self._how == FORGETS:
            self._policy.reset()  # a session's history ends with it
        theirs = self._how != ALONE and self._turn.holds(step)
        answer = None if theirs and self._how == SILENT else self._policy.act(observation, info)
        right, wished = self._expert.act(observation, info), self._person.act(observation, info)
        if step >= self._turn.back and answer is not None:
            self.differs.append(set(answer.keys) != set(right.keys))
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


def play_with_person(env: DoomEnv, agent: Driven, turn: Turn, seed: int) -> Result:
    """One episode."""
    gained: list[float] = []

    def since_back(step: Step) -> None:
        if step.index >= turn.back:
            gained.append(step.reward)

    (episode,) = rollout(env, agent, [since_back], FirstSteps(turn.back + turn.after), seed=seed)
    return Result(episode.score, sum(gained), agent.differs[:SECOND], agent.differs[SECOND:])


def play_delayed(env: DoomEnv, address: str, tics: int, seed: int) -> float:
    """The score of a whole episode in which each answer is executed `tics` after its frame."""
    env.reset(seed=seed)
    policy, engine = RemoteAgent(address), env._engine
    policy.reset()
    waiting = deque([Action()] * tics)
    while not engine.is_episode_finished():
        answer = policy.act(env.render(), {})
        for _ in range(TICS_PER_STEP):
            waiting.append(answer)
            if not engine.is_episode_finished():
                engine.make_action(button_values(waiting.popleft()), 1)
    policy.close()
    return float(engine.get_total_reward())


def mean(values: Sequence[float], digits: int = 1) -> str:
    """Mean ± standard error; a dash of nothing."""
    if not values:
        return "-"
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.fmean(values):.{digits}f} ± {error:.{digits}f}"


def share(groups: Sequence[list[bool]]) -> str:
    """In percent, with the standard error between episodes."""
    return mean([100 * sum(group) / len(group) for group in groups if group])


def takeover_rows(
    env: DoomEnv, game: Game, address: str, turn: Turn, seeds: Sequence[int], who: str, ways: list[str]
) -> Iterator[str]:
    yield "| while a person plays | episodes | score | of it after | other keys, first second | later |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    for how in ways:
        progress, results = Progress(how, len(seeds), "episodes"), []
        with closing(Driven(address, make_agent(game, who), make_agent(game), how, turn)) as agent:
            for seed in seeds:
                results.append(play_with_person(env, agent, turn, seed))
                progress.update(len(results))
        progress.close()
        whole = [result for result in results if result.differs_soon]  # the others ended before
        cells = [mean([r.score for r in whole]), mean([r.gained for r in whole])]
        cells += [f"{share([r.differs_soon for r in whole])} %", f"{share([r.differs_later for r in whole])} %"]
        yield f"| {TEXTS[how]} | {len(whole)} of {len(results)} | {' | '.join(cells)} |"


def delay_rows(env: DoomEnv, address: str, delays: Sequence[int], seeds: Sequence[int]) -> Iterator[str]:
    yield "| executed after | episodes | score |"
    yield "| ---: | ---: | ---: |"
    for tics in delays:
        progress, scores = Progress(f"{tics} tics late", len(seeds), "episodes"), []
        for seed in seeds:
            scores.append(play_delayed(env, address, tics, seed))
            progress.update(len(scores))
        progress.close()
        yield f"| {25 * tics} ms | {len(scores)} | {mean(scores)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", type=Path, help="policy folder")
    parser.add_argument("--game", required=True, choices=[name for name in game_names() if not find_game(name).mouse])
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--person", default="expert", choices=["expert", "contrary"], help="which scripted player")
    parser.add_argument("--ways", nargs="+", default=list(TEXTS), choices=list(TEXTS), help="which rows")
    parser.add_argument("--begin", type=float, default=10.0, help="seconds before the person plays (%(default)s)")
    parser.add_argument("--length", type=float, default=5.0, help="seconds that the person plays (%(default)s)")
    parser.add_argument("--after", type=float, default=15.0, help="seconds that are played afterwards (%(default)s)")
    parser.add_argument("--delays", type=int, nargs="+", help="tics; play whole episodes with late answers instead")
    parser.add_argument("--greedy", action="store_true", help="always the likeliest action")
    args = parser.parse_args()
    seeds = range(FIRST_SEED, FIRST_SEED + args.episodes)
    options = ["--threads", "1", *(["--greedy"] if args.greedy else [])]
    env = DoomEnv(args.game.removeprefix("doom:"), labels=not args.delays, pictures=not args.delays)
    with served(args.policy, 0, options) as address, closing(env):
        if args.delays:
            rows = delay_rows(env, address, args.delays, seeds)
        else:
            turn = Turn(*(round(SECOND * seconds) for seconds in (args.begin, args.length, args.after)))
            rows = takeover_rows(env, find_game(args.game), address, turn, seeds, args.person, args.ways)
        for row in rows:
            print(row, flush=True)


if __name__ == "__main__":
    main()
