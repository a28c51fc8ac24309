"""YAML as plain data: mappings, lists, text, numbers, true, false, null, and nothing that acts.

Configurations and recipes come from strangers. Of YAML's powers only those are read that such a file needs: no tags
(they make objects), no anchors and aliases (nine lines of them make gigabytes), no interpolations such as
${oc.env:NAME} (they would put this machine's environment into what is shown, uploaded or written).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml

from p2p import gate

MAX_BYTES = 1 << 18  # a recipe or a configuration has one or two thousand
_MAX_DEPTH = 16
_MAX_DIGITS = 30
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_NULL = {"", "~", "null", "Null", "NULL"}
_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_BOOL = {spelt: value for word, value in _WORDS.items() for spelt in (word, word.capitalize(), word.upper())}
_INT = re.compile(rf"[-+]?(0|[1-9][0-9_]{{0,{_MAX_DIGITS}}})")
_FLOAT = re.compile(r"[-+]?((0|[1-9][0-9_]*)(\.[0-9_]*)?|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def parse_yaml(data: bytes | str, where: str) -> Any:
    """The value of a YAML text; keys of mappings are text, whatever they look like.

    Raises:
        Refused (a ValueError): when it is too long, not UTF-8, not YAML, nested without end, holds a key twice, a
            number that is none, or something of what the file's docstring excludes. The message has one line.
    """
    if len(data) > MAX_BYTES:
        raise gate.Refused(f"{where}: {len(data)} bytes of YAML; at most {MAX_BYTES} are read")
    try:
        text = data if isinstance(data, str) else data.decode()
        return _Reader(yaml.parse(text, Loader=_LOADER), where).document()
    except UnicodeError as error:
        raise gate.Refused(f"{where}: not valid YAML: {error}") from error
    except yaml.YAMLError as error:
        raise gate.Refused(
            f"{where}: not valid YAML: {gate.shown(' '.join(str(error).split()), quote=False)}"
        ) from error


class _Reader:
    """Makes values of the events of a parser; nothing of YAML's constructors runs."""

    def __init__(self, events: Iterator[yaml.Event], where: str) -> None:
        self._events = events
        self._where = where

    def document(self) -> Any:
        next(self._events)  # the stream begins
        if isinstance(next(self._events), yaml.StreamEndEvent):
            return None
        value = self._value(self._next(""), "", 0)
        next(self._events)  # the document ends
        if not isinstance(next(self._events), yaml.StreamEndEvent):
            raise gate.Refused(f"{self._where}: holds several documents (---); expected one")
        return value

    def _next(self, key: str) -> yaml.Event:
        """The next event, when it is one of plain data; `key` says where we are."""
        event = next(self._events)
        place = f"{self._where}: {key}" if key else self._where
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise gate.Refused(f"{place}: anchors (&) and aliases (*) are not read; write the value out")
        if isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)) and event.tag is not None:
            raise gate.Refused(f"{place}: the tag {gate.shown(event.tag)} is not read; write a plain value")
        return event

    def _value(self, event: yaml.Event, key: str, depth: int) -> Any:
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event, key)
        if depth == _MAX_DEPTH:
            raise gate.Refused(f"{self._where}: nested more than {_MAX_DEPTH} deep")
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(key, depth)
        return self._mapping(key, depth)

    def _sequence(self, key: str, depth: int) -> list[Any]:
        values: list[Any] = []
        while not isinstance(event := self._next(key), yaml.SequenceEndEvent):
            values.append(self._value(event, f"{key}[{len(values)}]", depth + 1))
        return values

    def _mapping(self, key: str, depth: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while not isinstance(event := self._next(key), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise gate.Refused(f"{self._where}: {key or 'the file'}: a key is a list or a mapping; expected text")
            name = event.value
            inner = gate.shown(f"{key}.{name}" if key else name, quote=False)
            self._refuse_interpolation(name, inner)
            if name in values:
                raise gate.Refused(f"{self._where}: the key {inner} stands there twice")
            values[name] = self._value(self._next(inner), inner, depth + 1)
        return values

    def _scalar(self, event: yaml.ScalarEvent, key: str) -> Any:
        self._refuse_interpolation(event.value, key)
        if event.style:  # quoted, or a block: text as it stands
            return event.value
        try:
            return plain_scalar(event.value)
        except gate.Refused as error:
            raise gate.Refused(f"{self._where}: {key}{': ' if key else ''}{error}") from None

    def _refuse_interpolation(self, text: str, key: str) -> None:
        if "${" in text:
            raise gate.Refused(
                f"{self._where}: {key}{': ' if key else ''}{gate.shown(text)} is an interpolation, and none is read; "
                f'write the value out (a recipe also takes it on the command line: {key or "key"}="$NAME")'
            )


def plain_scalar(text: str) -> Any:
    """What unquoted text stands for: null, true (also yes, on), false (no, off), 8, 1e-4, or itself.

    Raises:
        Refused: for .inf and .nan, and for a number beyond all measure.
    """
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _SPECIAL.fullmatch(text):
        raise gate.Refused(f"{text} is no finite number")
    if _INT.fullmatch(text):
        return _number(int, text)
    if _FLOAT.fullmatch(text):
        return _number(float, text)
    return text


def _number(kind: Callable[[str], int | float], text: str) -> int | float:
    value = kind(text.replace("_", ""))
    if abs(value) > 1e300:
        raise gate.Refused(f"{gate.shown(text)} is no finite number")
    return value
