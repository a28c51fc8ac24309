"""What the converter takes from an annotation: whose action it was, its names, its motion."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from p2p.actions import Action, encode_keys
from p2p.format import SYSTEM, UNKNOWN, USER
from p2p.proto import video_annotation_pb2 as messages
from p2p.recording import action_message, read_annotation
from p2p_convert.amend import Amendments
from p2p_convert.annotations import extract


def test_a_row_is_the_action_that_followed_its_frame_and_the_systems_before_the_users() -> None:
    annotation = messages.VideoAnnotation()
    for user, system in ((("q",), ()), (("w",), ()), (("w",), ("s",)), ((), ())):
        frame = annotation.frame_annotations.add()
        if user:
            frame.user_action.CopyFrom(action_message(Action(user, (), 5, -7)))
        if system:
            frame.system_action.CopyFrom(action_message(Action(system)))
    hidden = annotation.frame_annotations.add().user_action
    hidden.CopyFrom(action_message(Action(("w",), ("0",), 9, 9)))
    hidden.is_known = False
    rows, texts = extract(annotation, 6, Counter())
    assert rows.taken.tolist() == [USER, SYSTEM, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN]
    assert rows.mouse_px.tolist() == [[5, -7], *[[0, 0]] * 5]
    assert rows.keys[:3].tolist() == [encode_keys(keys, 6) for keys in (["w"], ["s"], [])]
    assert not rows.keys[3:].any()
    assert not rows.buttons.any()
    assert texts == []


def test_foreign_names_are_counted_once_a_frame() -> None:
    annotation = messages.VideoAnnotation()
    annotation.frame_annotations.add()
    for keys in (["Foo"], ["Foo", "w"], ["Foo"]):
        annotation.frame_annotations.add().user_action.CopyFrom(action_message(Action(tuple(keys))))
    counts: Counter[str] = Counter()
    rows, _ = extract(annotation, 4, counts)
    assert counts == {"key Foo": 3}
    assert rows.keys[:3].tolist() == [encode_keys(keys, 6) for keys in ([], ["w"], [])]


def test_taps_between_two_frames_are_joined_to_the_action_of_whom_they_are() -> None:
    made = messages.VideoAnnotation(version=7)
    for system in (False, False, True, False):
        frame = made.frame_annotations.add()
        known = frame.system_action if system else frame.user_action
        known.CopyFrom(action_message(Action(("w",))))
    presses = [(), (("a", True, 0), ("a", False, 0), ("w", True, 0), ("w", False, 0), ("RightBracket", True, 0))]
    presses += [(("s", True, 0), ("s", False, 0), ("d", True, 1), ("d", False, 1)), (("LeftShift", True, 0),)]
    for frame, events in zip(made.frame_annotations, presses, strict=True):
        for key, pressed, simulated in events:
            event = frame.input_events.add(simulated=bool(simulated))
            event.keyboard_event.key, event.keyboard_event.pressed = key, pressed
    click = made.frame_annotations[3].input_events
    for pressed in (True, False):
        event = click.add()
        event.mouse_event.button, event.mouse_event.pressed = "Right", pressed
    counts: Counter[str] = Counter()
    Amendments(join_taps=True).apply(made, counts, "here")
    assert counts["taps between two frames joined"] == 3
    actions = [f.system_action if f.system_action.is_known else f.user_action for f in made.frame_annotations]
    assert [list(action.keyboard.keys) for action in actions] == [["w"], ["w", "a"], ["w", "d"], ["w"]]
    assert [list(action.mouse.buttons_down) for action in actions] == [[], [], [], ["1"]]


def test_a_key_that_is_held_and_repeats_is_no_tap() -> None:
    made = messages.VideoAnnotation(version=7)
    for pressed in ((True,), (True,), (True, False)):
        frame = made.frame_annotations.add()
        frame.user_action.CopyFrom(action_message(Action()))
        for change in pressed:
            event = frame.input_events.add()
            event.keyboard_event.key, event.keyboard_event.pressed = "LeftShift", change
    counts: Counter[str] = Counter()
    Amendments(join_taps=True).apply(made, counts, "here")
    assert counts["taps between two frames joined"] == 0


def test_real_recordings_of_version_5_get_back_what_the_system_did(shared_fixtures: Path) -> None:
    found = {}
    for name in ("user_only", "system_only", "system_and_user"):
        made = read_annotation(shared_fixtures / "recap_case" / name)
        Amendments(repair_version_5=True).apply(made, Counter(), name)
        rows, _ = extract(made, len(made.frame_annotations) + 1, Counter())
        by_system = rows.taken == SYSTEM
        motion = rows.mouse_px[by_system]
        buttons = int(rows.buttons[by_system].any(axis=1).sum())
        found[name] = (buttons, [*motion.min(0).tolist(), *motion.max(0).tolist()] if len(motion) else [])
    assert found == {
        "user_only": (0, []),
        "system_only": (258, [-670, -68, 1002, 56]),
        "system_and_user": (65, [-394, -70, 501, 84]),
    }
