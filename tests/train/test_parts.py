"""The small parts of training: learning rate, corrupted histories, the metrics file, start weights, checkpoints."""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from p2p.actions import ActionSpace
from p2p.checkpoints.steps import newest_local
from p2p.config import PolicyConfig
from p2p.files import InUse
from p2p.gate import Refused
from p2p.model.policy import Policy
from p2p.recipe import CorruptionConfig, Recipe, ScheduleConfig, save_recipe
from p2p.train.corruption import corrupt_history
from p2p.train.metrics_file import MetricsFile
from p2p.train.optim import lr_factor
from p2p.train.paths import take_run
from p2p.train.publishing import begin, prune
from p2p.train.replaced import ReplacedChunks
from p2p.train.start import build_policy, check_start
from tests.train.making import write_checkpoint

SPACE = ActionSpace()


def test_the_learning_rate_warms_up_and_decays_to_its_final_share() -> None:
    cosine = ScheduleConfig("cosine", warmup=30, final=0.05)
    factors = [lr_factor(cosine, step, 600) for step in range(601)]
    assert factors[0] == pytest.approx(1 / 31)
    assert factors[:30] == sorted(factors[:30])
    assert factors[30] == 1.0
    assert factors[30:] == sorted(factors[30:], reverse=True)
    assert factors[600] == pytest.approx(0.05)
    linear = ScheduleConfig("linear", warmup=0, final=0.5)
    assert lr_factor(linear, 50, 100) == pytest.approx(0.75)
    assert {lr_factor(ScheduleConfig(), step, 100) for step in range(100)} == {1.0}


def actions(num_chunks: int, num_timesteps: int) -> torch.Tensor:
    torch.manual_seed(0)
    shape = (num_chunks, num_timesteps)
    return torch.stack([torch.randint(v, shape) for v in SPACE.num_choices], dim=-1)


def test_corruption_changes_about_its_share_of_timesteps_as_whole_actions() -> None:
    given = actions(20, 100)
    history = corrupt_history(given, CorruptionConfig(replace=0.3, nothing=0.2), SPACE)
    nothing = torch.as_tensor(SPACE.nothing)
    kept = (history == given).all(-1)
    silent = (history == nothing).all(-1)
    assert float(kept.float().mean()) == pytest.approx(0.5, abs=0.05)
    assert float(silent.float().mean()) == pytest.approx(0.2, abs=0.05)
    known = {tuple(action) for action in given.reshape(-1, 8).tolist()} | {tuple(nothing.tolist())}
    assert {tuple(action) for action in history.reshape(-1, 8).tolist()} <= known


def test_a_dropped_history_is_nothing_from_end_to_end() -> None:
    given = actions(400, 3)
    history = corrupt_history(given, CorruptionConfig(drop_history=0.9), SPACE)
    silent = (history == torch.as_tensor(SPACE.nothing)).all(-1)
    assert set(silent.sum(1).tolist()) <= {0, 3}
    assert float(silent.float().mean()) == pytest.approx(0.9, abs=0.05)


def test_the_metrics_file_forgets_what_a_resumed_run_repeats_and_a_torn_line(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.drop_after(3)
    for step in range(1, 6):
        file.append({"step": step})
    with open(file.path, "a") as raw:
        raw.write('{"step": 6, "lo')
    file.drop_after(3)
    file.append({"step": 4})
    assert [json.loads(line)["step"] for line in file.path.read_text().splitlines()] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "damage",
    [b"\xff\xfe{\n", b"[" * 100_000 + b"\n", bytes(512) + b"\n", b'[{"step": 1}]\n', b'{"step": "1"}\n', b"{}"],
)
def test_a_damaged_line_of_the_metrics_file_is_passed_over(tmp_path: Path, damage: bytes) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.append({"step": 1})
    file.path.write_bytes(file.path.read_bytes() + damage)
    assert list(file.entries()) == [{"step": 1}]
    file.drop_after(3)
    file.append({"step": 4})
    assert [json.loads(line)["step"] for line in file.path.read_text().splitlines()] == [1, 4]


def test_a_pipe_in_the_place_of_the_metrics_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(Refused, match="not a regular file"):
        MetricsFile(tmp_path / "metrics.jsonl").drop_after(3)


def test_the_count_of_replaced_chunks_survives_lines_that_say_nonsense(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for count, names in (("x", 5), (True, [7]), (2, ["rec_a"]), (None, None)):
        file.append({"step": 1, "replaced_chunks": count, "replaced_of": names})
    replaced = ReplacedChunks()
    replaced.resume(file.path)
    assert (replaced.count, replaced.recordings) == (2, {"rec_a"})


def test_the_image_encoder_starts_from_torchvisions_file(tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(1)
    weights = torchvision.models.efficientnet_b0(weights=None).state_dict()
    torch.save(weights, tmp_path / "b0.pth")
    config = PolicyConfig(dim=32, num_layers=1, num_heads=2, frame_height=64, frame_width=64)
    recipe = Recipe(name="x", policy=config, image_weights=str(tmp_path / "b0.pth"))
    check_start(recipe)
    state = build_policy(recipe, meta=False).state_dict()
    loaded = [name for name in state if name.startswith("image_tokenizer.encoder.")]
    assert len(loaded) > 100
    for name in loaded:
        assert torch.equal(state[name], weights["features." + name.removeprefix("image_tokenizer.encoder.")])


class Trap:
    """Its pickle touches a file when it is run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_a_file_without_image_weights_is_refused(tmp_path: Path) -> None:
    config = PolicyConfig(dim=32, num_layers=1, num_heads=2, frame_height=64, frame_width=64)
    (tmp_path / "junk.pth").write_bytes(b"junk")
    torch.save({"features.0.0.weight": torch.zeros(1)}, tmp_path / "few.pth")
    torch.save({"features.0.0.weight": torch.zeros(1), "trap": Trap(tmp_path / "sprung")}, tmp_path / "trap.pth")
    torch.save({"features.0.0.weight": torch.zeros(1).expand(1 << 40)}, tmp_path / "wide.pth")
    torch.save({"features.0.0.weight": torch.zeros(1), "x": 7}, tmp_path / "mixed.pth")
    with zipfile.ZipFile(tmp_path / "few.pth") as source:
        with zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as packed:
            for entry in source.namelist():
                packed.writestr(entry, source.read(entry))
    os.mkfifo(tmp_path / "pipe.pth")
    for name, message in {
        "junk": "not a file of torch weights",
        "few": "missing: ",
        "absent": "no such file",
        "pipe": "not a regular file",
        "trap": "not a file of torch weights",
        "wide": "not a plain, contiguous tensor",
        "mixed": "holds more than tensors",
        "packed": "is compressed",
    }.items():
        with pytest.raises(ValueError, match=rf"(?s)image_weights.*{name}\.pth.*{message}"):
            check_start(Recipe(name="x", policy=config, image_weights=str(tmp_path / f"{name}.pth")))
    assert not (tmp_path / "sprung").exists()


def test_image_weights_that_are_not_finite_or_not_floating_point_are_refused(tmp_path: Path) -> None:
    config = PolicyConfig(dim=32, num_layers=1, num_heads=2, frame_height=64, frame_width=64)
    with torch.device("meta"):
        expected = Policy(config).state_dict()
    prefix = "image_tokenizer.encoder."
    weights = {
        "features." + name.removeprefix(prefix): torch.zeros(tensor.shape, dtype=tensor.dtype)
        for name, tensor in expected.items()
        if name.startswith(prefix)
    }
    recipe = Recipe(name="x", policy=config, image_weights=str(tmp_path / "b0.pth"))
    torch.save(weights, tmp_path / "b0.pth")
    check_start(recipe)
    for value, message in (
        (torch.full_like(weights["features.0.0.weight"], torch.nan), "864 of 864 numbers of .* are not finite"),
        (weights["features.0.0.weight"].to(torch.int64), r"has type torch\.int64"),
    ):
        torch.save(weights | {"features.0.0.weight": value}, tmp_path / "b0.pth")
        with pytest.raises(ValueError, match=message):
            check_start(recipe)


def test_without_image_weights_the_loss_is_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    config = PolicyConfig(dim=32, num_layers=1, num_heads=2, frame_height=64, frame_width=64)
    build_policy(Recipe(name="x", policy=config), meta=False)
    assert "starts at random" in caplog.text


def test_folders_without_a_whole_checkpoint_are_passed_over(tmp_path: Path) -> None:
    assert newest_local(tmp_path / "absent") is None
    (tmp_path / "step-00000004").mkdir()
    (tmp_path / "step-00000005").mkdir()
    (tmp_path / "step-00000005" / ".metadata").write_bytes(b"garbage")
    (tmp_path / "other").mkdir()
    assert newest_local(tmp_path) is None
    prune(tmp_path, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "step-00000005"]


def test_pipes_and_links_with_the_names_of_checkpoints_hold_nobody_and_lead_nowhere(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "checkpoints", tmp_path / "elsewhere"
    for path in (folder, elsewhere):
        path.mkdir()
    (elsewhere / "precious").touch()
    for name in ("step-00000001", "step-00000003", ".writing.0123456789abcdef.partial"):
        os.mkfifo(folder / name)
    (folder / "step-00000002").symlink_to(elsewhere)
    assert newest_local(folder) is None
    write_checkpoint(folder, 4, keep=1)
    begin(folder)
    assert newest_local(folder) == 4
    assert (elsewhere / "precious").exists()


def test_a_run_that_goes_on_from_an_earlier_checkpoint_keeps_what_it_writes_and_sets_the_later_ones_aside(
    tmp_path: Path,
) -> None:
    for step in (5, 10, 15):
        write_checkpoint(tmp_path, step)
    write_checkpoint(tmp_path, 6, keep=1)
    assert newest_local(tmp_path) == 6
    names = {"step-00000006", "superseded-step-00000010", "superseded-step-00000015"}
    assert {path.name for path in tmp_path.iterdir()} == names
    write_checkpoint(tmp_path, 6, keep=1)
    assert newest_local(tmp_path) == 6


def test_one_process_on_a_cpu_gathers_its_parameters_once_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    from p2p.recipe import ParallelConfig
    from p2p.train.parallel import fsdp_config

    assert [fsdp_config(ParallelConfig(), n)["fsdp"].reshard_after_forward for n in (1, 2)] == [False, True]


@pytest.mark.parametrize("save_folder", [None, "checkpoints"])
def test_two_runs_share_no_checkpoint_folder_either(tmp_path: Path, save_folder: str | None) -> None:
    """Be it beside both, or in the folder of one of them."""
    elsewhere = save_folder and str(tmp_path / save_folder)
    first = Recipe(name="a", run_folder=str(tmp_path / "a"), save_folder=elsewhere)
    second = Recipe(name="b", run_folder=str(tmp_path / "b"), save_folder=str(first.checkpoint_path))
    locks = take_run(first)
    with pytest.raises(InUse, match=r"checkpoints: another process \(process \d+\) is using it"):
        take_run(second)
    for lock in locks:
        lock.close()
    assert len(take_run(second)) == 2


def test_a_run_folder_that_holds_its_checkpoints_itself_is_taken_once(tmp_path: Path) -> None:
    assert len(take_run(Recipe(name="a", run_folder=str(tmp_path), save_folder=f"{tmp_path}/x/.."))) == 1


def test_a_run_whose_checkpoints_are_looked_for_elsewhere_does_not_begin_anew(tmp_path: Path) -> None:
    from p2p.train.checkpointer import find_resume_point

    before = Recipe(name="a", run_folder=str(tmp_path / "run"))
    now = replace(before, save_folder=str(tmp_path / "elsewhere"))
    assert find_resume_point(now, "data") is None
    write_checkpoint(before.checkpoint_path, 5)
    assert find_resume_point(now, "data") is None
    save_recipe(before, before.run_path / "recipe.yaml")
    with pytest.raises(ValueError, match=r"elsewhere holds no checkpoint, and those of this run are in .*checkpoints"):
        find_resume_point(now, "data")
    assert find_resume_point(replace(now, resume=False), "data") is None
