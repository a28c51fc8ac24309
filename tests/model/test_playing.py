"""Step by step equals whole chunks, and guessing equals drawing one by one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from p2p.config import PolicyConfig, SamplingConfig
from p2p.model import Policy
from p2p.model.cache import Stepper
from p2p.model.decode import DecoderRunner
from p2p.model.original import load_checkpoint

TINY = PolicyConfig(
    dim=32, num_layers=2, num_heads=4, num_timesteps=5, attention_history=5, image_encoder="small_cnn",
    decoder_num_heads=4, decoder_num_layers=2, text_dim=16,
)  # fmt: skip
CASES = {
    "plain": TINY,
    "several tokens, sinks, unequal histories": dataclasses.replace(
        TINY, num_layers=3, attention_history=(2, 5, 3), num_thinking_tokens=3, num_sink_tokens=2,
        num_image_tokens=2, num_text_tokens=2,
    ),
    "no history in one layer, no text, no thinking": dataclasses.replace(
        TINY, attention_history=(0, 5), num_thinking_tokens=0, num_text_tokens=0, num_sink_tokens=1
    ),
    "six key slots": dataclasses.replace(TINY, max_keys=6, max_mouse_buttons=3),
}  # fmt: skip


def inputs(config: PolicyConfig, num_timesteps: int, batch_size: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (batch_size, num_timesteps)
    frames = torch.randint(
        256, (*shape, 3, config.frame_height, config.frame_width), dtype=torch.uint8, generator=generator
    )
    actions = torch.randint(4, (*shape, config.num_action_slots), generator=generator)
    text = torch.randn(*shape, config.num_text_tokens, config.text_dim, generator=generator)
    text[:, ::3] = 0  # some timesteps without instruction
    return frames, actions, text


def sliding_window(policy: Policy, num_timesteps: int) -> Policy:
    """The same weights as a policy of longer chunks whose layers see no further than a stepper's cache."""
    config = policy.config
    histories = tuple(min(history, config.num_timesteps - 1) for history in config.histories)
    longer = Policy(dataclasses.replace(config, num_timesteps=num_timesteps, attention_history=histories))
    longer.load_state_dict(policy.state_dict())
    return longer.eval()


@pytest.mark.parametrize("with_next_frame", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_playing_equals_the_full_forward_over_rolling_windows(name: str, with_next_frame: bool) -> None:
    torch.manual_seed(0)
    policy = Policy(CASES[name]).eval()
    num_timesteps = 6 * policy.config.num_timesteps
    frames, actions, text = inputs(policy.config, num_timesteps)
    with torch.no_grad():
        expected = sliding_window(policy, num_timesteps).transform(frames, actions, text)
    stepper = Stepper(policy, batch_size=2)
    for t in range(num_timesteps):
        y_out = stepper.observe(frames[:, t], text[:, t])
        torch.testing.assert_close(y_out, expected[:, t], atol=2e-5, rtol=1e-4)
        stepper.act(actions[:, t])
        if not with_next_frame:
            stepper.remember()


def test_positions_stay_exact_after_an_hour() -> None:
    torch.manual_seed(0)
    policy = Policy(TINY).eval()
    frames, actions, text = inputs(TINY, 12)
    fresh, late = Stepper(policy, 2), Stepper(policy, 2)
    late.cache.num_steps = 20 * 3600 * 24  # a day of play: one frame 20 times a second
    for t in range(12):
        expected, got = (stepper.observe(frames[:, t], text[:, t]) for stepper in (fresh, late))
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)
        fresh.act(actions[:, t])
        late.act(actions[:, t])


def test_a_reset_player_starts_afresh() -> None:
    policy = Policy(TINY).eval()
    frames, actions, text = inputs(TINY, 4)
    stepper = Stepper(policy, 2)
    first = stepper.observe(frames[:, 0], text[:, 0])
    stepper.act(actions[:, 0])
    stepper.observe(frames[:, 1], text[:, 1])
    stepper.reset()
    assert torch.equal(stepper.observe(frames[:, 0], text[:, 0]), first)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("sampling", [SamplingConfig(), SamplingConfig(0.7, 0.8), SamplingConfig(greedy=True)])
def test_guessing_draws_what_one_by_one_draws(name: str, sampling: SamplingConfig) -> None:
    torch.manual_seed(0)
    config = CASES[name]
    policy = Policy(config).eval()
    runner = DecoderRunner(policy)
    passes = []
    for trial in range(40):
        y_out = torch.randn(1, config.dim)
        uniforms = torch.rand(1, config.num_action_slots)
        expected = runner.decode(y_out, uniforms, sampling)
        guess = expected.ids.clone()
        wrong = torch.rand(guess.shape) < (trial % 5) / 5
        guess[wrong] = (guess[wrong] + 1) % 4
        got = runner.decode(y_out, uniforms, sampling, guess)
        assert torch.equal(got.ids, expected.ids)
        torch.testing.assert_close(got.logits, expected.logits, atol=1e-5, rtol=1e-4)
        assert got.num_passes <= 1 + int(wrong.sum())
        passes.append(got.num_passes)
        if not wrong.any():
            assert got.num_passes == 1
    assert max(passes) > 1


def test_one_by_one_logits_are_those_of_teacher_forcing() -> None:
    torch.manual_seed(0)
    policy = Policy(TINY).eval()
    y_out, uniforms = torch.randn(3, TINY.dim), torch.rand(3, TINY.num_action_slots)
    decoded = DecoderRunner(policy, batch_size=3).decode(y_out, uniforms, SamplingConfig())
    with torch.no_grad():
        expected = policy.heads(policy.decoder(y_out, policy.action_embedding(decoded.ids)))
    for head, slots in policy.heads.slots.items():
        logits = getattr(expected, head)
        torch.testing.assert_close(decoded.logits[:, slots, : logits.shape[-1]], logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("prefix", "temperature"), [("", 1.0), ("temp07.", 0.7)])
@pytest.mark.parametrize("guess", [True, False])
def test_the_rollout_of_the_original(shared_fixtures: Path, prefix: str, temperature: float, guess: bool) -> None:
    folder = shared_fixtures / "parity_tiny"
    rollout = load_file(folder / "rollout.safetensors")
    policy = load_checkpoint(folder / "checkpoint-step=00000010.ckpt")
    names = ("keys", "mouse_buttons", "mouse_delta_x", "mouse_delta_y")
    stepper, runner = Stepper(policy), DecoderRunner(policy)
    previous = torch.zeros(1, 8, dtype=torch.int64) if guess else None
    for t in range(10):
        y_out = stepper.observe(rollout["in.frames"][t : t + 1], rollout["in.text_embeddings"][t : t + 1])
        uniforms = rollout[f"{prefix}in.unif_rand"][t : t + 1]
        decoded = runner.decode(y_out, uniforms, SamplingConfig(temperature), previous)
        assert decoded.ids[0].tolist() == torch.cat([rollout[prefix + name][t] for name in names]).tolist()
        torch.testing.assert_close(y_out[0], rollout[f"{prefix}action_out_hidden"][t], atol=1e-4, rtol=0)
        for slots, name in zip(policy.heads.slots.values(), names, strict=True):
            expected = rollout[f"{prefix}logits.{name}"][t]
            torch.testing.assert_close(decoded.logits[0, slots, : expected.shape[-1]], expected, atol=1e-4, rtol=0)
        stepper.act(decoded.ids)
        previous = decoded.ids if guess else None
    stepper.remember()
    if not prefix:
        assert_cache(stepper, rollout)


def assert_cache(stepper: Stepper, rollout: dict[str, Tensor]) -> None:
    """The original's final cache, but for the out tokens, which nobody sees."""
    layout, num_kept = stepper.policy.layout, 6
    offsets = torch.tensor([o for o in range(layout.tokens_per_timestep) if o != layout.out])
    for i, ring in enumerate(stepper.cache.ring_of_layer):
        for step in range(10 - num_kept + 1, 10):  # the window without the step that has left it
            rows = ring.layout.row(torch.tensor(step), offsets)
            theirs = offsets + (step - (10 - num_kept)) * layout.tokens_per_timestep
            for name, ours in (("k", stepper.cache.layers[i].keys), ("v", stepper.cache.layers[i].values)):
                expected = rollout[f"final_{name}_cache.{i}"][:, :, theirs]
                torch.testing.assert_close(ours[:, :, rows], expected, atol=1e-4, rtol=0)
