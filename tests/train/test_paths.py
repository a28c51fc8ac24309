"""Where a recipe's shards are not, the error says where they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2p.recipe import DataConfig, Recipe
from p2p.train.paths import check_paths


@pytest.mark.parametrize(
    ("key", "streams", "advice"),
    [
        ("data.train", ("train", "val"), "did you mean OUT/train?"),
        ("data.val", ("train", "val"), "did you mean OUT/val?"),
        ("data.train", ("val/doom", "train/doom"), "did you mean OUT/train/doom?"),
        ("data.train", ("quake",), "did you mean OUT/quake?"),
        ("data.train", (), "make them with p2p-convert"),
    ],
)
def test_the_folder_above_the_shards_is_pointed_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, streams: tuple[str, ...], advice: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for stream in ("good", *(f"OUT/{stream}" for stream in streams)):
        Path(stream).mkdir(parents=True)
        Path(stream, "index.json").touch()
    Path("OUT").mkdir(exist_ok=True)
    places = {"train": "good", "val": "good"} | {key.removeprefix("data."): "OUT"}
    with pytest.raises(ValueError, match=rf"{key} is 'OUT': it has no index.json, so it holds no shards; ") as error:
        check_paths(Recipe(name="r", data=DataConfig(**places)))
    assert str(error.value).endswith(advice)
