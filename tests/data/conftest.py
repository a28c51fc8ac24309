"""Datasets for the tests of this folder, and readers of them that stay in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p2p.data import GameplayDataset, collate
from p2p.proto.video_annotation_pb2 import VideoAnnotation
from p2p_convert.plan import Options
from p2p_convert.run import convert
from tests.data.making import SIZE, write_recording

Make = Callable[..., Path]


@pytest.fixture
def make_stream(tmp_path: Path) -> Make:
    """Converts {id: (video bytes, annotation)}; returns the folder of the training stream."""

    def make(
        recordings: dict[str, tuple[bytes | None, VideoAnnotation | bytes | None]], name: str = "out", **options: Any
    ) -> Path:
        for recording, (video, made) in recordings.items():
            write_recording(tmp_path / f"raw_{name}" / recording, video, made)
        convert([tmp_path / f"raw_{name}"], tmp_path / name, Options(**{"val_fraction": 0.0, **options}))
        return tmp_path / name / "train"

    return make


def open_dataset(stream: Path, **options: Any) -> GameplayDataset:
    """A dataset of the small frames and texts that the tests make."""
    return GameplayDataset(
        **{"local": str(stream), "phase": 0, "size": (SIZE, SIZE), "text_dim": 8, "num_timesteps": 10, **options}
    )


def read_all(dataset: GameplayDataset, num_workers: int = 0, batch_size: int = 1) -> list[dict[str, Any]]:
    """All samples of one epoch, through a DataLoader."""
    from torch.utils.data import DataLoader

    loader = DataLoader(
        dataset, batch_size=batch_size, num_workers=num_workers, collate_fn=collate, timeout=60 * bool(num_workers)
    )
    batches = iter(loader)
    samples = []
    try:
        for batch in batches:
            for row in range(len(batch["recording"])):
                sample = {name: values[row] for name, values in batch.items()}
                samples.append({**sample, "start": int(sample["start"])})
    finally:
        if num_workers:  # left to the garbage collector, each worker is waited for up to 5 s
            batches._shutdown_workers()
    return samples
