"""Let a policy act in an environment, and see what it pressed: `python examples/act_in_environment.py POLICY GAME`."""

import sys
from collections import Counter
from contextlib import closing

import p2p


class KeyCounter:
    """A subscriber: in how many steps each key was down."""

    def __init__(self) -> None:
        self.counts = Counter()

    def __call__(self, step):
        self.counts.update(step.action.keys)


def main(place: str, game: str = "doom:health_gathering", num_episodes: int = 3) -> None:
    session = p2p.load_policy(place).session(seed=0)
    keys = KeyCounter()
    with closing(p2p.make_env(game)) as env:
        episodes = p2p.rollout(env, session, [keys], episodes=num_episodes, seed=1)
    for episode in episodes:
        print(f"seed {episode.seed}: return {episode.score:.0f} after {episode.num_steps} steps")
    num_steps = sum(episode.num_steps for episode in episodes)
    for key, count in keys.counts.most_common():
        print(f"{key}: {100 * count / num_steps:.0f} % of the steps")


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:]))
