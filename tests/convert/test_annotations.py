"""What the converter takes from an annotation: whose action it was, its names, its motion."""

from __future__ import annotations

from collections import Counter

from p2p.actions import Action, encode_keys
from p2p.format import SYSTEM, UNKNOWN, USER
from p2p.proto import video_annotation_pb2 as messages
from p2p.recording import action_message
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
