"""One process's game and players: plays one episode after another for `p2p play`."""

from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from p2p.actions import FRAME_RATE_HZ, Action
from p2p.config import FRAME_SIZE
from p2p.play.client import PolicyPlayer
from p2p.play.episodes import POLICY, SHUFFLED, Episode, Job, PlaySettings
from p2p.play.games import Frame, Game, game_info, open_game
from p2p.play.overlay import draw_action
from p2p.play.player import SCRIPTED, BlindPlayer, IdlePlayer, Player, RandomPlayer, scripted_player
from p2p.play.realtime import RealtimeLoop, TickStatistics
from p2p.recording.film import VideoWriter

SAMPLE_EPISODES = 4  # of the scripted player: what the blind player draws from, and the frames of other moments
SAMPLE_SEED = 900_000_000
MAX_SHUFFLED_FRAMES = 600
UNSEEN: Frame = np.zeros((FRAME_SIZE, FRAME_SIZE, 3), np.uint8)  # for players that do not look: resizing costs time


class ShuffledPlayer:
    """The same policy, but each frame is replaced by one of another moment, drawn from a bank."""

    def __init__(self, player: Player, bank: list[Frame]) -> None:
        self._player, self._bank = player, bank

    def begin(self, game: Game, seed: int) -> None:
        self._player.begin(game, seed)
        self._rng = np.random.default_rng((seed, 4))

    def act(self, frame: Frame) -> Action:
        return self._player.act(self._bank[int(self._rng.integers(len(self._bank)))])


class Stage:
    """Holds the game, which is opened once, and makes players when they are needed."""

    def __init__(self, settings: PlaySettings, address: str) -> None:
        self._settings, self._info = settings, game_info(settings.game)
        self.ticks = TickStatistics()
        self._sample: tuple[list[Action], list[Frame]] | None = None
        self._policy = PolicyPlayer(address, any_user=settings.any_user)
        self._labelled: Game | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._game = self._open(labels=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._policy.close()
        self._stack.close()

    def _open(self, labels: bool) -> Game:
        game = open_game(self._settings.game, labels)
        self._stack.callback(game.close)
        return game

    def play(self, job: Job) -> Episode:
        """One whole episode."""
        player = self._player(job.player)
        game = self._game_with_labels() if job.player in SCRIPTED else self._game
        self._policy.text = job.text
        game.reset(job.seed)
        player.begin(game, job.seed)
        paced = self._settings.realtime and job.player == POLICY
        loop = RealtimeLoop(self._policy.client, self.ticks) if paced and self._policy.client is not None else None
        presses: Counter[str] = Counter()
        num_steps = 0
        with ExitStack() as stack:
            film = stack.enter_context(VideoWriter(Path(job.video))) if job.video else None
            while not game.done:
                frame = game.frame() if job.player == POLICY else UNSEEN
                action = player.act(frame) if loop is None else loop.tick(frame)
                if film is not None:
                    caption = f"{self._info.name}   {num_steps / FRAME_RATE_HZ:5.1f} s   score {game.score:.0f}"
                    film.add(draw_action(frame, action, self._info.keys, caption))
                game.act(action)
                presses.update([*action.keys, *(f"mouse {button}" for button in action.buttons)])
                num_steps += 1
        return Episode(job.player, job.seed, game.score, num_steps, dict(presses), job.text)

    def _player(self, name: str) -> Player:
        if name == POLICY:
            return self._policy
        if name == SHUFFLED:
            return ShuffledPlayer(self._policy, self._samples()[1])
        if name == "blind":
            return BlindPlayer(self._samples()[0])
        if name in SCRIPTED:
            return scripted_player(self._info, name)
        return RandomPlayer(self._info) if name == "random" else IdlePlayer()

    def _game_with_labels(self) -> Game:
        if self._labelled is None:
            self._labelled = self._open(labels=True)
        return self._labelled

    def _samples(self) -> tuple[list[Action], list[Frame]]:
        """All actions and some frames of a few episodes of the scripted player."""
        if self._sample is None:
            game, player = self._game_with_labels(), scripted_player(self._info)
            actions: list[Action] = []
            frames: list[Frame] = []
            every = max(1, SAMPLE_EPISODES * self._info.max_steps // MAX_SHUFFLED_FRAMES)
            for seed in range(SAMPLE_SEED, SAMPLE_SEED + SAMPLE_EPISODES):
                game.reset(seed)
                player.begin(game, seed)
                while not game.done:
                    if len(actions) % every == 0:
                        frames.append(game.frame().copy())
                    actions.append(player.act(UNSEEN))
                    game.act(actions[-1])
            self._sample = actions, frames
        return self._sample
