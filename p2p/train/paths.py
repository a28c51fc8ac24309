"""Checks of the folders that a recipe names, before anything heavy is loaded."""

from __future__ import annotations

from pathlib import Path

from p2p.recipe import Recipe

INDEX_NAME = "index.json"


def check_paths(recipe: Recipe) -> None:
    """Raises ValueError when shards are not named, or a local folder holds none."""
    if not recipe.data.train:
        raise ValueError("data.train is not set: write data.train=FOLDER_OR_URL (shards made by p2p-convert)")
    _check_folder("data.train", recipe.data.train)
    for label, place in recipe.data.val_sets.items():
        _check_folder("data.val" if label == "val" else f"data.val.{label}", place)


def _check_folder(key: str, place: str) -> None:
    if "://" in place:
        return
    if not Path(place).is_dir():
        raise ValueError(f"{key} is {place!r}: no such folder; write {key}=FOLDER, with shards made by p2p-convert")
    if not (Path(place) / INDEX_NAME).is_file():
        raise ValueError(
            f"{key} is {place!r}: it has no {INDEX_NAME}, so it holds no shards; make them with p2p-convert"
        )
