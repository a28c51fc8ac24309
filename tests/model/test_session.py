"""Sessions: what a policy does with pictures and words, its memory, and its own randomness; and opening a policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from p2p.actions import Action
from p2p.config import PolicyConfig, SamplingConfig
from p2p.model import Policy, load_policy
from p2p.model.opening import SIZES, recipe_config
from p2p.text import TableEmbedder

TINY = PolicyConfig(
    dim=32, num_layers=2, num_heads=4, num_timesteps=5, attention_history=(2, 5), image_encoder="small_cnn",
    frame_height=96, frame_width=96, decoder_num_heads=4, decoder_num_layers=2, text_dim=16,
)  # fmt: skip
GREEDY = SamplingConfig(greedy=True, mouse_sampling="mean")


def frames(num: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (num, 96, 96, 3), dtype=np.uint8)


def lively_policy() -> Policy:
    """What it does depends on what it sees and has seen, and on what it is told."""
    torch.manual_seed(0)
    policy = Policy(TINY).eval()
    with torch.no_grad():
        policy.decoder.position.mul_(0.03)
        policy.text_projection.weight.mul_(100)
        for name in ("keys", "buttons", "mouse_x", "mouse_y"):
            policy.heads.get_submodule(name).weight.mul_(10)  # type: ignore[operator, union-attr]
    return policy


def test_a_seed_repeats_a_session_and_sessions_of_one_policy_do_not_meet() -> None:
    policy = lively_policy()
    first, second, other = policy.session(seed=3), policy.session(seed=3), policy.session(seed=4)
    actions = [(first.act(frame), second.act(frame), other.act(frame)) for frame in frames(8)]
    assert all(a == b for a, b, _ in actions)
    assert any(a != c for a, _, c in actions)
    first.restart()
    assert [first.act(frame) for frame in frames(8)] == [a for a, _, _ in actions]


def test_work_after_the_answer_changes_no_answer_and_neither_does_a_warm_up() -> None:
    policy = lively_policy()
    plain, finishing = policy.session(seed=1), policy.session(seed=1)
    finishing.warm_up()
    for frame in frames(3 * TINY.num_timesteps):
        assert plain.act(frame) == finishing.act(frame)
        finishing.finish_step()


@pytest.mark.parametrize("forget", [True, False])
def test_history_is_forgotten_on_command_and_after_so_many_frames(forget: bool) -> None:
    session = lively_policy().session(sampling=GREEDY, clear_every=0 if forget else 4)
    answers = []
    for _ in range(3):
        answers.append([session.act(frame) for frame in frames(4)])
        if forget:
            session.forget()
    assert answers[0] == answers[1] == answers[2]
    remembering = lively_policy().session(sampling=GREEDY)
    assert [[remembering.act(frame) for frame in frames(4)] for _ in range(3)] != answers


def test_a_picture_of_any_size_is_stretched_even_one_that_cannot_be_written_to() -> None:
    large = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    large.flags.writeable = False
    session, other = (lively_policy().session(seed=0) for _ in range(2))
    assert session.act(large) == other.act(session.fit(large))
    small = frames(1)[0]
    assert session.fit(small) is small
    small.flags.writeable = False
    assert session.fit(small).flags.writeable


def test_words_are_embedded_by_the_embedder_that_is_given(tmp_path: Path) -> None:
    embedding = np.random.default_rng(0).standard_normal((1, 16)).astype(np.float32)
    np.savez(tmp_path / "table.npz", jump=embedding)
    session = lively_policy().session(sampling=GREEDY, embedder=TableEmbedder(tmp_path / "table.npz"))

    def answer(text: Any) -> Action:
        session.restart()
        return session.act(frames(1)[0], text)

    assert answer("jump") == answer(embedding) == answer(embedding.tolist())
    assert answer("") == answer(None) != answer("jump")
    with pytest.raises(ValueError, match="no embedding of 'swim'"):
        answer("swim")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"clear_every": -1}, "clear_every is -1"),
        ({"mouse_sampling": "modal"}, "mouse_sampling is 'modal'"),
    ],
)
def test_options_that_do_not_exist_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lively_policy().session(**options)


@pytest.mark.parametrize(
    ("frame", "text", "message"),
    [
        (np.zeros((96, 96, 4), np.uint8), None, r"frame is uint8 \[96, 96, 4\]; give uint8 \[height, width, 3\]"),
        (np.zeros((3, 96, 96), np.uint8), None, r"frame is uint8 \[3, 96, 96\]"),
        (np.zeros((96, 96, 3)), None, "frame is float64"),
        (np.zeros((0, 96, 3), np.uint8), None, "cannot resize"),
        (np.zeros((96, 96, 3), np.uint8), np.full((1, 16), np.nan), "text: 16 of 16 numbers are not finite"),
        (np.zeros((96, 96, 3), np.uint8), np.zeros((2, 16)), r"text has shape \[2, 16\], expected \[1, 16\]"),
    ],
)
def test_what_is_no_frame_or_no_text_is_refused(frame: Any, text: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lively_policy().session().act(frame, text)


@pytest.mark.parametrize(
    ("source", "device", "message"),
    [
        ("hf:somebody", "cpu", "expected hf:OWNER/NAME, or hf:OWNER/NAME/SIZE"),
        ("missing.ckpt", "cpu", "missing.ckpt"),
        ("missing", "cpu", "missing is no policy folder"),
        ("missing", "abacus", "device 'abacus' cannot be used here"),
    ],
)
def test_what_is_no_policy_is_named(source: str, device: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_policy(source, device)


def test_the_sizes_are_those_of_the_recipes(repository: Path) -> None:
    for name in SIZES:
        recipe = repository / "recipes" / f"{name}.yaml"
        assert recipe_config(name) == recipe_config(str(recipe))
