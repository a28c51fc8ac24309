"""The metrics against cases worked by hand and against scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import f1_score
from torchmetrics.functional.classification import multiclass_calibration_error

from p2p.actions import HEADS, NUM_CHOICES, ActionSpace
from p2p.evaluate import metrics
from p2p.evaluate.metrics import Predicted, add_tallies, bootstrap, count_matches, onset_steps

SPACE = ActionSpace()
RNG = np.random.default_rng(0)


def random_logits(*shape: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        head: torch.randn(*shape, SPACE.slot_heads.count(head), NUM_CHOICES[head], generator=generator)
        for head in HEADS
    }


def random_actions(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.stack([torch.randint(0, v, shape, generator=generator) for v in SPACE.num_choices], dim=-1)


# ------------------------------------------------------------------ perplexity


def test_perplexity_of_a_uniform_policy_is_the_number_of_choices() -> None:
    logits = {head: torch.zeros_like(value) for head, value in random_logits(2, 5).items()}
    tally = metrics.loss_tally(logits, random_actions(2, 5), torch.ones(2, 5, dtype=torch.bool), SPACE)
    values = metrics.perplexities(tally)
    assert [float(values[f"perplexity/{head}"]) for head in HEADS] == pytest.approx([20, 4, 23, 17])
    z_loss = sum(math.log(v) ** 2 for v in (20, 4, 23, 17))
    assert float(values["loss"]) == pytest.approx(4 + 1e-4 * z_loss)
    assert float(values["perplexity"]) == pytest.approx(math.exp(4 + 1e-4 * z_loss))


def test_masked_steps_count_in_the_z_loss_alone() -> None:
    logits, actions = random_logits(1, 4), random_actions(1, 4)
    mask = torch.tensor([[True, False, True, False]])
    tally = metrics.loss_tally(logits, actions, mask, SPACE)
    expected_ce = torch.nn.functional.cross_entropy(
        logits["keys"][mask].reshape(-1, 20), actions[mask][:, SPACE.key_slots].reshape(-1)
    )
    expected_z = (logits["keys"].logsumexp(-1).square() * mask[..., None]).mean()
    assert tally["ce_sum"][0] / tally["ce_count"][0] == pytest.approx(float(expected_ce), rel=1e-6)
    assert tally["z_sum"][0] / tally["z_count"][0] == pytest.approx(float(expected_z), rel=1e-6)


def test_losses_agree_with_the_original_on_its_logits(shared_fixtures) -> None:  # type: ignore[no-untyped-def]
    from safetensors.torch import load_file

    io = load_file(shared_fixtures / "parity_tiny" / "io.safetensors")
    names = ("keys", "mouse_buttons", "mouse_delta_x", "mouse_delta_y")
    logits = {head: io[f"logits.{name}"] for head, name in zip(HEADS, names, strict=True)}
    actions = torch.cat([io[f"in.{name}"] for name in names], dim=-1)
    mask = io["in.user_action_mask"] & io["in.valid_frame_mask"]
    values = metrics.perplexities(metrics.loss_tally(logits, actions, mask, SPACE))
    assert float(values["loss"]) == pytest.approx(float(io["loss.total"]), abs=1e-5)
    for head, name in zip(HEADS, ("key", "mouse_button", "mouse_delta_x", "mouse_delta_y"), strict=True):
        assert float(values[f"perplexity/{head}"]) == pytest.approx(math.exp(float(io[f"loss.{name}"])), rel=1e-5)


# ------------------------------------------------------------------ F1 and onsets


def test_key_f1_agrees_with_scikit_learn() -> None:
    true, predicted = random_actions(300).numpy(), random_actions(301).numpy()[1:]
    mask = RNG.random(300) < 0.7
    truth, guess = metrics.held(true[:, :4], 20), metrics.held(predicted[:, :4], 20)
    overall, each = metrics.f1_scores(metrics.confusion_tally(truth, guess, mask, "key"), "key")
    assert float(overall) == pytest.approx(f1_score(truth[mask], guess[mask], average="micro"))
    np.testing.assert_allclose(each, f1_score(truth[mask], guess[mask], average=None))


def test_held_ignores_order_repeats_and_padding() -> None:
    assert np.flatnonzero(metrics.held(np.array([11, 6, 6, 0]), 20)).tolist() == [5, 10]


def test_f1_of_keys_that_nobody_pressed_is_undefined() -> None:
    nothing = np.zeros((4, 3), dtype=bool)
    overall, each = metrics.f1_scores(metrics.confusion_tally(nothing, nothing, np.ones(4, bool), "key"), "key")
    assert np.isnan(overall)
    assert np.isnan(each).all()


def test_onsets_need_a_known_step_before() -> None:
    now = np.array([1, 1, 0, 1, 1, 1, 0, 1], dtype=bool)[:, None]
    before = np.array([0, 1, 1, 0, 1, 1, 1, 0], dtype=bool)[:, None]
    mask = np.array([1, 1, 1, 1, 1, 1, 0, 1], dtype=bool)
    assert np.flatnonzero(onset_steps(now, before, mask)).tolist() == [3]  # not 0 (first), not 7 (6 is masked)


def test_wanting_the_same_press_for_several_steps_is_one_onset() -> None:
    wanted = np.array([0, 1, 1, 1, 0], dtype=bool)[:, None]
    never_held = np.zeros((5, 1), dtype=bool)
    assert np.flatnonzero(onset_steps(wanted, never_held, np.ones(5, bool))).tolist() == [1]


@pytest.mark.parametrize(
    ("true_steps", "predicted_steps", "expected"),
    [
        ([10], [12], 1),
        ([10], [13], 0),
        ([10], [8, 12], 1),  # one to one: the second is a false alarm
        ([10, 12], [11], 1),
        ([10, 11], [9, 13], 2),
        ([1, 4, 7], [3, 5, 9], 3),
        ([], [1], 0),
    ],
)
def test_onsets_match_one_to_one_within_two_steps(
    true_steps: list[int], predicted_steps: list[int], expected: int
) -> None:
    assert count_matches(np.array(true_steps), np.array(predicted_steps)) == expected


def test_matching_is_the_largest_possible() -> None:
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import maximum_bipartite_matching

    for _ in range(50):
        true = np.flatnonzero(RNG.random(40) < 0.3)
        predicted = np.flatnonzero(RNG.random(40) < 0.3)
        near = csr_matrix(np.abs(true[:, None] - predicted[None]) <= 2)
        assert count_matches(true, predicted) == (maximum_bipartite_matching(near) >= 0).sum()


def test_repeating_the_previous_action_has_high_f1_and_no_onset() -> None:
    ids = np.tile(SPACE.nothing, (60, 1))
    ids[20:40, 0] = 11  # w held for one second
    before = metrics.previous_actions(ids, SPACE)
    still = np.zeros((60, 2))
    tally = metrics.recording_tally(ids, np.ones(60, bool), still, Predicted(before, still, before, {}), SPACE)
    values = metrics.summarise(tally)
    assert float(values["key_f1"]) == pytest.approx(2 * 19 / (2 * 19 + 2))
    assert float(values["key_onset_f1"]) == 0.0
    perfect = metrics.recording_tally(ids, np.ones(60, bool), still, Predicted(ids, still, before, {}), SPACE)
    assert float(metrics.summarise(perfect)["key_onset_f1"]) == 1.0
    assert np.isnan(metrics.summarise(perfect)["button_f1"])


# ------------------------------------------------------------------ mouse and calibration


def test_mouse_correlation_agrees_with_numpy_and_adds_up_over_recordings() -> None:
    true, noise = RNG.standard_normal((200, 2)) * 50 + 7, RNG.standard_normal((200, 2)) * 30
    predicted, mask = 0.5 * true + noise, RNG.random(200) < 0.8
    parts = [metrics.mouse_tally(true[s], predicted[s], mask[s]) for s in (slice(0, 80), slice(80, 200))]
    values = metrics.mouse_scores(add_tallies(parts))
    for axis, name in enumerate("xy"):
        expected = np.corrcoef(true[mask, axis], predicted[mask, axis])[0, 1]
        assert float(values[f"mouse_{name}/correlation"]) == pytest.approx(expected)


def test_mouse_sign_counts_true_motions_only() -> None:
    true = np.array([[3, 0], [-2, 0], [0, 0], [4, 0]], dtype=float)
    predicted = np.array([[1, 1], [1, 1], [9, 1], [0, 1]], dtype=float)
    values = metrics.mouse_scores(metrics.mouse_tally(true, predicted, np.ones(4, bool)))
    assert float(values["mouse_x/sign"]) == pytest.approx(1 / 3)
    assert np.isnan(values["mouse_y/sign"])
    assert np.isnan(values["mouse_y/correlation"])


def test_a_constant_motion_has_no_correlation() -> None:
    true = RNG.standard_normal((50, 2))
    values = metrics.mouse_scores(metrics.mouse_tally(true, np.full((50, 2), 0.1), np.ones(50, bool)))
    assert np.isnan(values["mouse_x/correlation"])


def test_calibration_agrees_with_torchmetrics_and_scikit_learn() -> None:
    logits, actions = random_logits(2, 200), random_actions(2, 200)
    logits = {head: value * 2 for head, value in logits.items()}
    mask = torch.rand(2, 200, generator=torch.Generator().manual_seed(5)) < 0.6
    tally = metrics.calibration_tally(logits, actions, mask, SPACE)
    values = metrics.calibration_errors(tally)
    for index, head in enumerate(HEADS):
        flat, labels = logits[head][mask].flatten(0, 1), actions[mask][:, SPACE.head_slots[head]].flatten()
        expected = multiclass_calibration_error(flat, labels, num_classes=flat.shape[-1], n_bins=15, norm="l1")
        assert float(values[f"ece/{head}"]) == pytest.approx(float(expected), abs=1e-6)
        confidence, best = flat.softmax(-1).max(-1)
        share, mean = calibration_curve((best == labels).numpy(), confidence.numpy(), n_bins=15)
        used = tally["bin_count"][index] > 0
        np.testing.assert_allclose(tally["bin_correct"][index][used] / tally["bin_count"][index][used], share)
        np.testing.assert_allclose(
            tally["bin_confidence"][index][used] / tally["bin_count"][index][used], mean, rtol=1e-5
        )


# ------------------------------------------------------------------ bootstrap


def test_the_bootstrap_interval_of_a_mean_is_the_textbook_one() -> None:
    values = RNG.standard_normal(400) + 3
    tallies = [{"sum": np.array(v), "n": np.array(1.0)} for v in values]
    estimate = bootstrap(tallies, lambda t: {"mean": t["sum"] / t["n"]}, num_samples=4000)["mean"]
    half = 1.96 * values.std() / math.sqrt(400)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.02)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.02)


def test_one_recording_gives_no_interval() -> None:
    estimate = bootstrap([{"n": np.array(2.0)}], lambda t: {"n": t["n"]})["n"]
    assert estimate.value == 2
    assert math.isnan(estimate.low)
    assert math.isnan(estimate.high)


def test_no_recording_is_a_users_error() -> None:
    with pytest.raises(ValueError, match="no recording with a step"):
        add_tallies([])
