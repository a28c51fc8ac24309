"""Parquet files of strangers, read with bounds: of the file, of what it unpacks to, of rows, lists and texts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2p import gate
from p2p_convert.budget import MAX_FRAMES

_MAX_BYTES = 1 << 30
_MAX_UNPACKED_BYTES = 1 << 31
_MAX_THRIFT = 1 << 20  # entries of a list and bytes of a text in the file's own description
_ROWS_AT_ONCE = 1 << 12


@dataclass(frozen=True)
class Parquet:
    """An open file: the names of its columns, and its rows."""

    names: list[str]
    _file: Any

    def rows(self, columns: Sequence[str], where: tuple[str, int] | None = None) -> Iterator[dict[str, Any]]:
        """{column: value} for each row, of these columns alone; `where`: only rows with this value in this column."""
        import pyarrow.compute

        read = [*columns, *([where[0]] if where else [])]
        for batch in self._file.iter_batches(_ROWS_AT_ONCE, columns=read):
            if where:
                batch = batch.filter(pyarrow.compute.equal(batch.column(where[0]), where[1]))
            yield from batch.to_pylist()


@contextlib.contextmanager
def open_parquet(path: Path, max_rows: int = MAX_FRAMES) -> Iterator[Parquet]:
    """A Parquet file whose description says that it is of a size to read.

    Raises:
        Refused: when it is none, or too large; also while it is read.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with gate.open_regular(path) as file:
            if file.seek(0, 2) > _MAX_BYTES:
                raise gate.Refused(f"{path}: longer than {_MAX_BYTES} bytes, the most that is read of one")
            file.seek(0)
            limits = {"thrift_string_size_limit": _MAX_THRIFT, "thrift_container_size_limit": _MAX_THRIFT}
            opened = pyarrow.parquet.ParquetFile(file, **limits)
            groups = [opened.metadata.row_group(number) for number in range(opened.metadata.num_row_groups)]
            unpacked = sum(group.total_byte_size for group in groups)
            if max([opened.metadata.num_rows, *(group.num_rows for group in groups)]) > max_rows:
                raise gate.Refused(f"{path} has {opened.metadata.num_rows} rows; expected at most {max_rows}")
            if not 0 <= unpacked <= _MAX_UNPACKED_BYTES:
                raise gate.Refused(f"{path} unpacks to {unpacked} bytes; expected at most {_MAX_UNPACKED_BYTES}")
            yield Parquet(list(opened.schema_arrow.names), opened)
    except pyarrow.ArrowException as error:
        raise gate.Refused(
            f"{path}: no Parquet file that can be read: {gate.shown(str(error), quote=False)}"
        ) from error
    except OSError as error:
        if error.errno is not None:
            raise  # the disk's trouble; pyarrow says OSError without a number of a damaged file too
        raise gate.Refused(f"{path}: damaged: {gate.shown(str(error), quote=False)}") from error
