"""A stranger's Parquet file, read with bounds: of the file, of what it unpacks to, of rows, lists and texts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from p2p import gate

if TYPE_CHECKING:
    import pyarrow.parquet

_MAX_THRIFT = 1 << 20  # entries of a list and bytes of a text in the file's own description


@dataclass(frozen=True)
class Bounds:
    """The most that a file may have: bytes, bytes when it is unpacked, and rows."""

    file_bytes: int
    unpacked_bytes: int
    rows: int


class Parquet:
    """An open file, whose own description keeps to the bounds."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._opened = self._open()
        self.names: list[str] = list(self._opened.schema_arrow.names)
        self.schema = self._opened.schema_arrow

    def _open(self, **options: Any) -> pyarrow.parquet.ParquetFile:
        import pyarrow.parquet

        self._file.seek(0)
        limits = {"thrift_string_size_limit": _MAX_THRIFT, "thrift_container_size_limit": _MAX_THRIFT}
        return pyarrow.parquet.ParquetFile(self._file, **limits, **options)

    def check(self, bounds: Bounds) -> None:
        """Raises Refused for more rows, or more bytes unpacked."""
        description = self._opened.metadata
        groups = [description.row_group(number) for number in range(description.num_row_groups)]
        if max([description.num_rows, *(group.num_rows for group in groups)]) > bounds.rows:
            raise gate.Refused(f"it has {description.num_rows} rows; expected at most {bounds.rows}")
        unpacked = sum(group.total_byte_size for group in groups)
        if not 0 <= unpacked <= bounds.unpacked_bytes:
            raise gate.Refused(f"it unpacks to {unpacked} bytes; expected at most {bounds.unpacked_bytes}")

    def batches(self, columns: Sequence[str], num_rows: int, share: bool = False) -> Iterator[pyarrow.RecordBatch]:
        """Some rows at a time, of these columns alone. `share`: a text that many rows have is held once."""
        opened = self._open(read_dictionary=list(columns)) if share else self._opened
        yield from opened.iter_batches(num_rows, columns=list(columns))

    def rows(self, columns: Sequence[str], where: tuple[str, int] | None = None) -> Iterator[dict[str, Any]]:
        """{column: value} for each row, of these columns alone; `where`: only rows with this value in this column."""
        import pyarrow.compute

        read = [*columns, *([where[0]] if where else [])]
        for batch in self.batches(read, 1 << 12):
            if where:
                batch = batch.filter(pyarrow.compute.equal(batch.column(where[0]), where[1]))
            yield from batch.to_pylist()


@contextlib.contextmanager
def open_parquet(path: Path, bounds: Bounds, what: str = "a Parquet file") -> Iterator[Parquet]:
    """A file within the bounds; `what` it is expected to be stands in errors.

    Raises:
        Refused: when it is none, or too large; also while it is read.
    """
    import pyarrow

    try:
        with gate.open_regular(path) as file:
            try:
                if file.seek(0, 2) > bounds.file_bytes:
                    raise gate.Refused(f"longer than {bounds.file_bytes} bytes, the most that is read of one")
                parquet = Parquet(file)
                parquet.check(bounds)
            except gate.Refused as error:
                raise gate.Refused(f"{path}: {error}; expected {what}") from None
            yield parquet
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's trouble; pyarrow says OSError without a number of a damaged file too
        raise gate.Refused(f"{path}: {gate.shown(str(error), quote=False)}; expected {what}") from error
