"""A policy folder is a stranger's, or was damaged on the way: what is loaded is whole, finite and as said."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import resource
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from p2p.config import PolicyConfig
from p2p.model import Policy, load_policy, save_policy
from p2p.model.inference import for_inference
from p2p.model.weights import check_tensors, write_policy_folder
from p2p_serve.cli import main as p2p_serve

SMALL = PolicyConfig(
    dim=32, num_layers=1, num_heads=4, num_timesteps=4, attention_history=4, image_encoder="small_cnn",
    frame_height=48, frame_width=48, decoder_num_layers=1,
)  # fmt: skip
FILES = ["config.yaml", "manifest.json", "model.safetensors"]
NAME = "out_token"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return save_policy(Policy(SMALL), tmp_path / "policy")


@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors"])
@pytest.mark.parametrize("harm", ["flipped", "longer", "shorter"])
def test_a_file_that_is_not_the_manifests_is_refused_by_name(folder: Path, name: str, harm: str) -> None:
    content = bytearray((folder / name).read_bytes())
    if harm == "flipped":
        content[-2] ^= 1
    (folder / name).write_bytes(content + b"\n" if harm == "longer" else content[:-1] if harm == "shorter" else content)
    with pytest.raises(ValueError, match=rf"{name}: .*manifest\.json"):
        load_policy(folder)


@pytest.mark.parametrize(
    "content", [b"{}", b"", b"\xff", b'{"version": 1, "kind": "policy", "files": {}, "facts": {}}']
)
def test_a_manifest_that_is_none_is_refused(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"manifest\.json"):
        load_policy(folder)


def test_a_folder_without_a_manifest_loads_and_says_so(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "manifest.json").unlink()
    with caplog.at_level(logging.INFO):
        load_policy(folder)
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder} has no manifest.json (an older p2p wrote it, or it was copied without): not verified"
    ]


@pytest.mark.parametrize("name", FILES)
def test_a_pipe_in_place_of_a_file_hangs_nobody(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(ValueError, match=name):
        load_policy(folder)


@pytest.mark.parametrize("exists", [True, False])
def test_a_policy_that_does_not_fit_on_the_disk_leaves_what_was_there_and_is_named(folder: Path, exists: bool) -> None:
    target = folder if exists else folder.with_name("another")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before["model.safetensors"]) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match="the policy could not be written: File too large") as caught:
            save_policy(Policy(SMALL), target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(target)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_what_else_lies_in_a_folder_stays_when_the_policy_is_replaced(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    save_policy(Policy(dataclasses.replace(SMALL, num_layers=2)), folder)
    assert load_policy(folder).config.num_layers == 2
    assert sorted(path.name for path in folder.iterdir()) == [*FILES, "notes.txt"]


# A process that dies at its nth rename, for every n, over a policy that was there and over none.
KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from p2p.config import load_policy_config
from p2p.model import Policy, load_policy, save_policy
torch.set_num_threads(1)
old, new = (load_policy(Path(sys.argv[1]) / name) for name in ("old", "new"))
for existed in (True, False):
    for n in range(1, 20):
        target = Path(sys.argv[1]) / f"{existed}-{n}"
        if existed:
            save_policy(old, target)
        child = os.fork()
        if child == 0:
            left = [n]
            def count(event, args):
                if event == "os.rename":
                    left[0] -= 1
                    if not left[0]:
                        os.kill(os.getpid(), signal.SIGKILL)
            sys.addaudithook(count)
            save_policy(new, target)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not target.exists():
            found = "absent"
        else:
            try:
                found = {old.config: "old", new.config: "new"}[load_policy(target).config]
            except ValueError as error:
                assert "SHA-256" in str(error) or "bytes" in str(error), error
                found = "refused"
        print(existed, "killed" if os.WIFSIGNALED(status) else "ended", found)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
"""


def test_a_writer_that_is_killed_at_any_rename_leaves_one_policy_or_a_clear_error(tmp_path: Path) -> None:
    save_policy(Policy(SMALL), tmp_path / "old")
    save_policy(Policy(dataclasses.replace(SMALL, num_layers=2)), tmp_path / "new")
    result = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120
    )
    replaced = [line.split(maxsplit=1)[1] for line in result.stdout.splitlines() if line.startswith("True")]
    made = [line.split(maxsplit=1)[1] for line in result.stdout.splitlines() if line.startswith("False")]
    assert made == ["killed absent"] * 3 + ["ended new"]
    assert replaced == ["killed old"] * 3 + ["killed refused"] * 2 + ["ended new"]


# ------------------------------------------------------------------ numbers


def with_tensor(folder: Path, name: str, change: Any) -> Path:
    """The policy again with one tensor changed, by the writer that everybody uses."""
    policy = load_policy(folder)
    tensors = {key: value.clone() for key, value in policy.state_dict().items()}
    tensors[name] = change(tensors[name])
    return write_policy_folder(policy.config, tensors, folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_policy_that_is_not_finite_is_refused_and_the_tensor_named(folder: Path, value: float) -> None:
    def spoil(tensor: torch.Tensor) -> torch.Tensor:
        tensor[0, :3] = value
        return tensor

    with pytest.raises(ValueError, match=r"3 of 32 numbers of out_token are not finite .* 0 more"):
        load_policy(with_tensor(folder, NAME, spoil))


def test_the_server_ends_in_one_line_instead_of_serving_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_tensor(folder, NAME, lambda tensor: tensor.fill_(float("nan")))
    assert p2p_serve(["--policy", str(folder), "--socket", str(folder / "socket")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"p2p: error: {folder}/model.safetensors: 32 of 32 numbers of out_token are not finite")
    assert error.count("\n") == 1
    assert not (folder / "socket").exists()


def test_infinities_of_both_signs_do_not_cancel(folder: Path) -> None:
    def spoil(tensor: torch.Tensor) -> torch.Tensor:
        tensor[0, 0], tensor[0, 1] = float("inf"), float("-inf")
        return tensor

    with pytest.raises(ValueError, match="2 of 32 numbers"):
        load_policy(with_tensor(folder, NAME, spoil))


def test_numbers_that_are_only_large_pass(folder: Path) -> None:
    loaded = load_policy(with_tensor(folder, NAME, lambda tensor: tensor.fill_(3e38)))
    assert float(loaded.out_token.detach().max()) == pytest.approx(3e38)


def test_a_number_too_large_for_the_policys_type_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="32 of 32 numbers of out_token are not finite"):
        load_policy(with_tensor(folder, NAME, lambda tensor: tensor.fill_(1e30)), dtype=torch.float16)


def test_a_variance_below_zero_is_not_served(tmp_path: Path) -> None:
    folder = save_policy(Policy(dataclasses.replace(SMALL, image_encoder="efficientnet_b0")), tmp_path / "policy")
    name = next(name for name in load_policy(folder).state_dict() if name.endswith("running_var"))
    policy = load_policy(with_tensor(folder, name, lambda tensor: tensor.fill_(-1.0)))
    with pytest.raises(ValueError, match=r"BatchNorms folded in: .* are not finite"):
        for_inference(policy, torch.float32)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool])
def test_whole_numbers_where_the_policy_has_floating_point_are_refused(folder: Path, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=rf"out_token has type {dtype}, the configuration makes it torch\.float32"):
        load_policy(with_tensor(folder, NAME, lambda tensor: tensor.to(dtype)))


def test_floating_point_where_the_policy_counts_is_refused() -> None:
    expected = {"n": torch.zeros(1, dtype=torch.int64), "w": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"n has type torch\.float32"):
        check_tensors(expected, {"n": torch.zeros(1), "w": torch.zeros(1)}, "file")
    with pytest.raises(ValueError, match=r"w has type torch\.complex64"):
        check_tensors(expected, {"n": expected["n"], "w": torch.zeros(1, dtype=torch.complex64)}, "file")
    check_tensors(expected, {"n": expected["n"], "w": torch.zeros(1, dtype=torch.bfloat16)}, "file")


def test_a_hundred_thousand_wrong_names_are_told_in_a_moment() -> None:
    expected = {f"layer.{i}.weight": torch.zeros(1) for i in range(3000)}
    given = {f"\x1blayers.{i}.weights": torch.zeros(1) for i in range(100_000)}
    with pytest.raises(ValueError, match=r"and 102988 more") as error:
        check_tensors(expected, given, "file")
    assert len(str(error.value)) < 3000
    assert all(line.isprintable() for line in str(error.value).split("\n"))


# ------------------------------------------------------------------ headers


def read_header(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_header(folder: Path, header: bytes, data: bytes, length: int | None = None) -> None:
    (folder / "manifest.json").unlink(missing_ok=True)
    length = len(header) if length is None else length
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", length) + header + data)


ENTRY_LIES: list[dict[str, Any]] = [
    {"data_offsets": [0, 1 << 60]},
    {"data_offsets": [1 << 60, (1 << 60) + 128]},
    {"data_offsets": [128, 0]},
    {"data_offsets": [-128, 0]},
    {"data_offsets": [0, 128, 256]},
    {"data_offsets": None},
    {"shape": [1 << 62, 1 << 62]},
    {"shape": [1 << 40]},
    {"shape": [-1, -32]},
    {"shape": [1, 32.5]},
    {"shape": [32]},
    {"shape": [1, 32] + [1] * 1000},
    {"shape": "1"},
    {"dtype": "F4"},
    {"dtype": "I32"},
    {"dtype": "F64"},
    {"dtype": "OBJECT"},
    {"dtype": 7},
]


@pytest.mark.parametrize("lie", ENTRY_LIES, ids=str)
def test_a_lie_about_a_tensor_is_refused_in_the_files_name(folder: Path, lie: dict[str, Any]) -> None:
    header, data = read_header(folder / "model.safetensors")
    header[NAME] |= lie
    write_header(folder, json.dumps(header).encode(), data)
    with pytest.raises(ValueError, match=r"model\.safetensors: "):
        load_policy(folder)


def test_a_tensor_over_the_bytes_of_another_is_refused(folder: Path) -> None:
    header, data = read_header(folder / "model.safetensors")
    other = next(name for name, entry in header.items() if name != NAME and entry.get("shape") == header[NAME]["shape"])
    header[NAME]["data_offsets"] = header[other]["data_offsets"]
    write_header(folder, json.dumps(header).encode(), data)
    with pytest.raises(ValueError, match=r"model\.safetensors: not a readable"):
        load_policy(folder)


def test_a_name_that_stands_twice_a_strange_one_and_one_too_many_are_refused(folder: Path) -> None:
    header, data = read_header(folder / "model.safetensors")
    text = json.dumps(header)
    write_header(folder, (text[:-1] + f', "{NAME}": {json.dumps(header[NAME])}}}').encode(), data)
    with pytest.raises(ValueError, match=r"model\.safetensors: its header: holds the name 'out_token' twice"):
        load_policy(folder)
    for name in ("x" * 300, "\ud800", "\x1b[2J"):
        extra = header | {name: {"dtype": "F32", "shape": [0], "data_offsets": [len(data), len(data)]}}
        write_header(folder, json.dumps(extra).encode(), data)
        with pytest.raises(ValueError, match=r"model\.safetensors: ") as error:
            load_policy(folder)
        assert all(line.isprintable() for line in str(error.value).split("\n"))


@pytest.mark.parametrize(
    ("header", "length"),
    [
        (b"", 0),
        (b"{}", 1 << 63),
        (b"{}", (1 << 64) - 1),
        (b"{}", 1 << 20),
        (b"{}" + b" " * (5 << 20), None),
        (b"[]", None),
        (b"[" * 100_000, None),
        (b"{\xff}", None),
        (b'{"a": NaN}', None),
        (b'{"a": {}}', None),
        (b'{"__metadata__": {"a": {}}}', None),
    ],
)
def test_a_header_that_is_none_is_refused(folder: Path, header: bytes, length: int | None) -> None:
    write_header(folder, header, b"\0" * 64, length)
    with pytest.raises(ValueError, match=r"model\.safetensors: ") as error:
        load_policy(folder)
    assert len(str(error.value)) < 3000
