"""Ids <-> names and pixels: the tables agree with the reference, and every motion comes back into its bin."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p import actions
from p2p.actions import MOUSE_X_EDGES, MOUSE_Y_EDGES, Action, ActionSpace, mouse_bin_range, mouse_x_bins, mouse_y_bins

SPACE = ActionSpace()
AXES = {"x": (MOUSE_X_EDGES, mouse_x_bins), "y": (MOUSE_Y_EDGES, mouse_y_bins)}


@pytest.fixture(scope="module")
def reference(shared_fixtures: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((shared_fixtures / "mapping_case" / "mapping.json").read_text())
    return content


def test_key_table_equals_the_reference(shared_fixtures: Path) -> None:
    table = json.loads((shared_fixtures / "mapping_case" / "action_mapping.json").read_text())["keys"]
    assert {name: index for index, name in enumerate(actions.KEY_NAMES)} == {
        name: index for name, index in table.items() if index is not None
    }
    assert {name for name, index in table.items() if index is None} == actions.IGNORED_KEYS


def test_encode_equals_the_reference(reference: dict[str, Any]) -> None:
    for case in reference["encode"]:
        ids = SPACE.encode(case["keys"], case["buttons"], case["dx"], case["dy"])
        assert ids.tolist() == [*case["out_keys"], *case["out_buttons"], case["out_x"], case["out_y"]], case


@pytest.mark.parametrize("mouse_sampling", ["mean", "conservative"])
def test_decode_equals_the_reference(reference: dict[str, Any], mouse_sampling: str) -> None:
    for case in reference["decode"]:
        ids = np.array([*case["keys_tok"], *case["buttons_tok"], case["x_tok"], case["y_tok"]])
        expected = Action(tuple(case["keys"]), tuple(case["buttons"]), *case[mouse_sampling])
        assert SPACE.decode(ids, mouse_sampling) == expected, case


@pytest.mark.parametrize("axis", ["x", "y"])
def test_bins_and_their_ranges_equal_the_reference(reference: dict[str, Any], axis: str) -> None:
    edges, bins = AXES[axis]
    assert edges.tolist() == reference[f"mouse_{axis}_edges"]
    table = reference[f"bucket_{axis}"]
    assert bins([int(motion) for motion in table]).tolist() == list(table.values())
    for entry in reference[f"truncated_normal_bounds_{axis}"]:
        low, high = (entry["fixed"],) * 2 if "fixed" in entry else (entry["lb"], entry["ub"])
        assert mouse_bin_range(edges, entry["bin"]) == (low, high)


def test_truncated_normal_is_distributed_as_the_reference(reference: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    for entry in reference["truncated_normal_samples"]:
        ids = SPACE.nothing
        y_bin = min(entry["y_bin"], actions.NUM_MOUSE_Y - 1)
        ids[SPACE.mouse_x_slot], ids[SPACE.mouse_y_slot] = entry["x_bin"], y_bin
        drawn = np.array([(a.dx, a.dy) for a in (SPACE.decode(ids, "truncated_normal", rng) for _ in range(1000))])
        for column, edges, chosen in ((0, MOUSE_X_EDGES, entry["x_bin"]), (1, MOUSE_Y_EDGES, y_bin)):
            low, high = mouse_bin_range(edges, chosen)
            mean = entry["x_min_max_mean" if column == 0 else "y_min_max_mean"][2]
            assert low <= drawn[:, column].min() <= drawn[:, column].max() <= high
            assert abs(drawn[:, column].mean() - mean) <= 0.12 * (high - low) + 1e-9, entry


@given(dx=st.integers(-500, 500), dy=st.integers(-150, 150), seed=st.integers(0, 2**32 - 1))
def test_every_motion_inside_the_edges_decodes_into_its_own_bin(dx: int, dy: int, seed: int) -> None:
    ids = SPACE.encode([], [], dx, dy)
    for mouse_sampling in ("truncated_normal", "mean", "conservative"):
        back = SPACE.decode(ids, mouse_sampling, np.random.default_rng(seed))
        assert (mouse_x_bins(back.dx), mouse_y_bins(back.dy)) == (ids[SPACE.mouse_x_slot], ids[SPACE.mouse_y_slot])


@given(
    keys=st.lists(st.sampled_from(actions.KEY_NAMES[1:]), max_size=4, unique=True),
    buttons=st.lists(st.sampled_from(actions.BUTTON_NAMES[1:]), max_size=2, unique=True),
)
def test_names_that_fit_come_back_sorted(keys: list[str], buttons: list[str]) -> None:
    back = SPACE.decode(SPACE.encode(keys, buttons, 0, 0))
    assert back == Action(tuple(sorted(keys)), tuple(sorted(buttons)))


def test_foreign_names_are_dropped_and_counted_but_known_ignored_ones_are_not() -> None:
    unknown: Counter[str] = Counter()
    ids = SPACE.encode(["w", "W", "F12", "W"], ["0", "3", "left"], 0, 0, unknown)
    assert SPACE.decode(ids) == Action(("w",), ("0",))
    assert unknown == {"key W": 2, "button 3": 1, "button left": 1}


def test_no_key_takes_a_slot() -> None:
    assert SPACE.encode(["_no_key", "w"], ["_no_button", "0"], 0, 0)[:6].tolist() == [0, 11, 0, 0, 0, 1]
    assert SPACE.encode(["_no_key", "a", "d", "e", "f"], [], 0, 0)[:4].tolist() == [0, 6, 7, 8]


def test_nothing_is_what_no_input_encodes_to() -> None:
    assert SPACE.nothing.tolist() == SPACE.encode([], [], 0, 0).tolist() == [0, 0, 0, 0, 0, 0, 11, 8]


def test_another_number_of_slots() -> None:
    space = ActionSpace(max_keys=6, max_mouse_buttons=3)
    assert space.num_slots == 11
    assert space.num_choices == (20,) * 6 + (4,) * 3 + (23, 17)
    assert space.slot_heads == ("keys",) * 6 + ("buttons",) * 3 + ("mouse_x", "mouse_y")
    rows = space.nothing[None].repeat(2, 0)
    assert {head: rows[:, slots].shape for head, slots in space.head_slots.items()} == {
        "keys": (2, 6), "buttons": (2, 3), "mouse_x": (2, 1), "mouse_y": (2, 1)
    }  # fmt: skip
    assert space.decode(space.encode("adefqw", "012", 3, -4)) == Action(tuple("adefqw"), tuple("012"), 2, -4)


@pytest.mark.parametrize(("max_keys", "max_buttons"), [(0, 2), (7, 2), (4, 0), (4, 4)])
def test_sizes_out_of_range_are_refused(max_keys: int, max_buttons: int) -> None:
    with pytest.raises(ValueError, match="write a number from 1 to"):
        ActionSpace(max_keys, max_buttons)


@pytest.mark.parametrize("ids", [[0] * 7, [20, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 23, 0], [-1] + [0] * 7])
def test_ids_out_of_range_are_refused(ids: list[int]) -> None:
    with pytest.raises(ValueError, match="expected 8 ids"):
        SPACE.decode(np.array(ids))
