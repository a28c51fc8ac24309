"""Look at what was done and what the policy would do: a video file, or a page that any browser shows.

p2p view RECORDING | STREAM[:K] | SESSION [--policy DIR] [--out view.html|view.mp4]
"""

from __future__ import annotations

import argparse
import base64
import html
import json
import tempfile
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p2p import gate
from p2p.console import say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2p.actions import Action
    from p2p.evaluate.clip import Clip

SUFFIXES = (".html", ".mp4")
DEFAULT_NUM_FRAMES = 1200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="a recording (also of a session), or a stream and a chunk of it: STREAM:K")
    parser.add_argument("--policy", type=Path, help="policy folder, or an original .ckpt: its actions beside")
    parser.add_argument("--free-running", action="store_true", help="the policy follows its own past, sampled")
    parser.add_argument("--out", type=Path, default=Path("view.html"), help="view.html (default) or an .mp4 file")
    parser.add_argument("--start", type=int, default=0, help="first frame of a recording (default 0)")
    parser.add_argument("--frames", type=int, default=DEFAULT_NUM_FRAMES, help="how many (default 1200, one minute)")
    parser.add_argument("--device", default=None, help="cpu or cuda (default: cuda when there is one)")


def run(args: argparse.Namespace) -> int:
    if args.out.suffix not in SUFFIXES:
        raise ValueError(f"--out {args.out}: write a name that ends in {' or '.join(SUFFIXES)}")
    if args.start < 0 or args.frames < 1:
        raise ValueError(f"--start {args.start} --frames {args.frames}: start at 0 or later, show 1 frame or more")
    from p2p.evaluate.clip import open_clip, with_predictions

    policy = None
    if args.policy is not None:
        from p2p.evaluate.policies import open_policy

        policy = open_policy(args.policy, args.device)
    clip = open_clip(args.source, args.start, args.frames, policy)
    if policy is not None:
        clip = with_predictions(clip, policy, args.free_running)
    write_view(clip, args.out)
    say(f"{args.out}: {len(clip.frames)} frames of {gate.printable(clip.title)}")
    return 0


def write_view(clip: Clip, path: Path) -> None:
    """Write the clip as a video with everything drawn on, or as a self-contained page."""
    from p2p.evaluate.drawing import drawn_frames, write_video
    from p2p.evaluate.report import write_text

    if path.suffix == ".mp4":
        write_video(drawn_frames(clip), path, clip.frame_rate_hz)
        return
    with tempfile.TemporaryDirectory(prefix="p2p-view-") as scratch:
        video = Path(scratch) / "clip.mp4"
        write_video(iter(clip.frames), video, clip.frame_rate_hz, crf=16)
        write_text(path, page(clip, video.read_bytes()))


def page(clip: Clip, video: bytes) -> str:
    """The page: the video and the actions inside it, no other file."""
    template = (resources.files("p2p.evaluate") / "page.html").read_text(encoding="utf-8")
    names = clip.names()
    data = {
        "names": names,
        "rate": clip.frame_rate_hz,
        "start": clip.start,
        "who": list(clip.who),
        "texts": list(clip.texts),
        "recorded": _packed(clip.recorded, names),
        "predicted": None if clip.predicted is None else _packed(clip.predicted, names),
    }
    content = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    filled = template.replace("__TITLE__", html.escape(clip.title)).replace("__DATA__", content)
    return filled.replace("__VIDEO__", base64.b64encode(video).decode())


def _packed(actions: Sequence[Action | None], names: list[str]) -> list[Any]:
    """[bits of the names held, dx, dy] per action, null where it is not known."""
    rows: list[Any] = []
    for action in actions:
        if action is None:
            rows.append(None)
            continue
        held = {*action.keys, *(f"mouse {button}" for button in action.buttons)}
        rows.append([sum(1 << i for i, name in enumerate(names) if name in held), action.dx, action.dy])
    return rows
