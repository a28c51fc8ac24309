"""A .ckpt of the original trainer, or torchvision's weights: a stranger's, so directory and pickle are read first.

`torch.load(weights_only=True)` runs no code, but it believes sizes. Here the zip must be as torch writes it
(stored, nothing overlapping, nothing around it), and the pickle may only build plain values and tensors over the
file's own bytes; so what is loaded is mapped, and takes no memory beyond it.
"""

from __future__ import annotations

import pickletools
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from p2p import gate

MAX_DIRECTORY_BYTES = 16 << 20  # a released file has 200 kB
MAX_PICKLE_BYTES = 16 << 20  # a released file has 300 kB
MAX_OPERATIONS = 1 << 20
MAX_TENSORS = 1 << 16
IMAGE_COPY = "bc_transformer.image_tokenizer."  # a second name of the image tokenizer's tensors, over the same bytes
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64)

_END, _END64, _LOCATOR64 = (struct.Struct(f) for f in ("<4s4H2LH", "<4sQ2H2L4Q", "<4sLQL"))
_CALLED = ("torch._utils _rebuild_tensor_v2", "collections OrderedDict")
_STORAGES = tuple(f"torch {kind}Storage" for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Bool"))
_KEYS = ("BINUNICODE", "BININT", "BININT1", "BININT2")
_VALUES = {"NONE", "NEWTRUE", "NEWFALSE", "BINFLOAT", "LONG1", *_KEYS}
_CONTAINERS = {"EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "MARK"}
_MEMORY = {"BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"}
_IN_PLACE = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD")
_OPERATIONS = {"PROTO", "STOP", "BINPERSID", "GLOBAL", "REDUCE", *_VALUES, *_CONTAINERS, *_MEMORY, *_IN_PLACE}


def load_state_dict(path: Path) -> dict[str, Tensor]:
    """The state_dict of a checkpoint, mapped from the file; nothing else of it is kept.

    Raises:
        ValueError: the file is none that the original's trainer writes; nothing of it was run.
    """
    content = _load_mapped(path, "checkpoint of the original")
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(t, Tensor) for t in state.values()):
        raise gate.Refused(f"{path}: holds no state_dict of tensors; expected a Lightning checkpoint")
    check_tensors_of_file(state, path.stat().st_size, str(path))
    return state


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that holds nothing else, such as torchvision's weights, mapped from it.

    Raises:
        ValueError: as `load_state_dict`.
    """
    tensors = _load_mapped(path, "file of torch weights")
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise gate.Refused(f"{path}: not a file of torch weights: it holds more than tensors with names")
    check_tensors_of_file(tensors, path.stat().st_size, str(path))
    return tensors


def _load_mapped(path: Path, what: str) -> Any:
    """What torch.save wrote, once directory and pickle have passed; `what` it is expected to be stands in errors."""
    try:
        with gate.open_regular(path) as file:
            _check_pickle(_read_pickle(file))
    except FileNotFoundError:
        raise gate.Refused(f"{path}: no such file; expected a {what}") from None
    except (ValueError, zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError) as error:
        reason = gate.shown(str(error), quote=False)
        raise gate.Refused(f"{path}: not a {what}: {reason}. Is the download complete?") from error
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # torch.load raises many kinds for a damaged file; all mean the same here
        first_line = gate.shown((str(error).splitlines() or [""])[0], quote=False)
        raise gate.Refused(
            f"{path}: not a {what} that can be read with weights_only ({type(error).__name__}: {first_line}). "
            "Is the download complete?"
        ) from error


# ------------------------------------------------------------------ the zip


def _read_pickle(file: BinaryIO) -> bytes:
    """The bytes of data.pkl, after the whole directory was checked."""
    size = file.seek(0, 2)
    start, end = _directory(file, size)
    if end - start > MAX_DIRECTORY_BYTES:
        raise gate.Refused(f"its directory has {end - start} bytes; at most {MAX_DIRECTORY_BYTES} are read")
    with zipfile.ZipFile(file) as archive:
        entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
        reached = 0
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
                raise gate.Refused(f"{gate.shown(entry.filename)} is compressed; torch stores its entries as they are")
            if entry.flag_bits & 1 or entry.header_offset < reached:
                raise gate.Refused(f"{gate.shown(entry.filename)} is encrypted, or overlaps another entry")
            reached = entry.header_offset + entry.file_size
        if reached > start or (entries and entries[0].header_offset != 0):
            raise gate.Refused("its entries do not lie before its directory")
        if len({entry.filename for entry in entries}) != len(entries):
            raise gate.Refused("two of its entries have one name")
        pickles = [entry for entry in entries if entry.filename.endswith(".pkl")]
        if len(pickles) != 1 or not pickles[0].filename.endswith("/data.pkl"):
            raise gate.Refused(f"it has {len(pickles)} pickles; expected one, data.pkl")
        if pickles[0].file_size > MAX_PICKLE_BYTES:
            raise gate.Refused(f"data.pkl has {pickles[0].file_size} bytes; at most {MAX_PICKLE_BYTES} are read")
        return archive.read(pickles[0])


def _directory(file: BinaryIO, size: int) -> tuple[int, int]:
    """Where the zip's directory begins and ends; only the layout that all readers understand alike passes.

    Two readers that find different directories would check one pickle and load another.
    """

    def record(form: struct.Struct, end: int) -> tuple[Any, ...]:
        file.seek(max(0, end - form.size))
        data = file.read(form.size)
        return form.unpack(data) if len(data) == form.size else (b"",) * 12

    end = size - _END.size
    signature, _, _, _, _, length, offset, comment = record(_END, size)[:8]
    if signature != b"PK\5\6" or comment:
        raise gate.Refused("it does not end with the directory of a zip file")
    locator = record(_LOCATOR64, end)
    if locator[0] == b"PK\6\7":
        end -= _LOCATOR64.size + _END64.size
        if locator[2] != end:
            raise gate.Refused("the directory of the zip file is not where it says")
        fields = record(_END64, end + _END64.size)
        if fields[0] != b"PK\6\6":
            raise gate.Refused("the directory of the zip file is not where it says")
        length, offset = fields[8], fields[9]
    if offset + length != end:
        raise gate.Refused("the directory of the zip file is not where it says")
    return offset, end


# ------------------------------------------------------------------ the pickle


def _check_pickle(pickled: bytes) -> None:
    """Follow a pickle without running it: plain values, and tensors over the file's storages; nothing else.

    Raises:
        ValueError: it calls or names anything else, has a key that is no text or number, or is too long.
    """
    walk = _Walk()
    for count, (operation, argument, _) in enumerate(pickletools.genops(pickled)):
        if operation.name not in _OPERATIONS:
            raise gate.Refused(f"its pickle uses {operation.name}, which weights do not need (weights_only)")
        if count >= MAX_OPERATIONS:
            raise gate.Refused(f"its pickle has more than {MAX_OPERATIONS} operations")
        walk.step(operation, argument)


class _Walk:
    """The stack of an unpickler, with the name of the operation that made each value instead of the value."""

    def __init__(self) -> None:
        self.stack: list[str] = []
        self.marks: list[int] = []  # where in the stack a MARK stands
        self.memo: dict[Any, str] = {}

    def step(self, operation: pickletools.OpcodeInfo, argument: Any) -> None:
        name = operation.name
        takes_items = pickletools.markobject in operation.stack_before
        num_operands = operation.stack_before.index(pickletools.markobject) if takes_items else len(
            operation.stack_before
        )  # fmt: skip
        if takes_items and not self.marks:
            raise gate.Refused("its pickle is damaged: a mark is missing")
        items_from = self.marks.pop() if takes_items else len(self.stack)
        items = self.stack[items_from + 1 :] if takes_items else []
        floor = self.marks[-1] + 1 if self.marks else 0
        operands = self.stack[max(floor, items_from - num_operands) : items_from]
        if len(operands) < num_operands or (name.endswith("PUT") and len(self.stack) <= floor):
            raise gate.Refused("its pickle is damaged: an operand is missing")
        if name.endswith("PUT"):
            self.memo[argument] = self.stack[-1]
            return
        made = self._made(name, argument, operands, items)
        del self.stack[items_from - num_operands :]
        if name == "MARK":
            self.marks.append(len(self.stack))
        self.stack += [made] * len(operation.stack_after)

    def _made(self, name: str, argument: Any, operands: list[str], items: list[str]) -> str:
        """What an operation leaves on the stack; refuses the ones that weights do not need."""
        if name == "GLOBAL":
            if argument not in (*_CALLED, *_STORAGES):
                raise gate.Refused(f"its pickle names {gate.shown(argument)}, which is not allowed (weights_only)")
            return str(argument)
        if name.endswith("GET"):
            made = self.memo.get(argument, "")
            if made.startswith("TUPLE") or not made:  # a tuple of twice the same, again and again, never ends
                raise gate.Refused("its pickle uses a tuple twice, or what it never made")
            return made
        if name == "REDUCE":
            if operands[0] not in _CALLED or (operands[0] == _CALLED[1] and operands[1] != "EMPTY_TUPLE"):
                raise gate.Refused("its pickle calls something else than the maker of tensors (weights_only)")
            return f"{operands[0]}()"
        if name == "BUILD" and operands[0] != f"{_CALLED[1]}()":
            raise gate.Refused("its pickle sets the state of something else than a dict (weights_only)")
        keys = operands[1:2] if name == "SETITEM" else items[::2] if name == "SETITEMS" else []
        if not all(key in _KEYS for key in keys):
            raise gate.Refused("its pickle has a key that is neither text nor a number")
        return operands[0] if name in _IN_PLACE else name


# ------------------------------------------------------------------ the tensors


def check_tensors_of_file(state: Mapping[str, Tensor], file_bytes: int, where: str) -> None:
    """Names that are text, types that weights have, tensors that lie whole within the file.

    Raises:
        ValueError: naming the first that does not pass.
    """
    if len(state) > MAX_TENSORS:
        raise gate.Refused(f"{where}: {len(state)} tensors; expected at most {MAX_TENSORS}")
    total_bytes = 0
    for name, tensor in state.items():
        gate.plain_name(name, f"{where}, a tensor")
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise gate.Refused(f"{where}: {name} is not a plain, contiguous tensor")
        if tensor.dtype not in DTYPES:
            raise gate.Refused(f"{where}: {name} has the type {tensor.dtype}; expected one of {DTYPES}")
        num_bytes = tensor.numel() * tensor.element_size()
        if tensor.storage_offset() * tensor.element_size() + num_bytes > tensor.untyped_storage().nbytes():
            raise gate.Refused(f"{where}: {name} is larger than what the file holds of it")
        total_bytes += 0 if name.startswith(IMAGE_COPY) else num_bytes
    if total_bytes > file_bytes:
        raise gate.Refused(f"{where}: its tensors lie over one another; they have more bytes than the file")
