"""Whole episodes of a game, played by a policy behind a server and by what it is compared with, several at once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p2p.agents.remote import RemoteAgent
from p2p.agents.serving import served
from p2p.console import ProgressBar
from p2p.environments.game import Frame
from p2p.environments.registry import AGENT_NAMES, find_game, make_env
from p2p.play.clock import RealtimeClock
from p2p.play.players import Players
from p2p.play.results import POLICY, SHUFFLED, PlayedEpisode
from p2p.play.rollout import rollout
from p2p.play.subscribers import Film, Presses, score_caption
from p2p.processes.workers import CONTEXT, Report, run_workers
from p2p.recording.film import VideoWriter

if TYPE_CHECKING:
    import gymnasium

COMPARISONS = ("random", "blind", "expert", "contrary", "idle", SHUFFLED)
FIRST_SEED = 1_000_000_000  # evaluation begins here; recordings use seeds below


@dataclass(frozen=True)
class PlannedEpisode:
    """One episode to play: who plays it, and its seed."""

    player: str
    seed: int
    video: str | None = None  # write a video there
    text: str | None = None  # what the policy is told ("": nothing); None: whatever its server was told last


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
        find_game(self.game)


def plan_episodes(
    players: Sequence[str],
    episodes: int,
    first_seed: int = FIRST_SEED,
    video: str | None = None,
    texts: Sequence[str] = (),
) -> list[PlannedEpisode]:
    """Every player plays the same seeds; the policy's first episode is filmed when `video` is given.

    The policy plays them once for each of `texts`, its control with the first of them.
    """
    unknown = [player for player in players if player != POLICY and player not in COMPARISONS]
    if unknown:
        raise ValueError(f"--compare {unknown[0]!r}: no such player; choose from {', '.join(COMPARISONS)}")
    told: dict[str, Sequence[str | None]] = {POLICY: texts or [None], SHUFFLED: texts[:1] or [None]}
    plan = [
        PlannedEpisode(player, first_seed + index, text=text)
        for player in players
        for text in told.get(player, [None])
        for index in range(episodes)
    ]
    if video and plan[0].player == POLICY:
        plan[0] = replace(plan[0], video=video)
    return plan


def play(settings: PlaySettings, plan: Sequence[PlannedEpisode], num_workers: int = 2) -> list[PlayedEpisode]:
    """Play all of the plan in `num_workers` processes; the results are in its order.

    Raises:
        ValueError: when a worker fails, for example because the server closed the connection.
    """
    num_workers = min(num_workers, len(plan))
    todo = CONTEXT.Queue()
    for item in [*enumerate(plan), *[None] * num_workers]:
        todo.put(item)
    progress = ProgressBar("playing", len(plan), "episodes")
    found: dict[int, PlayedEpisode] = {}
    shares = [(settings, address, todo) for address in _share_out(settings.addresses, num_workers)]
    with closing(run_workers(_play_some, shares)) as reports:
        for _, (index, episode) in reports:
            found[index] = episode
            progress.update(len(found))
    progress.close()
    return [found[index] for index in range(len(plan))]


def _share_out(addresses: Sequence[str], num_workers: int) -> list[str]:
    return [addresses[index % len(addresses)] if addresses else "" for index in range(num_workers)]


def _play_some(settings: PlaySettings, address: str, todo: Any, report: Report) -> None:
    """One worker: takes episodes until there are none."""
    with closing(Episodes(settings.game, address, settings.any_user, settings.realtime)) as episodes:
        while (item := todo.get()) is not None:
            index, planned = item
            report("episode", (index, episodes.play(planned)))


class Episodes:
    """Plays single episodes of a game, which it opens once for each way of seeing it.

    Args:
        address: of the policy's server; "" when no policy plays.
        any_user: even if another user runs it.
        realtime: the policy's episodes hold the 20 Hz of the wall clock.
    """

    def __init__(self, game: str, address: str, any_user: bool = False, realtime: bool = False) -> None:
        self._game, self._realtime = find_game(game), realtime
        self._policy = RemoteAgent(address, any_user=any_user)
        self._stack = ExitStack()
        self._stack.callback(self._policy.close)
        self._env = cache(self._open)
        self._players = Players(self._game, self._policy, lambda: nullcontext(self._env(True, False)))

    def close(self) -> None:
        """End the games, and the policy's session."""
        self._stack.close()

    def _open(self, labels: bool, pictures: bool) -> gymnasium.Env[Frame, Any]:
        env = make_env(self._game.name, labels=labels, pictures=pictures)
        self._stack.callback(env.close)
        return env

    def play(self, planned: PlannedEpisode) -> PlayedEpisode:
        """One whole episode."""
        name, presses = planned.player, Presses()
        agent = self._players.agent(name)
        env = self._env(name in AGENT_NAMES, name == POLICY)  # who does not look saves the resizing
        clock = RealtimeClock() if self._realtime and name == POLICY else None
        self._policy.text = planned.text
        with ExitStack() as stack:
            films = []
            if planned.video:
                film = stack.enter_context(VideoWriter(Path(planned.video)))
                films.append(Film(film, self._game.keys, score_caption(self._game.name)))
            (episode,) = rollout(env, agent, [*films, presses], clock, seed=planned.seed)
        return PlayedEpisode(name, planned.seed, episode.score, episode.num_steps, dict(presses.counts), planned.text)


def start_servers(
    stack: ExitStack, policy: Path, num_servers: int, seed: int, options: Sequence[str] = ()
) -> tuple[str, ...]:
    """Addresses of as many servers of the policy, each with one CPU thread; they end with the stack."""
    options = ("--threads", "1", *options)
    return tuple(
        stack.enter_context(served(policy, seed=seed + index, options=options)) for index in range(num_servers)
    )
