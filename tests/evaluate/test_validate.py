"""`p2p validate`: what it finds, that nothing is evaluated twice, and that a half-written checkpoint is waited for."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from p2p.checkpoints.finding import DEPTH, ORIGINAL, POLICY, RUN, find_checkpoints
from p2p.cli import main
from p2p.evaluate.validate import RESULTS_NAME, Options, Results, Validator, data_of_recipe, z_weight_of_recipe
from p2p.model import load_policy
from p2p.object_storage import ObjectFolder
from p2p.recipe import DataConfig, LossConfig, Recipe, save_recipe
from p2p.storage import LocalFolder
from tests.data.test_hostile_segments import rewrite_shard
from tests.data.test_replaced_chunks import damaged
from tests.s3 import S3Server


@pytest.mark.parametrize("content", ["data: 7\n", "data: [x]\n", "data:\n", "name: x\n", "data: {val: null}\n"])
def test_a_recipe_that_names_no_data_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "recipe.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"recipe\.yaml names no data\.val"):
        data_of_recipe(str(tmp_path))


@pytest.mark.parametrize("line", ["7", "[" * 100_000, "{}", "{", "NaN"])
def test_results_that_are_none_are_one_line(tmp_path: Path, line: str) -> None:
    (tmp_path / RESULTS_NAME).write_text(line + "\n")
    with pytest.raises(ValueError, match=r"validation\.jsonl, line 1.* repair or delete the file$"):
        Results(tmp_path / RESULTS_NAME)


@pytest.mark.parametrize(
    "header", [b"[1]", b'{"a": 1}', b'{"a": {}}', b'{"a": {"data_offsets": [0, "x"]}}', b"[" * 100_000]
)
def test_weights_without_a_header_are_waited_for(
    tmp_path: Path, policy_folder: Path, caplog: pytest.LogCaptureFixture, header: bytes
) -> None:
    caplog.set_level("INFO")
    step = shutil.copytree(policy_folder, tmp_path / "step-1")
    (step / "manifest.json").unlink(missing_ok=True)
    (step / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert Validator(LocalFolder(tmp_path, DEPTH), tmp_path, options(tmp_path)).run_pass() == (0, ["step-1"])
    assert "model.safetensors: " in caplog.text
    assert "waiting for it" in caplog.text


def test_pipes_and_devices_in_the_place_of_checkpoints_hold_nothing_up(tmp_path: Path) -> None:
    for name in ("a/config.yaml", "b/model_config.yaml", "step-00000005/config.yaml"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (tmp_path / "a" / "model.safetensors").symlink_to("/dev/zero")
    for name in ("b/b.ckpt", "step-00000005/.metadata"):
        os.mkfifo(tmp_path / name)
    look = "import sys; from pathlib import Path; from p2p.checkpoints.finding import *; "
    look += "print([(c.name, c.missing()) for c in find_checkpoints(LocalFolder(Path(sys.argv[1]), DEPTH))])"
    command = [sys.executable, "-c", look, str(tmp_path)]
    answer = subprocess.run(command, capture_output=True, check=True, timeout=60, text=True).stdout
    assert answer == "[('step-00000005', '.metadata is missing')]\n"


def options(stream: Path, **changes: object) -> Options:
    values: dict[str, object] = {
        **{"data": (str(stream),), "num_chunks": 2, "batch_size": 2, "device": "cpu", "min_steps": 0},
        **{"max_steps": None, "interval_s": 0.1, "patience_s": 60.0, "z_weight": 1e-4},
    }
    return Options(**{**values, **changes})  # type: ignore[arg-type]


def results(folder: Path) -> list[dict]:  # type: ignore[type-arg]
    return [json.loads(line) for line in (folder / RESULTS_NAME).read_text().splitlines()]


def write_step(policy_folder: Path, run: Path, step: int) -> Path:
    """A training checkpoint as the trainer lays it out."""
    import torch.distributed.checkpoint as dcp

    from p2p.checkpoints.weights import MODEL_PREFIX

    folder = run / "checkpoints" / f"step-{step:08d}"
    state = {MODEL_PREFIX + name: tensor for name, tensor in load_policy(policy_folder).state_dict().items()}
    dcp.save(state, checkpoint_id=str(folder), no_dist=True)
    shutil.copy(policy_folder / "config.yaml", folder)
    return folder


@pytest.fixture
def mixed(tmp_path: Path, policy_folder: Path, shared_fixtures: Path) -> Path:
    """A run with one training checkpoint and its exported policy, and an original checkpoint."""
    write_step(policy_folder, tmp_path, 30)
    shutil.copytree(policy_folder, tmp_path / "policy")
    shutil.copytree(shared_fixtures / "parity_tiny", tmp_path / "original")
    return tmp_path


def test_all_three_kinds_give_one_table_and_one_curve(
    mixed: Path, stream_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = find_checkpoints(LocalFolder(mixed, DEPTH))
    assert [(c.kind, c.step) for c in found] == [
        (ORIGINAL, 10),
        (RUN, 30),
        (POLICY, None),
    ]
    assert main(["validate", str(mixed), "--data", str(stream_folder), "--chunks", "2", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "repeat previous" in shown
    assert "step-00000030" in shown
    rows = {row["kind"]: row for row in results(mixed)}
    assert set(rows) == {ORIGINAL, RUN, POLICY}
    exported, trained = (rows[kind]["metrics"]["policy"]["loss"]["value"] for kind in (POLICY, RUN))
    assert trained == pytest.approx(exported, abs=1e-6)  # the same weights
    assert (mixed / "validation.png").read_bytes().startswith(b"\x89PNG")


def test_without_data_the_runs_recipe_says_what_to_validate_on(
    mixed: Path, stream_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["validate", str(mixed), "--chunks", "2", "--device", "cpu"]
    assert main(command) == 2
    assert "write --data STREAM" in capsys.readouterr().err
    sets = {"easy": str(stream_folder), "hard": str(shutil.copytree(stream_folder, tmp_path / "hard"))}
    save_recipe(Recipe(name="a-run", data=DataConfig(train=str(stream_folder), val=sets)), mixed / "recipe.yaml")
    assert main(command) == 0
    assert {row["data"] for row in results(mixed)} == set(sets.values())


def test_the_loss_has_the_z_weight_of_the_runs_recipe(tmp_path: Path, policy_folder: Path, stream_folder: Path) -> None:
    losses = []
    for weight in (0.0, 0.5):
        run = tmp_path / str(weight)
        shutil.copytree(policy_folder, run / "policy")
        data = DataConfig(train=str(stream_folder), val=str(stream_folder))
        save_recipe(Recipe(name="a-run", data=data, loss=LossConfig(z_weight=weight)), run / "recipe.yaml")
        assert main(["validate", str(run), "--chunks", "1", "--device", "cpu"]) == 0
        (row,) = results(run)
        assert row["z_weight"] == weight
        losses.append(row["metrics"]["policy"]["loss"]["value"])
    assert losses[1] > losses[0] + 0.1
    (tmp_path / "recipe.yaml").write_text("loss: {z_weight: -1}\n")
    with pytest.raises(ValueError, match=r"recipe\.yaml: loss\.z_weight"):
        z_weight_of_recipe(str(tmp_path))


def test_a_checkpoint_is_evaluated_once_until_it_is_written_again(
    tmp_path: Path, policy_folder: Path, stream_folder: Path
) -> None:
    shutil.copytree(policy_folder, tmp_path / "step-5")
    assert Validator(LocalFolder(tmp_path, DEPTH), tmp_path, options(stream_folder)).run_pass() == (1, [])
    before = (tmp_path / RESULTS_NAME).stat().st_mtime_ns
    assert Validator(LocalFolder(tmp_path, DEPTH), tmp_path, options(stream_folder)).run_pass() == (0, [])
    assert (tmp_path / RESULTS_NAME).stat().st_mtime_ns == before
    shutil.copy(policy_folder / "model.safetensors", tmp_path / "step-5" / "again")
    (tmp_path / "step-5" / "again").rename(tmp_path / "step-5" / "model.safetensors")
    assert Validator(LocalFolder(tmp_path, DEPTH), tmp_path, options(stream_folder)).run_pass() == (1, [])
    assert len(results(tmp_path)) == 1  # the new result replaces the old one


def test_half_written_checkpoints_are_waited_for_and_given_up_in_the_end(
    tmp_path: Path, policy_folder: Path, stream_folder: Path, shared_fixtures: Path
) -> None:
    now = [0.0]
    original, weights = tmp_path / "original", (policy_folder / "model.safetensors").read_bytes()
    shutil.copytree(shared_fixtures / "parity_tiny", original)
    (checkpoint,) = original.glob("*.ckpt")
    checkpoint.chmod(0o644)
    checkpoint.write_bytes(checkpoint.read_bytes()[:10_000_000])
    shutil.copytree(policy_folder, tmp_path / "step-7")
    (tmp_path / "step-7" / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    step = write_step(policy_folder, tmp_path, 20)
    (step / ".metadata").rename(step / "late")
    validator = Validator(LocalFolder(tmp_path, DEPTH), tmp_path, options(stream_folder), clock=lambda: now[0])
    num_done, waiting = validator.run_pass()
    assert num_done == 0
    assert len(waiting) == 3
    (tmp_path / "step-7" / "model.safetensors").write_bytes(weights)
    now[0] = 61.0
    num_done, waiting = validator.run_pass()
    assert num_done == 1  # step-7 is whole now, the others did not grow for longer than the patience
    assert waiting == []
    (step / "late").rename(step / ".metadata")
    assert validator.run_pass()[0] == 1


def with_damage(stream: Path, folder: Path, num_samples: int, num_packets: int) -> Path:
    """A copy of a stream in which the first packets of some samples do not decode."""
    shutil.copytree(stream, folder)
    bad = slice(0, num_packets)
    rewrite_shard(folder, lambda samples: [damaged(s, bad) if i < num_samples else s for i, s in enumerate(samples)])
    return folder


def test_chunks_that_do_not_decode_are_counted_in_the_table_and_in_the_results(
    tmp_path: Path, policy_folder: Path, stream_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(with_damage(stream_folder, tmp_path / "damaged", 1, 30))
    runs = Path(shutil.copytree(policy_folder, tmp_path / "runs" / "step-1")).parent
    assert main(["validate", str(runs), "--data", data, "--device", "cpu"]) == 0
    (row,) = results(runs)
    assert 0 < row["replaced_chunks"] <= 8
    head, baseline, line = (line.split() for line in capsys.readouterr().out.splitlines()[:3])
    assert (head[-1], line[-1]) == ("replaced", str(row["replaced_chunks"]))
    quick = ["--free-chunks", "0", "--causality-repeats", "0", "--device", "cpu", "--out", str(tmp_path / "report")]
    assert main(["evaluate", str(policy_folder), "--data", data, *quick]) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["replaced_chunks"] == row["replaced_chunks"]
    assert "chunks did not decode and were replaced by others" in " ".join(report["notes"])


def test_too_many_chunks_that_do_not_decode_end_a_validation(
    tmp_path: Path, policy_folder: Path, stream_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(with_damage(stream_folder, tmp_path / "damaged", 3, 45))
    runs = Path(shutil.copytree(policy_folder, tmp_path / "runs" / "step-1")).parent
    assert main(["validate", str(runs), "--data", data, "--device", "cpu"]) == 2
    assert "these recordings are damaged; find out with p2p-convert verify --decode" in capsys.readouterr().err
    assert not (runs / RESULTS_NAME).exists()


def test_bounds_leave_checkpoints_out(tmp_path: Path, policy_folder: Path, stream_folder: Path) -> None:
    for step in (1, 2, 3, 4):
        shutil.copytree(policy_folder, tmp_path / f"step-{step}")
    validator = Validator(LocalFolder(tmp_path, DEPTH), tmp_path, options(stream_folder, min_steps=2, max_steps=3))
    assert [c.step for c in validator.candidates()] == [2, 3]


def test_a_watch_takes_up_what_appears_and_ends_at_the_last_step(
    tmp_path: Path, policy_folder: Path, stream_folder: Path
) -> None:
    shutil.copytree(policy_folder, tmp_path / "step-1")
    command = ["validate", str(tmp_path), "--data", str(stream_folder), "--chunks", "2", "--device", "cpu"]
    command += ["--watch", "--max-steps", "2", "--interval-s", "0.2"]
    status: list[int] = []
    watching = threading.Thread(target=lambda: status.append(main(command)), daemon=True)
    watching.start()
    while not (tmp_path / RESULTS_NAME).is_file():  # the first is done: now the second appears, all at once
        assert watching.is_alive()
        watching.join(0.05)
    shutil.copytree(policy_folder, tmp_path / ".incoming")
    (tmp_path / ".incoming").rename(tmp_path / "step-2")
    watching.join(timeout=120)
    assert status == [0]
    assert sorted(row["step"] for row in results(tmp_path)) == [1, 2]


def test_mistakes_are_one_line(tmp_path: Path, stream_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(tmp_path / "nowhere"), "--data", str(stream_folder)]) == 2
    assert main(["validate", str(tmp_path), "--data", str(stream_folder)]) == 2
    assert main(["validate", str(tmp_path)]) == 2
    (tmp_path / RESULTS_NAME).write_text("{broken\n")
    assert main(["validate", str(tmp_path), "--data", str(stream_folder)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("p2p: error: ")]
    for line, words in zip(lines, ("no such folder", "no whole checkpoint", "--data", "line 1"), strict=True):
        assert words in line


def test_weights_that_do_not_fit_are_reported_and_left_out(
    tmp_path: Path, policy_folder: Path, stream_folder: Path
) -> None:
    shutil.copytree(policy_folder, tmp_path / "step-1")
    text = (tmp_path / "step-1" / "config.yaml").read_text().replace("dim: 32\n", "dim: 64\n", 1)
    (tmp_path / "step-1" / "config.yaml").write_text(text)
    validator = Validator(LocalFolder(tmp_path, DEPTH), tmp_path, options(stream_folder, patience_s=-1.0))
    validator.run_pass()
    assert validator.run_pass() == (0, [])


class Payload:
    """Unpickled, it makes a folder; that it did not is what the tests look at."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


def test_nothing_of_a_hostile_checkpoint_runs(
    tmp_path: Path, policy_folder: Path, stream_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    step = write_step(policy_folder, tmp_path, 20)
    (step / ".metadata").write_bytes(pickle.dumps(Payload(tmp_path / "it-ran")))
    validator = Validator(LocalFolder(tmp_path, DEPTH), tmp_path, options(stream_folder, patience_s=-1.0))
    validator.run_pass()
    assert validator.run_pass() == (0, [])
    assert "is left out: " in caplog.text
    assert "not the metadata of a checkpoint" in caplog.text
    assert not (tmp_path / "it-ran").exists()


def test_an_object_store_is_validated_like_a_folder(
    mixed: Path, stream_folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path_factory.mktemp("results")
    server = S3Server(tmp_path_factory.mktemp("s3"))
    try:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        url, client = server.make_bucket("runs") + "/tiny", server.client()
        files = sorted(path for path in mixed.rglob("*") if path.is_file() and path.name != ".metadata")
        for path in files:
            client.upload_file(str(path), "runs", f"tiny/{path.relative_to(mixed)}")
        validator = Validator(ObjectFolder(url), out, options(stream_folder))
        assert validator.run_pass() == (2, ["checkpoints/step-00000030"])  # its metadata is not there yet
        metadata = mixed / "checkpoints" / "step-00000030" / ".metadata"
        client.upload_file(str(metadata), "runs", f"tiny/{metadata.relative_to(mixed)}")
        assert validator.run_pass() == (1, [])
        assert Validator(ObjectFolder(url), out, options(stream_folder)).run_pass() == (0, [])
        name = "tiny/checkpoints/step-00000030/.metadata"
        client.put_object(Bucket="runs", Key=name, Body=pickle.dumps(Payload(out / "it-ran")))
        assert validator.run_pass() == (0, ["checkpoints/step-00000030"])  # perhaps it is still being written
        assert not (out / "it-ran").exists()
    finally:
        server.close()
    assert {row["kind"] for row in results(out)} == {ORIGINAL, POLICY, RUN}
