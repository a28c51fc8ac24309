"""The shard format: its version, the columns of a stored sample, and the index of a stream.

A stream is a folder of MDS shards (the container of mosaicml-streaming) and an `index.json`. One stored sample
is a *segment*: consecutive frames of one recording as H.264 packets that decode without any other segment, the
actions of those frames, and the instructions that reach into them. `index.json` also holds a table of all
recordings, so that a reader knows every chunk of every recording without opening a shard. docs/format.md
describes the bytes. Writer and reader of each part stand side by side in one file of this package, and nobody else
touches them: `segment` (a sample), `shard` (a file of samples), `index`. What a reader lets through is checked.
"""

from p2p.format.columns import (
    COLUMNS,
    FORMAT_NAME,
    FORMAT_VERSION,
    INDEX_FILE,
    MAX_BUTTONS,
    MAX_KEYS,
    MAX_RECORDING_FRAMES,
    SYSTEM,
    UNKNOWN,
    USER,
    Layout,
    version_text,
)
from p2p.format.index import (
    MAX_INDEX_BYTES,
    decode_index,
    encode_index,
    layout_of,
    shard_entry,
)
from p2p.format.packed import compress, decompress
from p2p.format.recordings import RecordingEntry, Recordings, entry_from_json
from p2p.format.segment import Segment, Text, Video, check_segment, decode_segment, encode_segment
from p2p.format.shard import MAX_SHARD_BYTES, content_damage, read_sample, shard_head, split_samples

__all__ = [
    "COLUMNS",
    "FORMAT_NAME",
    "FORMAT_VERSION",
    "INDEX_FILE",
    "MAX_BUTTONS",
    "MAX_INDEX_BYTES",
    "MAX_KEYS",
    "MAX_RECORDING_FRAMES",
    "MAX_SHARD_BYTES",
    "SYSTEM",
    "UNKNOWN",
    "USER",
    "Layout",
    "RecordingEntry",
    "Recordings",
    "Segment",
    "Text",
    "Video",
    "check_segment",
    "compress",
    "content_damage",
    "decode_index",
    "decode_segment",
    "decompress",
    "encode_index",
    "encode_segment",
    "entry_from_json",
    "layout_of",
    "read_sample",
    "shard_entry",
    "shard_head",
    "split_samples",
    "version_text",
]
