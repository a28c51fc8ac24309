"""What can be wrong with stored data, as errors that say what and where."""

from __future__ import annotations


class ShardError(ValueError):
    """A shard or an index that is missing, damaged or out of reach; the message names the file."""
