"""What the viewer shows: frames with the actions that followed them, recorded and predicted.

A clip comes from a recording (also the one that a server or a game wrote of a session) or from one chunk of a stream.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from p2p.actions import BUTTON_NAMES, FRAME_RATE_HZ, KEY_NAMES, Action, ActionSpace
from p2p.config import FRAME_SIZE
from p2p.recording import (
    ANNOTATION_FILE,
    SYSTEM,
    TEXT_TOKENIZER,
    UNKNOWN,
    USER,
    VIDEO_FILE,
    executed_action,
    read_annotation,
    read_frames,
)

if TYPE_CHECKING:
    from p2p.model import Policy

SHOWN_SIZE = (FRAME_SIZE, FRAME_SIZE)


@dataclass(frozen=True)
class Clip:
    """n frames uint8 [n, Y, X, 3]; recorded[i] is the action that followed frame i (None: not known), who its maker.

    texts[i]: the instruction in force at frame i, or "". embeddings float32 [n, n_text, D]: what the policy reads.
    predicted[i]: the policy's action, or None without a policy. start: number of the first frame in the recording.
    """

    title: str
    frames: NDArray[np.uint8]
    recorded: Sequence[Action | None]
    who: Sequence[str]
    texts: Sequence[str]
    embeddings: NDArray[np.float32] | None
    start: int
    predicted: Sequence[Action] | None = None
    frame_rate_hz: int = FRAME_RATE_HZ

    def names(self) -> list[str]:
        """Keys, then buttons ("mouse 0"), that anybody holds in this clip, in the order of the action space."""
        actions = [a for a in (*self.recorded, *(self.predicted or ())) if a is not None]
        keys = {key for action in actions for key in action.keys}
        buttons = {button for action in actions for button in action.buttons}
        return [k for k in KEY_NAMES if k in keys] + [f"mouse {b}" for b in BUTTON_NAMES if b in buttons]


def open_clip(source: str, start: int, num_frames: int, policy: Policy | None) -> Clip:
    """The clip that RECORDING, STREAM[:K] or a folder with one recording stands for.

    Raises:
        ValueError: when it is none of them, or the part asked for is empty.
    """
    path, _, chunk = source.rpartition(":")
    if path and re.fullmatch("[0-9]{1,9}", chunk) and not Path(source).exists():
        return _clip_of_stream(path, int(chunk), num_frames, policy)
    if "://" in source:
        return _clip_of_stream(source, 0, num_frames, policy)
    folder = Path(source)
    if (folder / "index.json").is_file():
        return _clip_of_stream(source, 0, num_frames, policy)
    tokenizer = TEXT_TOKENIZER if policy is None else policy.config.text_embedder
    return _clip_of_recording(_recording_folder(folder), start, num_frames, tokenizer)


def _recording_folder(folder: Path) -> Path:
    if folder.name == ANNOTATION_FILE:
        folder = folder.parent
    if (folder / ANNOTATION_FILE).is_file():
        return folder
    inside = sorted(path.parent for path in folder.glob(f"*/{ANNOTATION_FILE}"))
    if len(inside) == 1:
        return inside[0]
    advice = f"name one of its {len(inside)}, such as {inside[0]}" if inside else (
        f"expected a recording ({ANNOTATION_FILE}, {VIDEO_FILE}), a stream (index.json), or STREAM:CHUNK"
    )  # fmt: skip
    raise ValueError(f"{folder}: not one recording; {advice}")


def _clip_of_recording(folder: Path, start: int, num_frames: int, tokenizer: str) -> Clip:
    annotation = read_annotation(folder)
    videos = sorted(folder.glob("*x*.mp4"), key=lambda path: path.name != VIDEO_FILE)
    if not videos:
        raise ValueError(f"{folder}: no video ({VIDEO_FILE})")
    frames = list(itertools.islice(read_frames(videos[0]), start, start + num_frames))
    if not frames:
        raise ValueError(f"{videos[0]}: no frame from number {start} on")
    followed = annotation.frame_annotations[start + 1 : start + 1 + len(frames)]
    made = [executed_action(frame) for frame in followed] + [(None, UNKNOWN)] * (len(frames) - len(followed))
    texts, embeddings = _texts(annotation, start, len(frames), tokenizer)
    game = annotation.metadata.env.env
    return Clip(
        title=f"{folder.name} ({game})" if game else folder.name,
        frames=np.stack(frames),
        recorded=[action for action, _ in made],
        who=[who for _, who in made],
        texts=texts,
        embeddings=embeddings,
        start=start,
    )


def _texts(
    annotation: Any, start: int, num_frames: int, tokenizer: str
) -> tuple[list[str], NDArray[np.float32] | None]:
    """Instruction in force at each frame of the part, and its embeddings where any has one."""
    from p2p.recording import text_spans

    versions = sorted(
        {t.frame_text_annotator.version for f in annotation.frame_annotations for t in f.frame_text_annotation}
    )
    texts: list[str] = [""] * num_frames
    embeddings: NDArray[np.float32] | None = None
    for span in text_spans(annotation, versions, tokenizer):
        first = max(span.index - 1 - start, 0)
        last = min(span.index - 1 - start + span.num_frames, num_frames)
        if first >= last:
            continue
        texts[first:last] = [span.instruction] * (last - first)
        if span.embedding is not None:
            if embeddings is None:
                embeddings = np.zeros((num_frames, *span.embedding.shape), dtype=np.float32)
            if embeddings.shape[1:] == span.embedding.shape:
                embeddings[first:last] = span.embedding
    return texts, embeddings


def _clip_of_stream(place: str, chunk: int, num_frames: int, policy: Policy | None) -> Clip:
    from p2p.config import PolicyConfig
    from p2p.evaluate.stream import open_stream

    config = (
        policy.config if policy is not None else PolicyConfig(num_timesteps=min(num_frames, 200), attention_history=0)
    )
    stream = open_stream(place, config, size=SHOWN_SIZE)
    if chunk >= len(stream.chunks):
        raise ValueError(f"{place}:{chunk}: the stream has {len(stream.chunks)} chunks, numbered from 0")
    sample = stream.tensors(chunk)
    num = int(sample["valid_mask"].sum())
    space = config.action_space
    who = [
        USER if u else SYSTEM if s else UNKNOWN for u, s in zip(sample["user_mask"], sample["system_mask"], strict=True)
    ]
    made = [space.decode(ids) if w != UNKNOWN else None for ids, w in zip(sample["actions"].numpy(), who, strict=True)]
    has_text = sample["text"].abs().sum((1, 2)) > 0
    name = sample["recording"]
    return Clip(
        title=f"{name} ({stream.games.get(name, '')}), chunk {chunk}",
        frames=sample["frames"][:num].permute(0, 2, 3, 1).numpy(),
        recorded=made[:num],
        who=who[:num],
        texts=["(an instruction)" if told else "" for told in has_text[:num]],
        embeddings=sample["text"][:num].numpy(),
        start=int(sample["start"]),
    )


# ------------------------------------------------------------------ the policy's side


def with_predictions(clip: Clip, policy: Policy, free_running: bool, seed: int = 0) -> Clip:
    """The clip with the policy's actions: after the recorded past (the most likely ones), or after its own."""
    import torch

    from p2p.evaluate.free_running import free_running_ids
    from p2p.evaluate.scoring import predict_steps

    config, space = policy.config, policy.config.action_space
    frames, text, actions = _policy_inputs(clip, policy)
    generator = torch.Generator().manual_seed(seed)
    rows: list[NDArray[np.int64]] = []
    for begin in range(0, len(frames), config.num_timesteps):
        part = slice(begin, begin + config.num_timesteps)
        batch = {"frames": frames[None, part], "text": text[None, part], "actions": actions[None, part]}
        if free_running:
            ids = free_running_ids(policy, batch["frames"], batch["text"], config.sampling, generator)
        else:
            ids = predict_steps(policy, batch).ids
        rows.extend(ids[0].numpy())
    return replace(clip, predicted=[space.decode(row) for row in rows])


def _policy_inputs(clip: Clip, policy: Policy) -> tuple[Any, Any, Any]:
    """Frames uint8 [n, 3, Y, X] of the policy's size, text [n, n_text, D], recorded actions [n, A]."""
    import torch

    from p2p.data.resize import resize

    config = policy.config
    height, width = config.frame_height, config.frame_width
    resized = np.stack([resize(frame, height, width) for frame in clip.frames])
    text = np.zeros((len(clip.frames), config.num_text_tokens, config.text_dim), dtype=np.float32)
    if clip.embeddings is not None and clip.embeddings.shape[1:] == text.shape[1:]:
        text = clip.embeddings
    ids = np.stack([_encode(action, config.action_space) for action in clip.recorded])
    return torch.from_numpy(resized).permute(0, 3, 1, 2), torch.from_numpy(text), torch.from_numpy(ids)


def _encode(action: Action | None, space: ActionSpace) -> NDArray[np.int64]:
    return space.nothing if action is None else space.encode_action(action)
