"""The agents: what scripts do about what they see, and what the disturbed one writes down."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from p2p.actions import Action
from p2p.agents.controls import BlindAgent, DisturbedAgent, RandomAgent
from p2p.environments.doom_engine import Label
from p2p.environments.registry import find_game, game_names, make_agent

FRAME = np.zeros((192, 192, 3), np.uint8)


def answer(game: str, *labels: Label, step: int = 1, name: str = "expert") -> Action:
    agent = make_agent(find_game(game), name)
    agent.reset(0)
    for _ in range(step):
        action = agent.act(FRAME, {"labels": labels})
    return action


@pytest.mark.parametrize(
    ("bearing", "keys"),
    [(0, ("w",)), (20, ("RightArrow", "w")), (-20, ("LeftArrow", "w")), (40, ("RightArrow",)), (-40, ("LeftArrow",))],
)
def test_the_gatherer_turns_to_the_medikit_and_walks_when_it_is_ahead(bearing: float, keys: tuple[str, ...]) -> None:
    assert answer("doom:health_gathering", Label("CustomMedikit", 200, bearing)).keys == keys


def test_the_gatherer_prefers_a_kit_ahead_to_a_nearer_one_at_the_side() -> None:
    kits = Label("Medikit", 200, -44), Label("Medikit", 220, 3)
    assert answer("doom:health_gathering", *kits).keys == ("w",)


def test_the_gatherer_searches_to_the_right() -> None:
    assert answer("doom:health_gathering", Label("DoomPlayer", 0, 0)).keys == ("RightArrow",)


def test_the_defender_fires_only_when_on_target_and_every_second_step() -> None:
    ahead = Label("MarineChainsaw", 300, 0.5)
    assert answer("doom:defend_the_center", ahead, step=2).keys == ("Space",)
    assert answer("doom:defend_the_center", ahead, step=3).keys == ()
    assert answer("doom:defend_the_center", Label("Demon", 300, 20), step=2).keys == ("RightArrow",)
    assert answer("doom:defend_the_center", Label("Demon", 500, 20), step=2).keys == ("RightArrow",)
    assert answer("doom:defend_the_center", Label("DeadDemon", 100, -20), step=2).keys == ("RightArrow",)


def test_the_contrary_gatherer_walks_where_no_medikit_is_near() -> None:
    game = "doom:health_gathering"
    assert answer(game, Label("CustomMedikit", 399, -34), name="contrary").keys == ("RightArrow",)
    for elsewhere in (Label("CustomMedikit", 401, 0), Label("CustomMedikit", 200, 36), Label("DoomPlayer", 0, 0)):
        assert answer(game, elsewhere, name="contrary").keys == ("w",)


def test_the_contrary_defender_turns_as_the_defender_does_and_never_fires() -> None:
    for bearing in (-20, 0.5, 20):
        for step in (1, 2):
            scene = "doom:defend_the_center", Label("Demon", 300, bearing)
            defended = answer(*scene, step=step).keys
            assert answer(*scene, step=step, name="contrary").keys == tuple(k for k in defended if k != "Space")


def test_a_player_that_a_game_lacks_is_named() -> None:
    with pytest.raises(ValueError, match="doom:basic has no scripted player 'contrary'; those with one are doom:heal"):
        make_agent(find_game("doom:basic"), "contrary")
    with pytest.raises(ValueError, match="'nobody': choose one of expert, contrary"):
        make_agent(find_game("doom:basic"), "nobody")


def test_the_basic_shooter_strafes_to_the_monster() -> None:
    assert answer("doom:basic", Label("Cacodemon", 400, 20)).keys == ("d",)
    assert answer("doom:basic", Label("Cacodemon", 400, -20)).keys == ("a",)
    assert answer("doom:basic", Label("Cacodemon", 400, 1)).keys == ("Space",)


def test_the_line_defender_aims_with_the_mouse() -> None:
    assert answer("doom:defend_the_line", Label("DoomImp", 400, 2), step=1) == Action((), (), 15)
    assert answer("doom:defend_the_line", Label("DoomImp", 400, -30), step=1) == Action((), (), -60)
    assert answer("doom:defend_the_line", Label("DoomImp", 400, 0), step=2).buttons == ("0",)


def test_the_rocket_shooter_aims_ahead_of_a_monster_that_walks() -> None:
    still = answer("doom:predict_position", Label("Cacodemon", 600, 0, 0.0), step=20)
    walking = answer("doom:predict_position", Label("Cacodemon", 600, 0, 10.0), step=20)
    assert still.dx == 0
    assert still.buttons == ("0",)
    assert walking.dx > 20
    assert walking.buttons == ()


def test_every_game_of_the_table_has_a_scripted_player() -> None:
    for name in game_names():
        assert make_agent(find_game(name)) is not None


def test_a_scripted_player_without_labels_says_how_to_get_them() -> None:
    agent = make_agent(find_game("doom:basic"))
    agent.reset(0)
    with pytest.raises(ValueError, match="open the game with labels=True"):
        agent.act(FRAME, {})


def test_the_random_player_holds_its_keys_for_one_to_ten_steps_and_repeats_with_its_seed() -> None:
    def actions(seed: int) -> list[Action]:
        agent = RandomAgent(find_game("doom:defend_the_center"))
        agent.reset(seed)
        return [agent.act(FRAME, {}) for _ in range(500)]

    taken = actions(4)
    assert taken == actions(4) != actions(5)
    changes = sum(a != b for a, b in itertools.pairwise(taken))
    assert 50 <= changes <= 150  # 500 steps in stretches of 5.5 on average, some of them equal to the one before
    assert {key for action in taken for key in action.keys} == {"LeftArrow", "RightArrow", "Space"}


def test_the_blind_player_presses_at_the_rates_it_was_given() -> None:
    walk, turn = Action(("w",)), Action(("RightArrow",))
    agent = BlindAgent([walk] * 3 + [turn])
    agent.reset(1)
    counts = Counter(agent.act(FRAME, {}) for _ in range(4000))
    assert counts[walk] / 4000 == pytest.approx(0.75, abs=0.03)
    assert counts[walk] + counts[turn] == 4000


def test_a_disturbance_is_executed_but_the_label_stays_what_the_player_wanted() -> None:
    game = find_game("doom:health_gathering")
    wanted = ("w",)
    agent = DisturbedAgent(make_agent(game), game, rate=0.1)
    agent.reset(7)
    executed = []
    for _ in range(1000):
        executed.append(agent.act(FRAME, {"labels": [Label("Medikit", 100, 0)]}).keys)
        assert agent.intended.keys == wanted
    share = sum(keys != wanted for keys in executed) / 1000
    assert 0.15 < share < 0.5  # bursts of 4.5 steps on average, 1 of 8 of which happen to be what was wanted


def test_an_undisturbed_player_executes_what_it_wants() -> None:
    game = find_game("doom:health_gathering")
    agent = DisturbedAgent(make_agent(game), game, rate=0.0)
    agent.reset(7)
    seen = {"labels": [Label("Medikit", 100, 40)]}
    assert all(agent.act(FRAME, seen) == agent.intended for _ in range(200))
