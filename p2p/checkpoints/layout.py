"""Which tensors a checkpoint of torch.distributed.checkpoint holds, and where: `.metadata`, read as data.

torch writes that file as a pickle, and unpickling can run anything. Here the few instructions that a checkpoint's
metadata consists of build inert records, whatever they name, and the records are checked against what a checkpoint of
this project looks like. No class is looked up, no function called.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from p2p import gate

METADATA = ".metadata"
MODEL = "state.model."  # what the names of the weights begin with, and those of their average
AVERAGE = "state.callbacks.WeightAverage.average."
MAX_BYTES = 256 << 20
_MAX_EXTENT = 1 << 48
_MAX_DIMENSIONS = 16
_MODULE = "torch.distributed.checkpoint.metadata"
_STORAGE_MODULE = "torch.distributed.checkpoint.filesystem"
_ITEM_BYTES = {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2, "bfloat16": 2, "int16": 2}
_ITEM_BYTES |= {"int8": 1, "uint8": 1, "bool": 1}

Extents = tuple[int, ...]


@dataclass(frozen=True)
class Piece:
    """A block of a tensor and its bytes: `num_bytes` from `start` on in the file `file`."""

    offsets: Extents
    sizes: Extents
    file: str
    start: int
    num_bytes: int


@dataclass(frozen=True)
class Entry:
    """A tensor (`dtype` by name, its pieces cover it exactly), or a value that is none (`dtype` is None, one piece).

    `path` are the keys that lead to it in the nested state.
    """

    path: tuple[str | int, ...]
    dtype: str | None
    size: Extents
    pieces: tuple[Piece, ...]


Layout = Mapping[str, Entry]


def read_layout(folder: Path) -> Layout:
    """What a checkpoint folder says that it holds, by flattened name; each file it needs is there, and long enough.

    Raises:
        Refused (a ValueError): when the metadata is not that of a checkpoint, or does not fit the files.
        OSError: when it cannot be read.
    """
    where = str(folder / METADATA)
    layout = parse_layout(gate.read_regular(folder / METADATA, MAX_BYTES), where)
    for name, size in needed_bytes(layout).items():
        path = folder / name
        if not path.is_file():
            raise gate.Refused(f"{name} is missing" if not path.exists() else f"{name} is not a regular file")
        if path.stat().st_size < size:
            raise gate.Refused(f"{name} is truncated")
    return layout


def needed_bytes(layout: Layout) -> dict[str, int]:
    """The data files that a checkpoint consists of, and how long each must be at least."""
    needed: dict[str, int] = {}
    for entry in layout.values():
        for piece in entry.pieces:
            needed[piece.file] = max(needed.get(piece.file, 0), piece.start + piece.num_bytes)
    return needed


def parse_layout(data: bytes, where: str) -> Layout:
    """As `read_layout`, from the bytes of a `.metadata`.

    Raises:
        Refused: naming what does not belong there.
    """
    try:
        top = _state(_run(data), _MODULE, "Metadata")
        stored = gate.mapping(top.get("state_dict_metadata"), "state_dict_metadata")
        paths = gate.mapping(top.get("planner_data"), "planner_data")
        places = _places(gate.mapping(top.get("storage_data"), "storage_data"))
        layout = {name: _entry(name, made, paths.get(name), places) for name, made in stored.items()}
        _check_bytes(layout)
        return layout
    except gate.Refused as error:
        raise gate.Refused(f"{where}: not the metadata of a checkpoint: {error}") from None


# ------------------------------------------------------------------ records to layout


def _entry(name: Any, made: Any, path: Any, places: Mapping[tuple[str, Extents | None], tuple[str, int, int]]) -> Entry:
    where = gate.shown(gate.text(name, "an entry's name", 10_000))
    if not isinstance(path, tuple) or not all(type(part) in (str, int) for part in path):
        raise gate.Refused(f"{where} has no path")
    if _is(made, _MODULE, "BytesStorageMetadata"):
        return Entry(path, None, (), (Piece((), (), *_place(places, name, None)),))
    values = _state(made, _MODULE, "TensorStorageMetadata")
    properties = _made(values.get("properties"), _MODULE, "TensorProperties").state
    dtype = properties[0] if isinstance(properties, tuple) and properties else None
    if not isinstance(dtype, _Name) or dtype.module != "torch" or dtype.name not in _ITEM_BYTES:
        raise gate.Refused(f"{where} is of no known type")
    size = _extents(values.get("size"), where)
    chunks = [_state(c, _MODULE, "ChunkStorageMetadata") for c in gate.sequence(values.get("chunks"), where, 1 << 20)]
    pieces = []
    for chunk in chunks:
        offsets = _extents(chunk.get("offsets"), where)
        pieces.append(Piece(offsets, _extents(chunk.get("sizes"), where), *_place(places, name, offsets)))
    _check_cover(size, pieces, where)
    return Entry(path, dtype.name, size, tuple(pieces))


def _check_cover(size: Extents, pieces: list[Piece], where: str) -> None:
    """Pieces are slices along the first dimension; together they are the tensor, without gap or overlap."""
    end = 0
    for piece in sorted(pieces, key=lambda piece: (piece.offsets, piece.sizes)):
        if len(piece.sizes) != len(size) or len(piece.offsets) != len(size):
            raise gate.Refused(f"{where} has pieces of other dimensions")
        if size and piece.sizes[0] == 0:
            continue
        first = piece.offsets[0] if size else 0
        if first != end or any(piece.offsets[1:]) or piece.sizes[1:] != size[1:]:
            raise gate.Refused(f"{where} has pieces that do not fit together")
        end += piece.sizes[0] if size else 1
    if end != (size[0] if size else 1) and 0 not in size:
        raise gate.Refused(f"{where} is not complete")


def _check_bytes(layout: Layout) -> None:
    """Each piece has bytes of its own, and enough of them: what is read is not larger than the files."""
    taken: dict[str, list[tuple[int, int]]] = {}
    for name, entry in layout.items():
        for piece in entry.pieces:
            taken.setdefault(piece.file, []).append((piece.start, piece.num_bytes))
            least = math.prod(piece.sizes) * _ITEM_BYTES[entry.dtype] if entry.dtype else 0
            if piece.num_bytes < least:
                raise gate.Refused(f"{gate.shown(name)} has {piece.num_bytes} bytes for {list(piece.sizes)}")
    for ranges in taken.values():
        ranges.sort()
        for (start, length), (following, _) in pairwise(ranges):
            if start + length > following:
                raise gate.Refused("two entries share bytes")


def _places(stored: Mapping[Any, Any]) -> dict[tuple[str, Extents | None], tuple[str, int, int]]:
    """(name, offsets) of each piece to its file, start and length."""
    places = {}
    for key, value in stored.items():
        index = _state(key, _MODULE, "MetadataIndex")
        name = gate.text(index.get("fqn"), "an entry's name", 10_000)
        offsets = None if index.get("offset") is None else _extents(index["offset"], gate.shown(name))
        place = _state(value, _STORAGE_MODULE, "_StorageInfo")
        file = gate.plain_name(place.get("relative_path"), gate.shown(name))
        if place.get("transform_descriptors"):
            raise gate.Refused(f"{gate.shown(name)} is stored in a transformed way")
        start = gate.whole_number(place.get("offset"), f"{gate.shown(name)}: its offset", 0, _MAX_EXTENT)
        length = gate.whole_number(place.get("length"), f"{gate.shown(name)}: its length", 0, _MAX_EXTENT)
        places[name, offsets] = (file, start, length)
    return places


def _place(
    places: Mapping[tuple[str, Extents | None], tuple[str, int, int]], name: str, offsets: Extents | None
) -> tuple[str, int, int]:
    if (name, offsets) not in places:
        raise gate.Refused(f"{gate.shown(name)} is stored nowhere")
    return places[name, offsets]


def _extents(value: Any, where: str) -> Extents:
    """The numbers of a torch.Size."""
    arguments = _made(value, "torch", "Size").arguments
    numbers = arguments[0] if len(arguments) == 1 else None
    if not isinstance(numbers, tuple) or len(numbers) > _MAX_DIMENSIONS:
        raise gate.Refused(f"{where} has no size")
    return tuple(gate.whole_number(number, f"{where}: an extent", 0, _MAX_EXTENT) for number in numbers)


# ------------------------------------------------------------------ instructions to records


@dataclass(frozen=True)
class _Name:
    """A class or function that the file names; nothing is looked up."""

    module: str
    name: str


class _Made:
    """What the file asks to be made of `what` with these arguments, and the state that it asks to be set."""

    def __init__(self, what: _Name, arguments: tuple[Any, ...]) -> None:
        self.what, self.arguments = what, arguments
        self.state: Any = None


def _is(value: Any, module: str, name: str) -> bool:
    return isinstance(value, _Made) and value.what == _Name(module, name)


def _made(value: Any, module: str, name: str) -> _Made:
    if not isinstance(value, _Made) or not _is(value, module, name):
        found = f"{value.what.module}.{value.what.name}" if isinstance(value, _Made) else f"a {type(value).__name__}"
        raise gate.Refused(f"{gate.shown(found, quote=False)} where {name} was expected")
    return value


def _state(value: Any, module: str, name: str) -> dict[str, Any]:
    return gate.mapping(_made(value, module, name).state or {}, name)


class _Machine:
    """The stack machine of the pickle format, cut down to what builds containers, numbers, texts and records."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marked.pop()
        return items

    def mark(self, _: Any) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def put(self, number: int) -> None:
        self.memo[number] = self.stack[-1]

    def get(self, number: int) -> None:
        self.push(self.memo[number])

    def tuple(self, length: int) -> None:
        items = [self.stack.pop() for _ in range(length)]
        self.push(tuple(reversed(items)))

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise gate.Refused("appends to what is no list")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        keys = items[::2]
        if not isinstance(target, dict) or len(items) % 2 or not all(isinstance(key, str | _Made) for key in keys):
            raise gate.Refused("sets items that no mapping of a checkpoint has")
        target.update(zip(keys, items[1::2], strict=True))

    def name(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise gate.Refused("names a class by what is no text")
        self.push(_Name(module, name))

    def make(self, _: Any) -> None:
        arguments, what = self.stack.pop(), self.stack.pop()
        if not isinstance(arguments, tuple) or not isinstance(what, _Name):
            raise gate.Refused("makes something of what is no class")
        self.push(_Made(what, arguments))

    def build(self, _: Any) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], _Made):
            raise gate.Refused("sets the state of what has none")
        self.stack[-1].state = state


_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "MARK": _Machine.mark,
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1"), _Machine.push),
    **dict.fromkeys(("SHORT_BINUNICODE", "BINUNICODE"), _Machine.push),
    "MEMOIZE": _Machine.memoize,
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.get),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "TUPLE1": lambda machine, _: machine.tuple(1),
    "TUPLE2": lambda machine, _: machine.tuple(2),
    "TUPLE3": lambda machine, _: machine.tuple(3),
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.set_items([machine.stack.pop(-2), machine.stack.pop()]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    "STACK_GLOBAL": _Machine.name,
    **dict.fromkeys(("NEWOBJ", "REDUCE"), _Machine.make),
    "BUILD": _Machine.build,
}


def _run(data: bytes) -> Any:
    """The one record that the instructions build.

    Raises:
        Refused: for an instruction that a checkpoint does not need, or a broken one.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return machine.stack.pop()
            instruction = _INSTRUCTIONS.get(opcode.name)
            if instruction is None:
                raise gate.Refused(f"an instruction {opcode.name}, which none needs")
            instruction(machine, argument)
    except (IndexError, KeyError):
        _broken("it uses what it has not built")
    except gate.Refused:
        raise
    except ValueError as error:
        _broken(gate.shown(str(error), quote=False))
    _broken("it has no end")


def _broken(reason: str) -> NoReturn:
    raise gate.Refused(f"a broken pickle ({reason})") from None
