"""The engines: the original's rollout, one computation on both, and what they take; and the network made ready."""

from __future__ import annotations

import dataclasses
import gc
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from p2p.config import PolicyConfig
from p2p.model import Policy
from p2p.model.cache import cache_bytes
from p2p.model.captured import CapturedEngine
from p2p.model.engine import Engine, StepEngine
from p2p.model.inference import for_inference
from p2p.model.original import load_checkpoint

HALVES = np.full(8, 0.5, dtype=np.float32)
TINY = PolicyConfig(
    dim=32, num_layers=2, num_heads=4, num_timesteps=5, attention_history=(2, 5), image_encoder="small_cnn",
    decoder_num_heads=4, decoder_num_layers=2, text_dim=16, num_sink_tokens=1, num_thinking_tokens=2,
)  # fmt: skip


def tiny_policy() -> Policy:
    torch.manual_seed(0)
    return Policy(TINY).eval()


def frames(num: int) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(0).integers(0, 256, (num, 192, 192, 3), dtype=np.uint8)


@pytest.mark.parametrize("finish", [True, False])
@pytest.mark.parametrize("guess_previous", [True, False])
def test_the_rollout_of_the_original(shared_fixtures: Path, finish: bool, guess_previous: bool) -> None:
    folder = shared_fixtures / "parity_tiny"
    rollout = load_file(folder / "rollout.safetensors")
    policy = load_checkpoint(folder / "checkpoint-step=00000010.ckpt")
    engine = StepEngine(policy, guess_previous=guess_previous)
    for t in range(10):
        ids = engine.step(rollout["in.frames"][t], rollout["in.text_embeddings"][t], rollout["in.unif_rand"][t])
        names = ("keys", "mouse_buttons", "mouse_delta_x", "mouse_delta_y")
        assert ids.tolist() == torch.cat([rollout[name][t] for name in names]).tolist()
        if finish:
            engine.finish_step()


def test_colours_first_and_last_are_the_same_frame() -> None:
    engine = StepEngine(tiny_policy())
    frame = frames(1)[0]
    first = engine.step(frame, None, HALVES)
    engine.reset()
    assert (engine.step(np.ascontiguousarray(frame.transpose(2, 0, 1)), None, HALVES) == first).all()


def test_the_captured_computation_gives_the_same_actions() -> None:
    policy = tiny_policy()
    engine, captured = StepEngine(policy), CapturedEngine(policy)
    for _ in range(2):
        for frame in frames(4 * TINY.num_timesteps):
            uniforms = torch.rand(8)
            expected = engine.step(frame, None, uniforms)
            assert captured.step(frame, None, uniforms).tolist() == expected.tolist()
            engine.finish_step()
            captured.finish_step()
        engine.reset()
        captured.reset()


def own_bytes(engine: Engine) -> int:
    """What the tensors take that an engine reaches, without its policy's."""
    seen = {id(engine.policy)}
    waiting: list[object] = [engine]
    sizes: dict[int, int] = {}
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, type | types.ModuleType | types.FunctionType):
            continue
        seen.add(id(thing))
        if isinstance(thing, torch.Tensor):
            sizes[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
        else:
            waiting += gc.get_referents(thing)
    shared = {parameter.untyped_storage().data_ptr() for parameter in engine.policy.parameters()}
    return sum(size for place, size in sizes.items() if place not in shared)


@pytest.mark.parametrize("engine_type", [StepEngine, CapturedEngine])
def test_an_engine_takes_the_memory_of_one_cache(engine_type: type[StepEngine | CapturedEngine]) -> None:
    torch.manual_seed(0)
    policy = Policy(dataclasses.replace(TINY, dim=64, num_layers=6, num_timesteps=100, attention_history=100))
    expected = cache_bytes(policy)
    assert expected > 3_000_000
    assert expected < own_bytes(engine_type(policy)) < 1.15 * expected


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.zeros((100, 192, 3), dtype=np.uint8), r"uint8 \(3, 192, 192\)"),
        (np.zeros((192, 192, 3), dtype=np.float32), "float32"),
    ],
)
def test_a_wrong_frame_is_refused(frame: np.ndarray, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match=message):
        StepEngine(tiny_policy()).step(frame, None, HALVES)


def test_a_wrong_text_is_refused() -> None:
    with pytest.raises(ValueError, match=r"text has shape \[1, 5\], expected \[1, 16\]"):
        StepEngine(tiny_policy()).step(frames(1)[0], np.zeros((1, 5), dtype=np.float32), HALVES)


def test_ready_for_inference_it_answers_as_before() -> None:
    config = dataclasses.replace(TINY, image_encoder="efficientnet_b0")
    torch.manual_seed(0)
    policy = Policy(config).eval()
    arguments = (
        torch.randint(256, (1, 3, 3, 192, 192), dtype=torch.uint8), torch.zeros(1, 3, 8, dtype=torch.int64),
        torch.zeros(1, 3, 1, 16),
    )  # fmt: skip
    with torch.no_grad():
        expected = policy(*arguments)
        folded = for_inference(policy, torch.float32)(*arguments)
        narrow = for_inference(policy, torch.bfloat16)(*arguments)
    for e, f, n in zip(expected, folded, narrow, strict=True):
        torch.testing.assert_close(f, e, atol=1e-4, rtol=1e-3)
        assert n.dtype == torch.bfloat16
        torch.testing.assert_close(n.float(), e, atol=0.1, rtol=0)
