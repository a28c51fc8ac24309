"""A run that is killed and typed again goes on where it was, also with another number of processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from p2p.model import load_policy
from tests.train.zygote import Run, Zygote

Metrics = dict[int, dict[str, Any]]
STEPS = 16
SAVES = "save_interval=5ba"
SAME = {"loss": 1e-4, "lr": 0.0, "chunks": 0.0, "grad_norm": 1e-2}


def assert_same(metrics: Metrics, reference: Metrics, steps: range) -> None:
    """Chunks and learning rates are equal; losses and gradients to float tolerance."""
    for step in steps:
        for name, tolerance in SAME.items():
            assert metrics[step][name] == pytest.approx(reference[step][name], rel=tolerance, abs=0), (step, name)


class Reference:
    """A run that nothing interrupts; it runs beside the others until somebody asks for its results."""

    def __init__(self, run: Run, folder: Path, read: Callable[[Path], Metrics]):
        self.run, self._folder, self._read = run, folder, read

    @property
    def folder(self) -> Path:
        self.run.wait()
        return self._folder

    @property
    def metrics(self) -> Metrics:
        return self._read(self.folder)


@pytest.fixture(scope="module")
def uninterrupted(
    zygote: Zygote,
    small_run: Any,
    read_metrics: Callable[[Path], Metrics],
    tmp_path_factory: pytest.TempPathFactory,
) -> Reference:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    argv = small_run(folder, f"max_duration={STEPS}ba", SAVES, "ema_half_life=5")
    return Reference(zygote.start(argv, folder.parent / "log"), folder, read_metrics)


def test_killed_twice_and_resumed_by_two_processes_and_by_one_it_ends_the_same(
    zygote: Zygote, small_run: Any, read_metrics: Callable[[Path], Metrics], uninterrupted: Reference, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    argv = small_run(folder, f"max_duration={STEPS}ba", SAVES, "ema_half_life=5")
    for processes, kill_after in ((1, 7), (2, 12)):
        run = zygote.start(argv, tmp_path / "log", processes)
        run.wait_until(lambda step=kill_after: step in read_metrics(folder))
        run.kill()
        assert max(read_metrics(folder)) < STEPS
        assert not (folder / "policy").exists()
    zygote.start(argv, tmp_path / "log").wait()

    log = (tmp_path / "log").read_text()
    assert "resuming from step 5 " in log
    assert "resuming from step 10 " in log
    metrics, reference = read_metrics(folder), uninterrupted.metrics
    assert sorted(metrics) == list(range(1, STEPS + 1))
    assert_same(metrics, reference, range(1, STEPS + 1))
    assert metrics[STEPS]["val/loss"] == pytest.approx(reference[STEPS]["val/loss"], rel=1e-3)
    expected = load_policy(uninterrupted.folder / "policy").state_dict()
    for name, tensor in load_policy(folder / "policy").state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-2, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


def test_a_finished_run_goes_on_from_the_end_of_an_epoch_when_it_is_made_longer(
    zygote: Zygote, small_run: Any, read_metrics: Callable[[Path], Metrics], uninterrupted: Reference, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    for steps in (7, 7, 9):  # seven updates are an epoch; the second time there is nothing left to do
        argv = small_run(folder, f"max_duration={steps}ba", SAVES)
        zygote.start(argv, tmp_path / "log").wait()
        assert max(read_metrics(folder)) == steps
    assert "already trained for 7ba" in (tmp_path / "log").read_text()
    assert_same(read_metrics(folder), uninterrupted.metrics, range(1, 10))
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert kept == [".lock", "step-00000007", "step-00000009"]


def test_an_incomplete_checkpoint_is_passed_over_and_what_was_random_repeats(
    zygote: Zygote, small_run: Any, read_metrics: Callable[[Path], Metrics], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    random = ["policy.dropout=0.2", "data.augment=true", "data.corruption={replace: 0.5, drop_history: 0.2}"]
    zygote.start(small_run(folder, "max_duration=6ba", SAVES, *random), tmp_path / "log").wait()
    before = read_metrics(folder)
    shard = folder / "checkpoints" / "step-00000006" / "__0_0.distcp"
    shard.write_bytes(shard.read_bytes()[:1000])
    zygote.start(small_run(folder, "max_duration=8ba", SAVES, *random), tmp_path / "log").wait()
    log = (tmp_path / "log").read_text()
    assert "step-00000006 is passed over: " in log
    assert "__0_0.distcp has 1000 bytes, manifest.json says " in log
    assert "resuming from step 5 " in log
    after = read_metrics(folder)
    assert sorted(after) == list(range(1, 9))
    assert_same(after, before, range(6, 7))


def test_a_policy_folder_is_a_start_and_every_validation_set_is_reported(
    zygote: Zygote,
    small_run: Any,
    shards: Path,
    read_metrics: Callable[[Path], Metrics],
    uninterrupted: Reference,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    sets = f"data.val={{seen: {shards / 'val'}, unseen: {shards / 'train'}}}"
    start = f"init_from={uninterrupted.folder / 'policy'}"
    zygote.start(small_run(folder, "max_duration=1ba", start, sets, "microbatch=1"), tmp_path / "log").wait()
    entry, reference = read_metrics(folder)[1], uninterrupted.metrics
    assert entry["loss"] < reference[4]["loss"]
    assert entry["loss"] == pytest.approx(reference[STEPS]["loss"], rel=0.5)
    assert {"seen/loss", "seen/perplexity_keys", "unseen/loss", "unseen/perplexity_keys"} <= set(entry)
    assert entry["seen/loss"] != entry["unseen/loss"]
