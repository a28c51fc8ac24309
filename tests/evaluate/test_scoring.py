"""Predictions become tallies: joins across chunks, baselines with known losses, free running, the original's losses."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from p2p.actions import ActionSpace
from p2p.config import Z_WEIGHT, SamplingConfig
from p2p.evaluate import metrics
from p2p.evaluate.baselines import baseline_tallies, statistics
from p2p.evaluate.free_running import free_running_ids
from p2p.evaluate.policies import open_policy
from p2p.evaluate.scoring import Collector, ScoredSteps, predict_steps
from p2p.evaluate.stream import open_stream
from p2p.evaluate.validate import score_batches
from p2p.model import load_policy

SPACE = ActionSpace()


def segment(recording: str, start: int, first_keys: list[int], masked: tuple[int, ...] = ()) -> ScoredSteps:
    """A segment in which the first key slot holds the given ids and nothing else happens."""
    actions = np.tile(SPACE.nothing, (len(first_keys), 1))
    actions[:, 0] = first_keys
    mask = np.ones(len(first_keys), dtype=bool)
    mask[list(masked)] = False
    return ScoredSteps(recording, start, actions, mask, actions, np.zeros((len(first_keys), 2)), {"n": np.array(1.0)})


def test_segments_join_in_any_order_and_not_across_a_gap() -> None:
    collector = Collector()
    for part in (segment("r", 4, [3, 3]), segment("r", 0, [1, 1]), segment("r", 2, [2, 2]), segment("r", 9, [4])):
        collector.add(part)
    joined = collector.joined()["r"]
    assert [(s.start, s.actions[:, 0].tolist()) for s in joined] == [(0, [1, 1, 2, 2, 3, 3]), (9, [4])]
    assert float(joined[0].losses["n"]) == 3


def test_an_onset_on_the_border_of_two_chunks_counts() -> None:
    collector = Collector()
    for part in (segment("r", 0, [0, 0]), segment("r", 2, [11, 11])):
        collector.add(part)
    tally = baseline_tallies(collector.joined(), SPACE)["frequencies"][0]
    assert float((tally["key_onset_tp"] + tally["key_onset_fn"]).sum()) == 1


def test_the_frequency_baseline_has_the_entropy_of_the_slots_as_its_loss() -> None:
    recordings = {"r": [segment("r", 0, [11, 0, 0, 0, 11, 0, 0, 0])]}
    values = metrics.summarise(metrics.add_tallies(baseline_tallies(recordings, SPACE)["frequencies"]))
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert float(values["perplexity/keys"]) == pytest.approx(math.exp(entropy / 4), rel=1e-4)
    assert float(values["perplexity/mouse_x"]) == pytest.approx(1, rel=1e-4)


def test_the_repeat_baseline_mixes_the_previous_id_with_the_frequencies() -> None:
    recordings = {"r": [segment("r", 0, [0, 0, 11, 11])]}
    values = metrics.summarise(metrics.add_tallies(baseline_tallies(recordings, SPACE)["repeat previous"]))
    kept, changed = 0.75 + 0.25 * 0.5, 0.25 * 0.5  # 1 of 4 steps changes; both ids are half of the steps
    expected = -(3 * math.log(kept) + math.log(changed)) / 4 / 4
    assert float(values["perplexity/keys"]) == pytest.approx(math.exp(expected), rel=1e-3)
    assert float(values["key_onset_f1"]) == 0


def test_masked_steps_do_not_enter_the_statistics() -> None:
    known = statistics({"r": [segment("r", 0, [11, 6, 6, 6], masked=(0, 1))]}, SPACE)
    assert known.frequencies[0][6] == 1
    with pytest.raises(ValueError, match="no step with a person's action"):
        statistics({"r": [segment("r", 0, [11], masked=(0,))]}, SPACE)


def parity_batch(shared_fixtures: Path) -> tuple[dict[str, object], dict[str, torch.Tensor]]:
    from safetensors.torch import load_file

    io = load_file(shared_fixtures / "parity_tiny" / "io.safetensors")
    names = ("keys", "mouse_buttons", "mouse_delta_x", "mouse_delta_y")
    batch = {
        "frames": io["in.frames"],
        "actions": torch.cat([io[f"in.{name}"] for name in names], dim=-1),
        "text": io["in.text_embeddings"],
        "user_mask": io["in.user_action_mask"],
        "system_mask": io["in.system_action_mask"],
        "valid_mask": io["in.valid_frame_mask"],
        "recording": ["first", "second"],
        "start": torch.tensor([0, 0]),
    }
    return batch, io


def test_perplexities_of_the_original_checkpoint_agree_with_the_original(shared_fixtures: Path) -> None:
    batch, io = parity_batch(shared_fixtures)
    policy = open_policy(shared_fixtures / "parity_tiny" / "checkpoint-step=00000010.ckpt", "cpu")
    values = score_batches(policy, [batch], Z_WEIGHT)["policy"]
    assert values["loss"].value == pytest.approx(float(io["loss.total"]), abs=1e-4)
    heads = (("keys", "key"), ("buttons", "mouse_button"), ("mouse_x", "mouse_delta_x"), ("mouse_y", "mouse_delta_y"))
    for head, name in heads:
        assert values[f"perplexity/{head}"].value == pytest.approx(math.exp(float(io[f"loss.{name}"])), rel=1e-4)


def test_the_most_likely_action_follows_the_policys_own_slots(shared_fixtures: Path) -> None:
    batch, _ = parity_batch(shared_fixtures)
    policy = open_policy(shared_fixtures / "parity_tiny" / "checkpoint-step=00000010.ckpt", "cpu")
    steps = predict_steps(policy, batch)
    own = steps.ids.clone()
    with torch.inference_mode():  # one slot after another through the whole network: the answer is its own best guess
        logits = policy(batch["frames"], own, batch["text"], history_actions=batch["actions"])
    again = torch.cat([head.argmax(-1) for head in logits], dim=-1)
    assert torch.equal(again, own)


def test_a_free_run_equals_sampling_with_the_whole_past_at_every_step(policy_folder: Path, stream_folder: Path) -> None:
    policy = load_policy(policy_folder)
    batch = next(open_stream(stream_folder, policy.config).batches(2))
    sampling = SamplingConfig(greedy=True)
    frames, text = batch["frames"][:, :12], batch["text"][:, :12]
    ids = free_running_ids(policy, frames, text, sampling, torch.Generator())
    with torch.inference_mode():
        padding = torch.from_numpy(SPACE.nothing).expand(2, 8, 8)
        logits = policy(batch["frames"], torch.cat([ids, padding], dim=1), batch["text"])
    assert torch.equal(torch.cat([head.argmax(-1) for head in logits], dim=-1)[:, :12], ids)


def test_chunks_of_a_stream_are_in_order_and_known_by_recording(policy_folder: Path, stream_folder: Path) -> None:
    stream = open_stream(stream_folder, load_policy(policy_folder).config)
    batches = list(stream.batches(3))
    recordings = [name for batch in batches for name in batch["recording"]]
    starts = [int(start) for batch in batches for start in batch["start"]]
    full = [bool(row.all()) for batch in batches for row in batch["valid_mask"]]
    assert recordings == stream.chunks == [name for name in "abcz" for _ in range(5)]
    assert starts == [0, 20, 40, 60, 80] * 4
    assert full == list(stream.full)
    assert stream.games == {"a": "made", "b": "made", "c": "made", "z": "other"}
