"""The folders that a recipe names: checked before anything heavy is loaded, and taken for one run alone."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from p2p.files import take
from p2p.recipe import Recipe

INDEX_NAME = "index.json"
LOCK_NAME = ".lock"
RECIPE = "recipe.yaml"


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
        wished = "val" if key.startswith("data.val") else "train"
        inside = [path.parent for part in ("*", "*/*") for path in sorted(Path(place).glob(f"{part}/{INDEX_NAME}"))]
        near = next((folder for folder in inside if wished in folder.relative_to(place).parts), None)
        near = near or next(iter(inside), None)
        advice = f"did you mean {near}?" if near else "make them with p2p-convert"
        raise ValueError(f"{key} is {place!r}: it has no {INDEX_NAME}, so it holds no shards; {advice}")


def take_run(recipe: Recipe) -> list[IO[bytes]]:
    """Locks of the run folder and its checkpoints' folder, held until they are closed or the process ends.

    Both, wherever they lie: one run's checkpoints may be in another run's folder.

    Raises:
        InUse (a ValueError): when another run writes there.
    """
    for folder in (recipe.run_path, recipe.checkpoint_path):
        folder.mkdir(parents=True, exist_ok=True)
    folders = {folder.resolve(): folder for folder in (recipe.run_path, recipe.checkpoint_path)}.values()
    advice = "wait until it has ended, or write another run_folder (or name)"
    return [take(folder / LOCK_NAME, f"run folder {folder}", advice) for folder in folders]
