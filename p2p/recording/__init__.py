"""One raw recording, a folder with annotation.proto and 192x192.mp4: read, written, and made whole after a crash.

Ours have a manifest of both as well (p2p/manifest.py), against which a conversion compares them.
"""

from p2p.recording.annotation import (
    ANNOTATION_FILE,
    MANIFEST_KIND,
    MAX_ANNOTATION_BYTES,
    SYSTEM,
    TEXT_ANNOTATOR,
    TEXT_TOKENIZER,
    UNKNOWN,
    USER,
    VIDEO_FILE,
    TextSpan,
    action_message,
    executed_action,
    parse_annotation,
    read_annotation,
    text_spans,
    write_annotation,
)
from p2p.recording.unfinished import Repaired, discard_unfinished, repair_recordings
from p2p.recording.video import read_frames
from p2p.recording.writer import RecordingWriter

__all__ = [
    "ANNOTATION_FILE",
    "MANIFEST_KIND",
    "MAX_ANNOTATION_BYTES",
    "SYSTEM",
    "TEXT_ANNOTATOR",
    "TEXT_TOKENIZER",
    "UNKNOWN",
    "USER",
    "VIDEO_FILE",
    "RecordingWriter",
    "Repaired",
    "TextSpan",
    "action_message",
    "discard_unfinished",
    "executed_action",
    "parse_annotation",
    "read_annotation",
    "read_frames",
    "repair_recordings",
    "text_spans",
    "write_annotation",
]
