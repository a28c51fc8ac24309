"""What happens to a run beside another one, under Ctrl-C, on a full disk, with numbers that explode, and when its
recipe or its checkpoint was changed."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p2p.checkpoints.layout import METADATA
from p2p.checkpoints.steps import KIND, check_checkpoint, local_steps, newest_local, step_name
from p2p.config import PolicyConfig, to_dict
from p2p.manifest import MANIFEST, write_manifest
from p2p.recipe import DataConfig, Recipe
from p2p.train.facts import check_same_run, make_facts
from p2p.train.paths import LOCK_NAME
from p2p.train.publishing import WRITING
from tests.train.making import DATA_FILE, Payload, edit_metadata, replace_entry
from tests.train.zygote import Run, Zygote

Metrics = dict[int, dict[str, Any]]
EVERY_UPDATE = ["save_interval=1ba", "data.val=null"]


def error_of(run: Run) -> str:
    """The one line with which a run ended; there is no traceback above it."""
    lines = run.log.read_text().splitlines()
    assert not any(line.startswith("Traceback") for line in lines), "\n".join(lines)
    (error,) = (line for line in lines if line.startswith("p2p: "))
    return error


def test_a_run_folder_has_one_trainer_and_an_interrupted_one_leaves_it_at_once(
    zygote: Zygote, small_run: Any, read_metrics: Callable[[Path], Metrics], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    argv = small_run(folder, "max_duration=100000ba", *EVERY_UPDATE)
    first = zygote.start(argv, tmp_path / "first.log")
    first.wait_until(lambda: local_steps(folder / "checkpoints") != [])
    recipe = (folder / "recipe.yaml").read_bytes()
    second = zygote.start([*argv, "seed=5"], tmp_path / "second.log")
    assert second.end() == [2]
    assert f"another process (process {first.pids[0]}) is using it" in error_of(second)
    assert (folder / "recipe.yaml").read_bytes() == recipe

    os.killpg(first.pids[0], signal.SIGINT)  # as a terminal does: to the loader's workers too
    assert first.end() == [130]
    saved = local_steps(folder / "checkpoints")[0]
    assert error_of(first) == (f"p2p: interrupted: saved until step {saved}; the same command goes on from there")
    wait_until_gone(first.pids[0])

    third = zygote.start(argv, tmp_path / "third.log")
    third.wait_until(lambda: local_steps(folder / "checkpoints")[0] > saved)
    os.kill(third.pids[0], signal.SIGKILL)  # its workers live on for a moment
    assert third.end() == [-signal.SIGKILL]
    fourth = zygote.start(small_run(folder, "max_duration=1ba", *EVERY_UPDATE), tmp_path / "fourth.log")
    fourth.wait()
    assert "already trained for 1ba" in fourth.log.read_text()
    assert (folder / "policy" / "model.safetensors").is_file()
    wait_until_gone(third.pids[0])


def wait_until_gone(group: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail(f"processes of the group {group} are left")


def test_a_loss_that_is_not_finite_ends_the_run_on_all_processes_and_leaves_the_last_good_checkpoint(
    zygote: Zygote, small_run: Any, read_metrics: Callable[[Path], Metrics], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    argv = small_run(folder, "max_duration=9ba", *EVERY_UPDATE, "schedule={}", "ema_half_life=5")
    run = zygote.start([*argv, "optimizer.lr=1e25"], tmp_path / "log", 2)
    assert run.end() == [2, 2]
    errors = [line for line in run.log.read_text().splitlines() if line.startswith("p2p: error: ")]
    assert len(errors) == 2
    step = len(read_metrics(folder)) + 1
    assert f"update {step}: the loss is " in errors[0]
    assert errors[0].partition("(recording@first frame): ")[2].count("@") == 4  # global_batch
    assert newest_local(folder / "checkpoints") == step - 1
    assert not (folder / "policy").exists()


def test_weights_that_overflow_in_an_update_of_finite_loss_are_not_saved(
    zygote: Zygote, small_run: Any, tmp_path: Path
) -> None:
    argv = small_run(tmp_path / "run", "max_duration=9ba", *EVERY_UPDATE, "schedule={}", "optimizer.lr=1e39")
    run = zygote.start(argv, tmp_path / "log")
    assert run.end() == [2]
    assert "the state of update 1 is not finite (NaN or infinite): " in error_of(run)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [LOCK_NAME]


def test_a_full_disk_ends_the_run_in_one_line_and_leaves_whole_checkpoints_only(
    zygote: Zygote, small_run: Any, tmp_path: Path
) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    argv = small_run(tmp_path / "run", "max_duration=100000ba", *EVERY_UPDATE)
    run = zygote.start(argv, tmp_path / "log")
    run.wait_until(lambda: local_steps(checkpoints) != [])
    limit = resource.prlimit(run.pids[0], resource.RLIMIT_FSIZE)
    resource.prlimit(run.pids[0], resource.RLIMIT_FSIZE, (1_000_000, limit[1]))  # a checkpoint has 2.5 MB
    assert run.end() == [2]
    error = error_of(run)
    assert error.startswith("p2p: error: ")
    assert "File too large" in error
    assert str(checkpoints) in error
    for step in local_steps(checkpoints):
        check_checkpoint(checkpoints / step_name(step))
    whole = {step_name(step) for step in local_steps(checkpoints)}
    assert {path.name for path in checkpoints.iterdir()} == {LOCK_NAME, *whole}


# ------------------------------------------------------------------ published while training goes on


HELD = Path(__file__).parent / "programs" / "held_publishing.py"
EVERY_OTHER = ["save_interval=2ba", "data.val=null"]


@pytest.fixture(scope="module")
def short_run(zygote: Zygote, small_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two updates, a checkpoint after each."""
    folder = tmp_path_factory.mktemp("short") / "run"
    zygote.start(small_run(folder, "max_duration=2ba", *EVERY_UPDATE), folder.parent / "log").wait()
    return folder


def test_training_goes_on_while_a_checkpoint_is_published_and_a_kill_leaves_the_one_before(
    zygote: Zygote, small_run: Any, read_metrics: Callable[[Path], Metrics], short_run: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(short_run, tmp_path / "run")
    argv = small_run(folder, "max_duration=6ba", *EVERY_OTHER)
    run = zygote.start([str(tmp_path / "never"), *argv], tmp_path / "held.log", program=HELD)
    run.wait_until(lambda: 6 in read_metrics(folder))  # the save of 6 waits for that of 4
    assert local_steps(folder / "checkpoints") == [2, 1]
    run.kill()
    assert local_steps(folder / "checkpoints") == [2, 1]
    zygote.start(argv, tmp_path / "log").wait()
    assert "resuming from step 2" in (tmp_path / "log").read_text()
    assert newest_local(folder / "checkpoints") == 6
    assert not (folder / "checkpoints" / WRITING).exists()


def test_what_was_saved_before_ctrl_c_is_published_and_named(
    zygote: Zygote, small_run: Any, read_metrics: Callable[[Path], Metrics], short_run: Path, tmp_path: Path
) -> None:
    folder, release = shutil.copytree(short_run, tmp_path / "run"), tmp_path / "release"
    argv = small_run(folder, "max_duration=100000ba", "save_interval=4ba", "data.val=null")
    run = zygote.start([str(release), *argv], tmp_path / "log", program=HELD)
    run.wait_until(lambda: 6 in read_metrics(folder))
    os.killpg(run.pids[0], signal.SIGINT)
    release.touch()
    assert run.end() == [130]
    assert error_of(run) == "p2p: interrupted: saved until step 4; the same command goes on from there"
    assert newest_local(folder / "checkpoints") == 4


def test_an_error_while_publishing_ends_the_run_on_all_processes_with_its_words(
    zygote: Zygote, small_run: Any, read_metrics: Callable[[Path], Metrics], short_run: Path, tmp_path: Path
) -> None:
    folder, release = shutil.copytree(short_run, tmp_path / "run"), tmp_path / "release"
    argv = small_run(folder, "max_duration=100000ba", *EVERY_OTHER)
    run = zygote.start([str(release), *argv], tmp_path / "log", 2, program=HELD)
    run.wait_until(lambda: 5 in read_metrics(folder))
    metadata = folder / "checkpoints" / WRITING / METADATA
    metadata.unlink()
    release.touch()
    assert run.end() == [2, 2]
    errors = [line for line in run.log.read_text().splitlines() if line.startswith("p2p: error: ")]
    assert len(errors) == 2
    assert all(f"No such file or directory: '{metadata}'" in error for error in errors)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        LOCK_NAME,
        step_name(1),
        step_name(2),
    ]


# ------------------------------------------------------------------ changed on resume


def test_another_architecture_is_named_and_nothing_is_trained(
    zygote: Zygote, small_run: Any, short_run: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(short_run, tmp_path / "run")
    argv = small_run(folder, "max_duration=4ba", *EVERY_UPDATE, "policy.num_layers=1")
    run = zygote.start(argv, tmp_path / "log", 2)
    assert run.end() == [2, 2]
    assert "policy.num_layers is 1, the checkpoint has 2" in run.log.read_text()
    assert local_steps(folder / "checkpoints") == [2, 1]


def test_another_seed_needs_consent_and_then_begins_the_next_epoch(
    zygote: Zygote, small_run: Any, read_metrics: Callable[[Path], Metrics], short_run: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(short_run, tmp_path / "run")
    argv = small_run(folder, "max_duration=4ba", *EVERY_UPDATE, "seed=7")
    run = zygote.start(argv, tmp_path / "log")
    assert run.end() == [2]
    assert "seed is 7, the checkpoint has 0" in error_of(run)
    assert "resume_changed=true" in error_of(run)
    zygote.start([*argv, "resume_changed=true"], tmp_path / "again.log").wait()
    metrics = read_metrics(folder)
    assert [metrics[step]["epoch"] for step in (1, 2, 3, 4)] == [0, 0, 1, 1]
    assert "changed since" in (tmp_path / "again.log").read_text()


def test_code_in_a_checkpoint_does_not_run_when_training_goes_on(
    zygote: Zygote, small_run: Any, short_run: Path, tmp_path: Path
) -> None:
    """The newest one is hostile in its metadata, so it is passed over; the other in a number that is needed."""
    folder, mark = shutil.copytree(short_run, tmp_path / "run"), tmp_path / "it-ran"
    older, newest = (folder / "checkpoints" / step_name(step) for step in (1, 2))
    edit_metadata(newest, lambda metadata: metadata.state_dict_metadata.update({"x": Payload(mark)}))
    (newest / MANIFEST).unlink()
    facts = check_checkpoint(older)[0].facts  # type: ignore[union-attr]
    replace_entry(older, "state.timestamp.Timestamp.batch", Payload(mark))
    write_manifest(older, KIND, [DATA_FILE, METADATA, "config.yaml"], facts)
    run = zygote.start(small_run(folder, "max_duration=4ba", *EVERY_UPDATE), tmp_path / "log")
    assert run.end() == [2]
    log = run.log.read_text()
    assert f"{newest} is passed over: " in log
    assert "neither a tensor nor a number" in error_of(run)
    assert not mark.exists()


def recipe(**changes: Any) -> Recipe:
    policy = PolicyConfig(dim=32, num_layers=2, num_heads=2, num_timesteps=16, attention_history=8)
    return Recipe(**{"name": "a-run", "policy": policy, **changes})


FACTS = make_facts(recipe(), "recordings", 5, 1)


@pytest.mark.parametrize(
    ("changes", "data", "message"),
    [
        ({"global_batch": 4}, "recordings", "global_batch is 4, the checkpoint has 80"),
        ({"seed": 1}, "recordings", "seed is 1, the checkpoint has 0"),
        ({}, "others", "data.train: other recordings or shards"),
    ],
)
def test_what_the_course_depends_on_needs_consent(changes: dict[str, Any], data: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_same_run(FACTS, recipe(**changes), data, "step-5")
    assert not check_same_run(FACTS, recipe(**changes, resume_changed=True), data, "step-5")


def test_a_run_of_a_version_with_another_order_goes_on_from_the_next_epoch_on() -> None:
    old = {name: value for name, value in FACTS.items() if name != "order"}
    with pytest.raises(ValueError, match=r"order of the chunks .* an older version of p2p.*resume_changed=true"):
        check_same_run(old, recipe(), "recordings", "step-5")
    assert not check_same_run(old, recipe(resume_changed=True), "recordings", "step-5")
    plain = recipe(data=DataConfig(shuffle=False))
    assert check_same_run({**old, "recipe": to_dict(plain)}, plain, "recordings", "step-5")


def test_architectures_differ_even_with_consent(caplog: pytest.LogCaptureFixture) -> None:
    wider = PolicyConfig(dim=64, num_layers=2, num_heads=2, num_timesteps=16, attention_history=8)
    with pytest.raises(ValueError, match=r"policy\.dim is 64, the checkpoint has 32.*init_from"):
        check_same_run(FACTS, recipe(policy=wider, resume_changed=True), "recordings", "step-5")
    old = {"recipe": {"policy": to_dict(wider)}}  # what is known of a checkpoint without a manifest
    with pytest.raises(ValueError, match=r"policy\.dim is 32, the checkpoint has 64"):
        check_same_run(old, recipe(), "recordings", "step-5")


@pytest.mark.parametrize("settings", [5, None, [], "x"])
@pytest.mark.parametrize("name", ["policy", "data"])
def test_facts_that_hold_no_settings_to_compare_are_refused(name: str, settings: object) -> None:
    facts = {**FACTS, "recipe": {**FACTS["recipe"], name: settings}}
    with pytest.raises(ValueError, match=rf"step-5: recipe\.{name} is .*; expected an object"):
        check_same_run(facts, recipe(), "recordings", "step-5")


def test_facts_without_an_architecture_are_refused() -> None:
    with pytest.raises(ValueError, match=r"step-5: recipe\.policy is None; expected an object"):
        check_same_run({"recipe": {"global_batch": 80}}, recipe(), "recordings", "step-5")


def test_what_may_change_is_reported_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert check_same_run(FACTS, recipe(), "recordings", "step-5")
    assert caplog.records == []
    assert check_same_run(FACTS, recipe(max_duration="7ba", precision="fp32"), "recordings", "step-5")
    (record,) = caplog.records
    assert "max_duration is '7ba', the checkpoint has '500000ba'" in record.message
    assert "precision is 'fp32'" in record.message
