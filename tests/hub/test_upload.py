"""`p2p upload` against a stand-in for the Hub: policies and shards, resumed, read back, and no token in any word."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
import yaml

import p2p as library
from p2p.cli import main
from p2p.config import PolicyConfig
from p2p.model import Policy, save_policy
from p2p.upload import shard_files
from tests.data.making import annotation, video_bytes, write_recording
from tests.hub.stand_in import HubStandIn
from tests.serve.live import TINY

MakeHub = Callable[..., HubStandIn]
MODEL, DATASET = ("models", "somebody/doom-player"), ("datasets", "somebody/doom-shards")
TOKEN = "hf_abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("p2p.hub.transfer.FIRST_PAUSE_S", 0.001)


def make_policy(folder: Path, config: PolicyConfig = TINY) -> Path:
    torch.manual_seed(0)
    return save_policy(Policy(config), folder)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A policy with what a run and `p2p demo` leave beside it."""
    run = tmp_path / "run"
    make_policy(run / "policy")
    recipe = {
        "name": "doom-tiny",
        "max_duration": "600ba",
        "global_batch": 8,
        "optimizer": {"lr": 0.001},
        "data": {"train": "s3://key:secret@bucket/private/train", "val": "/home/me/val"},
        "run_folder": "/home/me/runs",
    }
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    rows = [
        {
            "player": "policy",
            "num_episodes": 20,
            "mean": 2100.0,
            "standard_error": 0.0,
            "lowest": 2100,
            "highest": 2100,
        },
        {
            "player": "shuffled",
            "num_episodes": 20,
            "mean": 1189.2,
            "standard_error": 157.1,
            "lowest": 284,
            "highest": 2100,
        },
    ]
    (run / "play.json").write_text(json.dumps({"game": "doom:health_gathering", "summary": rows, "episodes": []}))
    (run / "evaluation").mkdir()
    estimate = {"value": 0.91, "low": 0.9, "high": 0.92}
    report = {
        "columns": {"policy": {"key_f1": estimate}, "repeat previous": {"key_f1": None}},
        "causality": {"score": 396.0},
    }
    (run / "evaluation" / "report.json").write_text(json.dumps(report))
    return run


def upload(folder: Path, repo: tuple[str, str], *options: str) -> int:
    """Run the command; addresses in answers are understood, as if HF_ENDPOINT had been set before the Hub's import."""
    kind = ["--dataset"] if repo is DATASET else []
    with mock.patch("huggingface_hub.constants.ENDPOINT", os.environ["HF_ENDPOINT"]):
        return main(["upload", str(folder), "--repo", repo[1], *kind, *options])


# ------------------------------------------------------------------ policies


def test_a_policy_comes_back_by_its_name(make_hub: MakeHub, run_folder: Path) -> None:
    hub = make_hub({})
    assert upload(run_folder / "policy", MODEL) == 0
    files = hub.repositories[MODEL]
    assert set(files) == {"README.md", "config.yaml", "model.safetensors", "manifest.json"}
    assert files["model.safetensors"] == (run_folder / "policy" / "model.safetensors").read_bytes()
    assert hub.tokens == {f"Bearer {TOKEN}"}
    back, ours = library.load_policy("hf:somebody/doom-player"), library.load_policy(run_folder / "policy")
    assert back.config == ours.config
    assert all(torch.equal(a, b) for a, b in zip(back.state_dict().values(), ours.state_dict().values(), strict=True))


def test_the_card_says_how_it_was_trained_how_it_plays_and_no_place_or_key(make_hub: MakeHub, run_folder: Path) -> None:
    hub = make_hub({})
    assert upload(run_folder / "policy", MODEL) == 0
    card = hub.repositories[MODEL]["README.md"].decode()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "pixel2play"
    for words in (
        "p2p serve --policy hf:somebody/doom-player",
        "| policy | 20 | 2100 | 0 |",
        "| shuffled | 20 | 1189 |",
    ):
        assert words in card
    for words in ("| optimizer.lr | 0.001 |", "| data.train | train |", "| key\\_f1 | 0.91 | - |", "| score | 396 |"):
        assert words in card
    assert not [word for word in ("secret", "/home", "bucket", str(run_folder)) if word in card]


def test_what_is_there_is_not_sent_again(
    make_hub: MakeHub, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = make_hub({})
    assert upload(run_folder / "policy", MODEL) == 0
    assert "4 of 4 files are new" in capsys.readouterr().out
    sent, commits = len(hub.puts), len(hub.commits)
    assert upload(run_folder / "policy", MODEL) == 0
    assert "0 of 4 files are new" in capsys.readouterr().out
    assert (len(hub.puts), len(hub.commits)) == (sent, commits)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "is no policy folder"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"pickle"), "model.safetensors"),
        (lambda folder: (folder / "config.yaml").write_text("dim: 64\n"), "config.yaml"),
    ],
)
def test_a_policy_that_does_not_load_is_not_published(
    make_hub: MakeHub, tmp_path: Path, damage: Callable[[Path], None], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = make_hub({})
    folder = make_policy(tmp_path / "policy")
    damage(folder)
    assert upload(folder, MODEL) == 2
    assert words in capsys.readouterr().err
    assert hub.repositories == {}


def test_scores_cannot_break_the_card_or_hold_what_are_no_numbers(
    make_hub: MakeHub, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = make_hub({})
    row = {"player": "x | y |\n\n# heading\n<script>", "num_episodes": 1, "mean": 1.0, "lowest": 1, "highest": 1}
    (run_folder / "play.json").write_text(json.dumps({"game": "[g](http://x)", "summary": [row]}))
    assert upload(run_folder / "policy", MODEL) == 0
    card = hub.repositories[MODEL]["README.md"].decode()
    assert "<script>" not in card.replace("\\<", "")
    assert "\n# heading" not in card
    assert "[g]" not in card  # no link
    row["mean"] = "2100"
    (run_folder / "play.json").write_text(json.dumps({"summary": [row]}))
    assert upload(run_folder / "policy", MODEL) == 2
    assert "play.json: mean is '2100'; expected a number" in capsys.readouterr().err
    assert upload(run_folder / "policy", MODEL, "--scores", str(run_folder / "recipe.yaml")) == 2
    assert "recipe.yaml: not a JSON text" in capsys.readouterr().err


def test_a_repository_without_a_policy_is_refused_by_name(make_hub: MakeHub) -> None:
    make_hub({MODEL: {"config.yaml": b"dim: 32\n"}})
    with pytest.raises(ValueError, match=r"somebody/doom-player is no policy: it has no model\.safetensors"):
        library.load_policy("hf:somebody/doom-player")


# ------------------------------------------------------------------ shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from p2p_convert.cli import main as convert

    root = tmp_path_factory.mktemp("shards")
    for number, game in enumerate(("doom", "doom", "minecraft", "minecraft")):
        write_recording(root / "raw" / f"play-{number}", video_bytes(100, seed=number), annotation(100, game=game))
    assert convert([str(root / "raw"), str(root / "out"), "--split", "val=0.3", "--by-game"]) == 0
    return root / "out"


def test_shards_are_published_with_their_indexes_last_and_without_reports(make_hub: MakeHub, shards: Path) -> None:
    hub = make_hub({})
    assert upload(shards, DATASET) == 0
    files = hub.repositories[DATASET]
    assert all(name.endswith((".mds", "index.json", "README.md")) for name in files)
    for name, content in files.items():
        assert name == "README.md" or content == (shards / name).read_bytes()
    assert [all(path.endswith(".mds") for path in commit) for commit in hub.commits] == [True, False]
    card = files["README.md"].decode()
    assert "minecraft" in card
    assert sum(int(row.split("|")[4]) for row in card.splitlines() if row.startswith(("| train", "| val"))) == 400


def test_an_upload_that_was_cut_off_goes_on(
    make_hub: MakeHub, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = make_hub({})
    hub.refuse = lambda method, path: (400, "cut off") if method == "PUT" and len(hub.puts) >= 2 else None
    assert upload(shards, DATASET) == 2
    assert "run the same command again to go on" in capsys.readouterr().err
    assert hub.commits == []
    hub.refuse = lambda method, path: None
    assert upload(shards, DATASET) == 0
    assert len(hub.puts) == len(set(hub.puts))


def test_passing_trouble_of_the_server_is_waited_out(make_hub: MakeHub, shards: Path) -> None:
    hub = make_hub({})
    troubles = iter([(503, "busy"), (429, "slowly"), (500, "oh")])
    hub.refuse = lambda method, path: next(troubles, None) if path.endswith("/commit/main") else None
    assert upload(shards, DATASET) == 0
    assert next(troubles, None) is None


def test_a_damaged_shard_is_named_and_nothing_is_sent(
    make_hub: MakeHub, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    hub = make_hub({})
    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    shard = next(copy.rglob("*.mds"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert upload(copy, DATASET) == 2
    assert f"{shard}: its " in capsys.readouterr().err
    assert hub.repositories == {}
    with pytest.raises(ValueError, match=r"no index\.json below it"):
        list(shard_files(tmp_path / "cache"))


def test_published_shards_are_trained_on_by_their_address(make_hub: MakeHub, shards: Path, tmp_path: Path) -> None:
    hub = make_hub({})
    assert upload(shards, DATASET) == 0
    stream = next(path.parent for path in shards.rglob("index.json")).relative_to(shards)
    code = (
        "import sys; from p2p import GameplayDataset\n"
        "data = GameplayDataset(remote=sys.argv[1], local=sys.argv[2], num_timesteps=16, phase=0, give_up_after_s=2)\n"
        "print(sum(1 for _ in data))\n"
    )
    address = f"hf://datasets/{DATASET[1]}/{stream}"
    command = [sys.executable, "-c", code, address, str(tmp_path / "local")]
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HUB_DISABLE_TELEMETRY": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.split()[-1]) >= 6  # 100 or 200 frames


# ------------------------------------------------------------------ tokens and names


@pytest.mark.parametrize("status", [400, 401, 403, 500])
def test_no_word_holds_the_token_even_if_the_server_repeats_it(
    make_hub: MakeHub,
    run_folder: Path,
    status: int,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub = make_hub({})
    hub.refuse = lambda method, path: (status, f"no such token: {TOKEN}")
    with caplog.at_level(logging.DEBUG, logger="p2p"):
        assert upload(run_folder / "policy", MODEL) == 2
    said = capsys.readouterr()
    assert TOKEN not in said.out + said.err + caplog.text
    assert len(said.err.strip().splitlines()[-1]) < 400
    if status in (401, 403):
        assert "set HF_TOKEN to a token that may write there" in said.err


@pytest.mark.parametrize("name", ["nobody", "a/b/c", "../up/x", "a b/c", "a/b\x1b[2J", ""])
def test_a_name_that_is_none_is_refused(
    make_hub: MakeHub, run_folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make_hub({})
    assert main(["upload", str(run_folder / "policy"), "--repo", name]) == 2
    error = capsys.readouterr().err
    assert "write OWNER/NAME" in error
    assert "\x1b" not in error
