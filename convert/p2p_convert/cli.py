"""Raw recordings to shards: `p2p-convert RAW OUT`; `p2p-convert --help` lists the rest."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from p2p import __version__
from p2p.console import ProgressBar, fail, log_to_stderr, note, reader_is_gone, say
from p2p.game_names import load_aliases
from p2p_convert.amend import Amendments
from p2p_convert.decoding import ALL, BYTES_PER_S, DECODE, NONE, SAMPLED, SAMPLED_SHARE
from p2p_convert.plan import Options, Plan, Task
from p2p_convert.run import Summary, convert
from p2p_convert.transcode import parse_encoding

COMMANDS = ("verify", "inspect", "stats", "sign")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status (2 for what the user can mend)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    log_to_stderr(logging.WARNING)
    try:
        if arguments[:1] and arguments[0] in COMMANDS and not Path(arguments[0]).exists():
            return _print(arguments[0], arguments[1:])
        return _convert(arguments)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        return reader_is_gone()
    except (ValueError, OSError) as error:
        return fail(error)
    except KeyboardInterrupt:
        note("p2p: interrupted; run the same command again to go on")
        return 130


def _print(command: str, arguments: Sequence[str]) -> int:
    from p2p_convert import look, sign

    for line in sign.run(arguments) if command == "sign" else look.run(command, arguments):
        say(line)
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a conversion."""
    return _parser().parse_args(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="p2p-convert",
        description="Convert raw recordings into shards.",
        epilog="Before: p2p-convert sign RAW, for what will be copied. "
        "Afterwards: p2p-convert verify OUT, p2p-convert inspect OUT [--sample K], p2p-convert stats OUT.",
    )
    parser.add_argument("--version", action="version", version=f"p2p-convert {__version__}")
    parser.add_argument(
        "raw", nargs="+", metavar="RAW", help="folders of recordings, .tar.gz archives, hf://datasets/OWNER/NAME[/PATH]"
    )
    parser.add_argument("out", metavar="OUT", help="folder or s3://bucket/prefix; gets train/ and val/")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default 1)")
    parser.add_argument(
        "--executor",
        choices=("local", "ray"),
        default="local",
        help="ray: on the cluster at RAY_ADDRESS, all of whose nodes see RAW and OUT",
    )
    parser.add_argument(
        "--split", default="val=0.01", metavar="val=F", help="share of validation recordings (default val=0.01)"
    )
    parser.add_argument(
        "--transcode",
        metavar="gop=N",
        help="encode all videos anew, a keyframe every N frames (gop=20,crf=17): cheaper random access, but lossy",
    )
    parser.add_argument(
        "--decode",
        choices=DECODE,
        default=ALL,
        help="what to decode of each recording before it counts: all (default; damaged pictures are rejected), the "
        "sampled first and two other segments of it, or none (training then finds the damage)",
    )
    parser.add_argument(
        "--join-taps",
        action="store_true",
        help="count a key or button that was pressed and released between two frames as held at the second",
    )
    parser.add_argument(
        "--repair-version-5",
        action="store_true",
        help="in recordings of version 5, give actions of the system the buttons and motion that are kept elsewhere",
    )
    parser.add_argument(
        "--from",
        dest="origin",
        default="",
        metavar="FORMAT",
        help="others' recordings: vpt, owa, lerobot[:VIDEO] or table; raw: ours (default: by what a folder holds)",
    )
    parser.add_argument("--game", default="", help="of others' recordings (default: the format's, or RAW's name)")
    parser.add_argument("--by-game", action="store_true", help="one stream per game, OUT/train/GAME")
    parser.add_argument("--game-names", metavar="FILE", help='more names of games, {"aliases": {"misspelt": "name"}}')
    parser.add_argument(
        "--compression", default="none", metavar="C", help="none (default; packets do not shrink), zstd, zstd:LEVEL"
    )
    parser.add_argument("--shard-mb", type=int, default=64, metavar="MB", help="size of a shard (default 64)")
    parser.add_argument(
        "--max-rejected", type=float, default=0.5, metavar="F", help="fail above this share of bad recordings (0.5)"
    )
    parser.add_argument(
        "--break-lock", action="store_true", help="take an s3:// OUT from a conversion that died without giving it back"
    )
    return parser


def _convert(arguments: list[str]) -> int:
    args = parse(arguments)
    if args.workers < 1:
        raise ValueError(f"--workers {args.workers}: write 1 or more")
    options = Options(
        val_fraction=_split(args.split),
        compression="" if args.compression == "none" else args.compression,
        shard_bytes=args.shard_mb << 20,
        by_game=args.by_game,
        game_aliases=load_aliases(Path(args.game_names) if args.game_names else None),
        encoding=parse_encoding(args.transcode) if args.transcode else None,
        decode=args.decode,
        amend=Amendments(args.join_taps, args.repair_version_5),
        origin=args.origin,
        game=args.game,
    )
    bar = _Bar(args.decode, args.workers)
    begin = time.monotonic()
    try:
        summary = convert(
            args.raw,
            args.out,
            options,
            args.workers,
            args.max_rejected,
            args.executor,
            bar.task_done,
            bar.started,
            args.break_lock,
        )
    finally:
        bar.close()
    _print_summary(summary, args.out.rstrip("/"), time.monotonic() - begin)
    return 0


def _split(text: str) -> float:
    name, _, fraction = text.partition("=")
    try:
        if name == "val":
            return float(fraction)
    except ValueError:
        pass
    raise ValueError(f"--split {text}: write val=F with a fraction F, such as val=0.01")


class _Bar:
    """How far a conversion is, by the bytes of its sources."""

    def __init__(self, decode: str, num_workers: int) -> None:
        self._decode, self._num_workers = decode, num_workers
        self._progress: ProgressBar | None = None
        self._num_bytes = 0

    def started(self, plan: Plan, open_tasks: Sequence[Task]) -> None:
        to_do = sum(task.source.num_bytes for task in open_tasks)
        num_done = len(plan.tasks) - len(open_tasks)
        if num_done:
            note(f"{num_done} of {len(plan.tasks)} tasks were done before: kept")
        if open_tasks:
            note(decoding_time(to_do, self._decode, min(self._num_workers, len(open_tasks))))
            self._progress = ProgressBar("converting", _megabytes(to_do), "MB")

    def task_done(self, task: Task, report: Mapping[str, Any]) -> None:
        self._num_bytes += task.source.num_bytes
        if self._progress is not None:
            self._progress.update(_megabytes(self._num_bytes))

    def close(self) -> None:
        if self._progress is not None:
            self._progress.close()


def _megabytes(num_bytes: int) -> int:
    """Rounded up, so that small sources are seen, too."""
    return -(-num_bytes // 1_000_000)


def decoding_time(num_bytes: int, decode: str, num_workers: int) -> str:
    """One line: how long decoding so many bytes of sources takes at most, and what would take less time."""
    if decode == NONE:
        return "frames are not decoded: damaged ones will show in training"
    share = 1.0 if decode == ALL else SAMPLED_SHARE
    seconds = share * num_bytes / BYTES_PER_S / num_workers
    time_taken = f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{max(1, round(seconds / 60))} min"
    by = "1 process" if num_workers == 1 else f"{num_workers} processes"
    if decode == SAMPLED:
        return f"some frames are decoded: about {time_taken} by {by} (--decode none takes no time)"
    return (
        f"every frame is decoded, about 30 times the work of copying it: at most {time_taken} by {by} "
        "(--decode sampled takes a quarter, --decode none nothing)"
    )


def _print_summary(summary: Summary, out: str, seconds: float) -> None:
    for stream in sorted(summary.recordings):
        say(f"{out}/{stream}: {summary.recordings[stream]:,} recordings, {summary.frames[stream]:,} frames")
    frames = sum(summary.frames.values())
    say(f"{frames:,} frames in {seconds:.1f} s ({frames / max(seconds, 1e-9):,.0f} frames/s)")
    for kind, count in sorted(summary.counts.items(), key=lambda item: -item[1])[:20]:
        say(f"  {count:>8,} x {kind}")
    if summary.rejected:
        say(f"{len(summary.rejected)} recordings rejected, listed in {out}/rejected.jsonl:")
        for reason, count in summary.reasons.most_common():
            say(f"  {count:>8,} x {reason}")
        for verdict in summary.rejected[:10]:
            say(f"    {verdict['where']}: {verdict['reason']}: {verdict['message']}")


if __name__ == "__main__":
    sys.exit(main())
