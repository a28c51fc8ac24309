"""A chunk out of the segments that it touches: frames, actions, masks and texts, padded to T."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from p2p.actions import ActionSpace, mouse_x_bins, mouse_y_bins
from p2p.data.video import SegmentDecoder
from p2p.format import SYSTEM, USER, RecordingEntry, Segment, Text


@dataclass(frozen=True)
class TextOptions:
    """Whose instructions count, which of their embeddings, and whether they reach into later chunks."""

    versions: tuple[str, ...]
    tokenizer: str
    num_tokens: int
    dim: int
    carry: bool


class ChunkReader:
    """Makes samples of T steps."""

    def __init__(self, num_timesteps: int, size: tuple[int, int], space: ActionSpace, text: TextOptions) -> None:
        self.num_timesteps = num_timesteps
        self.size = size
        self.space = space
        self.text = text

    def read(
        self, recording: RecordingEntry, start: int, segments: Sequence[Segment], decoder: SegmentDecoder
    ) -> dict[str, Any]:
        """The sample of the chunk at `start`; `segments` hold its frames, in order.

        Raises:
            ValueError: when the segments do not hold it, or an embedding has another shape than asked for.
        """
        n, T = recording.num_frames, self.num_timesteps
        num_rows = min(T, n - start)  # rows of frames of their own; the last frame fills up the rest
        pictures = np.empty((T, 3, *self.size), np.uint8)
        actions = np.tile(self.space.nothing, (T, 1))
        taken = np.zeros(T, np.uint8)
        for segment, rows, frames in _parts(segments, start, num_rows):
            decoder.rgb_planes(segment, frames.start, frames.stop, pictures[rows])
            actions[rows] = self._actions(segment, frames)
            taken[rows] = segment.taken[frames]
        pictures[num_rows:] = pictures[num_rows - 1]
        return {
            "frames": torch.from_numpy(pictures),
            "actions": torch.from_numpy(actions),
            "user_mask": torch.from_numpy(taken == USER),
            "system_mask": torch.from_numpy(taken == SYSTEM),
            "valid_mask": torch.from_numpy(np.arange(T) < n - 1 - start),
            "text": torch.from_numpy(self._texts(recording.id, segments, start)),
            "recording": recording.id,
            "start": start,
        }

    def _actions(self, segment: Segment, frames: slice) -> NDArray[np.int64]:
        motion = segment.mouse_px[frames]
        columns = (
            segment.keys[frames, : self.space.max_keys],
            segment.buttons[frames, : self.space.max_mouse_buttons],
            mouse_x_bins(motion[:, 0])[:, None],
            mouse_y_bins(motion[:, 1])[:, None],
        )
        return np.concatenate(columns, axis=1, dtype=np.int64)

    def _texts(self, recording: str, segments: Sequence[Segment], start: int) -> NDArray[np.float32]:
        T, options = self.num_timesteps, self.text
        out = np.zeros((T, options.num_tokens, options.dim), np.float32)
        for text in _chosen(segments, options.versions):
            if text.frame < start and not options.carry:
                continue
            embedding = text.embeddings.get(options.tokenizer)
            begin, end = max(0, text.frame - start), min(T, text.frame - start + text.num_rows)
            if embedding is None or begin >= end:
                continue
            if embedding.shape != out.shape[1:]:
                raise ValueError(
                    f"recording {recording}, text at frame {text.frame}: its {options.tokenizer} embedding has shape "
                    f"{list(embedding.shape)}, expected {list(out.shape[1:])} (num_text_tokens, text_dim)"
                )
            out[begin:end] = embedding
        return out


def _parts(segments: Sequence[Segment], start: int, num_rows: int) -> Iterator[tuple[Segment, slice, slice]]:
    """(segment, rows of the chunk, frames of the segment) for each segment."""
    for segment in segments:
        begin = max(start, segment.first_frame)
        end = min(start + num_rows, segment.first_frame + segment.num_frames)
        yield (
            segment,
            slice(begin - start, end - start),
            slice(begin - segment.first_frame, end - segment.first_frame),
        )


def _chosen(segments: Sequence[Segment], versions: tuple[str, ...]) -> Iterator[Text]:
    """Of each frame the first instruction of a version that counts, in the order of frames.

    An instruction that reaches into the next segment stands in both; it counts once.
    """
    latest = -1
    for segment in segments:
        for text in segment.texts:
            if text.version in versions and text.frame > latest:
                latest = text.frame
                yield text
