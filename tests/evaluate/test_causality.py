"""The causality score on policies whose causes are known by construction."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from p2p.actions import HEADS, NUM_CHOICES, ActionSpace
from p2p.config import PolicyConfig
from p2p.evaluate.causality import action_divergence, causality, part_ends, swap_frames
from p2p.evaluate.policies import on_device
from p2p.evaluate.stream import Stream
from p2p.model import ActionLogits, Policy

SPACE = ActionSpace()
T = 20


def sample(recording: str, start: int, seed: int) -> dict[str, Any]:
    """A chunk whose frames are grey of a level that says which key the player holds, and stays for some steps."""
    rng = np.random.default_rng(seed)
    level = np.repeat(rng.integers(0, 2, T // 4), 4)
    actions = np.tile(SPACE.nothing, (T, 1))
    actions[:, 0] = np.where(level == 1, 11, 6)
    frames = np.broadcast_to((level * 200)[:, None, None, None], (T, 3, 48, 48)).astype(np.uint8)
    everything = torch.ones(T, dtype=torch.bool)
    return {
        "frames": torch.from_numpy(frames.copy()),
        "actions": torch.from_numpy(actions),
        "user_mask": everything,
        "system_mask": ~everything,
        "valid_mask": everything,
        "text": torch.zeros(T, 1, 8),
        "recording": recording,
        "start": start,
    }


def stream(games: tuple[str, ...] = ("g", "g", "g")) -> Stream:
    """Recordings r0, r1, ... with two chunks each; recording i is of the game games[i]."""
    samples = [sample(f"r{i}", k * T, 10 * i + k) for i in range(len(games)) for k in range(2)]
    names = [s["recording"] for s in samples]
    return Stream("made", samples, SPACE, names, {f"r{i}": g for i, g in enumerate(games)}, [True] * len(samples), T)


def constructed(sees: float, copies: float) -> Any:
    """A policy that knows the right key from the frame with strength `sees`, from the last action with `copies`."""

    def forward(frames: torch.Tensor, actions: torch.Tensor, text: torch.Tensor) -> ActionLogits:
        shape = actions.shape[:2]
        heads = {h: torch.zeros(*shape, SPACE.slot_heads.count(h), NUM_CHOICES[h]) for h in HEADS}
        seen = frames.float().mean((2, 3, 4)) / 100 - 1  # -1 or 1
        before = torch.cat([actions[:, :1, 0] * 0, actions[:, :-1, 0]], dim=1)
        last = (before == 11).float() - (before == 6).float()
        heads["keys"][:, :, 0, 11] = sees * seen + copies * last
        return ActionLogits(**heads)

    return forward


def test_a_policy_that_ignores_its_input_scores_zero() -> None:
    assert causality(constructed(0, 0), stream(), num_chunks=4, num_repeats=2).score == 0


def test_a_copy_cat_scores_zero_and_a_policy_that_ignores_its_past_scores_more() -> None:
    looks, copies, both = (
        causality(constructed(*strength), stream(), num_chunks=6, num_repeats=3)
        for strength in ((3, 0), (0, 3), (0.5, 3))
    )
    assert copies.score == 0
    assert looks.score > 2 * both.score > 0
    assert looks.std > 0


def test_the_real_network_scores_zero_without_its_sight_alone() -> None:
    """The same weights, once with the image tokens silenced and once with the action tokens silenced."""
    torch.manual_seed(0)
    config = PolicyConfig(
        **{"dim": 32, "num_layers": 2, "num_heads": 2, "num_timesteps": T, "attention_history": 8},
        **{"frame_height": 48, "frame_width": 48, "image_encoder": "small_cnn", "text_dim": 8},
        **{"decoder_num_layers": 1, "decoder_num_heads": 2, "dropout": 0.0},
    )
    policy = Policy(config).eval()
    blind, forgetful = Policy(config).eval(), Policy(config).eval()
    for other in (blind, forgetful):
        other.load_state_dict(policy.state_dict())
    with torch.no_grad():
        for parameter in blind.image_tokenizer.parameters():
            parameter.zero_()
        for parameter in forgetful.action_embedding.parameters():
            parameter.zero_()
    scores = [causality(on_device(p), stream(), num_chunks=4, num_repeats=2).score for p in (policy, blind, forgetful)]
    assert scores[1] == 0
    assert scores[0] > 0
    assert scores[2] > 0


def test_the_divergence_is_that_of_the_product_of_the_slots() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = (
        ActionLogits(*(torch.randn(1, 1, n, v, generator=generator) for n, v in ((2, 3), (1, 2), (1, 3), (1, 2))))
        for _ in range(2)
    )
    joint_p, joint_q = torch.ones(1), torch.ones(1)
    for a, b in zip(p, q, strict=True):
        for slot in range(a.shape[2]):
            joint_p = torch.outer(joint_p, a[0, 0, slot].softmax(-1)).flatten()
            joint_q = torch.outer(joint_q, b[0, 0, slot].softmax(-1)).flatten()
    expected = float((joint_p * (joint_p / joint_q).log()).sum())
    assert float(action_divergence(p, q)) == pytest.approx(expected, rel=1e-4)


def test_a_known_score() -> None:
    """Every swapped frame turns probability e/(e+19) of a key into another: worked out for one part end."""
    policy = constructed(1, 0)
    chunk, everything = sample("a", 0, 0), torch.full((T, 3, 48, 48), 200, dtype=torch.uint8)
    chunk["frames"][:] = 0
    logits = policy(chunk["frames"][None], chunk["actions"][None], None)
    other = policy(everything[None], chunk["actions"][None], None)
    p, q = math.exp(-1) / (math.exp(-1) + 19), math.e / (math.e + 19)
    expected = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    np.testing.assert_allclose(action_divergence(logits, other).numpy(), np.full((1, T), expected), rtol=1e-6)


def test_part_ends_are_the_last_steps_of_equal_parts() -> None:
    assert part_ends(200, 10) == [19, 39, 59, 79, 99, 119, 139, 159, 179, 199]
    with pytest.raises(ValueError, match="cannot be cut into 10 parts"):
        part_ends(6, 10)


def test_half_of_the_frames_come_from_the_donors() -> None:
    frames, donor = torch.zeros(400, 3, 2, 2, dtype=torch.uint8), torch.full((5, 3, 2, 2), 9, dtype=torch.uint8)
    swapped = swap_frames(frames, [donor], np.random.default_rng(0))
    assert 160 < int((swapped == 9).all(dim=(1, 2, 3)).sum()) < 240
    assert not frames.any()


def test_donors_are_other_recordings_of_the_same_game() -> None:
    games = ("doom", "quake", "doom", "quake", "doom")
    made, rng = stream(games), np.random.default_rng(0)
    for _ in range(20):
        for index in made.draw_chunks(4, rng):
            own = made.chunks[index]
            for donor in made.draw_donors(index, 2, rng):
                assert made.chunks[donor] != own
                assert made.games[made.chunks[donor]] == made.games[own]


def test_one_recording_per_game_is_a_users_error() -> None:
    with pytest.raises(ValueError, match="no game with two recordings"):
        causality(constructed(1, 0), stream(("a", "b")), num_chunks=2)
