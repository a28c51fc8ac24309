"""`p2p-convert sign RAW`: recordings that have no manifest get one, against which a conversion will compare them.

For recordings of others, such as Recap's, before they are copied: H.264 has no checksum, so a video that was damaged on
the way often decodes, to other pictures. What is signed is what lies there now, damaged or not.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from p2p import gate
from p2p.manifest import MANIFEST, write_manifest
from p2p.recording import ANNOTATION_FILE, MANIFEST_KIND
from p2p_convert.segments import video_file
from p2p_convert.sources import find_recordings, wanted_files


def run(arguments: Sequence[str]) -> Iterator[str]:
    """The lines that the command prints.

    Raises:
        ValueError: for a place without recordings; at the end, when some could not be signed.
    """
    parser = argparse.ArgumentParser(
        prog="p2p-convert sign",
        description="Write a manifest (SHA-256 of its files) into each recording that has none, so that a conversion "
        "rejects it when it was damaged on its way. What has one keeps it.",
    )
    parser.add_argument("raw", nargs="+", metavar="RAW", help="folders of recordings")
    for root in parser.parse_args(arguments).raw:
        folders = find_recordings(Path(root))
        if not folders:
            raise ValueError(
                f"{root}: no recording to sign; expected folders with {ANNOTATION_FILE} "
                "(archives and the Hub have checksums of their own)"
            )
        problems = []
        num_signed = 0
        for folder in folders:
            try:
                num_signed += sign(folder)
            except (ValueError, OSError) as error:
                problems.append(gate.printable(str(error)))
        num_before = len(folders) - num_signed - len(problems)
        yield f"{root}: {num_signed:,} recordings signed, {num_before:,} had a {MANIFEST} and keep it"
        yield from (f"  not signed: {problem}" for problem in problems[:20])
        if problems:
            raise ValueError(f"{root}: {len(problems)} recordings not signed, the first: {problems[0]}")


def sign(folder: Path) -> bool:
    """Write the manifest of one recording; False when something of that name lies there already.

    Two processes that sign one recording at the same time write the same.

    Raises:
        ValueError: when it is no whole recording. OSError: when it cannot be read or written.
    """
    if os.path.lexists(folder / MANIFEST):
        return False
    names = wanted_files(folder)
    if ANNOTATION_FILE not in names or video_file(dict.fromkeys(names)) is None:
        raise ValueError(f"{folder}: expected {ANNOTATION_FILE} and a video; found {', '.join(names) or 'neither'}")
    write_manifest(folder, MANIFEST_KIND, names, {})
    return True
