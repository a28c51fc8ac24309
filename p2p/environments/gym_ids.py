"""Our games under Gymnasium's ids, for whoever scores an agent of his own on them.

    import gymnasium
    env = gymnasium.make("p2p/doom-levels-MAP01-v0")        # the way covered is the reward, 100 at the exit
    observation, info = env.reset(seed=1_000_000_000)

An installed package is found by Gymnasium itself (the entry point `gymnasium.envs` in pyproject.toml); `register` does
the same by hand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from p2p.environments import doom_levels
from p2p.environments.registry import game_names, make_env

if TYPE_CHECKING:
    import gymnasium

VERSION = "v0"


def gym_id(name: str) -> str:
    """The id of a listed game: doom:freedoom2:MAP01 is p2p/doom-levels-MAP01-v0, doom:basic p2p/doom-rooms-basic-v0."""
    family, _, rest = name.partition(":")
    kind = f"{family}-levels" if doom_levels.is_level(name) else f"{family}-rooms" if family == "doom" else family
    words = rest.split(":")[1:] if doom_levels.is_level(name) else rest.split(":")
    return f"p2p/{kind}-{'-'.join(words).replace('_', '-')}-{VERSION}"


def make(name: str, render_mode: str | None = None, **options: Any) -> gymnasium.Env[Any, Any]:
    """As `registry.make_env`; an environment always renders what policies see.

    Raises:
        ValueError: for another way of rendering, or as `make_env`.
    """
    if render_mode not in (None, "rgb_array"):
        raise ValueError(f"render_mode {render_mode!r}: only rgb_array is there")
    return make_env(name, **options)


def register() -> None:
    """Tell Gymnasium of every listed game that it does not know yet."""
    import gymnasium

    for name in game_names():
        if gym_id(name) not in gymnasium.registry:
            gymnasium.register(gym_id(name), entry_point="p2p.environments.gym_ids:make", kwargs={"name": name})
