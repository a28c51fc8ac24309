"""What a stranger may write into a configuration: plain data within bounds, and nothing that acts or explodes."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from p2p.config import PolicyConfig, SamplingConfig, load_policy_config, save_policy_config
from p2p.plain_yaml import MAX_BYTES, parse_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{a: 8, b: 1e-4, c: true, d: null, e: text, f: [1, 2.5], g: '8'}",
         {"a": 8, "b": 1e-4, "c": True, "d": None, "e": "text", "f": [1, 2.5], "g": "8"}),
        ("# nothing\n", None),
        ("a:\n- 1\n- b: off\n", {"a": [1, {"b": False}]}),
        ("1: x\ntrue: y", {"1": "x", "true": "y"}),
        ("010", "010"),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("-1_000", -1000),
        ("s3://bucket/prefix", "s3://bucket/prefix"),
    ],
)  # fmt: skip
def test_plain_yaml_is_read_as_people_mean_it(text: str, value: Any) -> None:
    found = parse_yaml(text, "file")
    assert found == value
    assert repr(found) == repr(value), "the types are part of the value"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dim: ${oc.env:HOME}", r"dim: '\$\{oc\.env:HOME\}' is an interpolation"),
        ("sampling: {'${oc.env:HOME}': 1}", "is an interpolation"),
        ("dim: '${dim}'", "is an interpolation"),
        ("a: &x 1\nb: *x", "a: anchors"),
        ("a: *x", "aliases"),
        (BOMB, "anchors"),
        ("dim: !!python/object/apply:os.system [id]", "the tag 'tag:yaml.org,2002:python/object/apply:os.system'"),
        ("dim: !!int 3", "the tag"),
        ("a: .nan", "no finite number"),
        ("a: -.Inf", "no finite number"),
        ("a: 1e400", "no finite number"),
        ("a: 1\na: 2", "the key a stands there twice"),
        ("[" * 5000, "nested more than 16 deep"),
        ("a: " * 5000, "not valid YAML"),
        ("? [1]\n: 2", "a key is a list"),
        ("a: 1\n---\nb: 2", "several documents"),
        ("a: \x1b[2J", "not valid YAML"),
        ("a: [", "not valid YAML"),
        (b"\xff\xfe\x00", "not valid YAML"),
        ("#" + " " * MAX_BYTES, "at most 262144 are read"),
    ],
)
def test_what_acts_or_explodes_in_yaml_is_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        parse_yaml(text, "file")
    assert str(error.value).startswith("file: ")
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1000


def test_a_secret_of_the_environment_stays_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2P_SECRET", "hunter2")
    (tmp_path / "config.yaml").write_text("text_embedder: ${oc.env:P2P_SECRET}\n")
    with pytest.raises(ValueError, match=r"config\.yaml: text_embedder: .*interpolation") as error:
        load_policy_config(tmp_path / "config.yaml")
    assert "hunter2" not in str(error.value)


def test_a_pipe_or_a_folder_instead_of_a_configuration_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    for name in ("pipe.yaml", "folder.yaml"):
        with pytest.raises(ValueError, match="not a regular file"):
            load_policy_config(tmp_path / name)
    with pytest.raises(ValueError, match=r"absent\.yaml: no such file"):
        load_policy_config(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    "changes",
    [
        *({field.name: 10**9} for field in dataclasses.fields(PolicyConfig) if field.type == "int"),
        {"attention_history": 10**9},
        {"dim": "1024"},
        {"dim": True},
        {"dim": 64.0},
        {"num_layers": float("nan")},
        {"dropout": float("nan")},
        {"text_embedder": "gemma:stranger/model"},
        {"text_embedder": "table.npz"},
        {"text_embedder": "../x"},
        {"text_embedder": "x" * 65},
        {"text_embedder": "\x1b[2J"},
        {"image_encoder": "\x1b[2J" * 1000},
        {"dim": 16384, "num_heads": 8, "num_layers": 256},
        {"num_timesteps": 16384, "attention_history": 0},
        {"num_timesteps": 5000, "attention_history": 5000},
        {"num_timesteps": 2000, "num_layers": 20, "attention_history": tuple(range(1980, 2000))},
        {"dim": 8192, "num_layers": 100, "num_timesteps": 1000, "attention_history": 1000},
        {"frame_height": 2048, "frame_width": 2048},
        {"frame_height": 2048, "frame_width": 2048, "num_image_tokens": 64, "num_timesteps": 2, "attention_history": 2},
    ],
)
def test_a_configuration_beyond_all_measure_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="policy") as error:
        PolicyConfig(**changes)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    "changes",
    [{"temperature": v} for v in (float("nan"), float("inf"), -1.0, "1")]
    + [{"top_p": v} for v in (float("nan"), 0, 2)],
)
def test_a_sampling_that_cannot_be_drawn_from_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"sampling\.(temperature|top_p) is"):
        SamplingConfig(**changes)


def test_the_released_sizes_and_eight_times_their_reach_pass() -> None:
    for dim, num_layers in ((1024, 10), (1024, 20), (2048, 9), (2048, 22)):
        PolicyConfig(dim=dim, num_layers=num_layers)
        PolicyConfig(dim=dim, num_layers=num_layers, num_timesteps=1600, attention_history=1600)
    PolicyConfig(dim=8192, num_layers=40, num_heads=64)


def test_a_configuration_survives_being_written_and_read(tmp_path: Path) -> None:
    config = PolicyConfig(
        dim=64, num_layers=2, num_heads=4, attention_history=(1, 2), dropout=1e-7, text_embedder="1e-4",
        sampling=SamplingConfig(temperature=0.0, top_p=0.5, greedy=True),
    )  # fmt: skip
    save_policy_config(config, tmp_path / "config.yaml")
    assert load_policy_config(tmp_path / "config.yaml") == config


LARGEST = """
import resource, time
import torch
from p2p.config import PolicyConfig
from p2p.model.policy import Policy
with torch.device("meta"):
    Policy(PolicyConfig(dim=64, num_layers=2, num_heads=4))
    peak, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    Policy(PolicyConfig(dim=2048, num_layers=256, decoder_num_layers=64, num_timesteps=50, attention_history=50))
print(time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak)
"""


def test_the_largest_configuration_is_built_for_checking_in_a_moment_and_without_memory() -> None:
    result = subprocess.run([sys.executable, "-c", LARGEST], capture_output=True, text=True, check=True, timeout=120)
    seconds, kib = map(float, result.stdout.split())
    assert seconds < 10
    assert kib < 200 << 10
